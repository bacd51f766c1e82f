package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// historyLimits are those that histories are recorded with. Without one, sessions don't touch
// each other.
var historyLimits = []store.Limits{
	{},
	{PerUser: 2, OnLimit: store.Deny},
	{PerUser: 3, OnLimit: store.EvictOldest},
	{PerUser: 1, OnLimit: store.EvictIdle},
}

// testHistories checks that what browsers see of sessions can be told in one order. Each can
// be used from its sign-in until it ends, and never again; of one person's no more can be
// used than the limit allows.
func testHistories(t testing.TB, backends []store.Backend) {
	for _, limits := range historyLimits {
		h := newHistory(t, backends, fleetOptions{limits: limits})
		h.live(t.Context(), func(visit int) bool { return visit < 5 })
		h.check()
		h.ledger.look(t)
	}
}

// A history is a fleet with clients who write down what came of what they did. The nodes have
// no near cache: with one, a session may be served for a moment after it has ended elsewhere.
type history struct {
	*fleet
	people  []*person
	unknown atomic.Int64 // outcomes
}

// A person signs in with several browsers.
type person struct {
	name    string
	history *storetest.SessionHistory
}

func newHistory(t testing.TB, backends []store.Backend, o fleetOptions) *history {
	t.Helper()
	o.uncached = true
	h := &history{fleet: newFleet(t, backends, o)}
	for i := range 3 {
		h.people = append(h.people, &person{fmt.Sprint("u", i), storetest.NewSessionHistory(o.limits)})
	}
	return h
}

const (
	browsers = 4 // of each person
	// unknowns is how many sign-ins and sign-outs of a browser may have an unknown outcome
	// before it gives up: each doubles what a verdict has to think of.
	unknowns = 2
)

// live lets everybody sign in, look around and sign out, as long as more says so of a
// browser's next visit.
func (h *history) live(ctx context.Context, more func(visit int) bool) {
	var all sync.WaitGroup
	for _, p := range h.people {
		for b := range browsers {
			all.Go(func() {
				unknown := 0
				for visit := 0; unknown < unknowns && more(visit); visit++ {
					unknown += h.visit(ctx, p, fmt.Sprintf("b%dv%d", b, visit))
				}
			})
		}
	}
	all.Wait()
}

// visit is one session of a browser's, from its begin to its end. It returns how many
// outcomes are unknown.
func (h *history) visit(ctx context.Context, p *person, id string) (unknown int) {
	time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
	done := p.history.Begin(storetest.SignIn, id)
	held, err := h.signIn(ctx, rand.IntN(fleetNodes), p.name, "shop", "")
	done(outcomeOf(err))
	if err != nil {
		return h.count(err)
	}
	h.ledger.look(h)
	use := func() {
		done := p.history.Begin(storetest.Use, id)
		switch served, err := h.use(ctx, rand.IntN(fleetNodes), held); {
		case err != nil:
			h.unknown.Add(1)
			done(storetest.Unknown)
		case served:
			done(storetest.Done)
		default:
			done(storetest.Refused)
		}
	}
	use()
	end := h.signOut
	switch rand.IntN(4) {
	case 0:
		use()
		return 0 // it is left as it is
	case 1:
		end = h.revoke
	}
	// Another tab goes on meanwhile, and at first after the end too.
	var tab sync.WaitGroup
	tab.Go(func() {
		for range 5 {
			use()
		}
	})
	done = p.history.Begin(storetest.SignOut, id)
	err = end(ctx, rand.IntN(fleetNodes), held)
	done(outcomeOf(err))
	use()
	tab.Wait()
	return h.count(err)
}

func outcomeOf(err error) storetest.Outcome {
	switch {
	case err == nil:
		return storetest.Done
	case limited(err):
		return storetest.Refused
	default:
		return storetest.Unknown
	}
}

// count counts an unknown outcome.
func (h *history) count(err error) int {
	if outcomeOf(err) != storetest.Unknown {
		return 0
	}
	h.unknown.Add(1)
	return 1
}

// check fails the test if a person's history can't be explained.
func (h *history) check() {
	h.Helper()
	for _, p := range h.people {
		p.history.Check(h)
	}
}

// A-Z5, A-Z10: histories, and the limits, where the way to the store is slow, breaks off and
// swallows what is said.
func TestHistoriesUnderFaults(t *testing.T) {
	for _, e := range proxiable() {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			backends, judges, proxies := startProxied(t, e)
			var all []*history
			over := make(chan struct{})
			var clients sync.WaitGroup
			for _, limits := range historyLimits {
				h := newHistory(t, backends, fleetOptions{limits: limits, judges: judges})
				all = append(all, h)
				clients.Go(func() {
					h.live(t.Context(), func(visit int) bool {
						select {
						case <-over:
							return false
						case <-time.After(100 * time.Millisecond):
							return visit < 15
						}
					})
				})
			}
			trouble(proxies)
			close(over)
			clients.Wait()
			unknown := int64(0)
			for _, h := range all {
				h.check()
				// What could not be ended is ended now.
				within(t, 30*time.Second, func() error {
					_, err := h.agreed()
					return err
				})
				t.Logf("%+v: %d outcomes are unknown; %s", h.ledger.limits, h.unknown.Load(), h.ledger.report())
				unknown += h.unknown.Load()
			}
			if unknown == 0 {
				t.Error("there was no trouble")
			}
		})
	}
}

// trouble makes some, for about three seconds.
func trouble(proxies []*testenv.Proxy) {
	const phase = 700 * time.Millisecond
	each := func(do func(p *testenv.Proxy)) {
		for _, p := range proxies {
			do(p)
		}
	}
	time.Sleep(phase)
	each(func(p *testenv.Proxy) { p.Latency(20 * time.Millisecond) })
	time.Sleep(phase)
	for range 10 {
		each(func(p *testenv.Proxy) { p.Heal(); p.Reset(0.3) })
		time.Sleep(phase / 10)
	}
	each((*testenv.Proxy).Heal)
	proxies[0].Swallow()
	time.Sleep(phase)
	proxies[0].Heal()
	time.Sleep(phase)
}
