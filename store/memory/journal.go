package memory

import (
	"bytes"
	"context"

	"github.com/coatcheck/coatcheck/store"
)

// A follower is one call of Follow. Nobody is ever cut off from this journal, so it
// keeps events only until they are told.
type follower struct {
	events [][]byte
	more   chan struct{} // holds a token while events may be there
}

// Append implements store.Journal.
func (s *Store) Append(ctx context.Context, data []byte) error {
	var refused error
	if len(data) > store.MaxEvent {
		refused = store.ErrTooLarge
	}
	if err := admit(ctx, "append", refused); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.followers {
		f.events = append(f.events, bytes.Clone(data))
		select {
		case f.more <- struct{}{}:
		default:
		}
	}
	return nil
}

// Follow implements store.Journal.
func (s *Store) Follow(ctx context.Context, ready func(), told func(data []byte)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &follower{more: make(chan struct{}, 1)}
	s.mu.Lock()
	s.followers[f] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.followers, f)
		s.mu.Unlock()
	}()

	ready()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.more:
		}
		s.mu.Lock()
		events := f.events
		f.events = nil
		s.mu.Unlock()
		for _, data := range events {
			told(data)
		}
	}
}
