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
	const notices = 2 * defaultTimeout
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
						well := !down && time.Since(up) > pause+defaultTimeout+tolerance
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
				healthy(pause + defaultTimeout + 2*tolerance)
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

// From when on the backend is to blame: from the start of the first call that failed, in
// whatever order they end, but not from before its last answer.
func TestSince(t *testing.T) {
	tests := []struct {
		name           string
		answer         time.Duration // after the start of the first call; zero for none
		first, between time.Duration // what its failure and the others' come after
		opens          bool
	}{
		{"the first ends last", 0, tolerance, tolerance / 2, true},
		{"an answer since", tolerance / 2, tolerance, tolerance / 2, false},
		{"an answer, long ago", time.Millisecond, 2 * tolerance, tolerance, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &breaker{turned: func(State, error) {}}
				first, _ := b.allow()
				time.Sleep(tt.answer)
				if tt.answer > 0 {
					answer, _ := b.allow()
					b.report(answer, answered, nil)
				}
				time.Sleep(tt.between - tt.answer)
				for range tolerated - 1 {
					later, _ := b.allow()
					b.report(later, failed, errDown)
				}
				time.Sleep(tt.first - tt.between)
				b.report(first, failed, errDown)
				if got := b.now() == Open; got != tt.opens {
					t.Errorf("it is %s", b.now())
				}
			})
		})
	}
}

// Calls from before the breaker turned neither turn it now, nor take the place of a probe.
func TestCallsFromBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := 0
		b := &breaker{turned: func(State, error) { turns++ }}
		var before []turn
		for range 20 * tolerated {
			call, _ := b.allow()
			before = append(before, call)
		}
		late := func(v verdict) {
			for range 2 * tolerated {
				b.report(before[0], v, errDown)
				before = before[1:]
			}
		}
		time.Sleep(tolerance)
		late(failed)
		if b.now() != Open || turns != 1 {
			t.Fatalf("it is %s after %d turns", b.now(), turns)
		}
		time.Sleep(pause)
		probe, ok := b.allow()
		if !ok {
			t.Fatal("no probe after the pause")
		}
		late(answered)
		late(failed)
		late(unheard)
		more := 0
		for range 10 {
			if _, ok := b.allow(); ok {
				more++
			}
		}
		if b.now() != HalfOpen || turns != 1 || more != probes-1 {
			t.Errorf("it is %s after %d turns, with %d more probes", b.now(), turns, more)
		}
		b.report(probe, failed, errDown)
		if b.now() != Open || turns != 1 {
			t.Errorf("it is %s after %d turns", b.now(), turns)
		}
	})
}

func TestUnknownIsNoneOfTheStoresErrors(t *testing.T) {
	for _, err := range []error{ErrOpen, ErrBusy, context.DeadlineExceeded, errors.New("?")} {
		if v := judge(context.Background(), err); v != failed {
			t.Errorf("%v is judged %d", err, v)
		}
	}
}
