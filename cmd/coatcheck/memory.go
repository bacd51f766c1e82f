package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapRoom is what the heap may always grow to before garbage is collected. A node that
	// keeps little would otherwise look through the little it keeps several times a second,
	// which is a tenth of all it does.
	heapRoom = 64 << 20
	// usualPercent is Go's own: the heap may grow to twice what is kept.
	usualPercent = 100
	// retune is how often the percentage is brought in line with what is kept.
	retune = time.Second
)

// tuneCollector lets garbage be collected when the heap reaches heapRoom or twice what is
// kept, whatever is more, until ctx ends. GOMEMLIMIT still bounds the heap, and a GOGC in
// the environment is obeyed instead.
func tuneCollector(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := usualPercent
	defer func() { debug.SetGCPercent(usualPercent) }()
	for {
		metrics.Read(live)
		// Setting it stops the world for a moment, so small changes are let be.
		if p := gcPercent(live[0].Value.Uint64()); p > percent+percent/8 || p < percent-percent/8 {
			debug.SetGCPercent(p)
			percent = p
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retune):
		}
	}
}

// gcPercent is how much more than what is kept, in percent of it, the heap may grow by.
func gcPercent(live uint64) int {
	const least = 4 << 20 // Go's own least heap; what is kept is 0 before the first collection
	live = max(live, least)
	return max(usualPercent, int((heapRoom-min(live, heapRoom))*100/live))
}
