package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// testLimitsRace covers A-S4: 50 sign-ins of one user at once over three nodes. After
// each acknowledgement never more than the limit are usable, and in the end no fewer.
func testLimitsRace(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	const logins = 50
	for _, limit := range []int{2, 3} {
		for _, on := range []store.OnLimit{store.Deny, store.EvictOldest, store.EvictIdle} {
			name := fmt.Sprintf("limit %d, %s", limit, on)
			var d desk
			raceOf(logins, all, func(r roll, i int) {
				e := session(fmt.Sprint("s", i))
				err := d.signIn(r, e, store.Limits{PerUser: limit, OnLimit: on})
				var denied *store.LimitError
				if err != nil && !(on.Denies() && errors.As(err, &denied)) {
					t.Errorf("%s: sign-in: %v", name, err)
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if n := d.usable(); n > limit {
					t.Errorf("%s: %d are usable after an acknowledgement", name, n)
				}
			})
			if n := d.usable(); n != limit {
				t.Errorf("%s: %d are usable in the end", name, n)
			}
			r := all[0]
			listed := r.list(store.Query{Tenant: "acme", User: "alice"})
			if len(listed) != limit {
				t.Errorf("%s: %d are listed in the end", name, len(listed))
			}
			for id, e := range listed {
				if e.Ending != "" || d.sessions[id] != acknowledged {
					t.Errorf("%s: %s is listed, ending for %q, and not usable", name, id, e.Ending)
				}
				r.remove(e)
			}
		}
	}
}

// A desk takes people in as package session does, and knows who may use what. Its records
// are exact, so that only the registry can be wrong.
type desk struct {
	mu       sync.Mutex
	sessions map[string]progress
}

// progress is how far a session has come.
type progress int

const (
	gone progress = iota
	recorded
	acknowledged // recorded, and its holder has the ticket
)

// signIn begins a session: record, Admit, victims' records deleted, victims removed,
// acknowledgement.
func (d *desk) signIn(r roll, e store.Entry, limits store.Limits) error {
	d.set(e.ID, recorded)
	ending, err := r.Admit(r.ctx, e, long, limits, "")
	if err != nil {
		d.set(e.ID, gone)
		return err
	}
	for _, v := range ending {
		d.set(v.ID, gone)
	}
	for _, v := range ending {
		if err := r.Remove(r.ctx, v); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions[e.ID] == recorded { // unless somebody else has evicted it
		d.sessions[e.ID] = acknowledged
	}
	return nil
}

// signOut ends a session: marked, record deleted, entry removed.
func (d *desk) signOut(r roll, e store.Entry) error {
	if _, err := r.End(r.ctx, e, "signed_out"); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	d.set(e.ID, gone)
	return r.Remove(r.ctx, e)
}

// use says whether the session can be used, and renews it as a request does. The record
// decides, but is extended only where the registry agrees.
func (d *desk) use(r roll, e store.Entry) (bool, error) {
	d.mu.Lock()
	usable := d.sessions[e.ID] == acknowledged
	d.mu.Unlock()
	if !usable {
		return false, nil
	}
	err := r.Renew(r.ctx, e, long)
	if errors.Is(err, store.ErrEnding) {
		return true, nil
	}
	d.mu.Lock()
	usable = d.sessions[e.ID] == acknowledged
	d.mu.Unlock()
	if err == nil && !usable {
		// It ended meanwhile, so it may have been listed again.
		err = r.Remove(r.ctx, e)
	}
	return usable, err
}

func (d *desk) set(id string, p progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions == nil {
		d.sessions = make(map[string]progress)
	}
	d.sessions[id] = p
}

// usable counts. d.mu is held, or nobody else is at work.
func (d *desk) usable() int {
	n := 0
	for _, p := range d.sessions {
		if p == acknowledged {
			n++
		}
	}
	return n
}

// testLimitHistories lets one user sign in, use and sign out over three nodes, and checks
// that what came can be told as a set that is never over its cap: A-Z10.
func testLimitHistories(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	for kind, limits := range []store.Limits{
		{PerUser: 2, OnLimit: store.Deny},
		{PerUser: 3, OnLimit: store.EvictOldest},
		{PerUser: 1, OnLimit: store.EvictIdle},
	} {
		for round := range 5 { // a verdict on five short histories is quicker than one on a long one
			history := NewSessionHistory(limits)
			var d desk
			raceOf(2*nodes, all, func(r roll, client int) {
				for i := range 3 {
					e := session(fmt.Sprintf("k%dr%dc%di%d", kind, round, client, i))
					d.visit(r, history, e, limits, i%2 == 0)
				}
			})
			if history.Check(t); t.Failed() {
				return // a verdict against a history takes long
			}
			for _, e := range all[0].list(store.Query{Tenant: "acme", User: "alice"}) {
				all[0].remove(e)
			}
		}
	}
}

// visit signs in, uses the session, and signs out if leaves. It says whether all outcomes
// are known.
func (d *desk) visit(r roll, history *SessionHistory, e store.Entry, limits store.Limits, leaves bool) bool {
	done := history.Begin(SignIn, e.ID)
	signedIn := outcomeOf(d.signIn(r, e, limits))
	done(signedIn)
	if signedIn != Done {
		return signedIn != Unknown
	}
	known := true
	for range 2 {
		done = history.Begin(Use, e.ID)
		usable, err := d.use(r, e)
		used := outcomeOf(err)
		if err == nil && !usable {
			used = Refused
		}
		done(used)
		known = known && used != Unknown
	}
	if leaves {
		done = history.Begin(SignOut, e.ID)
		left := outcomeOf(d.signOut(r, e))
		done(left)
		known = known && left != Unknown
	}
	return known
}

// outcomeOf takes an error that states an outcome for a refusal.
func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Done
	case sentinel(err):
		return Refused
	default:
		return Unknown
	}
}

func testRegistryCancelled(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	a := session("a")
	r.admit(a, store.Limits{}, "")
	cancelled, cancel := context.WithCancel(r.ctx)
	cancel()
	late, cancel := context.WithDeadline(r.ctx, time.Now().Add(-time.Second))
	defer cancel()
	for name, over := range map[string]context.Context{"cancelled": cancelled, "past its deadline": late} {
		wantRegistryUnknown(t, r, over, "alice", name)
	}
	wantSame(t, "Find", r.get(a), a)
	r.wantLive("a")

	// Who stops in the middle of a list hears of it, or has it all.
	for i := range 50 {
		r.admit(of("bob", session(fmt.Sprint("b", i))), store.Limits{}, "")
	}
	stopped, stop := context.WithCancel(r.ctx)
	defer stop()
	n, failed := 0, false
	for _, err := range r.Find(stopped, store.Query{Tenant: "acme"}) {
		stop()
		if failed {
			t.Error("Find yielded more after an error")
		}
		if err != nil {
			wantUnknown(t, "Find", err)
			failed = true
			continue
		}
		n++
	}
	if n != 51 && !failed {
		t.Errorf("Find yielded %d of 51 entries, and no error", n)
	}
}

// wantRegistryUnknown checks that no call states an outcome. It tries for user.
func wantRegistryUnknown(t testing.TB, r roll, ctx context.Context, user, why string) {
	t.Helper()
	try := func(id string) store.Entry { return of(user, session("try-"+id)) }
	_, err := r.Admit(ctx, try("b"), long, store.Limits{}, "")
	wantUnknown(t, "Admit, "+why, err)
	_, err = r.Admit(ctx, try("b"), long, store.Limits{PerUser: 1, PerApp: 1, Total: 1}, "a")
	wantUnknown(t, "Admit with limits, "+why, err)
	wantUnknown(t, "Renew, "+why, r.Renew(ctx, try("c"), long))
	_, err = r.End(ctx, try("absent"), "revoked")
	wantUnknown(t, "End, "+why, err)
	wantUnknown(t, "Remove, "+why, r.Remove(ctx, try("absent")))
	_, err = r.Reap(ctx, 10)
	wantUnknown(t, "Reap, "+why, err)
	for _, q := range []store.Query{
		{Tenant: "acme"}, {Tenant: "acme", User: user}, {Tenant: "acme", SID: "sid-of-a"}, {Tenant: "acme", ID: "absent"},
	} {
		n := 0
		for _, err := range r.Find(ctx, q) {
			wantUnknown(t, fmt.Sprintf("Find %+v, %s", q, why), err)
			n++
		}
		if n != 1 {
			t.Errorf("Find %+v, %s: %d answers, want one error", q, why, n)
		}
	}
}

// testRegistryOutage takes the backend away. Until it is back every outcome is unknown;
// afterwards what was acknowledged is listed, and the limits hold.
func testRegistryOutage(t testing.TB, h RegistryHarness, o Outage) {
	all := openRolls(t, h, nodes)
	r := all[0]
	limits := store.Limits{PerUser: 2, OnLimit: store.Deny}
	bob := of("bob", session("b"))
	r.admit(session("a"), limits, "")
	r.admit(bob, limits, "")
	r.end(bob, "revoked")

	// Somebody signs in over and over, from before the outage until after it.
	evict := store.Limits{PerUser: 2, OnLimit: store.EvictOldest}
	history := NewSessionHistory(evict)
	var d desk
	var wg sync.WaitGroup
	busy, idle := context.WithCancel(r.ctx)
	defer wg.Wait() // before the harness closes the registries
	defer idle()
	for client, r := range all {
		wg.Go(func() {
			for i, unknown := 0, 0; i < 100 && unknown < 3 && busy.Err() == nil; i++ {
				if !d.visit(r, history, of("dave", session(fmt.Sprintf("c%di%d", client, i))), evict, i%3 == 0) {
					unknown++
				}
				time.Sleep(grain)
			}
		})
	}

	end := o.Begin(t)
	returns(t, "a call in an outage", func() {
		raceOf(nodes, all, func(r roll, _ int) {
			// What is tried now may happen later, so it is somebody else's.
			wantRegistryUnknown(t, r, context.WithoutCancel(r.ctx), "carol", "in an outage")
		})
	})
	end()
	for _, r := range all {
		eventually(t, r.ctx, "the registry answered again", func() bool {
			_, err := r.Reap(r.ctx, 1)
			for _, e := range r.Find(r.ctx, store.Query{Tenant: "acme"}) {
				err = errors.Join(err, e)
			}
			return err == nil
		})
	}
	idle()
	wg.Wait()
	wantSame(t, "Find after the outage", r.get(session("a")), session("a"))
	r.wantEnding(bob, "revoked")
	all[1].admit(session("d"), limits, "")
	all[2].refuse(session("e"), limits, "", store.LimitUser)
	all[2].wantLive("a", "d")
	wantErr(t, "Renew after the outage", r.Renew(r.ctx, session("a"), long), nil)
	wantErr(t, "Renew of an ending entry after the outage", r.Renew(r.ctx, bob, long), store.ErrEnding)

	for i := range 2 * nodes {
		if !d.visit(all[i%nodes], history, of("dave", session(fmt.Sprint("after", i))), evict, false) {
			t.Error("a sign-in after the outage has no known outcome")
		}
	}
	history.Check(t)
	if n := d.usable(); n > evict.PerUser {
		t.Errorf("%d are usable after the outage, want at most %d", n, evict.PerUser)
	}
}
