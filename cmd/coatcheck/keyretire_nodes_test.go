package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A fleet are nodes of one store, as an operator finds them.
type fleet struct {
	t    *testing.T
	kept *memory.Store
	ring *seal.Ring
	cmd  keyRetireCmd
	said bytes.Buffer
}

func newFleet(t *testing.T, yes bool) *fleet {
	t.Helper()
	kept := memory.New()
	t.Cleanup(func() { _ = kept.Close() })
	first := seal.NewRing()
	f := &fleet{t: t, kept: kept, ring: rotated(t, first, time.Now().Add(-time.Second)), cmd: keyRetireCmd{Key: first.Current(), Yes: yes}}
	f.ring.Promote(time.Now(), nil)
	return f
}

// node runs a node that seals with what seals returns.
func (f *fleet) node(name string, keys []string, seals func() string) {
	m := newMembers(f.ring, f.kept, slog.New(slog.DiscardHandler))
	m.Self = func() cluster.Member { return cluster.Member{Node: name, Keys: keys, Seals: seals()} }
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	f.t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

func (f *fleet) await() (time.Duration, error) {
	began := time.Now()
	err := f.cmd.awaitNodes(f.t.Context(), console{&f.said, &f.said}, newMembers(f.ring, f.kept, slog.New(slog.DiscardHandler)), began, f.ring.Current(), "keys.json")
	return time.Since(began), err
}

// With --yes the command waits until no node seals with the key.
func TestRetireWaitsForNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, true)
		// Before the node's second report, which comes before the list is certain.
		const later = 5 * time.Second
		change := time.Now().Add(later)
		f.node("a", f.ring.KeyIDs(), f.ring.Current)
		f.node("b", f.ring.KeyIDs(), func() string {
			if time.Now().Before(change) {
				return f.cmd.Key
			}
			return f.ring.Current()
		})
		took, err := f.await()
		if err != nil || took < later || took >= changeLimit {
			t.Errorf("%v, after %v", err, took)
		}
		if want := "Waiting up to 45s for these nodes to seal with " + f.ring.Current() + ": b\nWaiting up to 45s until it is certain which nodes live\n"; f.said.String() != want {
			t.Errorf("it says %q, want %q", f.said.String(), want)
		}
	})
}

// It does not wait for ever, and without --yes not at all; and says what to do.
func TestRetireRefusesWhileNodesSeal(t *testing.T) {
	for name, test := range map[string]struct {
		yes, lacks bool
		want       string
		took       time.Duration
	}{
		"asked":                  {false, false, "try again then, or with --yes, which waits for them", 0},
		"asked, and one lacks":   {false, true, "These have not: b. Give them the key ring, or stop them, and try again", 0},
		"waited":                 {true, false, "their logs say what they wait for", changeLimit},
		"waited, while one lack": {true, true, "These have not: b. Give them the key ring, or stop them, and try again", changeLimit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, test.yes)
				f.node("a", f.ring.KeyIDs(), func() string { return f.cmd.Key })
				keys := f.ring.KeyIDs()
				if test.lacks {
					keys = keys[1:]
				}
				f.node("b", keys, func() string { return f.cmd.Key })
				took, err := f.await()
				if took != test.took || err == nil || !strings.Contains(err.Error(), "still seals on these nodes: a, b.") || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, after %v", err, took)
				}
			})
		})
	}
}

// A node that died without a word is not waited for longer than others count it as live.
func TestRetireWaitsForTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, true)
		dead := newMembers(f.ring, f.kept, slog.New(slog.DiscardHandler))
		dead.Self = func() cluster.Member {
			return cluster.Member{Node: "dead", Keys: f.ring.KeyIDs(), Seals: f.cmd.Key}
		}
		if _, err := dead.Report(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took, err := f.await(); err != nil || took < 30*time.Second {
			t.Errorf("%v, after %v", err, took)
		}
	})
}

// A list that may lack a node says nothing of it, until it has been looked at for long enough.
func TestRetireWaitsForTheList(t *testing.T) {
	for _, yes := range []bool{false, true} {
		for name, test := range map[string]struct {
			nodes    func(f *fleet)
			min, max time.Duration
			want     string
		}{
			"nobody": {func(*fleet) {}, cluster.Settles, cluster.Settles + changeLook, ""},
			"some have just started": {func(f *fleet) {
				f.node("a", f.ring.KeyIDs(), f.ring.Current)
			}, cluster.Settles, changeLimit - changeLook, ""},
			"some have been there": {func(f *fleet) {
				f.node("a", f.ring.KeyIDs(), f.ring.Current)
				time.Sleep(time.Minute)
				f.node("b", f.ring.KeyIDs(), f.ring.Current)
			}, 0, 0, ""},
			"all start over and over": {func(f *fleet) {
				report := func() {
					m := newMembers(f.ring, f.kept, slog.New(slog.DiscardHandler))
					m.Self = func() cluster.Member { return cluster.Member{Node: "a", Seals: f.ring.Current()} }
					if _, err := m.Report(context.Background()); err != nil {
						f.t.Error(err)
					}
				}
				report()
				tick := time.NewTicker(10 * time.Second)
				done := make(chan struct{})
				go func() {
					for {
						select {
						case <-tick.C:
							report()
						case <-done:
							return
						}
					}
				}()
				f.t.Cleanup(func() { tick.Stop(); close(done) })
			}, changeLimit, changeLimit, "Try again in a minute"},
		} {
			t.Run(fmt.Sprintf("%s, yes=%v", name, yes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, yes)
					test.nodes(f)
					took, err := f.await()
					if took < test.min || took > test.max || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
						t.Errorf("%v, after %v", err, took)
					}
				})
			})
		}
	}
}

// A node that starts alone may be seen late, and seals with the oldest key at first.
func TestRetireWaitsForOneThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, true)
		starts := time.Now().Add(10 * time.Second)
		changes := starts.Add(cluster.Settles)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			time.Sleep(time.Until(starts))
			m := newMembers(f.ring, f.kept, slog.New(slog.DiscardHandler))
			m.Self = func() cluster.Member {
				self := cluster.Member{Node: "a", Keys: f.ring.KeyIDs(), Seals: f.cmd.Key}
				if !time.Now().Before(changes) {
					self.Seals = f.ring.Current()
				}
				return self
			}
			m.Run(ctx)
		})
		t.Cleanup(func() { cancel(); running.Wait() })
		if took, err := f.await(); err != nil || time.Now().Before(changes) {
			t.Errorf("%v, after %v", err, took)
		}
	})
}

// Entries that could not be marked as ending are marked before the command ends, or told of.
func TestRetireFinishesWhatIsLeft(t *testing.T) {
	for refused, want := range map[int64]string{1: "", 2: "note: 1 sessions have ended, but the store still lists them"} {
		f := newFleet(t, true)
		old, err := seal.ParseRing(f.ring.Marshal()) // its oldest key seals
		if err != nil {
			t.Fatal(err)
		}
		unsteady := &unsteadyStore{Backend: f.kept}
		unsteady.refused.Store(refused)
		sessions := session.New(session.Options{
			Store: unsteady, Registry: unsteady, Ring: old, Jar: cookie.New("coatcheck", "", true),
			Tenant: tenant, Idle: time.Hour, Absolute: time.Hour,
		})
		if err := (&estate{t: t}).signIn(sessions); err != nil {
			t.Fatal(err)
		}
		for handle := range f.kept.Keys(t.Context(), "coatcheck-") {
			unsteady.unmarked = handle
		}
		n, err := f.cmd.walk(t.Context(), console{&f.said, &f.said}, sessions, f.kept)
		if n.Sealed != 1 || err != nil || !strings.HasPrefix(f.said.String(), want) || (want == "") != (f.said.Len() == 0) {
			t.Errorf("%+v, %v; it says %q", n, err, f.said.String())
		}
	}
}

// With --yes it looks again, at the nodes first, until no session was left to end.
func TestRetirePasses(t *testing.T) {
	for name, test := range map[string]struct {
		yes    bool
		ends   []int
		looks  int
		sealed session.SealedCount
		want   string
	}{
		"asked":     {false, []int{2}, 1, session.SealedCount{Sealed: 2, All: 10}, ""},
		"none":      {true, []int{0}, 1, session.SealedCount{All: 10}, ""},
		"some":      {true, []int{2, 1, 0}, 3, session.SealedCount{Sealed: 3, All: 10}, ""},
		"failed":    {true, []int{2, -1}, 2, session.SealedCount{Sealed: 3, All: 10}, "3 of the sessions that k had sealed have ended. Some of the others may be answered with 503 until the same command is run again"},
		"ever more": {true, []int{1, 1, 1, 1, 1}, 5, session.SealedCount{}, "5 sessions that k had sealed have ended, and there are ever more of them"},
	} {
		t.Run(name, func(t *testing.T) {
			awaits, looks, left := 0, 0, 10
			sealed, err := keyRetireCmd{Key: "k", Yes: test.yes}.passes("keys.json",
				func() error { awaits++; return nil },
				func() (session.SealedCount, error) {
					n, of := test.ends[looks], left
					looks++
					if n < 0 {
						return session.SealedCount{Sealed: 1, All: of}, errors.New("the store is down")
					}
					left -= n
					return session.SealedCount{Sealed: n, All: of}, nil
				})
			if sealed != test.sealed || looks != test.looks || awaits != looks {
				t.Errorf("%+v, after %d looks at the nodes and %d at the sessions", sealed, awaits, looks)
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}
