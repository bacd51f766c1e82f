package cluster

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A source is a store's clock, which differs from the node's.
type source struct {
	mu          sync.Mutex
	ahead       time.Duration
	there, back time.Duration // how long a question and its answer are under way
	err         error
	asked       int
}

func (s *source) Now(ctx context.Context) (time.Time, error) {
	s.mu.Lock()
	there, back, ahead, err := s.there, s.back, s.ahead, s.err
	s.asked++
	s.mu.Unlock()
	for _, pause := range []time.Duration{there, back} {
		if pause == 0 {
			continue
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
	return time.Now().Round(0).Add(ahead - back), err
}

func (s *source) set(change func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// wantAhead fails the test unless the clock is ahead of the node's own by about want.
func wantAhead(t testing.TB, c *Clock, want, within time.Duration) {
	t.Helper()
	if got := time.Until(c.Now()); (got - want).Abs() > within {
		t.Errorf("the clock is ahead of the node's by %v, want %v give or take %v", got, want, within)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{ahead: -10 * time.Minute, there: 3 * time.Millisecond, back: time.Millisecond}
		c := NewClock(s, quiet())
		wantAhead(t, c, 0, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { c.Run(ctx) })
		time.Sleep(time.Second)
		wantAhead(t, c, -10*time.Minute, 2*time.Millisecond)

		// The other clock is set, and the node hears of it soon.
		s.set(func(s *source) { s.ahead = time.Hour })
		time.Sleep(3 * measureEvery / 2)
		wantAhead(t, c, time.Hour, 2*time.Millisecond)

		// It does not answer: what is known stays.
		s.set(func(s *source) { s.err = errors.New("down") })
		time.Sleep(time.Hour)
		wantAhead(t, c, time.Hour, 2*time.Millisecond)
		before := s.count()
		s.set(func(s *source) { s.err, s.ahead = nil, time.Minute })
		time.Sleep(measureAgain + 10*time.Millisecond)
		wantAhead(t, c, time.Minute, 2*time.Millisecond)

		// It is asked about every ten seconds.
		time.Sleep(100 * measureEvery)
		if n := s.count() - before; n < 80 || n > 125 {
			t.Errorf("asked %d times in 100 intervals", n)
		}
		cancel()
		run.Wait()
	})
}

// However uneven the way to the store is, the clock is off by no more than half a round
// trip, and for what the clocks may have drifted since the shortest one.
func TestClockIsAsGoodAsItsBestAnswer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ahead := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(rt, "ahead"))
		trips := rapid.SliceOfN(rapid.IntRange(0, 900), 2, 20).Draw(rt, "trips")
		pauses := rapid.SliceOfN(rapid.IntRange(0, 30), 10, 10).Draw(rt, "pauses")
		synctest.Test(t, func(t *testing.T) {
			s := &source{ahead: ahead}
			c := NewClock(s, quiet())
			within := time.Duration(1 << 62)
			for i := 0; i+1 < len(trips); i += 2 {
				s.there, s.back = time.Duration(trips[i])*time.Millisecond, time.Duration(trips[i+1])*time.Millisecond
				if err := c.Measure(t.Context()); err != nil {
					t.Fatal(err)
				}
				within = min(within, (s.there+s.back)/2)
				wantAhead(t, c, ahead, within)
				pause := time.Duration(pauses[i/2]) * time.Second
				time.Sleep(pause)
				within += (pause + s.there + s.back) / driftIn * 2
			}
		})
	})
}

// Where two answers can't both be true, the later one counts, however poor it is: a clock was
// set, or another server answers.
func TestClockOfAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		c := NewClock(s, quiet())
		if err := c.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.ahead, s.there, s.back = time.Hour, 800*time.Millisecond, 800*time.Millisecond
		if err := c.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantAhead(t, c, time.Hour, 0)
	})
}

// A comparison that takes too long is worth nothing, even if it ends.
func TestClockLeavesASlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{ahead: time.Hour, there: time.Minute}
		c := NewClock(s, quiet())
		start := time.Now()
		if err := c.Measure(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Measure = %v", err)
		}
		if took := time.Since(start); took != measureLimit {
			t.Errorf("it took %v", took)
		}
		wantAhead(t, c, 0, 0)
		// It answers late, to a node that was stopped meanwhile.
		c.source = late{s}
		if err := c.Measure(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Measure = %v", err)
		}
		wantAhead(t, c, 0, 0)
	})
}

// late answers whatever the deadline.
type late struct{ *source }

func (l late) Now(ctx context.Context) (time.Time, error) {
	return l.source.Now(context.WithoutCancel(ctx))
}

// A poor answer gives way to none better for ever: when the clocks may have drifted by as
// much, the next poor one counts.
func TestClockForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		c := NewClock(s, quiet())
		measure := func() {
			if err := c.Measure(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		measure()
		s.there = 100 * time.Millisecond // from now on, all of it on the way there
		measure()
		wantAhead(t, c, 0, 0)
		time.Sleep(51 * driftIn * time.Millisecond)
		measure()
		wantAhead(t, c, 50*time.Millisecond, 0)
	})
}

func TestClockTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &source{ahead: 10 * time.Minute}
		c := NewClock(s, slog.New(slog.NewTextHandler(&log, nil)))
		for range 10 {
			if err := c.Measure(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(measureEvery)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "ahead=-10m0s") {
			t.Errorf("the log says %q, want one line", log.String())
		}
		s.ahead = 0
		if err := c.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 2 {
			t.Errorf("the log says %q, want another line when the clocks agree", log.String())
		}
	})
}

func BenchmarkNow(b *testing.B) {
	c := NewClock(&source{ahead: time.Minute}, quiet())
	if err := c.Measure(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Now()
	}
}
