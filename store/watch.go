package store

import (
	"context"
	"errors"
	"time"
)

// ErrNoFeed: the backend can't tell of changes, for good. Whoever wants to know reads.
var ErrNoFeed = errors.New("store: no feed of changes")

// A Watcher tells of changes to records, so that what was read may be kept for a while.
type Watcher interface {
	// Watch tells feed of the changes that all nodes make, this one included, until ctx
	// ends; then it returns the context's error. It reconnects by itself. It returns
	// ErrNoFeed where the server has no feed to give. Every beat it makes sure that it
	// hears, which is at most a second.
	Watch(ctx context.Context, beat time.Duration, feed Feed) error
}

// A Feed is told of changes. Its functions are called by any goroutine, must not block
// and must not call the store.
type Feed struct {
	// Changed: the record under key was replaced or deleted. Being created, touched or
	// expired is no change, but may be told as one.
	Changed func(key string)
	// Reset: changes may have been missed, of any record. It is called each time the
	// feed begins to hear, before the first Current that follows.
	Reset func()
	// Current: every change whose call had returned before asOf, on any node, has been
	// told by Changed or Reset. asOf has a monotonic reading.
	Current func(asOf time.Time)
}
