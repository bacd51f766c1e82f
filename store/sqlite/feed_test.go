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
