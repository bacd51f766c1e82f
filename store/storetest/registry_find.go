package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

func testFind(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	sharing := func(sid string, e store.Entry) store.Entry { e.SID = sid; return e }
	in := func(tenant string, e store.Entry) store.Entry { e.Tenant = tenant; return e }
	for _, e := range []store.Entry{
		sharing("one", session("a1")), sharing("two", session("a2")),
		sharing("one", of("bob", session("b1"))), sharing("", of("bob", session("b2"))),
		// The same names at another tenant are somebody else's.
		in("other", sharing("one", session("x1"))), in("other", sharing("two", session("a1"))),
	} {
		r.admit(e, store.Limits{}, "")
	}
	ending := sharing("one", session("a1"))
	r.end(ending, "revoked")
	for _, tc := range []struct {
		q    store.Query
		want []string
	}{
		{store.Query{Tenant: "acme"}, []string{"a1", "a2", "b1", "b2"}},
		{store.Query{Tenant: "acme", User: "alice"}, []string{"a1", "a2"}},
		{store.Query{Tenant: "acme", User: "bob"}, []string{"b1", "b2"}},
		{store.Query{Tenant: "acme", User: "carol"}, nil},
		{store.Query{Tenant: "acme", SID: "one"}, []string{"a1", "b1"}},
		{store.Query{Tenant: "acme", SID: "two"}, []string{"a2"}},
		{store.Query{Tenant: "acme", SID: "three"}, nil},
		{store.Query{Tenant: "acme", ID: "a1"}, []string{"a1"}},
		{store.Query{Tenant: "acme", ID: "x1"}, nil},
		{store.Query{Tenant: "other"}, []string{"a1", "x1"}},
		{store.Query{Tenant: "other", User: "alice"}, []string{"a1", "x1"}},
		{store.Query{Tenant: "other", User: "bob"}, nil},
		{store.Query{Tenant: "other", SID: "two"}, []string{"a1"}},
		{store.Query{Tenant: "other", ID: "b1"}, nil},
		{store.Query{Tenant: "third"}, nil},
		// A name of one kind is none of another kind, nor a part or a pattern of it.
		{store.Query{Tenant: "acme", ID: "alice"}, nil},
		{store.Query{Tenant: "acme", User: "a1"}, nil},
		{store.Query{Tenant: "acme", SID: "a1"}, nil},
		{store.Query{Tenant: "acme", User: "alic"}, nil},
		{store.Query{Tenant: "acme", User: "alice_"}, nil},
		{store.Query{Tenant: "acme", User: "_lice"}, nil},
		{store.Query{Tenant: "acme", User: "Alice"}, nil},
		{store.Query{Tenant: "acme", ID: "a_"}, nil},
		{store.Query{Tenant: "a"}, nil},
	} {
		r.wantList(tc.q, tc.want...)
		for id, e := range r.list(tc.q) {
			if e.Tenant != tc.q.Tenant {
				t.Errorf("Find %+v: %s is of tenant %s", tc.q, id, e.Tenant)
			}
			if (e.Ending != "") != (e.Tenant == "acme" && id == "a1") {
				t.Errorf("Find %+v: %s is ending for %q", tc.q, id, e.Ending)
			}
		}
	}

	// Whoever breaks off gets no more.
	for range r.Find(r.ctx, store.Query{Tenant: "acme"}) {
		break
	}
	// A Seq2 may be ranged over again.
	again := r.Find(r.ctx, store.Query{Tenant: "acme", User: "bob"})
	for range 2 {
		n := 0
		for _, err := range again {
			must(t, "Find", err)
			n++
		}
		if n != 2 {
			t.Errorf("Find yielded %d entries, want 2", n)
		}
	}
}

// testFindPages finds several thousand entries while others come, go and are renewed: what
// is there all the time is found.
func testFindPages(t testing.TB, h RegistryHarness) {
	all := openRolls(t, h, nodes)
	const staying = 3000
	entry := func(i int) store.Entry {
		e := of(fmt.Sprint("user", i%100), session(fmt.Sprint("stays", i)))
		e.SID = "shared"
		return e
	}
	raceOf(4*nodes, all, func(r roll, first int) {
		for i := first; i < staying; i += 4 * nodes {
			if _, err := r.Admit(r.ctx, entry(i), long, store.Limits{}, ""); err != nil {
				t.Errorf("Admit: %v", err)
			}
		}
	})

	busy, idle := context.WithCancel(all[0].ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer idle()
	wg.Go(func() {
		r := all[1]
		for i := 0; busy.Err() == nil; i++ {
			brief := of(fmt.Sprint("user", i%100), session(fmt.Sprint("goes", i)))
			_, err := r.Admit(r.ctx, brief, long, store.Limits{}, "")
			for _, e := range []error{err, r.Renew(r.ctx, entry(i*7%staying), 2*long), r.Remove(r.ctx, brief)} {
				if e != nil {
					t.Errorf("beside Find: %v", e)
					return
				}
			}
		}
	})
	for _, q := range []store.Query{{Tenant: "acme"}, {Tenant: "acme", SID: "shared"}} {
		found := all[2].list(q)
		for i := range staying {
			if _, ok := found[entry(i).ID]; !ok {
				t.Errorf("Find %+v did not find %s", q, entry(i).ID)
				break
			}
		}
	}
	found := all[2].list(store.Query{Tenant: "acme", User: "user7"})
	for i := 7; i < staying; i += 100 {
		if _, ok := found[entry(i).ID]; !ok {
			t.Errorf("Find by user did not find %s", entry(i).ID)
		}
	}
}

// badNames are what people tried to put into somebody's keys: A-K1 to A-K5.
var badNames = []string{
	"*", "alice*", "a?", "[a-z]*", "a\\", // patterns
	"x\r\nDEL y", "x\n", "$4\r\nname",
	"'; DROP TABLE sessions;--", "\"", "`", "%", "$1", "?1", ":name",
	`{"$ne":null}`, "{}", "{a", "a}b", "a:b", "a|b", "a/b", "../x", "a.b", "a b", "a,b", "a=b",
	"\x00", "a\x00", "é", "\xff",
	strings.Repeat("a", store.MaxName+1), strings.Repeat("a", 10<<10),
}

func testBadNames(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	good := session("a")
	r.admit(good, store.Limits{}, "")
	r.admit(of("bob", session("b")), store.Limits{}, "")
	// A context that is over lets nothing be sent; names are checked before.
	over, cancel := context.WithCancel(r.ctx)
	cancel()
	refused := func(step string, e store.Entry, want error) {
		t.Helper()
		_, err := r.Admit(over, e, long, store.Limits{}, "")
		wantErr(t, "Admit with "+step, err, want)
		wantErr(t, "Renew with "+step, r.Renew(over, e, long), want)
	}
	named := func(step string, e store.Entry) {
		t.Helper()
		refused(step, e, store.ErrBadEntry)
		_, err := r.End(over, e, "revoked")
		wantErr(t, "End with "+step, err, store.ErrBadEntry)
		wantErr(t, "Remove with "+step, r.Remove(over, e), store.ErrBadEntry)
	}
	with := func(change func(e *store.Entry)) store.Entry {
		e := good
		change(&e)
		return e
	}
	for _, bad := range append(badNames, "") {
		step := fmt.Sprintf(" %.40q", bad)
		named("ID"+step, with(func(e *store.Entry) { e.ID = bad }))
		named("tenant"+step, with(func(e *store.Entry) { e.Tenant = bad }))
		named("user"+step, with(func(e *store.Entry) { e.User = bad }))
		_, err := r.End(over, good, bad)
		wantErr(t, "End with reason"+step, err, store.ErrBadEntry)
		for _, q := range []store.Query{
			{Tenant: bad},
			{Tenant: bad, User: "alice"},
			{Tenant: "acme", User: bad},
			{Tenant: "acme", SID: bad},
			{Tenant: "acme", ID: bad},
		} {
			if bad == "" && q.Tenant != "" {
				continue // an empty name asks for nothing
			}
			wantFindErr(t, r, over, q, store.ErrBadEntry)
		}
		if bad == "" {
			continue
		}
		refused("app"+step, with(func(e *store.Entry) { e.App = bad }), store.ErrBadEntry)
		refused("sid"+step, with(func(e *store.Entry) { e.SID = bad }), store.ErrBadEntry)
		_, err = r.Admit(over, good, long, store.Limits{}, bad)
		wantErr(t, "Admit that replaces"+step, err, store.ErrBadEntry)
	}
	for _, q := range []store.Query{
		{Tenant: "acme", User: "alice", SID: "s"},
		{Tenant: "acme", User: "alice", ID: "a"},
		{Tenant: "acme", SID: "s", ID: "a"},
	} {
		wantFindErr(t, r, over, q, store.ErrBadEntry)
	}
	refused("no record", with(func(e *store.Entry) { e.Record = "" }), store.ErrTooLarge)
	refused("a record over the limit", with(func(e *store.Entry) { e.Record = strings.Repeat("k", store.MaxKey+1) }), store.ErrTooLarge)
	refused("data over the limit", with(func(e *store.Entry) { e.Data = make([]byte, store.MaxEntryData+1) }), store.ErrTooLarge)

	r.wantList(store.Query{Tenant: "acme"}, "a", "b")
	wantSame(t, "Find", r.get(good), good)
}

// wantFindErr checks that Find yields an error, and nothing more.
func wantFindErr(t testing.TB, r roll, ctx context.Context, q store.Query, want error) {
	t.Helper()
	n := 0
	for e, err := range r.Find(ctx, q) {
		n++
		if err == nil {
			t.Errorf("Find %+v yielded %s", q, e.ID)
			return
		}
		wantErr(t, fmt.Sprintf("Find %.200q", fmt.Sprint(q)), err, want)
	}
	if n != 1 {
		t.Errorf("Find %+v yielded %d errors", q, n)
	}
}

// testLiteralData checks that Data and Record are data, whatever they look like.
func testLiteralData(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	data := []string{string(every), "\x00", "\xff\xfe", "\r\n", "", "null", "{}", "'", "\\x00", "(nil)"}
	for _, d := range append(data, badNames...) {
		e := session("a")
		e.Data, e.Record = []byte(d), "k"+d[:min(len(d), store.MaxKey-1)]
		if len(e.Data) > store.MaxEntryData {
			e.Data = e.Data[:store.MaxEntryData]
		}
		wantIDs(t, "Admit", r.admit(e, store.Limits{}, ""))
		wantSame(t, "Find", r.get(e), e)
		wantSame(t, "End", r.end(e, "revoked"), e)
		next := session("b")
		ending, err := r.Admit(r.ctx, next, short/10, store.Limits{}, "")
		must(t, "Admit", err)
		if len(ending) != 1 {
			t.Fatalf("Admit returned %v, want what is ending", ids(ending))
		}
		wantSame(t, "Admit", ending[0], e)
		r.remove(e, next)
	}
}

func testEntryAliasing(t testing.TB, h RegistryHarness) {
	r := openRoll(t, h)
	want := session("a")
	one := store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
	// scribble spoils what the caller was given, or gave.
	scribble := func(data []byte) {
		clear(data)
		_ = append(data, "and what stands behind it"...)
	}
	e := session("a")
	r.admit(e, one, "")
	scribble(e.Data)
	wantSame(t, "Find", r.get(want), want)
	scribble(r.get(want).Data)
	wantSame(t, "Find", r.get(want), want)
	r.remove(want)
	e = session("a")
	r.renew(e, long)
	scribble(e.Data)
	wantSame(t, "Find", r.get(want), want)

	ending, err := r.Admit(r.ctx, session("b"), long, one, "")
	must(t, "Admit", err)
	scribble(ending[0].Data)
	wantSame(t, "Find", r.get(want), want)
	scribble(r.end(want, "revoked").Data)
	wantSame(t, "Find", r.get(want), want)

	_, err = r.Admit(r.ctx, of("bob", session("c")), store.MinTTL, one, "")
	must(t, "Admit", err)
	time.Sleep(10 * grain)
	scribble(r.reap()["c"].Data)
	got, err := r.End(r.ctx, of("bob", session("c")), "revoked")
	if err != nil || !bytes.Equal(got.Data, session("c").Data) {
		t.Errorf("End of what was claimed: %s, %v", got.Data, err)
	}
}
