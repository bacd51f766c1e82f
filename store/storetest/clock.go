package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// testClock: all nodes read one clock, and it goes on. That of a server on this machine is
// this machine's, to the resolution that the contract asks for.
func testClock(t *testing.T, nodes []store.Backend) {
	ctx := context.Background()
	const resolution = time.Millisecond
	last := time.Now().Add(-resolution)
	for i := range 4 {
		now, err := nodes[i%2].Now(ctx)
		must(t, "Now", err)
		if now.Before(last.Add(-resolution)) || now.After(time.Now().Add(resolution)) {
			t.Fatalf("Now is %v, after %v and at %v", now, last, time.Now())
		}
		last = now
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := nodes[0].Now(over); err == nil {
		t.Error("Now answers though its context has ended")
	}
}
