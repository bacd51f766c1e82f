package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A LeaserHarness gives the suite its leasers.
type LeaserHarness struct {
	// Open returns one Leaser per node, as Harness.Open does.
	Open    func(t testing.TB, nodes int) []store.Leaser
	Outages []Outage
}

func leaserSections() []section[LeaserHarness] {
	return []section[LeaserHarness]{
		{"Lease", testLease},
		{"LeaseExpiry", testLeaseExpiry},
		{"LeaseRenew", testLeaseRenew},
		{"LeaseRace", testLeaseRace},
		{"LeaseNames", testLeaseNames},
		{"LeaserCancelled", testLeaserCancelled},
	}
}

// RunLeaser runs the suite of store.Leaser.
func RunLeaser(t *testing.T, h LeaserHarness) {
	runSections(t, h, leaserSections())
	runOutages(t, "LeaserOutage", h, h.Outages, testLeaserOutage)
}

func openLeasers(t testing.TB, h LeaserHarness) ([]store.Leaser, context.Context) {
	t.Helper()
	return h.Open(t, nodes), patiently(t)
}

// acquire returns a lease that has to be free.
func acquire(t testing.TB, l store.Leaser, ctx context.Context, name string, ttl time.Duration) store.Lease {
	t.Helper()
	lease, err := l.Acquire(ctx, name, ttl)
	must(t, fmt.Sprintf("Acquire %q", name), err)
	return lease
}

// wantHeld checks that nobody gets the lease.
func wantHeld(t testing.TB, nodes []store.Leaser, ctx context.Context, name string) {
	t.Helper()
	for _, l := range nodes {
		lease, err := l.Acquire(ctx, name, long)
		wantErr(t, fmt.Sprintf("Acquire %q", name), err, store.ErrHeld)
		if lease != nil {
			t.Errorf("Acquire %q returned a lease beside %v", name, err)
		}
	}
}

func testLease(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	var last uint64
	for round := range 3 * nodes {
		l := acquire(t, all[round%nodes], ctx, "a", long)
		if l.Fence() <= last {
			t.Errorf("a lease has the fence %d after one of %d", l.Fence(), last)
		}
		if last = l.Fence(); last != l.Fence() {
			t.Error("the fence of a lease changes")
		}
		wantHeld(t, all, ctx, "a")
		other := acquire(t, all[(round+1)%nodes], ctx, "b", long)
		must(t, "Release", other.Release(ctx))
		wantHeld(t, all, ctx, "a")
		must(t, "Release", l.Release(ctx))
		wantErr(t, "second Release", l.Release(ctx), nil)
		wantErr(t, "Renew after Release", l.Renew(ctx, long), store.ErrLost)
	}
}

// waitFree waits until a lease that was given ttl can be had, and checks that it was not
// before its time.
func waitFree(t testing.TB, l store.Leaser, ctx context.Context, name string, ttl time.Duration, began, acked time.Time) store.Lease {
	t.Helper()
	for {
		asked := time.Now()
		lease, err := l.Acquire(ctx, name, long)
		switch {
		case err == nil:
			if held := time.Since(began); held < ttl-grain {
				t.Errorf("a lease of %s was free after %s", ttl, held)
			}
			return lease
		case !errors.Is(err, store.ErrHeld):
			t.Fatalf("Acquire: %v", err)
		case asked.Sub(acked) > max(ttl, store.MinTTL)+clockSlack:
			t.Fatalf("a lease of %s was held after %s", ttl, asked.Sub(acked))
		}
		time.Sleep(grain)
	}
}

func testLeaseExpiry(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	for _, ttl := range []time.Duration{short, store.MinTTL, 0, -long} {
		began := time.Now()
		lost := acquire(t, all[0], ctx, "a", ttl)
		next := waitFree(t, all[1], ctx, "a", ttl, began, time.Now())
		if next.Fence() <= lost.Fence() {
			t.Errorf("a lease has the fence %d after one of %d", next.Fence(), lost.Fence())
		}
		wantErr(t, "Renew of a lost lease", lost.Renew(ctx, long), store.ErrLost)
		wantErr(t, "Release of a lost lease", lost.Release(ctx), nil)
		wantHeld(t, all, ctx, "a")
		wantErr(t, "Renew", next.Renew(ctx, long), nil)
		must(t, "Release", next.Release(ctx))
	}
	// A lost one is lost even if nobody else took it.
	lost := acquire(t, all[0], ctx, "b", short)
	time.Sleep(2 * short)
	wantErr(t, "Renew of a lost lease", lost.Renew(ctx, long), store.ErrLost)
	must(t, "Release", acquire(t, all[1], ctx, "b", long).Release(ctx))
}

func testLeaseRenew(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	var l store.Lease
	// lost says whether Renew failed because its lease was over, which on a busy machine one
	// that was given ttl after began may be.
	lost := func(err error, ttl time.Duration, began time.Time) bool {
		return errors.Is(err, store.ErrLost) && time.Since(began) >= ttl-grain
	}
	for err := store.ErrLost; err != nil; {
		began := time.Now()
		l = acquire(t, all[0], ctx, "a", short)
		if err = l.Renew(ctx, long); !lost(err, short, began) {
			must(t, "Renew", err)
		}
	}
	fence := l.Fence()
	time.Sleep(2 * short)
	wantHeld(t, all, ctx, "a")
	if l.Fence() != fence {
		t.Errorf("Renew changed the fence from %d to %d", fence, l.Fence())
	}
	must(t, "Release", l.Release(ctx))

	began := time.Now()
	l = acquire(t, all[1], ctx, "a", 2*short)
	for renewed := 0; renewed < 6; { // longer than one life
		time.Sleep(short / 2)
		asked := time.Now()
		err := l.Renew(ctx, 2*short)
		if lost(err, 2*short, began) {
			began, renewed = time.Now(), 0
			l = acquire(t, all[1], ctx, "a", 2*short)
			continue
		}
		must(t, "Renew", err)
		began = asked
		renewed++
	}
	waitFree(t, all[2], ctx, "a", 2*short, began, time.Now())
	wantErr(t, "Renew of a lost lease", l.Renew(ctx, long), store.ErrLost)
}

// testLeaseRace lets many do what only one may at a time.
func testLeaseRace(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	var inside, done atomic.Int64
	var last uint64 // guarded by the lease
	race(all, func(l store.Leaser, i int) {
		for range 5 {
			lease, err := l.Acquire(ctx, "a", long)
			for errors.Is(err, store.ErrHeld) {
				time.Sleep(grain)
				lease, err = l.Acquire(ctx, "a", long)
			}
			if err != nil {
				t.Errorf("Acquire: %v", err)
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two hold one lease")
			} else if lease.Fence() <= last {
				t.Errorf("a lease has the fence %d after one of %d", lease.Fence(), last)
			} else {
				last = lease.Fence()
			}
			time.Sleep(grain / 4)
			inside.Add(-1)
			done.Add(1)
			if err := lease.Release(ctx); err != nil {
				t.Errorf("Release: %v", err)
			}
		}
	})
	if n := done.Load(); n != 5*contenders {
		t.Errorf("%d leases were held, want %d", n, 5*contenders)
	}

	// Of all who come at once, one gets a lease that has just expired.
	for round := range 5 {
		name := fmt.Sprint("b", round)
		acquire(t, all[0], ctx, name, store.MinTTL)
		time.Sleep(10 * grain)
		errs := make([]error, contenders)
		race(all, func(l store.Leaser, i int) { _, errs[i] = l.Acquire(ctx, name, long) })
		oneWins(t, "Acquire", errs, store.ErrHeld)
	}
}

func testLeaseNames(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	over, cancel := context.WithCancel(ctx)
	cancel()
	for _, name := range []string{"", strings.Repeat("n", store.MaxKey+1), strings.Repeat("n", 10<<10)} {
		_, err := all[0].Acquire(over, name, long)
		wantErr(t, fmt.Sprintf("Acquire of a name of %d bytes", len(name)), err, store.ErrTooLarge)
	}
	odd := []string{"a", "a*", "*", "?", "[a-z]", "A", " a", "a ", "a\x00", "\x00", "a\r\nDEL a", "'; --", "{a}", "{", "%", "_", "\xff", strings.Repeat("n", store.MaxKey)}
	var held []store.Lease
	for _, name := range odd {
		held = append(held, acquire(t, all[0], ctx, name, long))
	}
	for i, name := range odd {
		wantHeld(t, all[:1], ctx, name)
		must(t, "Release", held[i].Release(ctx))
		must(t, "Release", acquire(t, all[1], ctx, name, long).Release(ctx))
	}
}

func testLeaserCancelled(t testing.TB, h LeaserHarness) {
	all, ctx := openLeasers(t, h)
	held := acquire(t, all[0], ctx, "a", long)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	wantLeaserUnknown(t, all[:1], cancelled, held, "cancelled")
	wantHeld(t, all, ctx, "a")
	must(t, "Renew", held.Renew(ctx, long))
	must(t, "Release", held.Release(ctx))
	acquire(t, all[1], ctx, "a", long)
}

// wantLeaserUnknown checks that no call states an outcome. Releasing held is not tried.
func wantLeaserUnknown(t testing.TB, all []store.Leaser, ctx context.Context, held store.Lease, why string) {
	t.Helper()
	for i, l := range all {
		_, err := l.Acquire(ctx, "a", long)
		wantUnknown(t, "Acquire of a held lease, "+why, err)
		_, err = l.Acquire(ctx, fmt.Sprint("try", i), long)
		wantUnknown(t, "Acquire, "+why, err)
	}
	wantUnknown(t, "Renew, "+why, held.Renew(ctx, long))
}

func testLeaserOutage(t testing.TB, h LeaserHarness, o Outage) {
	all, ctx := openLeasers(t, h)
	held, other := acquire(t, all[0], ctx, "a", long), acquire(t, all[1], ctx, "b", long)
	end := o.Begin(t)
	returns(t, "a call in an outage", func() {
		without := context.WithoutCancel(ctx)
		wantLeaserUnknown(t, all, without, held, "in an outage")
		wantUnknown(t, "Release, in an outage", other.Release(without))
	})
	end()
	for i, l := range all {
		eventually(t, ctx, "a lease could be had again", func() bool {
			_, err := l.Acquire(ctx, fmt.Sprint("after", i), long)
			// An attempt that failed may have got it.
			return err == nil || errors.Is(err, store.ErrHeld)
		})
	}
	wantHeld(t, all, ctx, "a")
	must(t, "Renew after the outage", held.Renew(ctx, long))
	must(t, "Release after the outage", held.Release(ctx))
	if next := acquire(t, all[2], ctx, "a", long); next.Fence() <= held.Fence() {
		t.Errorf("after the outage a lease has the fence %d, after one of %d", next.Fence(), held.Fence())
	}
}
