// Package soak lets many people sign in, and out, over several nodes that are killed and
// started again meanwhile, waits until everything has expired, and counts what is left:
// in the store, and in the nodes. `make soak` does it with 100,000 sessions and writes
// bench/SOAK.md; `go test` does the same with a hundredth of them.
package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/bench/report"
)

var (
	stores   = flag.String("stores", "redis,postgres", "`list` of stores: redis, postgres, sqlite")
	sessions = flag.Int("sessions", 1000, "`number` of sessions")
	seed     = flag.Uint64("seed", 0, "`number` that decides what people do and when nodes die (0: a new one)")
	idle     = flag.Duration("idle", 6*time.Second, "the idle timeout of a session")
	toTheEnd = flag.Bool("to-the-end", false, "wait also for what expires in its own time: up to 40 minutes")
	out      = flag.String("out", "", "`folder` for soak.json and SOAK.md")
)

const (
	// together is how many people are there at once.
	together = 256
	// perPerson is how often each of them signs in.
	perPerson = 8
	// perUser is how many sessions each may have.
	perUser = 3
	// tombstones is how long an ended session can say why.
	tombstones = 2 * time.Second
)

// How much more a node may have at the end than its first process at the start. Of the
// goroutines and descriptors, connections that are kept for the next call are the most;
// memory is what maps and the heap keep that have been large.
const (
	moreGoroutines  = 50
	moreDescriptors = 50
	moreHeap        = 24 << 20 // bytes in use after a garbage collection
	moreResident    = 96 << 20 // bytes, not judged under the race detector
)

// TestSoak is A-Z11: in the end neither the store nor a node holds more than at the start.
func TestSoak(t *testing.T) {
	program := build(t)
	var keeping sync.Mutex // of the files
	for name := range strings.SplitSeq(*stores, ",") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := backends[name]
			if start == nil {
				t.Fatalf("-stores: there is no %q", name)
			}
			r := soak(t, program, start(t))
			if *out != "" {
				keeping.Lock()
				defer keeping.Unlock()
				if err := r.keep(*out, name); err != nil {
					t.Error(err)
				}
			}
			for _, p := range r.problems() {
				t.Error(p)
			}
		})
	}
}

func soak(t *testing.T, program string, b backend) *result {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d", s)
	r := &result{Environment: report.Here(t.Context()), Server: b.version(), Seed: s, Sessions: *sessions, Nodes: b.nodes(), Idle: idle.String(), ToTheEnd: *toTheEnd}
	site := startSite(t, program, b)
	defer site.reportRaces()

	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	told, loaded := new(told), make(chan error, 1)
	go func() { loaded <- site.visit(ctx, s, told) }()
	err := site.disturb(rand.New(rand.NewPCG(s, 0)), loaded, func() {
		t.Logf("%s: %d of %d sessions begun", time.Since(began).Round(time.Second), told.Begun.Load(), *sessions)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.LoadSeconds = time.Since(began).Seconds()
	r.Kills, r.Counts, r.Examples = site.kills, told.counts(), told.examples
	t.Logf("%d sessions in %.0f s, %d kills", told.Begun.Load(), r.LoadSeconds, r.Kills)

	began = time.Now()
	if r.Left, err = awaitNothing(t, b); err != nil {
		t.Fatal(err)
	}
	r.WaitSeconds = time.Since(began).Seconds()
	r.Processes = site.settled()
	return r
}

// visit has everybody come, and returns when the last one has left.
func (s *site) visit(ctx context.Context, seed uint64, told *told) error {
	var people errgroup.Group
	people.SetLimit(together)
	for i := range (*sessions + perPerson - 1) / perPerson {
		if ctx.Err() != nil {
			break
		}
		people.Go(func() error {
			p := &person{
				site: s, told: told, name: userName(i),
				random: rand.New(rand.NewPCG(seed, uint64(i)+1)),
			}
			if err := p.visit(ctx, min(perPerson, *sessions-i*perPerson)); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			return nil
		})
	}
	return people.Wait()
}

// disturb kills nodes and starts them again, until loaded tells that everybody has left.
// The first of several is spared: it lives through it all.
func (s *site) disturb(random *rand.Rand, loaded <-chan error, progress func()) error {
	said := time.Now()
	for {
		select {
		case err := <-loaded:
			return err
		case <-time.After(500*time.Millisecond + time.Duration(random.Int64N(int64(2*time.Second)))):
		}
		victims := s.nodes[min(1, len(s.nodes)-1):]
		if random.IntN(4) > 0 { // else all of them at once
			i := random.IntN(len(victims))
			victims = victims[i : i+1]
		}
		for _, n := range victims {
			n.Kill()
			s.kills++
		}
		time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
		for _, n := range victims {
			n.start(s.t)
		}
		if time.Since(said) > 15*time.Second {
			said = time.Now()
			progress()
		}
	}
}

// awaitNothing waits until the store holds nothing but what expires in its own time, or
// nothing at all, and returns what it holds then.
func awaitNothing(t *testing.T, b backend) (left, error) {
	t.Helper()
	within := 3*time.Minute + 3**idle
	if *toTheEnd {
		within += 40 * time.Minute
	}
	said := time.Now()
	for deadline := time.Now().Add(within); ; {
		l, err := b.left(t.Context())
		if err != nil {
			return nil, err
		}
		done := l.ours() == 0 && (!*toTheEnd || l.all() == 0)
		if done || time.Now().After(deadline) {
			return l, nil
		}
		if time.Since(said) > 15*time.Second {
			said = time.Now()
			t.Logf("left: %v", l)
		}
		time.Sleep(2 * time.Second)
	}
}
