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

// A change is told before the call that made it returns, and the feed first forgets.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := openNew(t), t.Context()
		ctx, cancel := context.WithCancel(ctx)
		var told []string
		var asOf time.Time
		done := make(chan error)
		go func() {
			done <- s.Watch(ctx, time.Second, store.Feed{
				Changed: func(key string) { told = append(told, key) },
				Reset:   func() { told = append(told, "reset") },
				Current: func(t time.Time) {
					if asOf.IsZero() {
						told = append(told, "current")
					}
					asOf = t
				},
			})
		}()
		synctest.Wait()
		if err := s.Create(ctx, "k", []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Touch(ctx, "k", 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := s.Replace(ctx, "k", r.Revision+1, nil, time.Hour); err != store.ErrConflict {
			t.Fatal(err)
		}
		for _, call := range []struct {
			name string
			do   func() error
		}{
			{"Replace", func() error { return s.Replace(ctx, "k", r.Revision, []byte("w"), time.Hour) }},
			{"Delete", func() error { return s.Delete(ctx, "k") }},
		} {
			told = append(told, call.name)
			if err := call.do(); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := fmt.Sprint(told), "[reset current Replace k Delete k]"; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if age := time.Since(asOf); age != 500*time.Millisecond {
			t.Errorf("after a beat and a half the feed is current as of %s ago", age)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
		told = nil
		if err := s.Delete(t.Context(), "k"); err != nil || told != nil {
			t.Errorf("after Watch has returned: told %v, %v", told, err)
		}
	})
}
