package storetest

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// ofUser returns a session of a user who has no other.
func ofUser(i int) store.Entry { return of(fmt.Sprint("user", i), session(fmt.Sprint("s", i))) }

func testTotal(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	for _, on := range []store.OnLimit{store.Deny, store.EvictOldest, store.EvictIdle} {
		limits := store.Limits{Total: 2, OnLimit: on}
		r.admit(ofUser(1), limits, "")
		r.admit(ofUser(2), limits, "")
		r.refuse(ofUser(3), limits, "", store.LimitTotal)
		r.refuse(ofUser(3), limits, "unknown", store.LimitTotal)
		r.refuse(ofUser(3), limits, "s1", store.LimitTotal) // another user's
		second := session("second")
		second.User = "user1"
		r.refuse(second, limits, "", store.LimitTotal)
		// What was denied has taken no seat; another tenant has its own ones.
		elsewhere := ofUser(9)
		elsewhere.Tenant = "other"
		r.admit(elsewhere, limits, "")
		r.refuse(ofUser(3), limits, "", store.LimitTotal)

		r.remove(ofUser(1))
		r.remove(ofUser(1)) // gives one seat back, not two
		r.admit(ofUser(3), limits, "")
		r.refuse(ofUser(4), limits, "", store.LimitTotal)
		// While it is ending, its record may still be there.
		r.end(ofUser(2), "revoked")
		r.refuse(ofUser(4), limits, "", store.LimitTotal)
		r.remove(ofUser(2))
		r.admit(ofUser(4), limits, "")
		r.renew(ofUser(3), long)
		r.renew(ofUser(4), long)
		r.refuse(ofUser(5), limits, "", store.LimitTotal)
		// An overwritten entry has one seat.
		r.admit(ofUser(3), limits, "")
		r.remove(ofUser(3))
		r.admit(ofUser(5), limits, "")
		r.refuse(ofUser(6), limits, "", store.LimitTotal)
		// A session in use that was lost from the list has its seat again.
		r.remove(ofUser(5))
		r.renew(ofUser(5), long)
		r.refuse(ofUser(6), limits, "", store.LimitTotal)
		r.remove(ofUser(4), ofUser(5), elsewhere)
	}

	// Who is denied for the user's limit has taken no seat, over and over.
	deny := store.Limits{Total: 2, PerUser: 1, PerApp: 1, OnLimit: store.Deny}
	r.admit(ofUser(1), deny, "")
	for i := range 5 {
		e := session(fmt.Sprint("more", i))
		e.User = "user1"
		r.refuse(e, deny, "", store.LimitUser, store.LimitApp)
	}
	r.admit(ofUser(2), deny, "")
	r.refuse(ofUser(3), deny, "", store.LimitTotal)
}

func testTotalExpiry(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	limits := store.Limits{Total: 2}
	began := time.Now()
	_, err := r.Admit(r.ctx, ofUser(1), short, limits, "")
	must(t, "Admit", err)
	_, err = r.Admit(r.ctx, ofUser(2), short, limits, "")
	must(t, "Admit", err)
	r.renew(ofUser(2), long)
	acked := time.Now()
	// A seat lives as long as its entry: not shorter, and not longer.
	for {
		asked := time.Now()
		_, err := r.Admit(r.ctx, ofUser(3), long, limits, "")
		var limit *store.LimitError
		switch {
		case err == nil && time.Since(began) < short-grain:
			t.Errorf("a seat of %s was free after %s", short, time.Since(began))
		case err == nil:
		case !errors.As(err, &limit):
			t.Fatalf("Admit: %v", err)
		case asked.Sub(acked) > short+clockSlack:
			t.Fatalf("a seat of %s was not free after %s", short, asked.Sub(acked))
		default:
			time.Sleep(grain)
			continue
		}
		break
	}
	r.refuse(ofUser(4), limits, "", store.LimitTotal)
	// Removing the expired one gives back no seat that it has no more.
	wantIDs(t, "Reap", names(r.reap()), "s1")
	r.refuse(ofUser(4), limits, "", store.LimitTotal)
	r.remove(ofUser(1))
	r.refuse(ofUser(4), limits, "", store.LimitTotal)
}

func testTotalInherited(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	limits := store.Limits{Total: 2, PerUser: 2, OnLimit: store.EvictOldest}
	r.admit(session("a"), limits, "")
	r.admit(ofUser(1), limits, "")
	wantIDs(t, "Admit that replaces", r.admit(session("b"), limits, "a"), "a")
	r.refuse(ofUser(2), limits, "", store.LimitTotal)
	r.refuse(session("c"), limits, "a", store.LimitTotal) // its seat is taken over already
	r.remove(session("a"))
	r.refuse(ofUser(2), limits, "", store.LimitTotal)
	r.renew(session("b"), long)
	r.refuse(ofUser(2), limits, "", store.LimitTotal)

	// A chain of sign-ins has one seat, whenever the old ones are removed.
	wantIDs(t, "Admit that replaces", r.admit(session("c"), limits, "b"), "b")
	wantIDs(t, "Admit that replaces", r.admit(session("d"), limits, "c"), "b", "c")
	r.remove(session("b"))
	r.refuse(ofUser(2), limits, "", store.LimitTotal)
	r.remove(session("c"))
	r.refuse(ofUser(2), limits, "", store.LimitTotal)
	r.remove(session("d"))
	r.admit(ofUser(2), limits, "")
	r.refuse(ofUser(3), limits, "", store.LimitTotal)

	// A seat that was taken over lives as long as its new entry.
	r.remove(ofUser(1))
	for {
		began := time.Now()
		_, err := r.Admit(r.ctx, session("e"), short, limits, "")
		must(t, "Admit", err)
		ending := r.admit(session("f"), limits, "e")
		if len(ending) == 0 && time.Since(began) >= short-grain {
			r.remove(session("e"), session("f")) // on a busy machine it was over before
			continue
		}
		wantIDs(t, "Admit that replaces", ending, "e")
		break
	}
	time.Sleep(2 * short)
	r.refuse(ofUser(3), limits, "", store.LimitTotal)
	r.remove(session("e"))
	r.refuse(ofUser(3), limits, "", store.LimitTotal)
	r.remove(session("f"))
	r.admit(ofUser(3), limits, "")
}

// testTotalOverwritten admits an entry that is listed already in the place of another one.
// Both have a seat, and one has none to take over.
func testTotalOverwritten(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	limits := store.Limits{Total: 2}
	r.admit(session("a"), limits, "")
	r.admit(session("b"), limits, "")
	wantIDs(t, "Admit that replaces", r.admit(session("a"), limits, "b"), "b")
	r.remove(session("b"))
	r.admit(ofUser(1), limits, "")
	r.refuse(ofUser(2), limits, "", store.LimitTotal)
	r.remove(session("a"))
	r.admit(ofUser(2), limits, "")
	r.refuse(ofUser(3), limits, "", store.LimitTotal)
}

// testTotalRace lets many users of one tenant begin at once: never more than Total get in,
// and with nobody leaving, no fewer.
func testTotalRace(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	const total, many = 5, 40
	for round := range 5 {
		var in atomic.Int64
		raceOf(many, all, func(r roll, i int) {
			_, err := r.Admit(r.ctx, ofUser(i), long, store.Limits{Total: total}, "")
			var limit *store.LimitError
			switch {
			case err == nil:
				in.Add(1)
			case !errors.As(err, &limit) || limit.Limit != store.LimitTotal:
				t.Errorf("Admit: %v", err)
			}
		})
		if n := in.Load(); n != total {
			t.Errorf("round %d: %d of %d got one of %d seats", round, n, many, total)
		}
		if n := len(all[0].list(store.Query{Tenant: "acme"})); n != total {
			t.Errorf("round %d: %d are listed, want %d", round, n, total)
		}
		raceOf(many, all, func(r roll, i int) {
			if err := r.Remove(r.ctx, ofUser(i)); err != nil {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}

// testReplaceRace lets one browser sign in again many times at once where no seat is free:
// one takes over the seat that there is.
func testReplaceRace(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	limits := store.Limits{Total: 2}
	all[0].admit(ofUser(1), limits, "")
	all[0].admit(session("old"), limits, "")
	errs := make([]error, contenders)
	race(all, func(r roll, i int) {
		_, err := r.Admit(r.ctx, session(fmt.Sprint("new", i)), long, limits, "old")
		var limit *store.LimitError
		if errors.As(err, &limit) {
			err = errNoSeat
		}
		errs[i] = err
	})
	winner := oneWins(t, "Admit that replaces", errs, errNoSeat)
	all[0].wantLive(fmt.Sprint("new", winner))
	all[0].wantEnding(session("old"), store.ReasonReplaced)
}

var errNoSeat = errors.New("no seat")
