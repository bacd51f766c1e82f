package storetest

import (
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// clockSlack is how far a registry's clock may be from the test's.
const clockSlack = time.Second

// wantAround checks that got is an instant between from and to.
func wantAround(t testing.TB, what string, got, from, to time.Time) {
	t.Helper()
	if got.Before(from.Add(-clockSlack)) || got.After(to.Add(clockSlack)) {
		t.Errorf("%s = %s, want one from %s to %s", what, got, from, to)
	}
}

func testAdmit(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	r.wantList(store.Query{Tenant: "acme"})
	e := session("a")
	// What the registry keeps itself means nothing in what it is given.
	e.Started, e.Seen, e.Expires, e.Ending = time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0), "nonsense"
	before := time.Now()
	wantIDs(t, "Admit", r.admit(e, store.Limits{}, ""))
	after := time.Now()
	for name, q := range map[string]store.Query{
		"tenant": {Tenant: "acme"},
		"user":   {Tenant: "acme", User: "alice"},
		"sid":    {Tenant: "acme", SID: "sid-of-a"},
		"ID":     {Tenant: "acme", ID: "a"},
	} {
		r.wantList(q, "a")
		got := r.list(q)["a"]
		wantSame(t, "Find by "+name, got, e)
		wantAround(t, "Started", got.Started, before, after)
		wantAround(t, "Seen", got.Seen, before, after)
		wantAround(t, "Expires", got.Expires, before.Add(long), after.Add(long))
		if got.Ending != "" {
			t.Errorf("a new entry is ending: %q", got.Ending)
		}
	}

	// The least that an entry has, and the most.
	least := store.Entry{ID: "l", Tenant: "acme", User: "u", Record: "k"}
	r.admit(least, store.Limits{}, "")
	wantSame(t, "Find", r.get(least), least)
	most := store.Entry{
		ID: name64("i"), Tenant: name64("t"), User: name64("u"), App: name64("a"), SID: name64("s"),
		Record: string(make([]byte, store.MaxKey)), Data: make([]byte, store.MaxEntryData),
	}
	r.admit(most, store.Limits{PerUser: 1, PerApp: 1, Total: 1}, "")
	wantSame(t, "Find", r.get(most), most)
	r.remove(least, most)

	// An entry of the same ID is overwritten, and not counted beside itself.
	again := at("desk", session("a"))
	again.Record, again.Data, again.SID = "another", []byte("other data"), "another-sid"
	wantIDs(t, "Admit of the same ID", r.admit(again, store.Limits{PerUser: 1, PerApp: 1}, ""))
	r.wantList(store.Query{Tenant: "acme"}, "a")
	wantSame(t, "Find what was overwritten", r.get(again), again)
	r.wantList(store.Query{Tenant: "acme", SID: "another-sid"}, "a")
	r.wantList(store.Query{Tenant: "acme", SID: "sid-of-a"})
}

// name64 is a name of the greatest length, of all letters that a name may have.
func name64(first string) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	return first + letters[1:store.MaxName]
}

func testDeny(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	two := store.Limits{PerUser: 2, OnLimit: store.Deny}
	r.admit(session("a"), two, "")
	r.admit(at("desk", session("b")), two, "")
	r.refuse(session("c"), two, "", store.LimitUser)
	r.refuse(session("c"), two, "unknown", store.LimitUser)
	r.wantLive("a", "b")

	// The limit is each user's own, at each tenant.
	r.admit(of("bob", session("bob1")), two, "")
	elsewhere := session("elsewhere")
	elsewhere.Tenant = "other"
	r.admit(elsewhere, two, "")

	// Who is ending, or gone, is not counted.
	r.end(session("a"), "signed_out")
	wantIDs(t, "Admit", r.admit(session("c"), two, ""), "a")
	r.refuse(session("d"), two, "", store.LimitUser)
	r.remove(session("a"), at("desk", session("b")))
	wantIDs(t, "Admit", r.admit(session("d"), two, ""))
	r.refuse(session("e"), two, "", store.LimitUser)

	// A limit that was lowered holds for who comes next, and ends nobody.
	r.refuse(session("e"), store.Limits{PerUser: 1, OnLimit: store.Deny}, "", store.LimitUser)
	r.refuse(session("e"), store.Limits{PerUser: 1}, "", store.LimitUser)
	r.admit(session("e"), store.Limits{}, "")
	r.wantLive("c", "d", "e")
}

func testEvictOldest(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	two := store.Limits{PerUser: 2, OnLimit: store.EvictOldest}
	for _, id := range []string{"a", "b"} {
		wantIDs(t, "Admit", r.admit(session(id), two, ""))
		tick()
	}
	r.renew(session("a"), long) // it is still the oldest
	r.admit(of("bob", session("bob1")), two, "")

	before := r.get(session("a"))
	ending, err := r.Admit(r.ctx, session("c"), long, two, "")
	must(t, "Admit", err)
	wantIDs(t, "Admit evicts", ids(ending), "a")
	wantSame(t, "the evicted entry", ending[0], session("a"))
	if e := ending[0]; e.Ending != store.ReasonEvicted || !e.Started.Equal(before.Started) || !e.Expires.Equal(before.Expires) {
		t.Errorf("the evicted entry is %+v, want it as it was, and ending as evicted", e)
	}
	r.wantEnding(session("a"), store.ReasonEvicted)
	r.wantLive("b", "c")
	wantErr(t, "Renew of the evicted entry", r.Renew(r.ctx, session("a"), long), store.ErrEnding)
	r.wantEnding(session("a"), store.ReasonEvicted)
	r.remove(session("a"))
	r.wantLive("b", "c")

	// A limit that was lowered takes as many as have to go.
	tick()
	one := store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
	wantIDs(t, "Admit evicts", r.admit(session("d"), one, ""), "b", "c")
	r.wantLive("d")
	r.wantList(store.Query{Tenant: "acme", User: "bob"}, "bob1")
}

func testEvictIdle(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	three := store.Limits{PerUser: 3, OnLimit: store.EvictIdle}
	for _, id := range []string{"a", "b", "c"} {
		r.admit(session(id), three, "")
		tick()
	}
	r.renew(session("a"), long)
	tick()
	wantIDs(t, "Admit evicts", r.admit(session("d"), three, ""), "b")
	r.wantEnding(session("b"), store.ReasonEvicted)
	tick()
	r.renew(session("c"), store.MinTTL) // Seen moves even where the end does not
	tick()
	r.remove(session("b"))
	wantIDs(t, "Admit evicts", r.admit(session("e"), three, ""), "a")
	r.wantLive("c", "d", "e")
}

func testPerApp(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	limits := store.Limits{PerUser: 3, PerApp: 1, OnLimit: store.Deny}
	r.admit(at("shop", session("s1")), limits, "")
	r.refuse(at("shop", session("s2")), limits, "", store.LimitApp)
	r.admit(of("bob", at("shop", session("bob1"))), limits, "")
	tick()
	r.admit(at("desk", session("d1")), limits, "")
	tick()
	r.admit(at("mail", session("m1")), limits, "")
	r.refuse(at("wiki", session("w1")), limits, "", store.LimitUser)
	r.refuse(at("shop", session("s2")), limits, "", store.LimitUser, store.LimitApp)

	// Who goes for the app's sake makes room for the user, so that nobody else goes.
	limits.OnLimit = store.EvictOldest
	wantIDs(t, "Admit evicts", r.admit(at("mail", session("m2")), limits, ""), "m1")
	r.remove(at("mail", session("m1")))
	tick()
	wantIDs(t, "Admit evicts", r.admit(at("wiki", session("w1")), limits, ""), "s1")
	r.wantLive("d1", "m2", "w1")
	r.remove(at("shop", session("s1")))
	limits.PerUser = 0
	wantIDs(t, "Admit", r.admit(at("shop", session("s3")), limits, ""))
	wantIDs(t, "Admit evicts", r.admit(at("shop", session("s4")), limits, ""), "s3")
	r.wantLive("d1", "m2", "w1", "s4")
	r.wantList(store.Query{Tenant: "acme", User: "bob"}, "bob1")
}

func testReplaces(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	for _, on := range []store.OnLimit{store.Deny, store.EvictOldest, store.EvictIdle} {
		limits := store.Limits{PerUser: 2, PerApp: 2, OnLimit: on}
		r.admit(session("a"), limits, "")
		tick()
		r.admit(session("b"), limits, "")
		tick()
		// Signing in again at N needs no slot N+1.
		wantIDs(t, "Admit that replaces", r.admit(session("c"), limits, "b"), "b")
		r.wantEnding(session("b"), store.ReasonReplaced)
		r.wantLive("a", "c")
		wantErr(t, "Renew of the replaced entry", r.Renew(r.ctx, session("b"), long), store.ErrEnding)
		r.remove(session("a"), session("b"), session("c"))
	}

	limits := store.Limits{PerUser: 2, OnLimit: store.EvictOldest}
	r.admit(session("a"), limits, "")
	tick()
	r.admit(session("b"), limits, "")
	tick()
	r.admit(of("bob", session("bob1")), limits, "")
	// Who is not the user's own, or not listed, is not replaced.
	wantIDs(t, "Admit that replaces another user's", r.admit(session("c"), limits, "bob1"), "a")
	if got := r.get(of("bob", session("bob1"))).Ending; got != "" {
		t.Errorf("Admit ended another user's session as %q", got)
	}
	r.remove(session("a"))
	tick()
	wantIDs(t, "Admit that replaces what is unknown", r.admit(session("d"), limits, "unknown"), "b")
	// Who is ending is not counted twice, and ends for the first reason.
	tick()
	wantIDs(t, "Admit that replaces what is ending", r.admit(session("e"), limits, "b"), "b", "c")
	r.wantEnding(session("b"), store.ReasonEvicted)
	r.wantEnding(session("c"), store.ReasonEvicted)
	r.wantLive("d", "e")
}

// testEnding checks that Admit tells of all that is ending, so that a caller who died
// before it deleted a record doesn't let one session too many live.
func testEnding(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	r, other := all[0], all[1]
	one := store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
	r.admit(session("a"), one, "")
	wantIDs(t, "Admit", other.admit(session("b"), one, ""), "a")
	// Nobody removed a.
	tick()
	wantIDs(t, "Admit", r.admit(session("c"), one, ""), "a", "b")
	r.end(session("c"), "revoked")
	wantIDs(t, "Admit, with nobody to evict", other.admit(session("d"), one, ""), "a", "b", "c")
	wantIDs(t, "Admit without limits", r.admit(session("e"), store.Limits{}, "unknown"), "a", "b", "c")
	wantIDs(t, "Admit of another user", r.admit(of("bob", session("bob1")), one, ""))
	r.remove(session("a"), session("b"), session("c"))
	wantIDs(t, "Admit after Remove", other.admit(session("f"), store.Limits{}, ""))
}
