package storetest

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

func testEnd(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	a := session("a")
	_, err := r.End(r.ctx, a, "revoked")
	wantErr(t, "End of what is not listed", err, store.ErrNotFound)
	r.wantList(store.Query{Tenant: "acme"})
	r.admit(a, store.Limits{}, "")
	listed := r.get(a)
	_, err = r.End(r.ctx, of("bob", a), "revoked")
	wantErr(t, "End of another user's", err, store.ErrNotFound)
	_, err = r.End(r.ctx, store.Entry{Tenant: "other", User: "alice", ID: "a"}, "revoked")
	wantErr(t, "End of another tenant's", err, store.ErrNotFound)
	if got := r.get(a); got.Ending != "" {
		t.Errorf("End of another's ended this one: %+v", got)
	}

	// Tenant, User and ID name it; the rest is answered.
	got := r.end(store.Entry{Tenant: "acme", User: "alice", ID: "a"}, "revoked")
	wantSame(t, "End", got, a)
	if got.Ending != "revoked" || !got.Started.Equal(listed.Started) || !got.Seen.Equal(listed.Seen) || !got.Expires.Equal(listed.Expires) {
		t.Errorf("End: %+v, want %+v, ending", got, listed)
	}
	if got := r.end(a, "signed_out"); got.Ending != "revoked" {
		t.Errorf("after the second End the reason is %q, want the first", got.Ending)
	}
	r.wantEnding(a, "revoked")
	r.wantList(store.Query{Tenant: "acme", User: "alice"}, "a")
	r.wantList(store.Query{Tenant: "acme", SID: "sid-of-a"}, "a")
	wantErr(t, "Renew", r.Renew(r.ctx, a, 2*long), store.ErrEnding)
	if now := r.get(a); !now.Expires.Equal(listed.Expires) || !now.Seen.Equal(listed.Seen) || now.Ending != "revoked" {
		t.Errorf("Renew of an ending entry made it %+v, from %+v", now, listed)
	}
}

func testRemove(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	wantErr(t, "Remove of what is not listed", r.Remove(r.ctx, session("a")), nil)
	for _, prepare := range []func(store.Entry){
		func(store.Entry) {}, // a live one may be removed, too: a sign-in that was given up
		func(e store.Entry) { r.end(e, "revoked") },
	} {
		a, b := session("a"), session("b")
		r.admit(a, store.Limits{}, "")
		r.admit(b, store.Limits{}, "")
		prepare(a)
		wantErr(t, "Remove of another user's", r.Remove(r.ctx, of("bob", a)), nil)
		r.wantList(store.Query{Tenant: "acme", User: "alice"}, "a", "b")
		r.remove(a)
		for _, q := range []store.Query{
			{Tenant: "acme"},
			{Tenant: "acme", User: "alice"},
			{Tenant: "acme", SID: "sid-of-b"},
			{Tenant: "acme", ID: "b"},
		} {
			r.wantList(q, "b")
		}
		r.wantList(store.Query{Tenant: "acme", SID: "sid-of-a"})
		r.wantList(store.Query{Tenant: "acme", ID: "a"})
		wantErr(t, "second Remove", r.Remove(r.ctx, a), nil)
		_, err := r.End(r.ctx, a, "revoked")
		wantErr(t, "End after Remove", err, store.ErrNotFound)
		r.remove(b)
	}
	if claimed := r.reap(); len(claimed) > 0 {
		t.Errorf("Reap returned %v, which were removed", names(claimed))
	}
}

func testRenew(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	a := session("a")
	r.admit(a, store.Limits{}, "")
	first := r.get(a)
	for _, ttl := range []time.Duration{long / 2, store.MinTTL, 0, -long} {
		tick()
		r.renew(a, ttl)
		got := r.get(a)
		if got.Expires.Before(first.Expires) {
			t.Errorf("Renew by %s shortened the life by %s", ttl, first.Expires.Sub(got.Expires))
		}
		if !got.Seen.After(first.Seen) || !got.Started.Equal(first.Started) {
			t.Errorf("Renew by %s: %+v, want Seen to move and Started to stay from %+v", ttl, got, first)
		}
		wantSame(t, "Find", got, a)
	}
	less := a
	less.Data = a.Data[:1]
	r.renew(less, long)
	wantSame(t, "Find after Renew by a node that knows less", r.get(a), a)

	before := time.Now()
	r.renew(a, 2*long)
	got := r.get(a)
	wantAround(t, "Expires", got.Expires, before.Add(2*long), time.Now().Add(2*long))
	r.wantList(store.Query{Tenant: "acme"}, "a")
	r.wantList(store.Query{Tenant: "acme", SID: "sid-of-a"}, "a")

	// It lives on past its first end.
	b := session("b")
	_, err := r.Admit(r.ctx, b, short, store.Limits{}, "")
	must(t, "Admit", err)
	r.renew(b, long)
	time.Sleep(2 * short)
	r.wantLive("a", "b")
	if claimed := r.reap(); len(claimed) > 0 {
		t.Errorf("Reap claimed %v, which were renewed", names(claimed))
	}
	r.refuse(session("c"), store.Limits{PerUser: 2, Total: 2}, "", store.LimitUser, store.LimitTotal)
}

// testRenewRelists checks that a session in use which was lost from the list comes back,
// whatever the limits, and is counted.
func testRenewRelists(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	a, b := session("a"), session("b")
	one := store.Limits{PerUser: 1, OnLimit: store.Deny}
	r.admit(a, one, "")
	r.remove(a)
	r.admit(b, one, "")
	before := time.Now()
	r.renew(a, long)
	for _, q := range []store.Query{
		{Tenant: "acme", SID: "sid-of-a"},
		{Tenant: "acme", ID: "a"},
	} {
		r.wantList(q, "a")
	}
	r.wantLive("a", "b")
	got := r.get(a)
	wantSame(t, "Find", got, a)
	wantAround(t, "Seen", got.Seen, before, time.Now())
	wantAround(t, "Expires", got.Expires, before.Add(long), time.Now().Add(long))
	r.remove(b)
	r.refuse(session("c"), one, "", store.LimitUser)
	wantIDs(t, "Admit evicts", r.admit(session("c"), store.Limits{PerUser: 1, OnLimit: store.EvictIdle}, ""), "a")

	// An entry that has expired and that nobody claimed comes back, too.
	_, err := r.Admit(r.ctx, of("bob", session("late")), store.MinTTL, store.Limits{}, "")
	must(t, "Admit", err)
	time.Sleep(10 * grain)
	r.renew(of("bob", session("late")), long)
	r.wantList(store.Query{Tenant: "acme", User: "bob"}, "late")
}

func testEntryExpiry(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	one := store.Limits{PerUser: 1, PerApp: 1, OnLimit: store.Deny}
	for _, ttl := range []time.Duration{short, store.MinTTL, 0, -long} {
		e := session("a")
		began := time.Now()
		_, err := r.Admit(r.ctx, e, ttl, one, "")
		must(t, "Admit", err)
		acked := time.Now()
		for asked := acked; len(r.list(store.Query{Tenant: "acme", ID: "a"})) > 0; asked = time.Now() {
			if late := asked.Sub(acked); late > max(ttl, store.MinTTL)+grain {
				t.Fatalf("an entry given %s is found after %s", ttl, late)
			}
			time.Sleep(grain)
		}
		if lived := time.Since(began); lived < ttl-grain {
			t.Errorf("an entry given %s was gone after %s", ttl, lived)
		}
		for _, q := range []store.Query{{Tenant: "acme"}, {Tenant: "acme", User: "alice"}, {Tenant: "acme", SID: "sid-of-a"}} {
			r.wantList(q)
		}
		// It is not counted, by whatever limit.
		if _, err := r.Admit(r.ctx, session("b"), long, one, ""); err != nil {
			t.Errorf("Admit beside an expired entry: %v", err)
		}
		// Neither does an expired one have to give way.
		r.remove(session("b"))
		evict := store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
		wantIDs(t, "Admit beside an expired entry", r.admit(session("b"), evict, ""))
		r.remove(e, session("b"))
	}
}

func testReap(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	if claimed := r.reap(); len(claimed) > 0 {
		t.Fatalf("Reap of an empty registry: %v", names(claimed))
	}
	a, ending, live, bob := session("a"), session("ending"), session("live"), of("bob", session("b"))
	elsewhere := session("c")
	elsewhere.Tenant = "other"
	for _, e := range []store.Entry{a, bob, elsewhere} {
		_, err := r.Admit(r.ctx, e, short, store.Limits{}, "")
		must(t, "Admit", err)
	}
	r.admit(live, store.Limits{}, "")
	r.admit(ending, store.Limits{}, "")
	r.end(ending, "revoked")
	time.Sleep(2 * short)

	claimed := r.reap()
	wantIDs(t, "Reap", names(claimed), "a", "b", "c")
	for _, e := range []store.Entry{a, bob, elsewhere} {
		got := claimed[e.ID]
		wantSame(t, "Reap", got, e)
		if got.Ending != store.ReasonExpired {
			t.Errorf("Reap: %s is ending for the reason %q, want %q", e.ID, got.Ending, store.ReasonExpired)
		}
		if got.Expires.Sub(got.Started) > short+2*grain || got.Expires.Before(got.Started) {
			t.Errorf("Reap: %s lived from %s to %s, want %s", e.ID, got.Started, got.Expires, short)
		}
	}
	// What is claimed is neither handed out again, nor forgotten, nor revived.
	wantIDs(t, "second Reap", names(r.reap()))
	for _, e := range []store.Entry{a, bob, elsewhere} {
		wantErr(t, "Renew of a claimed entry", r.Renew(r.ctx, e, long), store.ErrEnding)
		if got, err := r.End(r.ctx, e, "revoked"); err != nil || got.Ending != store.ReasonExpired {
			t.Errorf("End of a claimed entry: %q, %v, want the first reason", got.Ending, err)
		}
		r.wantList(store.Query{Tenant: e.Tenant, ID: e.ID})
	}
	wantIDs(t, "third Reap", names(r.reap()))
	r.wantEnding(ending, "revoked")
	r.wantLive("live")

	// Remove acknowledges; nothing is left that would stop a new entry of the name.
	r.remove(a, bob, elsewhere)
	wantIDs(t, "Reap after Remove", names(r.reap()))
	wantErr(t, "Renew after Remove", r.Renew(r.ctx, a, long), nil)
	r.remove(a, live, ending)
	r.wantList(store.Query{Tenant: "acme"})
}

// testReapRace checks that entries are handed out once, up to max of them, to reapers on
// all nodes at once.
func testReapRace(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	const entries, most = 60, 7
	for i := range entries {
		e := of(string(rune('a'+i%5)), session("e"+strconv.Itoa(i)))
		_, err := all[0].Admit(all[0].ctx, e, short, store.Limits{}, "")
		must(t, "Admit", err)
	}
	time.Sleep(2 * short)
	if none, err := all[0].Reap(all[0].ctx, 0); err != nil || len(none) > 0 {
		t.Errorf("Reap of none: %v, %v", ids(none), err)
	}
	claims := make([][]store.Entry, contenders)
	race(all, func(r roll, i int) {
		for empty := 0; empty < 2 && len(claims[i]) <= entries; {
			got, err := r.Reap(r.ctx, most)
			if err != nil || len(got) > most {
				t.Errorf("Reap: %d entries, %v, want at most %d", len(got), err, most)
				return
			}
			if len(got) == 0 {
				empty++
			}
			claims[i] = append(claims[i], got...)
		}
	})
	times := map[string]int{}
	for _, claimed := range claims {
		for _, e := range claimed {
			times[e.ID]++
		}
	}
	for i := range entries {
		if n := times["e"+strconv.Itoa(i)]; n != 1 {
			t.Errorf("e%d was handed out %d times", i, n)
		}
	}
}

// beginPatience lists what Reap leaves to somebody else for a while, and returns what
// waits for the end of that: of store.EndingPatience, and of store.ClaimLife if claims.
func beginPatience(t testing.TB, h RegistryHarness) (finish func(t testing.TB, claims bool)) {
	opened := h.Open(t, 1)
	r := rolls(t, opened)[0]
	ending, victim, expired, acked := session("ending"), session("victim"), session("expired"), session("acknowledged")
	for _, e := range []store.Entry{expired, acked} {
		_, err := r.Admit(r.ctx, of("bob", e), short, store.Limits{}, "")
		must(t, "Admit", err)
	}
	expired, acked = of("bob", expired), of("bob", acked)
	r.admit(victim, store.Limits{}, "")
	r.admit(ending, store.Limits{}, "")
	marking := time.Now()
	r.end(ending, "revoked")
	r.admit(session("new"), store.Limits{PerUser: 1, OnLimit: store.EvictOldest}, "")
	marked := time.Now()
	time.Sleep(2 * short)
	claiming := time.Now()
	wantIDs(t, "Reap", names(r.reap()), "expired", "acknowledged")
	claimed := time.Now()
	r.remove(acked)

	// until reaps until want has come, in due time.
	until := func(r roll, from, to time.Time, patience time.Duration, want ...string) map[string]store.Entry {
		r.Helper()
		time.Sleep(time.Until(from.Add(patience - clockSlack)))
		all := map[string]store.Entry{}
		late := to.Add(patience + clockSlack)
		if now := time.Now().Add(clockSlack); late.Before(now) {
			late = now // others were at work meanwhile
		}
		for asked := from; len(all) < len(want) && asked.Before(late); time.Sleep(10 * grain) {
			asked = time.Now()
			for id, e := range r.reap() {
				if id == "expired" && !slices.Contains(want, id) && time.Since(claiming) > store.ClaimLife-grain {
					continue // the sections took so long; it is claimed for another ClaimLife
				}
				if since := time.Since(from); since < patience-grain {
					r.Errorf("Reap handed out %s after %s, before %s", id, since, patience)
				}
				all[id] = e
			}
		}
		wantIDs(r, "Reap after "+patience.String(), names(all), want...)
		return all
	}
	return func(t testing.TB, claims bool) {
		r := rolls(t, opened)[0]
		all := until(r, marking, marked, store.EndingPatience, "ending", "victim")
		if why := all["ending"].Ending + ", " + all["victim"].Ending; why != "revoked, evicted" {
			t.Errorf("Reap: the reasons are %s, want the first ones", why)
		}
		wantSame(t, "Reap", all["ending"], ending)
		r.remove(ending, victim)
		if !claims {
			return
		}
		// Nobody acknowledged this one. Where it was handed out above, it is once more.
		if time.Since(claimed) > store.ClaimLife {
			claimed = time.Now()
		}
		all = until(rolls(t, opened)[0], claiming, claimed, store.ClaimLife, "expired")
		wantSame(t, "Reap", all["expired"], expired)
		if got := all["expired"].Ending; got != store.ReasonExpired {
			t.Errorf("Reap: the reason is %q, want %q", got, store.ReasonExpired)
		}
		r = rolls(t, opened)[0]
		wantErr(t, "Renew", r.Renew(r.ctx, expired, long), store.ErrEnding)
		r.remove(expired)
		wantErr(t, "Renew after Remove", r.Renew(r.ctx, expired, long), nil)
	}
}
