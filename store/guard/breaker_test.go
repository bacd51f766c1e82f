package guard

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A-Z2: through outages of any kind and length, nobody is refused while the backend
// answers and has done so for a while, a long outage is noticed and costs few calls, and
// the breaker closes with no more than the calls that come.
func TestBreakerThroughOutages(t *testing.T) {
	type phase struct {
		lasts  int // ms
		answer func(context.Context) error
	}
	// An outage has been noticed once a second call of each caller has timed out.
	const notices = 2 * DefaultTimeout
	kinds := []func(context.Context) error{hangs, answers(errDown), slowly(700*time.Millisecond, errDown)}
	rapid.Check(t, func(t *rapid.T) {
		phases := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) phase {
			return phase{rapid.IntRange(1, 8000).Draw(t, "lasts"), rapid.SampledFrom(kinds).Draw(t, "kind")}
		}), 1, 3).Draw(t, "outages")
		rapid.SyncTest(t, func(t *rapid.T) {
			d := &backend{answer: slowly(time.Millisecond, nil)}
			b := New(d, Options{Logger: quiet()})
			var mu sync.Mutex // guards what follows
			down, up := false, time.Now().Add(-time.Hour)
			present := d.answer
			d.answer = func(ctx context.Context) error {
				mu.Lock()
				answer := present
				mu.Unlock()
				return answer(ctx)
			}

			ctx, stop := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range 2 * tolerated {
				wg.Go(func() {
					for ctx.Err() == nil {
						err := get(context.Background(), b)
						mu.Lock()
						well := !down && time.Since(up) > pause+DefaultTimeout+tolerance
						mu.Unlock()
						if well && err != nil {
							t.Errorf("the store answers, and a call got %v", err)
						}
						time.Sleep(50 * time.Millisecond)
					}
				})
			}
			healthy := func(d time.Duration) {
				mu.Lock()
				down, up, present = false, time.Now(), slowly(time.Millisecond, nil)
				mu.Unlock()
				time.Sleep(d)
			}
			healthy(time.Second)
			for _, p := range phases {
				mu.Lock()
				down, present = true, p.answer
				mu.Unlock()
				lasts := time.Duration(p.lasts) * time.Millisecond
				time.Sleep(min(lasts, notices))
				noticed := d.calls.Load()
				time.Sleep(lasts - min(lasts, notices))
				if n := d.calls.Load() - noticed; n > probes*int64(1+(lasts-min(lasts, notices))/pause) {
					t.Errorf("%d calls at a backend that is known to be gone for %s", n, lasts-notices)
				}
				healthy(pause + DefaultTimeout + 2*tolerance)
				if reads, _ := b.States(); reads != Closed {
					t.Errorf("after the outage reads are %s", reads)
				}
			}
			stop()
			wg.Wait()
		})
	})
}

// It takes both, a number of failures and time.
func TestTolerance(t *testing.T) {
	tests := []struct {
		name     string
		failures int
		within   time.Duration
		opens    bool
	}{
		{"few", tolerated - 1, time.Hour, false},
		{"enough, too soon", tolerated, tolerance - 1, false},
		{"enough", tolerated, tolerance, true},
		{"many, too soon", 100 * tolerated, tolerance - 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now State
				b := &breaker{turned: func(s State, _ error) { now = s }}
				first, _ := b.allow()
				time.Sleep(tt.within)
				b.report(first, failed, errDown)
				for range tt.failures - 1 {
					later, ok := b.allow()
					if !ok {
						t.Fatal("refused")
					}
					b.report(later, failed, errDown)
				}
				if (now == Open) != tt.opens || b.now() != now {
					t.Errorf("it is %s, and said %s", b.now(), now)
				}
			})
		})
	}
}

func TestUnknownIsNoneOfTheStoresErrors(t *testing.T) {
	for _, err := range []error{ErrOpen, ErrBusy, context.DeadlineExceeded, errors.New("?")} {
		if v := judge(context.Background(), err); v != failed {
			t.Errorf("%v is judged %d", err, v)
		}
	}
}
