package store

import (
	"context"
	"errors"
	"time"
)

// Errors of leases that callers decide on.
var (
	// ErrHeld: somebody else holds the lease.
	ErrHeld = errors.New("store: lease is held")
	// ErrLost: the lease has expired, and somebody else may hold it.
	ErrLost = errors.New("store: lease is lost")
)

// A Leaser hands out locks that end by themselves. A name is up to MaxKey bytes.
type Leaser interface {
	// Acquire returns the lease called name for ttl, or at once ErrHeld. An error that is
	// none of this package's leaves open whether it is held now; it ends by itself.
	Acquire(ctx context.Context, name string, ttl time.Duration) (Lease, error)
}

// A Lease is held until it is released or its time is over. It is safe for concurrent
// use.
type Lease interface {
	// Fence is higher than that of every earlier lease of the same name. Where a holder who
	// was stopped for longer than the lease could overwrite what the next one wrote, it goes
	// along with each write, for whoever writes there to refuse a lower one. In a Store
	// Replace does as much by the revision.
	Fence() uint64
	// Renew extends the lease to ttl from now, or returns ErrLost.
	Renew(ctx context.Context, ttl time.Duration) error
	// Release ends the lease. Ending one that is lost is not an error, and does not end
	// anybody else's.
	Release(ctx context.Context) error
}
