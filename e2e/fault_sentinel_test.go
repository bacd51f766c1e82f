package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z1: kill -9 of the primary that sentinels watch over. What its replica had is all
// there afterwards. What it had not is, of all things, the end of some sessions: these the
// nodes end again (docs/stores.md).
func TestSentinelFailover(t *testing.T) {
	redis := testenv.StartSentinel(t, testenv.SentinelOptions{})
	c := startCluster(t, clusterOptions{store: sentinelStore(redis), more: uses})
	guests := signInGuests(t, c.url, people)
	leaving, staying := guests[:6], guests[6:]
	s := newSender(t)
	primary, replica := redis.Servers()[0], redis.Servers()[1]

	l := startLoad(t, c.url, staying, http.StatusServiceUnavailable)
	l.awaitMore(t, http.StatusOK, len(staying))
	awaitReplicated(t, primary)

	// The replica is cut off and does not come back before the primary is dead.
	replica.Pause()
	cut := primary.Must("CLIENT", "KILL", "TYPE", "replica")
	if n, err := cut.AsInt64(); err != nil || n != 1 {
		t.Fatalf("%d replicas were cut off, %v", n, err)
	}
	for i, g := range leaving {
		c.signOut(t, s, c.nodes[c.names()[i%2]], g)
	}
	primary.Kill()
	killed := time.Now()
	replica.Resume()
	redis.WaitFailover(primary)
	t.Logf("the sentinels have a new primary after %v", time.Since(killed).Round(10*time.Millisecond))
	l.recovered(t, killed)
	c.awaitEnded(t, s, leaving)
	t.Logf("what had ended is over again after %v", time.Since(killed).Round(10*time.Millisecond))
	l.awaitMore(t, http.StatusOK, len(staying))
	l.stop(t, "the primary is killed")

	checkServed(t, c.url, staying)
	c.awaitEnded(t, s, leaving)
	again := 0
	for _, n := range c.nodes {
		for _, e := range n.entries() {
			if e["msg"] == "ended sessions again that had ended shortly before the store was lost" {
				again += int(e["sessions"].(float64))
			}
		}
	}
	if again < len(leaving) {
		t.Errorf("the nodes ended %d sessions again, want at least %d", again, len(leaving))
	}

	// The old primary comes back, and has nothing to say.
	l = startLoad(t, c.url, staying)
	primary.Restart()
	l.awaitMore(t, http.StatusOK, 2*len(staying))
	l.stop(t, "the old primary is back")
	c.awaitEnded(t, s, leaving)
	signInGuest(t, c.url, leaving[0].user)
}
