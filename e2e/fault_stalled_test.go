package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// stalledTimeout is what these stories give Redis. A call to the store ends within twice
// that, waiting for its turn included.
const stalledTimeout = time.Second

// slowestAnswer is what an answer may take while the store gives none. The third second is
// for a machine that has other things to do.
const slowestAnswer = 3 * stalledTimeout

// A stall is a store that takes what it is asked and says nothing.
type stall struct {
	name        string
	begin, over func()
}

func startStalling(t *testing.T, more string) (c *cluster, redis *testenv.Redis, stalls []stall) {
	t.Helper()
	redis = testenv.StartRedis(t, testenv.RedisOptions{})
	wire := testenv.StartProxy(t, redis.Addr())
	c = startCluster(t, clusterOptions{store: proxiedStore(wire, stalledTimeout), more: more})
	return c, redis, []stall{
		{"SIGSTOP", redis.Pause, redis.Resume},
		{"a network that swallows", wire.Swallow, wire.Heal},
	}
}

// A-Z2: the store takes every question and answers none. Answers come in time all the
// same, the breakers open, nothing piles up, and when the store is back all is as before.
func TestStalledStore(t *testing.T) {
	c, redis, stalls := startStalling(t, "")
	guests := signInGuests(t, c.url, people)
	for _, stall := range stalls {
		t.Run(stall.name, func(t *testing.T) {
			l := startLoad(t, c.url, guests, http.StatusServiceUnavailable)
			// Many people at once ask for the same few sessions.
			crowd := []*load{l}
			const few = 10
			for range 3 {
				crowd = append(crowd, startLoad(t, c.url, guests[:few], http.StatusServiceUnavailable))
			}
			l.awaitMore(t, http.StatusOK, len(guests))
			quiet := countGoroutines(c)

			began := time.Now()
			stall.begin()
			for _, n := range c.nodes {
				await(t, "the breaker to open", func() bool { return n.breaker("read") == "open" })
			}
			t.Logf("the breakers are open after %v", time.Since(began).Round(10*time.Millisecond))
			l.awaitMore(t, http.StatusServiceUnavailable, 2*len(guests))
			quiet.awaitBack(t)

			over := time.Now()
			stall.over()
			l.recovered(t, over)
			for _, l := range crowd {
				l.stop(t, "the store is stalled")
				if l.slowest > slowestAnswer {
					t.Errorf("an answer took %v", l.slowest)
				}
			}
			checkServed(t, c.url, guests)
			for _, n := range c.nodes {
				await(t, "the breakers to close", func() bool { return n.breaker("read") == "closed" && n.breaker("write") == "closed" })
			}
			quiet.awaitBack(t)
		})
	}
	_ = redis
}

// session.outage_grace: whom a node has in its near cache is served through it all, and the
// answers say that nobody could check. HAProxy finds no node ready meanwhile.
func TestOutageGrace(t *testing.T) {
	c, _, stalls := startStalling(t, "session: {outage_grace: 30s}\n")
	guests := signInGuests(t, c.url, people)
	s := newSender(t)
	for _, n := range c.nodes {
		for _, g := range guests {
			if err := g.isServed(s.mustSend(t, c.at(n, request{url: "/whoami", cookie: g.asCookie(), header: asScript}))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, stall := range stalls {
		t.Run(stall.name, func(t *testing.T) {
			l := startLoad(t, c.url, guests)
			l.awaitMore(t, http.StatusOK, 2*len(guests))
			stall.begin()
			for _, n := range c.nodes {
				await(t, "the breaker to open", func() bool { return n.breaker("read") == "open" })
			}
			for _, n := range c.nodes {
				awaitReady(t, s, n, false)
			}
			await(t, "answers to say that nobody could check", func() bool { return l.unverified() >= 2*len(guests) })
			stall.over()
			for _, n := range c.nodes {
				awaitReady(t, s, n, true)
			}
			await(t, "answers that are checked again", func() bool {
				before := l.unverified()
				l.awaitMore(t, http.StatusOK, len(guests))
				return l.unverified() == before
			})
			l.stop(t, "the store is stalled")
			if l.slowest > slowestAnswer {
				t.Errorf("an answer took %v", l.slowest)
			}
			t.Logf("%d of them said that nobody could check", l.unverified())
		})
	}
}
