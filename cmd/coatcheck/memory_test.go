package main

import (
	"context"
	"runtime/debug"
	"testing"
	"testing/synctest"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 1500}, {4 << 20, 1500}, {16 << 20, 300}, {32 << 20, 100}, {64 << 20, 100}, {1 << 40, 100},
	} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("%d bytes are kept: %d%%, want %d%%", c.live, got, c.want)
		}
	}
}

// TestTuneCollector: the collector is tuned, and left as it was found.
func TestTuneCollector(t *testing.T) {
	current := func() int { p := debug.SetGCPercent(usualPercent); debug.SetGCPercent(p); return p }
	tuned := func() (during, after int) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { tuneCollector(ctx); close(done) }()
			synctest.Wait()
			during = current()
			cancel()
			<-done
			after = current()
		})
		return during, after
	}
	debug.FreeOSMemory() // collects: what other tests have left counts as kept until then
	t.Setenv("GOGC", "")
	if during, after := tuned(); during <= usualPercent || after != usualPercent {
		t.Errorf("%d%%, afterwards %d%%", during, after)
	}
	t.Setenv("GOGC", "100")
	if during, _ := tuned(); during != usualPercent {
		t.Errorf("GOGC is not obeyed: %d%%", during)
	}
}
