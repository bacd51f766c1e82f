package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

const nodes, contenders = 3, 12

// race runs do for each contender at once, each on one of the nodes.
func race[S any](nodes []S, do func(s S, i int)) { raceOf(contenders, nodes, do) }

// raceOf is race with n contenders.
func raceOf[S any](n int, nodes []S, do func(s S, i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			do(nodes[i%len(nodes)], i)
		})
	}
	close(start)
	wg.Wait()
}

// oneWins checks that one contender got nil and all others the refusal, and returns
// the winner.
func oneWins(t testing.TB, step string, errs []error, refusal error) int {
	t.Helper()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("%s: both %d and %d won", step, winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, refusal):
			t.Errorf("%s: error = %v, want %v", step, err, refusal)
		}
	}
	if winner < 0 {
		t.Fatalf("%s: nobody won", step)
	}
	return winner
}

func testConcurrency(t testing.TB, h Harness) {
	stores, ctx := openNodes(t, h, nodes)
	for round := range 10 {
		key := fmt.Sprint("k", round)
		value := func(i int) []byte { return fmt.Append(nil, "by ", i) }
		errs := make([]error, contenders)

		race(stores, func(s store.Store, i int) { errs[i] = s.Create(ctx, key, value(i), long) })
		winner := oneWins(t, "Create", errs, store.ErrExists)
		r := wantRecord(t, stores[0], ctx, key, value(winner), long)

		race(stores, func(s store.Store, i int) {
			errs[i] = s.Replace(ctx, key, r.Revision, value(i), long)
		})
		winner = oneWins(t, "Replace", errs, store.ErrConflict)
		wantRecord(t, stores[1], ctx, key, value(winner), long)
	}

	// Read, add, replace, and again on a conflict: no addition is lost.
	must(t, "Create", stores[0].Create(ctx, "list", nil, long))
	race(stores, func(s store.Store, i int) {
		for {
			r, err := s.Get(ctx, "list")
			if err == nil {
				err = s.Replace(ctx, "list", r.Revision, append(r.Value, byte(i)), long)
			}
			if errors.Is(err, store.ErrConflict) {
				continue
			}
			if err != nil {
				t.Errorf("read-modify-write: %v", err)
			}
			return
		}
	})
	r, err := stores[0].Get(ctx, "list")
	must(t, "Get", err)
	for i := range contenders {
		if bytes.Count(r.Value, []byte{byte(i)}) != 1 {
			t.Errorf("after %d additions, %d is there %d times", contenders, i, bytes.Count(r.Value, []byte{byte(i)}))
		}
	}
}

// testNoResurrection covers invariant 2: whatever is still under way when a record
// ends, nothing brings it back.
func testNoResurrection(t testing.TB, h Harness) {
	stores, ctx := openNodes(t, h, nodes)
	late := func(s store.Store, key string, revision uint64) {
		wantErr(t, "Replace after the end", s.Replace(ctx, key, revision, []byte("late"), long), store.ErrNotFound)
		wantErr(t, "Touch after the end", s.Touch(ctx, key, long), store.ErrNotFound)
		wantAbsent(t, s, ctx, key)
	}
	for round := range 10 {
		key := fmt.Sprint("deleted ", round)
		must(t, "Create", stores[0].Create(ctx, key, []byte("v"), long))
		r := wantRecord(t, stores[0], ctx, key, []byte("v"), long)
		race(stores, func(s store.Store, i int) {
			for j := range 8 {
				var err error
				switch {
				case i == 0 && j == 4:
					err = s.Delete(ctx, key)
				case i%2 == 0:
					err = s.Touch(ctx, key, long)
				default:
					var now store.Record
					if now, err = s.Get(ctx, key); err == nil {
						err = s.Replace(ctx, key, now.Revision, []byte("w"), long)
					}
				}
				if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
					t.Errorf("beside a Delete: %v", err)
				}
			}
		})
		for _, s := range stores {
			late(s, key, r.Revision)
		}
	}

	must(t, "Create", stores[0].Create(ctx, "expired", []byte("v"), short))
	acked := time.Now()
	r, err := stores[0].Get(ctx, "expired")
	waitExpired(t, stores[0], ctx, "expired", short, time.Time{}, acked)
	if err == nil {
		for _, s := range stores {
			late(s, "expired", r.Revision)
		}
	}
}

func testCancelled(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	must(t, "Create", s.Create(ctx, "k", []byte("v"), long))
	r := wantRecord(t, s, ctx, "k", []byte("v"), long)

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	late, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	for name, over := range map[string]context.Context{"cancelled": cancelled, "past its deadline": late} {
		_, err := s.Get(over, "k")
		wantUnknown(t, "Get, "+name, err)
		_, err = s.Get(over, "absent")
		wantUnknown(t, "Get of an absent record, "+name, err)
		wantUnknown(t, "Create, "+name, s.Create(over, "new", []byte("v"), long))
		wantUnknown(t, "Create of what exists, "+name, s.Create(over, "k", []byte("w"), long))
		wantUnknown(t, "Replace, "+name, s.Replace(over, "k", r.Revision+7, []byte("w"), long))
		wantUnknown(t, "Touch, "+name, s.Touch(over, "absent", long))
		wantUnknown(t, "Delete, "+name, s.Delete(over, "absent"))
		wantUnknown(t, "Ping, "+name, s.Ping(over))
	}

	must(t, "Ping", s.Ping(ctx))
	wantRecord(t, s, ctx, "k", []byte("v"), long)
	must(t, "Replace", s.Replace(ctx, "k", r.Revision, []byte("w"), long))
	wantRecord(t, s, ctx, "k", []byte("w"), long)
}

// testCancelledMidway covers A-Z6: callers that leave while their answer is on its
// way must not leave it to somebody else.
func testCancelledMidway(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	key := func(i int) string { return fmt.Sprint("k", i) }
	for i := range contenders {
		must(t, "Create", s.Create(ctx, key(i), []byte(key(i)), long))
	}
	race(Same(s, 1), func(s store.Store, i int) {
		for range 100 {
			brief, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(200))*time.Microsecond)
			r, err := s.Get(brief, key(i))
			cancel()
			if err == nil && string(r.Value) != key(i) || sentinel(err) {
				t.Errorf("Get %q beside cancelled calls: %s, %v", key(i), r.Value, err)
			}
		}
	})
	for i := range contenders {
		wantRecord(t, s, ctx, key(i), []byte(key(i)), long)
	}
}
