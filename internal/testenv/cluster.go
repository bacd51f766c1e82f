package testenv

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/rueidis"
)

// ClusterOptions say what a Redis Cluster consists of.
type ClusterOptions struct {
	Primaries int          // zero means three; the slots are spread over them evenly
	Replicas  int          // of each primary
	Empty     int          // more primaries, without slots
	Redis     RedisOptions // of each node
}

const clusterSlots = 16384

// A RedisCluster is a Redis Cluster whose nodes count as failed after three seconds, in
// which a busy machine may keep them.
type RedisCluster struct {
	t     testing.TB
	nodes []*Redis
	ids   map[*Redis]string
}

// StartRedisCluster starts the nodes, forms the cluster and waits until all of them
// agree that it serves.
func StartRedisCluster(t testing.TB, opts ClusterOptions) *RedisCluster {
	t.Helper()
	if opts.Primaries == 0 {
		opts.Primaries = 3
	}
	c := &RedisCluster{t: t, ids: map[*Redis]string{}}
	config := []string{
		"cluster-enabled yes", "cluster-node-timeout 3000", "cluster-replica-validity-factor 0",
		"cluster-allow-replica-migration no", "repl-diskless-sync-delay 0",
	}
	if opts.Redis.Certificates != nil {
		config = append(config, "tls-cluster yes")
	}
	if opts.Redis.Password != "" {
		config = append(config, "masterauth "+opts.Redis.Password)
	}
	config = append(config, opts.Redis.Config...)
	primaries := opts.Primaries + opts.Empty
	buses := make([]int, primaries+opts.Primaries*opts.Replicas)
	for i := range buses {
		buses[i] = FreePort(t)
		node := opts.Redis
		node.Config = append(config[:len(config):len(config)], "cluster-port "+strconv.Itoa(buses[i]))
		r := startRedis(t, node)
		c.nodes = append(c.nodes, r)
		id := r.Must("CLUSTER", "MYID")
		c.ids[r], _ = id.ToString()
	}
	for i, r := range c.nodes[:primaries] {
		r.Must("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		if i < opts.Primaries {
			first, last := i*clusterSlots/opts.Primaries, (i+1)*clusterSlots/opts.Primaries-1
			r.Must("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(last))
		}
	}
	for i, r := range c.nodes {
		for j, other := range c.nodes[:i] {
			r.Must("CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(other.port), strconv.Itoa(buses[j]))
		}
	}
	c.waitNodes(len(c.nodes), 0)
	for i, replica := range c.nodes[primaries:] {
		replica.Must("CLUSTER", "REPLICATE", c.ids[c.nodes[i%opts.Primaries]])
	}
	for _, replica := range c.nodes[primaries:] {
		replica.waitReplicates()
	}
	c.waitNodes(len(c.nodes), len(c.nodes)-primaries)
	c.WaitServing()
	return c
}

// waitNodes waits until every node sees as many nodes and replicas.
func (c *RedisCluster) waitNodes(nodes, replicas int) {
	c.t.Helper()
	for _, r := range c.nodes {
		waitFor(c.t, "the nodes see each other", func() bool {
			text, err := r.Do("CLUSTER", "NODES").ToString()
			return err == nil && strings.Count(text, "\n") == nodes && strings.Count(text, "slave ") == replicas &&
				!strings.Contains(text, "handshake")
		})
	}
}

// WaitServing waits until all nodes that answer say that every slot is served.
func (c *RedisCluster) WaitServing() {
	c.t.Helper()
	waitFor(c.t, "every slot is served", func() bool {
		for _, r := range c.nodes {
			info, err := r.Do("CLUSTER", "INFO").ToString()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384")) {
				return false
			}
		}
		return true
	})
}

// Nodes returns all nodes: first the ones that began as primaries.
func (c *RedisCluster) Nodes() []*Redis { return c.nodes }

// Addresses returns those of all nodes.
func (c *RedisCluster) Addresses() []string { return addressesOf(c.nodes) }

// Slot returns the slot of a key.
func (c *RedisCluster) Slot(key string) int {
	c.t.Helper()
	answer := c.nodes[0].Must("CLUSTER", "KEYSLOT", key)
	slot, err := answer.AsInt64()
	if err != nil {
		c.t.Fatalf("testenv: %v", err)
	}
	return int(slot)
}

// Owner returns the node that says of itself that it serves a slot.
func (c *RedisCluster) Owner(slot int) *Redis {
	c.t.Helper()
	var owner *Redis
	waitFor(c.t, "somebody serves the slot", func() bool {
		for _, r := range c.nodes {
			if slices.Contains(r.ownSlots(), slot) {
				owner = r
				return true
			}
		}
		return false
	})
	return owner
}

// ownSlots returns the slots that a primary says it serves itself.
func (r *Redis) ownSlots() []int {
	text, _ := r.Do("CLUSTER", "NODES").ToString()
	var slots []int
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.Contains(fields[2], "myself") || !strings.Contains(fields[2], "master") {
			continue
		}
		for _, f := range fields[8:] {
			from, to, isRange := strings.Cut(f, "-")
			if !isRange {
				to = from
			}
			first, err1 := strconv.Atoi(from)
			last, err2 := strconv.Atoi(to)
			if err1 != nil || err2 != nil {
				continue // a slot on its way
			}
			for s := first; s <= last; s++ {
				slots = append(slots, s)
			}
		}
	}
	return slots
}

// Migrate moves a slot to another node as operators do, key by key, while it serves.
func (c *RedisCluster) Migrate(slot int, to *Redis) {
	c.t.Helper()
	c.BeginMigration(slot, to)
	for c.MoveKeys(slot, to, 10) {
	}
	c.EndMigration(slot, to)
}

// BeginMigration opens a slot for its way to another node. No key is moved yet.
func (c *RedisCluster) BeginMigration(slot int, to *Redis) {
	c.t.Helper()
	from, number := c.Owner(slot), strconv.Itoa(slot)
	to.Must("CLUSTER", "SETSLOT", number, "IMPORTING", c.ids[from])
	from.Must("CLUSTER", "SETSLOT", number, "MIGRATING", c.ids[to])
}

// MoveKeys moves up to count keys of a slot that is on its way, one after the other, and
// returns false once there are none left.
func (c *RedisCluster) MoveKeys(slot int, to *Redis, count int) bool {
	c.t.Helper()
	from := c.Owner(slot)
	answer := from.Must("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), strconv.Itoa(count))
	keys, err := answer.AsStrSlice()
	if err != nil {
		c.t.Fatalf("testenv: %v", err)
	}
	for _, key := range keys {
		migrate := []string{"MIGRATE", "127.0.0.1", strconv.Itoa(to.port), key, "0", "5000"}
		if to.opts.Password != "" {
			migrate = append(migrate, "AUTH", to.opts.Password)
		}
		from.Must(migrate...)
	}
	return len(keys) > 0
}

// EndMigration gives the slot to the other node, and waits until all know.
func (c *RedisCluster) EndMigration(slot int, to *Redis) {
	c.t.Helper()
	from, number := c.Owner(slot), strconv.Itoa(slot)
	for _, r := range slices.Concat([]*Redis{to, from}, c.nodes) {
		if err := r.Do("CLUSTER", "SETSLOT", number, "NODE", c.ids[to]).Error(); err != nil {
			if _, said := rueidis.IsRedisErr(err); said && r.role() == "master" {
				c.t.Fatalf("testenv: slot %d to %s: %v", slot, to.Addr(), err)
			}
		}
	}
}

// Failover makes a replica the primary of its shard, in good order, and returns it once
// it is.
func (c *RedisCluster) Failover(primary *Redis) *Redis {
	c.t.Helper()
	slots := primary.ownSlots()
	for _, r := range c.nodes {
		text, _ := r.Do("CLUSTER", "NODES").ToString()
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) > 3 && strings.Contains(fields[2], "myself,slave") && fields[3] == c.ids[primary] {
				r.Must("CLUSTER", "FAILOVER")
				waitFor(c.t, "the replica takes over", func() bool {
					return slices.Contains(r.ownSlots(), slots[0]) && primary.role() == "slave"
				})
				return r
			}
		}
	}
	c.t.Fatal("testenv: the primary has no replica")
	return nil
}
