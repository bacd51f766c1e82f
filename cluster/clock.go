// Package cluster is what the nodes that share a store know of each other: what time it is
// for all of them, and who they are.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// measureEvery is how often a node compares its clock with the store's, more or less.
	measureEvery = 10 * time.Second
	// measureAgain is how long after a comparison that failed the next one is made.
	measureAgain = time.Second
	// measureLimit bounds a comparison. One that takes longer is worth nothing.
	measureLimit = 2 * time.Second
	// driftIn is in what time two clocks may drift apart by 1: far more than crystals do,
	// and twice what NTP slews by.
	driftIn = 1000
	// tellOffset is how far a node's clock may be off without a word in its log.
	tellOffset = 2 * time.Second
)

// A Clock tells the time by the store's clock, so that nodes whose own clocks differ agree
// on when a session began and when it ends. It is the node's clock plus an offset that Run
// keeps right, to half the time that the store takes to answer; until the first comparison
// has succeeded the offset is zero. Where the store can't be asked, the last offset stays.
//
// The time steps, in either direction, when the offset is corrected. It does not step with
// the node's own clock: that is read once, and runs on by the monotonic clock.
//
// It is safe for concurrent use.
type Clock struct {
	source store.Clock
	logger *slog.Logger
	own    func() time.Time // the node's clock, which must not step

	known atomic.Pointer[estimate] // nil before the first comparison

	mu   sync.Mutex    // held while known is replaced
	told time.Duration // the offset that the log says
}

// An estimate is what a comparison of the two clocks came to: at the time at, by the node's
// clock, the store's was ahead by offset, give or take err.
type estimate struct {
	at          time.Time
	offset, err time.Duration
}

// within is how far off the estimate may be by now.
func (e *estimate) within(now time.Time) time.Duration {
	return e.err + max(now.Sub(e.at), 0)/driftIn
}

// NewClock returns a Clock that goes by source. Until Run or Measure it tells the node's own
// time.
func NewClock(source store.Clock, logger *slog.Logger) *Clock {
	start := time.Now()
	wall := start.Round(0)
	return &Clock{source: source, logger: logger, own: func() time.Time { return wall.Add(time.Since(start)) }}
}

// Now returns the time by the store's clock, as far as it is known. It does not block.
func (c *Clock) Now() time.Time {
	now := c.own()
	if e := c.known.Load(); e != nil {
		now = now.Add(e.offset)
	}
	return now
}

// Run compares the clocks at once, and every now and then until ctx ends.
func (c *Clock) Run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := measureEvery/2 + rand.N(measureEvery)
		if err := c.Measure(ctx); err != nil {
			c.logger.DebugContext(ctx, "the store does not tell the time", "error", err)
			pause = measureAgain
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Measure compares the clocks once. With an error what is known stays.
func (c *Clock) Measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	asked := c.own()
	theirs, err := c.source.Now(ctx)
	answered := c.own()
	if err == nil && answered.Sub(asked) > measureLimit {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return fmt.Errorf("cluster: clock: %w", err)
	}
	// The store read its clock at some moment in between.
	half := answered.Sub(asked) / 2
	c.learn(&estimate{at: answered, offset: theirs.Sub(asked.Add(half)), err: half})
	return nil
}

// learn takes e for what was known, unless that is still the better one: a short round trip
// says more than a long one, for as long as the clocks have not drifted. Where the two can't
// both be true a clock was set, or another server of the store answers now.
func (c *Clock) learn(e *estimate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.known.Load(); old != nil {
		within := old.within(e.at)
		if e.err > within && (e.offset-old.offset).Abs() <= e.err+within {
			return
		}
	}
	c.known.Store(e)
	if (e.offset - c.told).Abs() >= tellOffset {
		c.told = e.offset
		c.logger.Warn("this node's clock and the store's differ: coatcheck goes by the store's",
			"ahead", (-e.offset).Round(time.Millisecond).String(), "within", e.err.String())
	}
}
