package guard

import (
	"context"
	"sync/atomic"
)

// slots bound how many are at work at once, and how many wait to be. Who has waited the
// longest is next.
type slots struct {
	taken   chan struct{}
	present atomic.Int64 // at work or waiting
	limit   int64
}

func newSlots(n, queue int) *slots {
	return &slots{taken: make(chan struct{}, n), limit: int64(n) + int64(queue)}
}

// take returns nil once a slot is the caller's, until it calls free. It returns ErrBusy at
// once where too many wait already, or the context's error when that ends.
func (s *slots) take(ctx context.Context) error {
	for {
		n := s.present.Load()
		if n >= s.limit {
			return ErrBusy
		}
		if s.present.CompareAndSwap(n, n+1) {
			break
		}
	}
	select {
	case s.taken <- struct{}{}: // whatever ctx says: then the driver will say it
		return nil
	default:
	}
	select {
	case s.taken <- struct{}{}:
		return nil
	case <-ctx.Done():
		s.present.Add(-1)
		return ctx.Err()
	}
}

func (s *slots) free() {
	s.present.Add(-1) // first, or its place would seem taken when it isn't
	<-s.taken
}
