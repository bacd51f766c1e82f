package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

var errDown = errors.New("connection refused")

// backend is a double, since no real store fails by the clock: every call does what
// answer says, and the most that were under way at once is kept.
type backend struct {
	store.Watcher
	answer func(ctx context.Context) error

	calls, atOnce, most atomic.Int64
	rows                int // that Find and Keys have
}

func (b *backend) call(ctx context.Context) error {
	b.calls.Add(1)
	now := b.atOnce.Add(1)
	defer b.atOnce.Add(-1)
	for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
	}
	return b.answer(ctx)
}

func (b *backend) Get(ctx context.Context, _ string) (store.Record, error) {
	return store.Record{}, b.call(ctx)
}

func (b *backend) Create(ctx context.Context, _ string, _ []byte, _ time.Duration) error {
	return b.call(ctx)
}

func (b *backend) Replace(ctx context.Context, _ string, _ uint64, _ []byte, _ time.Duration) error {
	return b.call(ctx)
}
func (b *backend) Touch(ctx context.Context, _ string, _ time.Duration) error { return b.call(ctx) }
func (b *backend) Delete(ctx context.Context, _ string) error                 { return b.call(ctx) }
func (b *backend) Ping(ctx context.Context) error                             { return b.call(ctx) }
func (b *backend) Now(ctx context.Context) (time.Time, error)                 { return time.Time{}, b.call(ctx) }
func (b *backend) Close() error                                               { return nil }

func (b *backend) Admit(ctx context.Context, _ store.Entry, _ time.Duration, _ store.Limits, _ string) ([]store.Entry, error) {
	return nil, b.call(ctx)
}

func (b *backend) Renew(ctx context.Context, _ store.Entry, _ time.Duration) error {
	return b.call(ctx)
}

func (b *backend) End(ctx context.Context, e store.Entry, _ string) (store.Entry, error) {
	return e, b.call(ctx)
}
func (b *backend) Remove(ctx context.Context, _ store.Entry) error { return b.call(ctx) }

func (b *backend) Reap(ctx context.Context, _ int) ([]store.Entry, error) { return nil, b.call(ctx) }

func (b *backend) Find(ctx context.Context, _ store.Query) iter.Seq2[store.Entry, error] {
	return walkRows(ctx, b, func(i int) store.Entry { return store.Entry{ID: fmt.Sprint(i)} })
}

func (b *backend) Keys(ctx context.Context, _ string) iter.Seq2[string, error] {
	return walkRows(ctx, b, func(i int) string { return fmt.Sprint(i) })
}

func (b *backend) Entries(ctx context.Context, _ string) iter.Seq2[store.Entry, error] {
	return b.Find(ctx, store.Query{})
}

// walkRows makes a call for each row, and one more to see that there are no more.
func walkRows[T any](ctx context.Context, b *backend, row func(int) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for i := range b.rows + 1 {
			err := b.call(ctx)
			if i == b.rows && err == nil || !yield(row(i), err) || err != nil {
				return
			}
		}
	}
}

func (b *backend) Append(ctx context.Context, _ []byte) error { return b.call(ctx) }

func (b *backend) Follow(ctx context.Context, _ func(), _ func([]byte)) error {
	<-ctx.Done()
	return ctx.Err()
}

func (b *backend) Acquire(ctx context.Context, _ string, _ time.Duration) (store.Lease, error) {
	return held{b}, b.call(ctx)
}

type held struct{ b *backend }

func (held) Fence() uint64                                      { return 7 }
func (h held) Renew(ctx context.Context, _ time.Duration) error { return h.b.call(ctx) }
func (h held) Release(ctx context.Context) error                { return h.b.call(ctx) }
func quiet() *slog.Logger                                       { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func get(ctx context.Context, b *Backend) error { _, err := b.Get(ctx, "k"); return err }

func touch(ctx context.Context, b *Backend) error { return b.Touch(ctx, "k", time.Hour) }

func answers(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}
func hangs(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func slowly(d time.Duration, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// calls are all guarded calls but Ping, those that read first, and whether they do.
var calls = []struct {
	name  string
	reads bool
	do    func(ctx context.Context, b *Backend) error
}{
	{"Get", true, get},
	{"Find", true, func(ctx context.Context, b *Backend) error {
		var last error
		for _, err := range b.Find(ctx, store.Query{}) {
			last = err
		}
		return last
	}},
	{"Keys", true, func(ctx context.Context, b *Backend) error {
		var last error
		for _, err := range b.Keys(ctx, "") {
			last = err
		}
		return last
	}},
	{"Entries", true, func(ctx context.Context, b *Backend) error {
		var last error
		for _, err := range b.Entries(ctx, "") {
			last = err
		}
		return last
	}},
	{"Create", false, func(ctx context.Context, b *Backend) error { return b.Create(ctx, "k", nil, time.Hour) }},
	{"Replace", false, func(ctx context.Context, b *Backend) error { return b.Replace(ctx, "k", 1, nil, time.Hour) }},
	{"Touch", false, touch},
	{"Delete", false, func(ctx context.Context, b *Backend) error { return b.Delete(ctx, "k") }},
	{"Admit", false, func(ctx context.Context, b *Backend) error {
		_, err := b.Admit(ctx, store.Entry{}, time.Hour, store.Limits{}, "")
		return err
	}},
	{"Renew", false, func(ctx context.Context, b *Backend) error { return b.Renew(ctx, store.Entry{}, time.Hour) }},
	{"End", false, func(ctx context.Context, b *Backend) error {
		_, err := b.End(ctx, store.Entry{}, "idle")
		return err
	}},
	{"Remove", false, func(ctx context.Context, b *Backend) error { return b.Remove(ctx, store.Entry{}) }},
	{"Reap", false, func(ctx context.Context, b *Backend) error { _, err := b.Reap(ctx, 1); return err }},
	{"Append", false, func(ctx context.Context, b *Backend) error { return b.Append(ctx, nil) }},
	{"Acquire", false, func(ctx context.Context, b *Backend) error {
		_, err := b.Acquire(ctx, "l", time.Hour)
		return err
	}},
	{"Lease.Renew", false, func(ctx context.Context, b *Backend) error {
		return (&lease{held{b.next.(*backend)}, b}).Renew(ctx, time.Hour)
	}},
	{"Lease.Release", false, func(ctx context.Context, b *Backend) error {
		return (&lease{held{b.next.(*backend)}, b}).Release(ctx)
	}},
}

func TestEveryCallHasADeadline(t *testing.T) {
	ping := calls[0]
	ping.name, ping.do = "Ping", func(ctx context.Context, b *Backend) error { return b.Ping(ctx) }
	for _, c := range append(calls[:len(calls):len(calls)], ping) {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(&backend{answer: hangs}, Options{Logger: quiet()})
				start := time.Now()
				err := c.do(t.Context(), b)
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != defaultTimeout {
					t.Errorf("%v after %s, want the deadline of %s", err, took, defaultTimeout)
				}

				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				start = time.Now()
				if err := c.do(ctx, b); err == nil || time.Since(start) != time.Millisecond {
					t.Errorf("%v after %s, want the caller's own deadline", err, time.Since(start))
				}
			})
		})
	}
}

// Every call is refused by its own breaker, and by no other.
func TestAnOpenBreakerRefuses(t *testing.T) {
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &backend{answer: answers(errDown)}
				b := New(d, Options{Logger: quiet()})
				wreck(t, b, touch, get)
				d.answer = answers(nil)
				n := d.calls.Load()
				if err := c.do(t.Context(), b); !errors.Is(err, ErrOpen) || d.calls.Load() != n {
					t.Errorf("with both open: %v, %d calls", err, d.calls.Load()-n)
				}

				b = New(d, Options{Logger: quiet()})
				d.answer = answers(errDown)
				if c.reads {
					wreck(t, b, touch)
				} else {
					wreck(t, b, get)
				}
				d.answer = answers(nil)
				if err := c.do(t.Context(), b); err != nil {
					t.Errorf("with the other one open: %v", err)
				}
			})
		})
	}
}

// wreck makes calls until all are refused.
func wreck(t *testing.T, b *Backend, calls ...func(context.Context, *Backend) error) {
	t.Helper()
	for range 100 {
		refused := 0
		for _, call := range calls {
			if errors.Is(call(t.Context(), b), ErrOpen) {
				refused++
			}
		}
		if refused == len(calls) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the breakers do not open")
}

func TestWhatOpensIt(t *testing.T) {
	type test struct {
		name   string
		answer func(context.Context) error
		every  time.Duration
		opens  bool
	}
	tests := []test{
		{"refused for seconds", answers(errDown), 100 * time.Millisecond, true},
		{"stopped", hangs, 0, true},
		{"broken off at once", answers(errDown), 0, false}, // 50 failures in no time
	}
	var limit error = &store.LimitError{Limit: store.LimitUser}
	for _, err := range []error{
		store.ErrNotFound, store.ErrExists, store.ErrConflict, store.ErrTooLarge, store.ErrHeld,
		store.ErrLost, store.ErrEnding, store.ErrBadEntry, limit,
	} {
		tests = append(tests, test{fmt.Sprint(err), answers(fmt.Errorf("op: %w", err)), 100 * time.Millisecond, false})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(&backend{answer: tt.answer}, Options{Logger: quiet()})
				for range 50 {
					_ = get(t.Context(), b)
					time.Sleep(tt.every)
				}
				if reads, writes := b.States(); (reads != Closed) != tt.opens || writes != Closed {
					t.Errorf("reads are %s, writes %s", reads, writes)
				}
			})
		})
	}
}

// A connection that breaks takes all calls under way with it. Answers in between say that
// the store is there.
func TestOneAnswerStartsTheCountAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{}
		b := New(d, Options{Logger: quiet()})
		for range 30 {
			for range tolerated - 1 {
				d.answer = slowly(500*time.Millisecond, errDown)
				_ = get(t.Context(), b)
			}
			d.answer = answers(nil)
			if err := get(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A-Z6: whoever leaves says nothing about the store.
// A store that answers that it takes no writes is there; and that one part of it can't be
// reaped says nothing of the others, which requests use.
func TestWhatDoesNotOpenIt(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		call func(context.Context, *Backend) error
	}{
		"a refused write":   {fmt.Errorf("create: %w: OOM", store.ErrRefused), touch},
		"a part that fails": {errDown, func(ctx context.Context, b *Backend) error { _, err := b.Reap(ctx, 1); return err }},
	} {
		synctest.Test(t, func(t *testing.T) {
			under := &backend{answer: answers(test.err)}
			b := New(under, Options{Logger: quiet()})
			for range 100 {
				if err := test.call(t.Context(), b); !errors.Is(err, test.err) {
					t.Fatalf("%s: %v", name, err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			under.answer = answers(nil)
			if err := touch(t.Context(), b); err != nil {
				t.Errorf("%s has opened the breaker: %v", name, err)
			}
		})
	}
}

func TestCallersWhoLeaveOpenNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: hangs}
		b := New(d, Options{Logger: quiet()})
		for range 10 * tolerated {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(tolerance, cancel)
			if err := get(ctx, b); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		// Nor do they as probes.
		wreck(t, b, get)
		time.Sleep(pause)
		for range 10 * probes {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			if err := get(ctx, b); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if reads, _ := b.States(); reads != HalfOpen {
			t.Errorf("reads are %s", reads)
		}
	})
}

// Whoever waits for less than the guard does would have been answered by a store that is
// there.
func TestCallersInAHurryOpenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(&backend{answer: hangs}, Options{Logger: quiet()})
		wreck(t, b, func(ctx context.Context, b *Backend) error {
			ctx, cancel := context.WithTimeout(ctx, defaultTimeout/4)
			defer cancel()
			return get(ctx, b)
		})
	})
}

func TestItClosesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := &backend{answer: answers(errDown)}
		b := New(d, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		wreck(t, b, get)

		// Half open it tries a few at a time, however many come.
		time.Sleep(pause)
		before := d.calls.Load()
		d.answer = slowly(time.Second, nil)
		var refused atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if errors.Is(get(t.Context(), b), ErrOpen) {
					refused.Add(1)
				}
			})
		}
		wg.Wait()
		if n := d.calls.Load() - before; n != probes || refused.Load() != 100-probes {
			t.Errorf("%d calls were tried and %d refused", n, refused.Load())
		}
		if reads, _ := b.States(); reads != Closed {
			t.Errorf("after %d answers reads are %s", probes, reads)
		}

		// One failure among the probes opens it again.
		d.answer = answers(errDown)
		wreck(t, b, get)
		time.Sleep(pause)
		d.answer = answers(nil)
		_ = get(t.Context(), b)
		d.answer = answers(errDown)
		_ = get(t.Context(), b)
		d.answer = answers(nil)
		if err := get(t.Context(), b); !errors.Is(err, ErrOpen) {
			t.Errorf("after a failed probe: %v", err)
		}

		for line, want := range map[string]int{"does not answer\" calls=read error=\"connection refused\"": 2, "answers again\" calls=read": 1} {
			if n := strings.Count(log.String(), line); n != want {
				t.Errorf("%q is logged %d times, want %d:\n%s", line, n, want, log.String())
			}
		}
	})
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: answers(errDown)}
		b := New(d, Options{Logger: quiet()})
		wreck(t, b, get, touch)
		if err := b.Ping(t.Context()); !errors.Is(err, errDown) {
			t.Errorf("a ping with the breakers open: %v", err)
		}
		if err := get(t.Context(), b); !errors.Is(err, ErrOpen) {
			t.Errorf("after a ping that failed: %v", err)
		}
		d.answer = answers(nil)
		if err := b.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if reads, writes := b.States(); reads != HalfOpen || writes != HalfOpen {
			t.Errorf("after an answer reads are %s, writes %s", reads, writes)
		}
		if err := errors.Join(get(t.Context(), b), touch(t.Context(), b)); err != nil {
			t.Errorf("after an answer: %v", err)
		}

		// Pings are bounded, and have slots of their own.
		d = &backend{answer: hangs}
		b = New(d, Options{Logger: quiet(), Concurrent: 1})
		var wg sync.WaitGroup
		wg.Go(func() { _ = get(t.Context(), b) })
		synctest.Wait()
		for range 2 * (concurrentPings + queuedPings) {
			wg.Go(func() { _ = b.Ping(t.Context()) })
		}
		synctest.Wait()
		if n := d.atOnce.Load(); n != 1+concurrentPings {
			t.Errorf("%d calls at the backend at once, want %d", n, 1+concurrentPings)
		}
		wg.Wait()
	})
}

// Where nothing is read, since a near cache serves it all, pings close the breaker of
// reads. That of writes waits for writes.
func TestPingsCloseReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := &backend{answer: answers(errDown)}
		b := New(d, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		wreck(t, b, get, touch)
		ping := func() {
			t.Helper()
			if err := b.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.answer = answers(nil)
		for range probes { // the first of them ends the pause
			ping()
			if reads, writes := b.States(); reads != HalfOpen || writes != HalfOpen {
				t.Fatalf("reads are %s, writes %s", reads, writes)
			}
		}
		for range probes {
			ping()
		}
		if reads, writes := b.States(); reads != Closed || writes != HalfOpen {
			t.Errorf("after an answer to each probe reads are %s, writes %s", reads, writes)
		}
		if n := strings.Count(log.String(), "answers again\" calls=read"); n != 1 {
			t.Errorf("its end is logged %d times:\n%s", n, log.String())
		}

		// A read under way tells more, and so it is what counts.
		d.answer = answers(errDown)
		wreck(t, b, get)
		time.Sleep(pause)
		d.answer = hangs
		var wg sync.WaitGroup
		wg.Go(func() { _ = get(t.Context(), b) })
		synctest.Wait()
		d.answer = answers(nil)
		for range 2 * probes {
			ping()
		}
		if reads, _ := b.States(); reads != HalfOpen {
			t.Errorf("beside a read that hangs, reads are %s", reads)
		}
		wg.Wait()

		// Nor does a ping from before the breaker opened say anything of now.
		b = New(d, Options{Logger: quiet()})
		d.answer = slowly(defaultTimeout-time.Millisecond, nil)
		for range 2 * probes {
			wg.Go(func() { _ = b.Ping(t.Context()) })
		}
		synctest.Wait()
		d.answer = answers(errDown)
		wreck(t, b, get)
		wg.Wait()
		if reads, _ := b.States(); reads == Closed {
			t.Error("pings from before it opened have closed it")
		}
	})
}

// A panic is none of the guard's business, but what it held comes back.
func TestABackendThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: answers(errDown)}
		b := New(d, Options{Logger: quiet(), Concurrent: 1})
		wreck(t, b, get)
		time.Sleep(pause)
		d.answer = func(context.Context) error { panic("a defect") }
		for _, c := range calls[:3] { // Get and the walks
			for range 2 * probes {
				func() {
					defer func() {
						if recover() == nil {
							t.Error("the panic is gone")
						}
					}()
					_ = c.do(t.Context(), b)
				}()
			}
		}
		d.answer = answers(nil)
		if err := get(t.Context(), b); err != nil {
			t.Error(err)
		}
	})
}

func TestFollowEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := New(&backend{}, Options{Logger: quiet()})
	if err := b.Follow(ctx, nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
