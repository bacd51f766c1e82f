package sqlite

import (
	"context"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// feeds are those who watch.
type feeds struct {
	mu  sync.RWMutex
	all map[*store.Feed]struct{}
}

// changed tells every feed. The call that made the change has not returned yet.
func (f *feeds) changed(key string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for feed := range f.all {
		feed.Changed(key)
	}
}

func (f *feeds) add(feed *store.Feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = make(map[*store.Feed]struct{})
	}
	f.all[feed] = struct{}{}
}

func (f *feeds) remove(feed *store.Feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, feed)
}

// Watch implements store.Watcher. It is never cut off. A change that another program
// makes in the file is not told.
func (s *Store) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// First the feed hears, then it forgets what it read while it did not.
	s.feeds.add(&feed)
	defer s.feeds.remove(&feed)
	feed.Reset()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		// Each change was told before its call returned.
		feed.Current(time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
