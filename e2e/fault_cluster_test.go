package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z4: the slots of a Redis Cluster move while people are busy, and then a primary is
// killed. One of the nodes reads the store for every request.
func TestRedisClusterReshardAndFailover(t *testing.T) {
	redis := testenv.StartRedisCluster(t, testenv.ClusterOptions{Replicas: 1})
	c := startCluster(t, clusterOptions{
		store: clusterStore(redis), more: uses, logLevel: "debug",
		each: func(name string, o *nodeOptions) {
			if name == "node-b" {
				o.more += "cache: {size_bytes: 0}\n"
			}
		},
	})
	guests := signInGuests(t, c.url, people)
	s := newSender(t)

	l := startLoad(t, c.url, guests, http.StatusServiceUnavailable)
	l.awaitMore(t, http.StatusOK, len(guests))
	primaries := redis.Nodes()[:3]
	for i, g := range guests[:12] {
		handle, _, _ := strings.Cut(g.cookie, ".")
		slot := redis.Slot("{" + handle + "}")
		from, to := redis.Owner(slot), primaries[i%3]
		if to == from {
			to = primaries[(i+1)%3]
		}
		served := func(when string) {
			t.Helper()
			for _, name := range c.names() {
				page := s.mustSend(t, c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
				if err := g.isServed(page); err != nil {
					t.Errorf("%s, at %s: %v", when, name, err)
				}
			}
		}
		redis.BeginMigration(slot, to)
		served("while its slot is open")
		redis.MoveKeys(slot, to, 1)
		served("while its slot is half moved")
		for redis.MoveKeys(slot, to, 10) {
		}
		served("while its slot is empty")
		if i%4 == 0 {
			signInGuest(t, c.url, "alice")
		}
		redis.EndMigration(slot, to)
		served("after its slot has moved")
	}
	l.awaitMore(t, http.StatusOK, len(guests))
	if n := l.count(http.StatusServiceUnavailable); n > 0 {
		t.Errorf("%d answers were 503, and nothing was out of order", n)
	}

	victim := primaries[0]
	awaitReplicated(t, victim)
	victim.Kill()
	killed := time.Now()
	redis.Owner(0) // waits for one that lives
	redis.WaitServing()
	t.Logf("the cluster serves every slot after %v", time.Since(killed).Round(10*time.Millisecond))
	l.recovered(t, killed)
	l.stop(t, "slots move, and a primary is killed")
	checkServed(t, c.url, guests)
	signInGuest(t, c.url, "bob")
	c.checkLogs(t, "CROSSSLOT")
}
