package sqlite

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// maxBacklog is how many events one follower may be behind. It bounds memory where
// events come much faster than any follower takes them.
const maxBacklog = 1 << 16

// A journal hands events to those who follow it. Nothing is kept for anybody else.
type journal struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
}

// A follower is one call of Follow. journal.mu guards backlog.
type follower struct {
	backlog []event       // oldest first
	more    chan struct{} // holds a token while there may be a backlog
}

// An event is shared by all followers and never changed.
type event struct {
	data []byte
	at   time.Time
}

// next takes the oldest event.
func (f *follower) next() (event, bool) {
	if len(f.backlog) == 0 {
		return event{}, false
	}
	e := f.backlog[0]
	f.backlog[0] = event{} // the array lives on
	f.backlog = f.backlog[1:]
	return e, true
}

// trim drops the events that a follower can't expect any more.
func (f *follower) trim(now time.Time) {
	for len(f.backlog) > maxBacklog || len(f.backlog) > 0 && now.Sub(f.backlog[0].at) > store.JournalLife {
		f.next()
	}
	if len(f.backlog) == 0 {
		f.backlog = nil
	}
}

func (j *journal) append(e event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for f := range j.followers {
		f.backlog = append(f.backlog, e)
		f.trim(e.at)
		select {
		case f.more <- struct{}{}:
		default:
		}
	}
}

// trim is for those who are stuck while nothing is appended.
func (j *journal) trim(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for f := range j.followers {
		f.trim(now)
	}
}

func (j *journal) next(f *follower) (event, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return f.next()
}

func (j *journal) add(f *follower) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.followers == nil {
		j.followers = make(map[*follower]struct{})
	}
	j.followers[f] = struct{}{}
}

func (j *journal) remove(f *follower) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.followers, f)
}

// Append implements store.Journal. It waits for no follower. One that is stuck loses what
// is older than store.JournalLife, and the oldest of more than 65,536 events.
func (s *Store) Append(ctx context.Context, data []byte) error {
	err := ctx.Err()
	if len(data) > store.MaxEvent {
		err = store.ErrTooLarge
	}
	if err != nil {
		return wrap("append", err)
	}
	s.journal.append(event{bytes.Clone(data), time.Now()})
	return nil
}

// Follow implements store.Journal. Events don't outlive the process.
func (s *Store) Follow(ctx context.Context, ready func(), told func(data []byte)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &follower{more: make(chan struct{}, 1)}
	s.journal.add(f)
	defer s.journal.remove(f)
	ready()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.more:
		}
		for e, ok := s.journal.next(f); ok && ctx.Err() == nil; e, ok = s.journal.next(f) {
			told(bytes.Clone(e.data))
		}
	}
}
