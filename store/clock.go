package store

import (
	"context"
	"time"
)

// A Clock is the one clock that all nodes can read. Instants that nodes hand on to each
// other are told by it, so that nodes whose own clocks differ agree on them.
type Clock interface {
	// Now returns the time by the backend's clock, to the millisecond at least, read
	// between the call and its return.
	Now(ctx context.Context) (time.Time, error)
}
