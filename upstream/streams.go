package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
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
	// leave ends it, politely as long as ctx lives, and returns when it has ended. It may
	// be called again, and when it has ended already.
	leave(ctx context.Context, why closing)
}

// closing is the body of the close frame that a client gets (RFC 6455 §5.5.1).
type closing struct {
	status uint16
	reason string // at most 123 bytes of UTF-8; a page's script can read it
}

var goingAway = closing{status: 1001}

// sessionEndPatience bounds how long a stream may take to close politely once its session
// has ended.
const sessionEndPatience = 3 * time.Second

// sessionEnd says to a WebSocket what an answer in HTTP would say with these codes. A
// client that is told 1008 must not just connect again, one that is told 1013 may (RFC 6455
// §7.4.1 and the registry of its §11.7).
func sessionEnd(err error) closing {
	if coatcheck.CodeOf(err) == coatcheck.CodeUnknown {
		return closing{1013, string(coatcheck.CodeUnknown)}
	}
	return closing{1008, string(coatcheck.CodeSessionEnded)}
}

// Count returns the number of open streams.
func (s *Streams) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Drain ends all streams, and those that open later. A WebSocket gets a close frame with
// the status 1001 on both sides and is closed when both have answered; an event stream's
// answer ends. Drain returns when all have ended. When ctx ends, what is still open is cut
// off.
func (s *Streams) Drain(ctx context.Context) {
	s.mu.Lock()
	s.drain = ctx
	var wg sync.WaitGroup
	for st := range s.open {
		wg.Go(func() { st.leave(ctx, goingAway) })
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
		go st.leave(s.drain, goingAway)
	}
}

func (s *Streams) remove(st stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
}
