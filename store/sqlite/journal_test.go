package sqlite

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// follow runs Follow in the background until the test ends. The channel is unbuffered, so
// the follower is as slow as its reader.
func follow(t *testing.T, s *Store) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, ready, done := make(chan string), make(chan struct{}), make(chan error)
	go func() {
		done <- s.Follow(ctx, func() { close(ready) }, func(data []byte) {
			select {
			case events <- string(data):
			case <-ctx.Done():
			}
		})
	}()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
	})
	return events
}

func appendN(t *testing.T, s *Store, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := s.Append(t.Context(), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantEvents(t *testing.T, events <-chan string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if got := <-events; got != fmt.Sprint(i) {
			t.Fatalf("event %s, want %d", got, i)
		}
	}
}

// A follower that takes nothing delays neither Append nor another follower, and catches
// up with all that is not too old.
func TestSlowFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openNew(t)
		slow, quick := follow(t, s), follow(t, s)
		appendN(t, s, 0, 100)
		wantEvents(t, quick, 0, 100)
		time.Sleep(store.JournalLife - time.Second)
		wantEvents(t, slow, 0, 50)
		appendN(t, s, 100, 110)
		wantEvents(t, quick, 100, 110)
		wantEvents(t, slow, 50, 110)
	})
}

// backlog returns how much every follower has before it.
func (s *Store) backlog() (n int) {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	for f := range s.journal.followers {
		n += len(f.backlog)
	}
	return n
}

// What nobody takes is dropped, with no Append to set that off.
func TestJournalLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openNew(t)
		stuck := follow(t, s)
		appendN(t, s, 0, 10)
		synctest.Wait()
		time.Sleep(store.JournalLife + reapEvery)
		synctest.Wait()
		if n := s.backlog(); n != 0 {
			t.Errorf("%d events are left", n)
		}
		appendN(t, s, 10, 20)
		wantEvents(t, stuck, 0, 1) // it had been taken
		wantEvents(t, stuck, 10, 20)
	})
}

// A burst is bounded in memory, and costs a stuck follower the oldest events.
func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openNew(t)
		stuck := follow(t, s)
		appendN(t, s, 0, 1)
		synctest.Wait() // it has taken the first
		appendN(t, s, 1, maxBacklog+11)
		if n := s.backlog(); n != maxBacklog {
			t.Errorf("%d events are kept, want %d", n, maxBacklog)
		}
		wantEvents(t, stuck, 0, 1)
		wantEvents(t, stuck, 11, 100)
	})
}
