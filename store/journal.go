package store

import (
	"context"
	"time"
)

// JournalLife is how long a journal keeps what was appended, at least. Nothing of it is
// left after twice that time without an Append.
const JournalLife = 5 * time.Minute

// MaxEvent bounds an appended event, in bytes.
const MaxEvent = 4 << 10

// A Journal carries events between nodes.
type Journal interface {
	// Append hands data to every node that follows. After an error it may have been
	// handed on or not. It returns ErrTooLarge for data over MaxEvent.
	Append(ctx context.Context, data []byte) error
	// Follow calls told with what any node appends, this one included, from the moment
	// it calls ready until ctx ends; then it returns the context's error. It reconnects
	// by itself and then catches up with what it has missed, up to JournalLife. The same
	// event may come more than once; the order is roughly that of Append. told owns data.
	Follow(ctx context.Context, ready func(), told func(data []byte)) error
}
