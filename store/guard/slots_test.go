package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck/store"
)

// However callers come and go, the bounds hold, nobody is refused who need not be, and all
// that was held comes back.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type caller struct{ comes, leaves, takes int }
		concurrent := rapid.IntRange(1, 4).Draw(t, "concurrent")
		queue := rapid.IntRange(1, 6).Draw(t, "queue")
		callers := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) caller {
			return caller{
				rapid.IntRange(0, 100).Draw(t, "comes"),
				rapid.IntRange(1, 3000).Draw(t, "leaves"),
				rapid.IntRange(0, 500).Draw(t, "takes"),
			}
		}), 1, 40).Draw(t, "callers")
		rapid.SyncTest(t, func(t *rapid.T) {
			d := &backend{}
			type takes struct{}
			d.answer = func(ctx context.Context) error {
				return slowly(ctx.Value(takes{}).(time.Duration), nil)(ctx)
			}
			b := New(d, Options{Logger: quiet()})
			b.calls = newSlots(concurrent, queue)
			var mu sync.Mutex // guards what follows
			present, most := 0, 0
			var wg sync.WaitGroup
			for _, c := range callers {
				wg.Go(func() {
					time.Sleep(time.Duration(c.comes) * time.Millisecond)
					ctx := context.WithValue(context.Background(), takes{}, time.Duration(c.takes)*time.Millisecond)
					ctx, cancel := context.WithTimeout(ctx, time.Duration(c.leaves)*time.Millisecond)
					defer cancel()
					mu.Lock()
					present++
					most = max(most, present)
					mu.Unlock()
					start := time.Now()
					err := get(ctx, b)
					took := time.Since(start)
					mu.Lock()
					defer mu.Unlock()
					present--
					if took > min(defaultTimeout, time.Duration(c.leaves)*time.Millisecond) {
						t.Errorf("a call took %s", took)
					}
					if errors.Is(err, ErrBusy) && took < defaultTimeout && most <= concurrent+queue {
						t.Errorf("refused after %s with at most %d callers", took, most)
					}
				})
			}
			wg.Wait()
			if n := d.most.Load(); n > int64(concurrent) {
				t.Errorf("%d calls were at the backend at once, want %d at most", n, concurrent)
			}
			if n, w := len(b.calls.taken), b.calls.present.Load(); n != 0 || w != 0 {
				t.Errorf("%d slots stay taken, %d callers are there", n, w)
			}
		})
	})
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: func(context.Context) error { time.Sleep(time.Minute); return nil }} // honours no deadline
		b := New(d, Options{Logger: quiet()})
		b.calls = newSlots(1, 2)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _ = get(t.Context(), b) })
		synctest.Wait()

		waits := func(ctx context.Context, within time.Duration, want error) {
			wg.Go(func() {
				start := time.Now()
				if err := get(ctx, b); !errors.Is(err, want) || time.Since(start) != within {
					t.Errorf("in the queue: %v after %s, want %v after %s", err, time.Since(start), want, within)
				}
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		waits(ctx, 0, context.Canceled)
		cancel() // which makes room for another one
		synctest.Wait()
		waits(t.Context(), defaultTimeout, ErrBusy)
		waits(t.Context(), defaultTimeout, ErrBusy)
		start := time.Now()
		if err := get(t.Context(), b); !errors.Is(err, ErrBusy) || time.Since(start) != 0 {
			t.Errorf("beyond the queue: %v after %s", err, time.Since(start))
		}
		if reads, _ := b.States(); reads != Closed {
			t.Errorf("those who waited in vain made reads %s", reads)
		}
	})
}

// Whoever waits when the breaker opens is not sent after the others.
func TestWaitingAsTheBreakerOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: slowly(1500*time.Millisecond, errDown)}
		b := New(d, Options{Logger: quiet(), Concurrent: tolerated})
		var wg sync.WaitGroup
		var open atomic.Int64
		for range 100 {
			wg.Go(func() {
				if errors.Is(get(t.Context(), b), ErrOpen) {
					open.Add(1)
				}
			})
		}
		start := time.Now()
		wg.Wait()
		// All but the last one that it takes to open hand their slot to another.
		if n := d.calls.Load(); n >= 2*tolerated {
			t.Errorf("%d calls were made, %d refused", n, open.Load())
		}
		if took := time.Since(start); took > defaultTimeout {
			t.Errorf("all that took %s", took)
		}
	})
}

// Nobody waits for a slot to learn that the breaker is open.
func TestRefusedAtOnceThoughAllSlotsAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: answers(errDown)}
		b := New(d, Options{Logger: quiet(), Concurrent: 1})
		wreck(t, b, get)
		d.answer = slowly(defaultTimeout/2, nil)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _ = touch(t.Context(), b) })
		synctest.Wait()
		start := time.Now()
		if err := get(t.Context(), b); !errors.Is(err, ErrOpen) || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestFindHoldsNothingWhileItIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: slowly(1500*time.Millisecond, nil), rows: 3}
		b := New(d, Options{Logger: quiet(), Concurrent: 1})
		n := 0
		for e, err := range b.Find(t.Context(), store.Query{}) {
			if err != nil || e.ID != fmt.Sprint(n) {
				t.Fatalf("entry %d is %q, %v", n, e.ID, err)
			}
			n++
			if err := touch(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if n != 3 {
			t.Errorf("%d entries", n)
		}
		for range b.Find(t.Context(), store.Query{}) {
			break
		}
		if err := touch(t.Context(), b); err != nil {
			t.Errorf("after a walk that was left: %v", err)
		}
	})
}

func TestFindThatFailsOnTheWay(t *testing.T) {
	steps := map[string]struct {
		answer func(context.Context) error
		full   bool // another call holds the slot
		want   error
	}{
		"a step that is late":    {hangs, false, context.DeadlineExceeded},
		"a step that fails":      {answers(errDown), false, errDown},
		"a step without a place": {answers(nil), true, ErrBusy},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &backend{answer: answers(nil), rows: 3}
				b := New(d, Options{Logger: quiet(), Concurrent: 1})
				var got []error
				for _, err := range b.Find(t.Context(), store.Query{}) {
					if got = append(got, err); len(got) == 1 && step.full {
						_ = b.calls.take(t.Context())
					}
					d.answer = step.answer
				}
				if len(got) != 2 || got[0] != nil || !errors.Is(got[1], step.want) {
					t.Errorf("got %v, want nil and %v", got, step.want)
				}
			})
		})
	}
}

// The first step of a walk tells the breaker; the entries that follow on the same page
// say nothing new.
func TestFindCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &backend{answer: answers(errDown), rows: 2 * probes}
		b := New(d, Options{Logger: quiet()})
		wreck(t, b, get)
		time.Sleep(pause)
		d.answer = answers(nil)
		for range b.Find(t.Context(), store.Query{}) {
		}
		if reads, _ := b.States(); reads != HalfOpen {
			t.Errorf("after one walk reads are %s", reads)
		}
		d.rows = 0 // nothing found is an answer, too
		for range probes - 1 {
			for range b.Find(t.Context(), store.Query{}) {
			}
		}
		if reads, _ := b.States(); reads != Closed {
			t.Errorf("after %d walks reads are %s", probes, reads)
		}
	})
}
