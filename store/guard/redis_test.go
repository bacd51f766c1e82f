package guard_test

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/guard"
	"github.com/coatcheck/coatcheck/store/redis"
)

// records is a Backend of which only the Store is there.
type records struct {
	store.Store
	store.Registry
	store.Leaser
	store.Watcher
	store.Journal
	store.Lister
	store.Clock
}

// lag runs do, and returns for how long in all this process came late to what it had set
// itself meanwhile: the time that the machine took for other things.
func lag(do func()) (late time.Duration) {
	const tick = 10 * time.Millisecond
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	for over := false; !over; {
		slept := time.Now()
		select {
		case <-done:
			over = true
		case <-time.After(tick):
		}
		late += max(0, time.Since(slept)-tick)
	}
	return late
}

// A-Z2: a Redis that is stopped where it stands. Nobody waits for longer than the bound,
// soon nobody waits at all, nothing piles up, and it goes on by itself.
func TestAStoppedRedis(t *testing.T) {
	const (
		callers = 2000
		bound   = time.Second
		slack   = 2 * time.Second // for a machine that does other things
	)
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	driver, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), KeyPrefix: "guard:", Timeout: bound / 2})
	if err != nil {
		t.Fatal(err)
	}
	b := guard.New(records{Store: driver}, guard.Options{Timeout: bound, Concurrent: 64, Logger: slog.New(slog.DiscardHandler)})
	defer b.Close()
	ctx := t.Context()
	if err := b.Create(ctx, "k", []byte("v"), time.Hour); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()

	// all calls once each, at the same time, and returns how long each took and what of
	// the errors says that the breaker is open.
	all := func() (took []time.Duration, open int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				start := time.Now()
				_, err := b.Get(ctx, "k")
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(start))
				if errors.Is(err, guard.ErrOpen) {
					open++
				} else if errors.Is(err, store.ErrNotFound) {
					t.Errorf("unknown became absent: %v", err)
				}
			})
		}
		if n := runtime.NumGoroutine(); n > before+callers+12*64 { // the driver has some for each call, and those of the last ones
			t.Errorf("%d goroutines for %d callers, %d before", n, callers, before)
		}
		wg.Wait()
		slices.Sort(took)
		return took, open
	}
	p99 := func(took []time.Duration) time.Duration { return took[len(took)*99/100] }

	server.Pause()
	defer server.Resume()
	for reads := guard.Closed; reads == guard.Closed; reads, _ = b.States() {
		var took []time.Duration
		late := lag(func() { took, _ = all() })
		if d := p99(took); d > bound+slack+late {
			t.Fatalf("p99 %s while the store stands, want %s; the machine took %s", d, bound, late)
		}
	}
	took, open := all()
	if open < callers*9/10 {
		t.Errorf("%d of %d were refused at once", open, callers)
	}
	t.Logf("refused by the open breaker: %d of %d, p90 %s", open, callers, took[callers*9/10])

	server.Resume()
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for reads := guard.Open; reads != guard.Closed; reads, _ = b.States() {
		_, _ = b.Get(wait, "k")
		if wait.Err() != nil {
			t.Fatal("the breaker stays open")
		}
		time.Sleep(time.Millisecond)
	}
	rec, err := b.Get(ctx, "k")
	for err != nil && !errors.Is(err, store.ErrNotFound) && wait.Err() == nil { // unknown, on a busy machine
		rec, err = b.Get(ctx, "k")
	}
	if err != nil || string(rec.Value) != "v" {
		t.Errorf("afterwards: %q, %v", rec.Value, err)
	}
	for n := runtime.NumGoroutine(); n > before+8; n = runtime.NumGoroutine() {
		if wait.Err() != nil {
			t.Fatalf("%d goroutines are left, %d before", n, before)
		}
		time.Sleep(time.Millisecond)
	}
}

// A-Z14: sign-ins and events that a full Redis refuses don't keep people from signing out.
func TestAFullRedis(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	const patient = 20 * time.Second
	driver, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	b := guard.New(driver, guard.Options{Timeout: patient, Logger: slog.New(slog.DiscardHandler)})
	defer b.Close()
	ctx := t.Context()
	e := store.Entry{ID: "a", Tenant: "acme", User: "alice", Record: "r-a"}
	if err := b.Create(ctx, e.Record, []byte("v"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Admit(ctx, e, time.Hour, store.Limits{}, ""); err != nil {
		t.Fatal(err)
	}
	server.Must("CONFIG", "SET", "maxmemory", "1")
	for begun := time.Now(); time.Since(begun) < 1500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		if err := b.Create(ctx, "new", nil, time.Hour); !errors.Is(err, store.ErrRefused) {
			t.Fatalf("Create: %v, want %v", err, store.ErrRefused)
		}
		if err := b.Append(ctx, []byte("event")); !errors.Is(err, store.ErrRefused) {
			t.Fatalf("Append: %v, want %v", err, store.ErrRefused)
		}
	}
	if err := b.Touch(ctx, e.Record, 2*time.Hour); err != nil {
		t.Errorf("Touch: %v", err)
	}
	marked, err := b.End(ctx, e, "signed_out")
	if err != nil {
		t.Fatalf("End: %v", err)
	}
	if err := errors.Join(b.Delete(ctx, e.Record), b.Remove(ctx, marked)); err != nil {
		t.Error(err)
	}
}
