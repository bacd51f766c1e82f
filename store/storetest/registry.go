package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A RegistryHarness gives the suite its registries.
type RegistryHarness struct {
	// Open returns one Registry per node, as Harness.Open does.
	Open    func(t testing.TB, nodes int) []store.Registry
	Outages []Outage
}

func registrySections() []section[RegistryHarness] {
	return []section[RegistryHarness]{
		{"Admit", testAdmit},
		{"Deny", testDeny},
		{"EvictOldest", testEvictOldest},
		{"EvictIdle", testEvictIdle},
		{"PerApp", testPerApp},
		{"Replaces", testReplaces},
		{"Ending", testEnding},
		{"End", testEnd},
		{"Remove", testRemove},
		{"Renew", testRenew},
		{"RenewRelists", testRenewRelists},
		{"Total", testTotal},
		{"TotalExpiry", testTotalExpiry},
		{"TotalInherited", testTotalInherited},
		{"TotalOverwritten", testTotalOverwritten},
		{"EntryExpiry", testEntryExpiry},
		{"Reap", testReap},
		{"ReapRace", testReapRace},
		{"Find", testFind},
		{"FindPages", testFindPages},
		{"BadNames", testBadNames},
		{"LiteralData", testLiteralData},
		{"EntryAliasing", testEntryAliasing},
		{"RegistryCancelled", testRegistryCancelled},
		{"LimitsRace", testLimitsRace},
		{"TotalRace", testTotalRace},
		{"ReplaceRace", testReplaceRace},
		{"LimitHistories", testLimitHistories},
	}
}

// RunRegistry runs the suite of store.Registry. It takes store.EndingPatience, and with
// -short left out store.ClaimLife, of which most is the waiting for them.
func RunRegistry(t *testing.T, h RegistryHarness) {
	finish := beginPatience(t, h)
	runSections(t, h, registrySections())
	t.Run("Patience", func(t *testing.T) { finish(t, !testing.Short()) })
	runOutages(t, "RegistryOutage", h, h.Outages, testRegistryOutage)
}

// A roll is a Registry as the sections use it: every call must succeed, and sessions are
// told by their IDs.
type roll struct {
	testing.TB
	store.Registry
	ctx context.Context
}

func openRoll(t testing.TB, h RegistryHarness) roll {
	t.Helper()
	return openRolls(t, h, 1)[0]
}

func openRolls(t testing.TB, h RegistryHarness, nodes int) []roll {
	t.Helper()
	return rolls(t, h.Open(t, nodes))
}

// rolls are nodes as t uses them.
func rolls(t testing.TB, nodes []store.Registry) []roll {
	t.Helper()
	ctx := patiently(t)
	all := make([]roll, len(nodes))
	for i, r := range nodes {
		all[i] = roll{t, r, ctx}
	}
	return all
}

// session returns an entry of alice's at one tenant and one app.
func session(id string) store.Entry {
	return store.Entry{
		ID: id, Tenant: "acme", User: "alice", App: "shop", SID: "sid-of-" + id,
		Record: "coatcheck-" + id, Data: []byte("data of " + id),
	}
}

// of returns e as another user's.
func of(user string, e store.Entry) store.Entry { e.User = user; return e }

// at returns e as one that began at another app.
func at(app string, e store.Entry) store.Entry { e.App = app; return e }

// tick lets the registry's clock, which may count milliseconds, move on.
func tick() { time.Sleep(3 * grain) }

// admit lists e for long, and returns the IDs of those that are ending, in order.
func (r roll) admit(e store.Entry, limits store.Limits, replaces string) []string {
	r.Helper()
	ending, err := r.Admit(r.ctx, e, long, limits, replaces)
	must(r, "Admit "+e.ID, err)
	return ids(ending)
}

// refuse checks that Admit denies for one of the given limits, and changes nothing.
func (r roll) refuse(e store.Entry, limits store.Limits, replaces string, want ...store.LimitKind) {
	r.Helper()
	before := r.list(store.Query{Tenant: e.Tenant})
	ending, err := r.Admit(r.ctx, e, long, limits, replaces)
	var limit *store.LimitError
	if !errors.As(err, &limit) || !slices.Contains(want, limit.Limit) || len(ending) > 0 {
		r.Errorf("Admit %s: %v, %v, want a LimitError of %v", e.ID, ids(ending), err, want)
	}
	after := r.list(store.Query{Tenant: e.Tenant})
	for id, was := range before {
		if is := after[id]; is.Ending != was.Ending || !is.Expires.Equal(was.Expires) {
			r.Errorf("Admit %s was denied, and changed %s from %+v to %+v", e.ID, id, was, is)
		}
	}
	if len(before) != len(after) {
		r.Errorf("Admit %s was denied, and changed the list from %v to %v", e.ID, names(before), names(after))
	}
}

func (r roll) end(e store.Entry, reason string) store.Entry {
	r.Helper()
	got, err := r.End(r.ctx, e, reason)
	must(r, "End "+e.ID, err)
	return got
}

func (r roll) remove(all ...store.Entry) {
	r.Helper()
	for _, e := range all {
		must(r, "Remove "+e.ID, r.Remove(r.ctx, e))
	}
}

func (r roll) renew(e store.Entry, ttl time.Duration) {
	r.Helper()
	must(r, "Renew "+e.ID, r.Renew(r.ctx, e, ttl))
}

// reap claims all there is.
func (r roll) reap() map[string]store.Entry {
	r.Helper()
	claimed, err := r.Reap(r.ctx, 1000)
	must(r, "Reap", err)
	all := make(map[string]store.Entry)
	for _, e := range claimed {
		if _, twice := all[e.ID]; twice {
			r.Errorf("Reap returned %s twice", e.ID)
		}
		all[e.ID] = e
	}
	return all
}

// list returns what Find finds, by ID.
func (r roll) list(q store.Query) map[string]store.Entry {
	r.Helper()
	all := make(map[string]store.Entry)
	for e, err := range r.Find(r.ctx, q) {
		must(r, fmt.Sprintf("Find %+v", q), err)
		all[e.ID] = e
	}
	return all
}

// get returns the entry as it is listed.
func (r roll) get(e store.Entry) store.Entry {
	r.Helper()
	got, ok := r.list(store.Query{Tenant: e.Tenant, ID: e.ID})[e.ID]
	if !ok {
		r.Fatalf("%s is not listed", e.ID)
	}
	return got
}

// wantList checks which sessions Find finds.
func (r roll) wantList(q store.Query, want ...string) {
	r.Helper()
	if got := names(r.list(q)); !slices.Equal(got, sorted(want)) {
		r.Errorf("Find %+v: %v, want %v", q, got, sorted(want))
	}
}

// wantLive checks which of alice's sessions are listed and not ending.
func (r roll) wantLive(want ...string) {
	r.Helper()
	all := r.list(store.Query{Tenant: "acme", User: "alice"})
	for id, e := range all {
		if e.Ending != "" {
			delete(all, id)
		}
	}
	if got := names(all); !slices.Equal(got, sorted(want)) {
		r.Errorf("live are %v, want %v", got, sorted(want))
	}
}

// wantEnding checks why a listed session is being ended.
func (r roll) wantEnding(e store.Entry, reason string) {
	r.Helper()
	if got := r.get(e).Ending; got != reason {
		r.Errorf("%s is ending for the reason %q, want %q", e.ID, got, reason)
	}
}

// wantSame checks that got is what was admitted as want.
func wantSame(t testing.TB, step string, got, want store.Entry) {
	t.Helper()
	if got.ID != want.ID || got.Tenant != want.Tenant || got.User != want.User || got.App != want.App ||
		got.SID != want.SID || got.Record != want.Record || !bytes.Equal(got.Data, want.Data) {
		t.Errorf("%s: %+v, want %+v", step, got, want)
	}
}

// wantIDs checks an answer of ours.
func wantIDs(t testing.TB, step string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, sorted(want)) {
		t.Errorf("%s: %v, want %v", step, got, sorted(want))
	}
}

func ids(entries []store.Entry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.ID)
	}
	return sorted(all)
}

func names(entries map[string]store.Entry) []string {
	var all []string
	for id := range entries {
		all = append(all, id)
	}
	return sorted(all)
}

func sorted(all []string) []string {
	all = slices.Clone(all)
	slices.Sort(all)
	return all
}
