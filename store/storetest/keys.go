package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coatcheck/coatcheck/store"
)

// RunLister runs the suite of store.Lister, which RunBackend does as well. It has no outages.
func RunLister(t *testing.T, h BackendHarness) {
	t.Run("Keys", func(t *testing.T) { testKeys(t, h.Open(t, 1)[0]) })
	t.Run("Entries", func(t *testing.T) { testEntries(t, h.Open(t, 1)[0]) })
}

// testKeys checks Keys of store.Lister, on an empty backend.
func testKeys(t testing.TB, s store.Backend) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want := []string{"p-", "p-*", "p-[a-z]", "p-}{", "p-%7D", "p-\x00\xff\r\n"}
	for i := range 1200 {
		want = append(want, fmt.Sprint("p-", i))
	}
	for _, key := range want {
		must(t, "Create", s.Create(ctx, key, []byte("v"), long))
	}
	for _, key := range []string{"p", "q-1", "*", "pp-1", "P-1"} {
		must(t, "Create", s.Create(ctx, key, nil, long))
	}
	must(t, "Create", s.Create(ctx, "p-deleted", nil, long))
	must(t, "Delete", s.Delete(ctx, "p-deleted"))
	must(t, "Create", s.Create(ctx, "p-expired", nil, store.MinTTL))
	for {
		if _, err := s.Get(ctx, "p-expired"); err != nil {
			wantErr(t, "Get", err, store.ErrNotFound)
			break
		}
	}

	var got []string
	for key, err := range s.Keys(ctx, "p-") {
		must(t, "Keys", err)
		got = append(got, key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("Keys: %d keys, want %d; the first are %q", len(got), len(want), got[:min(len(got), 10)])
	}
	for range s.Keys(ctx, "p-") {
		break // a caller may stop at any time
	}
	for range s.Keys(ctx, "none-") {
		t.Error("Keys yields what does not begin with the prefix")
	}

	over, cancelOver := context.WithCancel(ctx)
	cancelOver()
	failed := false
	for _, err := range s.Keys(over, "p-") {
		if failed = err != nil; !failed {
			t.Error("Keys goes on under a cancelled context")
		}
	}
	if !failed {
		t.Error("Keys says nothing about a cancelled context")
	}
}

// testEntries checks Entries of store.Lister, on an empty backend.
func testEntries(t testing.TB, b store.Backend) {
	r := openRoll(t, RegistryHarness{Open: func(testing.TB, int) []store.Registry { return []store.Registry{b} }})
	for i := range 300 {
		r.admit(session(fmt.Sprint("a", i)), store.Limits{}, "")
		r.admit(of(fmt.Sprint("user", i), session(fmt.Sprint("u", i))), store.Limits{}, "")
	}
	elsewhere := session("a1")
	elsewhere.Tenant = "acm"
	r.admit(elsewhere, store.Limits{}, "")
	r.end(session("a1"), "revoked")
	must(t, "Remove", r.Remove(r.ctx, session("a2")))
	if _, err := r.Admit(r.ctx, of("brief", session("b")), store.MinTTL, store.Limits{}, ""); err != nil {
		t.Fatal(err)
	}
	for len(r.list(store.Query{Tenant: "acme", User: "brief"})) > 0 {
	}

	for _, tenant := range []string{"acme", "acm", "ac"} {
		got := make(map[string]store.Entry)
		for e, err := range b.Entries(r.ctx, tenant) {
			must(t, "Entries", err)
			got[e.ID] = e
		}
		if diff := cmp.Diff(r.list(store.Query{Tenant: tenant}), got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("Entries of %s, unlike Find (-Find +Entries):\n%s", tenant, diff)
		}
	}
	for range b.Entries(r.ctx, "acme") {
		break // a caller may stop at any time
	}
	over, cancel := context.WithCancel(r.ctx)
	cancel()
	for _, tenant := range append(badNames, "", "acme") {
		errs := 0
		for _, err := range b.Entries(over, tenant) {
			if errs++; err == nil || tenant != "acme" && !errors.Is(err, store.ErrBadEntry) {
				t.Errorf("Entries of %.40q under a cancelled context: %v", tenant, err)
			}
		}
		if errs != 1 {
			t.Errorf("Entries of %.40q under a cancelled context says so %d times", tenant, errs)
		}
	}
}
