package upstream

import (
	"context"
	"sync"
)

// Streams keeps the WebSockets and event streams that are open in this process. The zero
// value is ready for use; so are concurrent calls.
type Streams struct {
	mu   sync.Mutex
	open map[stream]bool
	// drain is the context of Drain, once it was called. What opens later, from a
	// handshake that was under way, leaves at once.
	drain context.Context
}

// A stream is something that stays open until it is told to end.
type stream interface {
	// leave ends it, politely as long as ctx lives, and returns when it has ended.
	leave(ctx context.Context)
}

// Count returns the number of open streams.
func (s *Streams) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Drain ends all streams, and those that open later. A WebSocket gets a close frame with
// the status 1001 on both sides and is closed when both have answered; an event stream's
// answer ends. Drain returns when all have ended. When ctx ends, what is still open is
// closed without waiting.
func (s *Streams) Drain(ctx context.Context) {
	s.mu.Lock()
	s.drain = ctx
	var wg sync.WaitGroup
	for st := range s.open {
		wg.Go(func() { st.leave(ctx) })
	}
	s.mu.Unlock()
	wg.Wait()
}

func (s *Streams) add(st stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[stream]bool)
	}
	s.open[st] = true
	if s.drain != nil {
		go st.leave(s.drain)
	}
}

func (s *Streams) remove(st stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
}
