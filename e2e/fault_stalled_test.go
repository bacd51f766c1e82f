package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// stalledTimeout is what these stories give Redis. A call to the store ends within twice
// that, waiting for its turn included.
const stalledTimeout = 2 * time.Second

// checkSlowest fails the test if an answer took longer than it may while the store gives
// none: twice the timeout and something for the way. What the machine itself held answers
// back, as those told that need no store, is nobody's fault.
func checkSlowest(t *testing.T, l *load, p *pulse) {
	t.Helper()
	if most := 3*stalledTimeout + 2*p.slowest(); l.slowest > most {
		t.Errorf("an answer took %v, want at most %v", l.slowest, most)
	}
}

// A pulse asks for what needs no store, over and over again until the test ends.
type pulse struct{ most atomic.Int64 }

func startPulse(t *testing.T, site string) *pulse {
	t.Helper()
	p, s, over := new(pulse), newSender(t), make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
			sent := time.Now()
			_, _ = s.send(request{url: site + "/ping"})
			p.most.Store(max(p.most.Load(), int64(time.Since(sent))))
		}
	})
	t.Cleanup(func() { close(over); done.Wait() })
	return p
}

// slowest returns how long an answer took at most.
func (p *pulse) slowest() time.Duration { return time.Duration(p.most.Load()) }

// A stall is a store that takes what it is asked and says nothing.
type stall struct {
	name        string
	begin, over func()
}

func startStalling(t *testing.T, more string) (*cluster, []stall) {
	t.Helper()
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	wire := testenv.StartProxy(t, redis.Addr())
	c := startCluster(t, clusterOptions{store: proxiedStore(wire, stalledTimeout), more: more})
	return c, []stall{
		{"SIGSTOP", redis.Pause, redis.Resume},
		{"a network that swallows", wire.Swallow, wire.Heal},
	}
}

// A-Z2: the store takes every question and answers none. Answers come in time all the
// same, the breakers open, nothing piles up, and when the store is back all is as before.
func TestStalledStore(t *testing.T) {
	t.Parallel() // it waits, mostly
	c, stalls := startStalling(t, "")
	guests := signInGuests(t, c.url, people)
	for _, stall := range stalls {
		t.Run(stall.name, func(t *testing.T) {
			p := startPulse(t, c.url)
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
				checkSlowest(t, l, p)
			}
			checkServed(t, c.url, guests)
			for _, n := range c.nodes {
				await(t, "the breakers to close", func() bool { return n.breaker("read") == "closed" && n.breaker("write") == "closed" })
			}
			quiet.awaitBack(t)
		})
	}
}

// session.outage_grace: whom a node has in its near cache is served through it all, and the
// answers say that nobody could check. Nodes stay ready for as long.
func TestOutageGrace(t *testing.T) {
	t.Parallel() // it waits, mostly
	c, stalls := startStalling(t, "session: {outage_grace: 5m}\n")
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
			p := startPulse(t, c.url)
			l := startLoad(t, c.url, guests)
			l.awaitMore(t, http.StatusOK, 2*len(guests))
			stall.begin()
			for _, n := range c.nodes {
				await(t, "the breaker to open", func() bool { return n.breaker("read") == "open" })
			}
			for _, n := range c.nodes {
				await(t, "/ready to tell of the grace", func() bool {
					page, err := s.send(request{url: n.url + "/ready"})
					return err == nil && page.Status == http.StatusOK && strings.Contains(page.Body, "in outage grace")
				})
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
			checkSlowest(t, l, p)
			t.Logf("%d of them said that nobody could check", l.unverified())
		})
	}
}

// When the store is back, each node reads each session that somebody asks for once or
// twice, however many ask: there is no thundering herd.
func TestNoHerdAfterOutage(t *testing.T) {
	const (
		few   = 20
		crowd = 4 * workers
		asked = 1000
		// The feed comes back on one connection after the other, and what was read before
		// the last one stood is read again.
		readsEach = 2
		// Health checks read, too: those of HAProxy, and the driver's.
		readsASecond = 20
	)
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	wire := testenv.StartProxy(t, redis.Addr())
	c := startCluster(t, clusterOptions{store: proxiedStore(wire, stalledTimeout)})
	guests := signInGuests(t, c.url, few)
	var loads []*load
	served := func() (n int) {
		for _, l := range loads {
			n += l.count(http.StatusOK)
		}
		return n
	}
	for range crowd / workers {
		loads = append(loads, startLoad(t, c.url, guests, http.StatusServiceUnavailable))
	}
	loads[0].awaitMore(t, http.StatusOK, few)
	wire.Swallow()
	for _, n := range c.nodes {
		await(t, "the breaker to open", func() bool { return n.breaker("read") == "open" })
	}

	redis.Must("CONFIG", "RESETSTAT")
	over, before := time.Now(), served()
	wire.Heal()
	await(t, "a crowd to be served", func() bool { return served() >= before+asked })
	stats := redis.Must("INFO", "commandstats")
	took, answers := time.Since(over), served()-before
	text, err := stats.ToString()
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	if _, get, found := strings.Cut(text, "cmdstat_get:calls="); found {
		_, err = fmt.Sscanf(get, "%d,", &reads)
	}
	if err != nil || reads == 0 {
		t.Fatalf("Redis counts %d reads, %v: %s", reads, err, text)
	}
	t.Logf("%d answers to %d people within %v of the store's return took %d reads", answers, few, took.Round(10*time.Millisecond), reads)
	// On a slow machine the feed may take its time, and until then each session is read once
	// in each lease.
	seconds := int(took/time.Second + 1)
	if most := readsEach*few*len(c.nodes) + readsASecond*seconds + few*len(c.nodes)*max(seconds-2, 0); reads > most {
		t.Errorf("%d reads, want at most %d", reads, most)
	}
	for _, l := range loads {
		l.stop(t, "the store was away")
	}
}
