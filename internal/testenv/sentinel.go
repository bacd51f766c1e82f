package testenv

import (
	"fmt"
	"net"
	"strconv"
	"testing"
)

// SentinelOptions say what sentinels watch over.
type SentinelOptions struct {
	Replicas         int          // of the primary; zero means one
	Redis            RedisOptions // of each server; its Certificates are the sentinels', too
	SentinelPassword string       // asked by the sentinels
}

// SentinelMaster is the name under which the sentinels know the primary.
const SentinelMaster = "main"

// A Sentinel is a primary, its replicas and three sentinels that put a replica in its
// place about two seconds after it was last heard of.
type Sentinel struct {
	t         testing.TB
	servers   []*Redis
	sentinels []*Redis
}

// StartSentinel starts them and waits until the sentinels agree on what they see.
func StartSentinel(t testing.TB, opts SentinelOptions) *Sentinel {
	t.Helper()
	opts.Replicas = max(opts.Replicas, 1)
	config := append([]string{"repl-diskless-sync-delay 0", "repl-ping-replica-period 1"}, opts.Redis.Config...)
	if opts.Redis.Password != "" {
		config = append(config, "masterauth "+opts.Redis.Password)
	}
	s := &Sentinel{t: t}
	for i := range 1 + opts.Replicas {
		server := opts.Redis
		server.Config = config
		if i > 0 {
			server.Config = append(config[:len(config):len(config)], "replicaof 127.0.0.1 "+strconv.Itoa(s.servers[0].port))
		}
		s.servers = append(s.servers, startRedis(t, server))
	}
	for _, replica := range s.servers[1:] {
		replica.waitReplicates()
	}

	watch := []string{
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 2", SentinelMaster, s.servers[0].port),
		"sentinel down-after-milliseconds " + SentinelMaster + " 2000",
		"sentinel failover-timeout " + SentinelMaster + " 5000",
	}
	if opts.Redis.Password != "" {
		watch = append(watch, "sentinel auth-pass "+SentinelMaster+" "+opts.Redis.Password)
	}
	if opts.SentinelPassword != "" {
		watch = append(watch, "sentinel sentinel-pass "+opts.SentinelPassword)
	}
	for range 3 {
		s.sentinels = append(s.sentinels, startRedis(t, RedisOptions{
			Password: opts.SentinelPassword, Config: watch, Certificates: opts.Redis.Certificates,
		}, "--sentinel"))
	}
	for _, sentinel := range s.sentinels {
		waitFor(t, "the sentinels see each other and the replicas", func() bool {
			seen, err := sentinel.Do("SENTINEL", "MASTER", SentinelMaster).AsStrMap()
			return err == nil && seen["num-other-sentinels"] == "2" && seen["num-slaves"] == strconv.Itoa(opts.Replicas) && seen["flags"] == "master"
		})
	}
	return s
}

// Addresses returns those of the sentinels.
func (s *Sentinel) Addresses() []string { return addressesOf(s.sentinels) }

// Sentinels returns the sentinels.
func (s *Sentinel) Sentinels() []*Redis { return s.sentinels }

// Servers returns the servers: first the one that began as the primary.
func (s *Sentinel) Servers() []*Redis { return s.servers }

// Primary returns the server that the sentinels name as the primary.
func (s *Sentinel) Primary() *Redis {
	s.t.Helper()
	var primary *Redis
	waitFor(s.t, "a sentinel names the primary", func() bool {
		for _, sentinel := range s.sentinels {
			at, err := sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelMaster).AsStrSlice()
			if err != nil {
				continue
			}
			for _, server := range s.servers {
				if server.Addr() == net.JoinHostPort(at[0], at[1]) {
					primary = server
					return true
				}
			}
		}
		return false
	})
	return primary
}

// WaitFailover waits until another server than old is the primary, and says so itself.
func (s *Sentinel) WaitFailover(old *Redis) *Redis {
	s.t.Helper()
	var primary *Redis
	waitFor(s.t, "the sentinels replace the primary", func() bool {
		primary = s.Primary()
		return primary != old && primary.role() == "master"
	})
	return primary
}

// role returns "master", "slave", or nothing.
func (r *Redis) role() string {
	answer, err := r.Do("ROLE").ToArray()
	if err != nil || len(answer) == 0 {
		return ""
	}
	role, _ := answer[0].ToString()
	return role
}

// waitReplicates waits until a replica has its primary's data, and is told of changes.
func (r *Redis) waitReplicates() {
	r.t.Helper()
	waitFor(r.t, r.Addr()+" replicates", func() bool {
		answer, err := r.Do("ROLE").ToArray()
		if err != nil || len(answer) < 4 {
			return false
		}
		state, _ := answer[3].ToString()
		return state == "connected"
	})
}

func addressesOf(servers []*Redis) []string {
	list := make([]string, len(servers))
	for i, s := range servers {
		list[i] = s.Addr()
	}
	return list
}
