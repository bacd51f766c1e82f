package storetest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// goldenLife is how long what is golden lives: longer than anybody will read it.
const goldenLife = 90 * 365 * 24 * time.Hour

var (
	goldenKey   = "__Host-coatcheck-000102030405060708090a0b0c0d0e0f"
	goldenLease = "refresh-0123456789abcdef0123456789abcdef"
	goldenValue = []byte("\x01 a golden value \x00\xff")
)

// GoldenEvent is what WriteGolden appends to the journal.
var GoldenEvent = []byte(`{"v":1,"event":{"id":"golden"}}`)

func goldenEntry(id string) store.Entry {
	return store.Entry{
		ID: id, Tenant: "acme", User: "alice", App: "shop", SID: "sid-of-" + id,
		Record: "record of " + id, Data: []byte("data of \x00 " + id),
	}
}

// WriteGolden writes what CheckGolden reads to an empty store: a record of revision three, two
// sessions of one user, one of which is ending, a lease that is held, and an event.
func WriteGolden(t testing.TB, s store.Backend) {
	t.Helper()
	ctx := context.Background()
	must(t, "Create", s.Create(ctx, goldenKey, []byte("first"), goldenLife))
	for _, value := range [][]byte{[]byte("second"), goldenValue} {
		rec, err := s.Get(ctx, goldenKey)
		must(t, "Get", err)
		must(t, "Replace", s.Replace(ctx, goldenKey, rec.Revision, value, goldenLife))
	}
	for _, id := range []string{"a", "b"} {
		_, err := s.Admit(ctx, goldenEntry(id), goldenLife, store.Limits{Total: 10}, "")
		must(t, "Admit", err)
	}
	_, err := s.End(ctx, goldenEntry("b"), "revoked")
	must(t, "End", err)
	_, err = s.Acquire(ctx, goldenLease, goldenLife)
	must(t, "Acquire", err)
	must(t, "Append", s.Append(ctx, GoldenEvent))
}

// CheckGolden checks that a store reads and carries on what WriteGolden wrote, which may have
// been long ago, by an earlier version of the driver. It does not look at the event.
func CheckGolden(t testing.TB, s store.Backend) {
	t.Helper()
	ctx := context.Background()
	rec, err := s.Get(ctx, goldenKey)
	must(t, "Get", err)
	if !bytes.Equal(rec.Value, goldenValue) || rec.TTL < time.Hour {
		t.Errorf("the record is %q, and lives %v", rec.Value, rec.TTL)
	}
	wantErr(t, "Create", s.Create(ctx, goldenKey, nil, time.Hour), store.ErrExists)
	wantErr(t, "Replace of another revision", s.Replace(ctx, goldenKey, rec.Revision+1, nil, time.Hour), store.ErrConflict)
	must(t, "Touch", s.Touch(ctx, goldenKey, time.Minute))
	must(t, "Replace", s.Replace(ctx, goldenKey, rec.Revision, []byte("new"), time.Hour))
	must(t, "Delete", s.Delete(ctx, goldenKey))

	a, b := goldenEntry("a"), goldenEntry("b")
	for _, q := range []struct {
		query store.Query
		want  []string
	}{
		{store.Query{Tenant: "acme"}, []string{"a", "b"}},
		{store.Query{Tenant: "acme", User: "alice"}, []string{"a", "b"}},
		{store.Query{Tenant: "acme", SID: "sid-of-a"}, []string{"a"}},
		{store.Query{Tenant: "acme", ID: "b"}, []string{"b"}},
	} {
		found := map[string]store.Entry{}
		for e, err := range s.Find(ctx, q.query) {
			must(t, "Find", err)
			found[e.ID] = e
		}
		wantIDs(t, "Find", names(found), q.want...)
		for id, e := range found {
			wantSame(t, "Find", e, goldenEntry(id))
			if ending := map[string]string{"b": "revoked"}[id]; e.Ending != ending {
				t.Errorf("%s is ending for %q, want %q", id, e.Ending, ending)
			}
			if e.Started.IsZero() || e.Seen.Before(e.Started) || time.Until(e.Expires) < time.Hour {
				t.Errorf("the times of %s are %v, %v, %v", id, e.Started, e.Seen, e.Expires)
			}
		}
	}
	must(t, "Renew", s.Renew(ctx, a, time.Minute))
	wantErr(t, "Renew of what is ending", s.Renew(ctx, b, time.Minute), store.ErrEnding)
	for limit, limits := range map[store.LimitKind]store.Limits{
		store.LimitUser:  {PerUser: 1},
		store.LimitApp:   {PerApp: 1},
		store.LimitTotal: {Total: 1},
	} {
		_, err = s.Admit(ctx, goldenEntry("c"), time.Hour, limits, "")
		if refused := (*store.LimitError)(nil); !errors.As(err, &refused) || refused.Limit != limit {
			t.Errorf("Admit with %+v: %v", limits, err)
		}
	}
	ending, err := s.Admit(ctx, goldenEntry("c"), time.Hour, store.Limits{PerUser: 1, OnLimit: store.EvictOldest}, "")
	must(t, "Admit", err)
	evicted := map[string]store.Entry{}
	for _, e := range ending {
		evicted[e.ID] = e
	}
	wantIDs(t, "Admit", names(evicted), "a", "b")
	for _, id := range []string{"a", "b", "c"} {
		must(t, "Remove", s.Remove(ctx, goldenEntry(id)))
	}
	for e := range s.Find(ctx, store.Query{Tenant: "acme"}) {
		t.Errorf("after Remove there is %+v", e)
	}
	_, err = s.Admit(ctx, goldenEntry("d"), time.Hour, store.Limits{PerUser: 1, Total: 1}, "")
	must(t, "Admit where nobody is left", err)
	must(t, "Remove", s.Remove(ctx, goldenEntry("d")))

	_, err = s.Acquire(ctx, goldenLease, time.Second)
	wantErr(t, "Acquire", err, store.ErrHeld)
}
