package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// testOutage takes the backend away under load. Until it is back every outcome is
// unknown; afterwards the same stores serve what they had acknowledged.
func testOutage(t testing.TB, h Harness, o Outage) {
	stores, ctx := openNodes(t, h, nodes)
	key := func(i int) string { return fmt.Sprint("k", i) }
	for i := range contenders {
		must(t, "Create", stores[0].Create(ctx, key(i), []byte(key(i)), long))
	}

	// Readers and writers at work from before the outage until after it.
	var failed atomic.Int64 // calls whose outcome stayed unknown
	busy, idle := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // before the harness closes the stores
	defer idle()
	for i := range contenders {
		s := stores[i%nodes]
		wg.Go(func() {
			for n := 0; busy.Err() == nil; n++ {
				r, err := s.Get(ctx, key(i))
				if err == nil && string(r.Value) != key(i) || sentinel(err) {
					t.Errorf("Get %q around an outage: %s, %v", key(i), r.Value, err)
				}
				if err == nil {
					err = s.Touch(ctx, key(i), long)
				}
				if sentinel(err) {
					t.Errorf("Touch %q around an outage: %v", key(i), err)
				}
				if err == nil {
					// A Create of its own, so that ErrExists can't be its fate.
					err = s.Create(ctx, fmt.Sprint("new ", i, " ", n), nil, long)
				}
				if sentinel(err) {
					t.Errorf("Create around an outage: %v", err)
				}
				if err != nil {
					failed.Add(1)
					time.Sleep(time.Millisecond)
				}
			}
		})
	}

	history := NewRecordHistory()
	wg.Go(func() { clientsOfRecords(stores, busy, history, 300, 2, false) })

	end := o.Begin(t)
	wantDown(t, stores, ctx)
	for failed.Load() == 0 && !t.Failed() {
		if ctx.Err() != nil {
			t.Fatal("no call under way noticed the outage")
		}
		time.Sleep(time.Millisecond)
	}
	end()
	for _, s := range stores {
		waitUp(t, s, ctx)
	}
	idle()
	wg.Wait()
	clientsOfRecords(stores, ctx, history, 20, 1, false)
	history.Check(t)
	for i := range contenders {
		wantRecord(t, stores[i%nodes], ctx, key(i), []byte(key(i)), long)
	}
	must(t, "Create after the outage", stores[0].Create(ctx, "after", nil, long))
}

// wantDown checks that every method returns by itself, under a context without a
// deadline, and says unknown.
func wantDown(t testing.TB, stores []store.Store, ctx context.Context) {
	t.Helper()
	ctx = context.WithoutCancel(ctx)
	returns(t, "a call in an outage", func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, s := range stores {
			for name, call := range map[string]func() error{
				"Get":     func() error { _, err := s.Get(ctx, "k0"); return err },
				"Create":  func() error { return s.Create(ctx, "k0", nil, long) },
				"Replace": func() error { return s.Replace(ctx, "k0", 1, nil, long) },
				"Touch":   func() error { return s.Touch(ctx, "k0", long) },
				"Delete":  func() error { return s.Delete(ctx, "absent") },
				"Ping":    func() error { return s.Ping(ctx) },
			} {
				wg.Go(func() { wantUnknown(t, name+" in an outage", call()) })
			}
		}
	})
}

// waitUp waits until s answers again.
func waitUp(t testing.TB, s store.Store, ctx context.Context) {
	t.Helper()
	for {
		err := s.Ping(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the store did not come back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
