package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Invariant 6, A-S3, A-S4, A-Z10: limits are exact on every registry, with three nodes, and
// what came of it all can be told as one history.
func TestExactLimits(t *testing.T) {
	for _, e := range engines() {
		t.Run(e.name, func(t *testing.T) {
			backends := e.start(t)(t, patient, nil)
			less := 4 // SQLite is slow under the race detector; the others have a driver in common
			if e.name == "redis" || e.name == "postgres" {
				less = 1
			}
			crowd := func(name string, n int, on store.OnLimit) {
				t.Run(name, func(t *testing.T) { testCrowd(t, backends, store.Limits{PerUser: 3, OnLimit: on}, n) })
			}
			crowd("deny", 1000/less, store.Deny)
			crowd("evict_oldest", 1000, store.EvictOldest)
			crowd("evict_idle", 200/less, store.EvictIdle)
			t.Run("per_app within per_user", func(t *testing.T) { testApps(t, backends, 200/less) })
			t.Run("total", func(t *testing.T) { testTotal(t, backends, 1000/less, 100/less) })
			t.Run("signing in again", func(t *testing.T) { testAgain(t, backends, 50, 20/less) })
			t.Run("histories", func(t *testing.T) { testHistories(t, backends) })
		})
	}
}

// testCrowd lets one person sign in that often at the same moment. After each
// acknowledgement no more sessions can be used than the limit allows, and in the end as
// many as that.
func testCrowd(t testing.TB, backends []store.Backend, limits store.Limits, crowd int) {
	f := newFleet(t, backends, fleetOptions{limits: limits})
	var denied atomic.Int64
	began := time.Now()
	atOnce(crowd, func(i int) {
		_, err := f.signIn(t.Context(), i, "alice", "shop", "")
		switch {
		case err == nil:
			f.ledger.look(t)
		case limited(err) && limits.OnLimit.Denies():
			denied.Add(1)
		default:
			t.Errorf("a sign-in: %v", err)
		}
	})
	took := time.Since(began)
	f.settled(limits.PerUser)
	acknowledged := len(f.ledger.held)
	if limits.OnLimit.Denies() && acknowledged != limits.PerUser {
		t.Errorf("%d sign-ins succeeded, want %d", acknowledged, limits.PerUser)
	}
	t.Logf("%d sign-ins at once, %d denied, in %s; %s", crowd, denied.Load(), took.Round(time.Millisecond), f.ledger.report())
}

// Invariant 6, A-Z5: the same crowd, where the way to the store is slow and breaks off now
// and then. Sign-ins may fail there, and what they leave must not count for anybody.
func TestExactLimitsUnderFaults(t *testing.T) {
	for _, e := range proxiable() {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			backends, judges, proxies := startProxied(t, e)
			limits := store.Limits{PerUser: 3, OnLimit: store.EvictOldest}
			f := newFleet(t, backends, fleetOptions{limits: limits, judges: judges})
			over := make(chan struct{})
			var trouble sync.WaitGroup
			trouble.Go(func() {
				for {
					for _, p := range proxies {
						p.Heal()
						p.Latency(2 * time.Millisecond)
						p.Reset(0.1)
					}
					select {
					case <-over:
						return
					case <-time.After(100 * time.Millisecond):
					}
				}
			})
			const crowd = 300
			var unknown atomic.Int64
			// A fast machine may be through with a crowd before anything has broken off.
			for range 10 {
				atOnce(crowd, func(i int) {
					switch _, err := f.signIn(t.Context(), i, "alice", "shop", ""); {
					case err == nil:
						f.ledger.look(t)
					case coatcheck.CodeOf(err) == coatcheck.CodeUnknown:
						unknown.Add(1)
					default:
						t.Errorf("a sign-in: %v", err)
					}
				})
				if unknown.Load() > 0 {
					break
				}
			}
			close(over)
			trouble.Wait()
			for _, p := range proxies {
				p.Heal()
			}
			// What was left unfinished is finished now.
			within(t, 30*time.Second, func() error {
				_, err := f.agreed()
				return err
			})
			t.Logf("%d sign-ins at once, of some nobody knows: %d; %s", crowd, unknown.Load(), f.ledger.report())
			if len(f.ledger.held) == 0 || unknown.Load() == 0 {
				t.Error("there was no trouble, or nothing else")
			}
		})
	}
}

// testApps lets one person sign in at several apps at once, each of which has a limit of its
// own below the person's.
func testApps(t testing.TB, backends []store.Backend, crowd int) {
	const apps = 4
	limits := store.Limits{PerUser: 3, PerApp: 1, OnLimit: store.EvictOldest}
	f := newFleet(t, backends, fleetOptions{limits: limits})
	atOnce(crowd, func(i int) {
		if _, err := f.signIn(t.Context(), i, "alice", fmt.Sprint("app-", i%apps), ""); err != nil {
			t.Errorf("a sign-in: %v", err)
		}
		f.ledger.look(t)
	})
	// Who gave way at an app made room for the person, too.
	f.settled(limits.PerUser)
	t.Log(f.ledger.report())
}

// testTotal lets more people sign in at once than may, and lets those in who come when
// others have left.
func testTotal(t testing.TB, backends []store.Backend, people, total int) {
	f := newFleet(t, backends, fleetOptions{limits: store.Limits{Total: total}})
	enter := func(i int) (entered bool) {
		_, err := f.signIn(t.Context(), i, fmt.Sprint("u", i), "shop", "")
		if err != nil && !limited(err) {
			t.Errorf("a sign-in: %v", err)
		}
		return err == nil
	}
	over := make(chan struct{})
	var looking sync.WaitGroup
	defer looking.Wait()
	defer close(over)
	looking.Go(func() { // over and over, for a look takes as long as many sign-ins
		for {
			f.ledger.look(t)
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	atOnce(people, func(i int) { enter(i) })
	seated := f.settled(total)
	if len(seated) != total {
		return
	}
	// They leave, and as many others try until they are let in.
	atOnce(2*len(seated), func(i int) {
		if i < len(seated) {
			if err := f.signOut(t.Context(), i, seated[i]); err != nil {
				t.Errorf("a sign-out: %v", err)
			}
			return
		}
		for tries := 0; !enter(people + i); tries++ {
			if tries == 1000 {
				t.Errorf("no seat became free")
				return
			}
			time.Sleep(time.Duration(1+rand.IntN(20)) * time.Millisecond)
		}
	})
	for _, s := range f.settled(total) {
		if slices.Contains(seated, s) {
			t.Errorf("the session of %s has not ended", s.user)
		}
	}
	t.Logf("%d people at once, then %d for %d seats that became free; %s", people, len(seated), len(seated), f.ledger.report())
}

// testAgain lets browsers that fill the limit sign in again and again, all at once. None
// needs a place beside its own, neither of the person's nor of the tenant's.
func testAgain(t testing.TB, backends []store.Backend, browsers, times int) {
	f := newFleet(t, backends, fleetOptions{limits: store.Limits{PerUser: browsers, Total: browsers, OnLimit: store.Deny}})
	held := make([]sitting, browsers)
	atOnce(browsers, func(i int) {
		for n := range 1 + times {
			next, err := f.signIn(t.Context(), i+n, "alice", "shop", held[i].cookie)
			if err != nil {
				t.Errorf("sign-in %d of a browser: %v", n, err)
				return
			}
			held[i] = next
			if n%4 == 0 {
				f.ledger.look(t)
			}
		}
	})
	for _, s := range f.settled(browsers) {
		if !slices.Contains(held, s) {
			t.Error("a cookie that a browser has lost can be used")
		}
	}
	t.Logf("%d browsers, %d times; %s", browsers, times, f.ledger.report())
}
