package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

var errAway = errors.New("the store is away")

// An unsteadyStore is a store that fails here and there.
type unsteadyStore struct {
	store.Backend
	stuck    string       // this record is not deleted
	breaks   bool         // the list ends with an error
	unmarked string       // the entry of this record is not marked as ending,
	refused  atomic.Int64 // so often
}

func (u *unsteadyStore) Delete(ctx context.Context, key string) error {
	if key == u.stuck {
		return errAway
	}
	return u.Backend.Delete(ctx, key)
}

func (u *unsteadyStore) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	if e.Record == u.unmarked && u.refused.Add(-1) >= 0 {
		return store.Entry{}, errAway
	}
	return u.Backend.End(ctx, e, reason)
}

// Find yields each entry twice.
func (u *unsteadyStore) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range u.Backend.Find(ctx, q) {
			for range 2 {
				if !yield(e, err) {
					return
				}
			}
		}
		if u.breaks {
			yield(store.Entry{}, errAway)
		}
	}
}

// What is certain is counted, each session once, and what is not is said.
func TestEndingThatIsNotCertain(t *testing.T) {
	for name, tc := range map[string]struct {
		stuck           string
		breaks          bool
		refused         int64
		out, said, fail string
	}{
		"all is well": {out: "sessions ended: 2\nsessions that were ending already: 1\n"},
		"a record stays": {
			stuck: "record-1",
			out:   "sessions ended: 1\nsessions that were ending already: 1\n",
			said:  "session " + string(coatcheck.MakeRef("record-1")) + " may not have ended: the store is away\n",
			fail:  "1 sessions may not have ended: run it again",
		},
		"an entry is marked later": {
			refused: 1,
			out:     "sessions ended: 2\nsessions that were ending already: 1\n",
		},
		"an entry is not marked": {
			refused: 2,
			out:     "sessions ended: 2\nsessions that were ending already: 1\n",
			fail:    "1 sessions can't be used any more, but the store still lists them: run it again",
		},
		"the list breaks off": {
			breaks: true,
			out:    "sessions ended: 2\nsessions that were ending already: 1\n",
			fail:   "nobody can tell which sessions there are: the store is away",
		},
	} {
		t.Run(name, func(t *testing.T) {
			kept, ring := memory.New(), seal.NewRing()
			sum := ring.Index("tenant", tenant)
			for i := range 3 {
				record := fmt.Sprint("record-", i)
				listed := store.Entry{ID: string(coatcheck.MakeRef(record)), Tenant: hex.EncodeToString(sum[:16]), User: "u", Record: record}
				if _, err := kept.Admit(t.Context(), listed, time.Hour, store.Limits{}, ""); err != nil {
					t.Fatal(err)
				}
				if i < 2 {
					continue
				}
				if _, err := kept.End(t.Context(), listed, string(coatcheck.ReasonSignedOut)); err != nil {
					t.Fatal(err)
				}
			}
			unsteady := &unsteadyStore{Backend: kept, stuck: tc.stuck, breaks: tc.breaks, unmarked: "record-1"}
			unsteady.refused.Store(tc.refused)
			var out, said bytes.Buffer
			e := ending{con: console{&out, &said}, seen: map[coatcheck.Ref]bool{}, sessions: session.New(session.Options{
				Store: unsteady, Registry: unsteady, Ring: ring, Jar: cookie.New("coatcheck", "", true),
				Tenant: tenant, Idle: time.Hour, Absolute: time.Hour,
			})}
			err := e.report(e.all(t.Context(), session.Query{}))
			failed := ""
			if err != nil {
				failed = err.Error()
			}
			if failed != tc.fail {
				t.Errorf("fails with %q, want %q", failed, tc.fail)
			}
			listed := 0
			for range kept.Find(t.Context(), store.Query{Tenant: hex.EncodeToString(sum[:16])}) {
				listed++
			}
			if certain := tc.stuck == "" && tc.refused < 2; certain != (listed == 0) {
				t.Errorf("%d are listed still", listed)
			}
			if out.String() != tc.out || said.String() != tc.said {
				t.Errorf("says %q and %q, want %q and %q", &out, &said, tc.out, tc.said)
			}
		})
	}
}
