package memory

import (
	"context"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// changed tells every feed of a change before the call that made it returns. s.mu is
// held.
func (s *Store) changed(key string) {
	for feed := range s.feeds {
		feed.Changed(key)
	}
}

// Watch implements store.Watcher.
func (s *Store) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	feed.Reset()
	s.feeds[&feed] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.feeds, &feed)
		s.mu.Unlock()
	}()

	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		s.mu.Lock() // no change is between being made and being told
		feed.Current(time.Now())
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
