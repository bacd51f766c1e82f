package session

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// An ear notes when a stream's session ends.
type ear struct {
	told atomic.Int32
	err  error
	at   time.Time
}

func (e *ear) ended(err error) {
	e.err, e.at = err, time.Now()
	e.told.Add(1)
}

func (e *ear) want(t *testing.T, step string, want error) {
	t.Helper()
	synctest.Wait()
	if e.told.Load() != 1 || !errors.Is(e.err, want) {
		t.Errorf("%s: told %d times: %v, want %v", step, e.told.Load(), e.err, want)
	}
}

func (e *ear) wantNothing(t *testing.T, step string) {
	t.Helper()
	synctest.Wait()
	if e.told.Load() != 0 {
		t.Errorf("%s: told that the session has ended: %v", step, e.err)
	}
}

// Invariant 8: open streams end with their session, on whichever node it ends.
func TestStreamsEndWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		other := r.beside(func(*Options) {})
		value := r.signIn("alice")
		live := r.wantUser("alice", value)
		var first, second, bobs, released ear
		defer live.Watch(first.ended)()
		defer live.Watch(second.ended)()
		live.Watch(released.ended)()
		bob := r.signIn("bob")
		defer r.wantUser("bob", bob).Watch(bobs.ended)()
		time.Sleep(time.Second)
		first.wantNothing(t, "while the session lives")

		if err := other.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		first.want(t, "after the end", ErrInvalid)
		second.want(t, "after the end", ErrInvalid)
		released.wantNothing(t, "who is gone")
		bobs.wantNothing(t, "somebody else")

		// One that ended before it was watched.
		var late ear
		defer live.Watch(late.ended)()
		late.want(t, "late", ErrInvalid)
	})
}

// An open stream is no use of the session: it ends by its own timer, and not before.
func TestStreamsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t, func(o *Options) { o.Absolute = 2 * idle })
		r.run(t)
		value := r.signIn("alice")
		var e ear
		defer r.wantUser("alice", value).Watch(e.ended)()
		time.Sleep(idle / 2)
		r.wantUser("alice", value)
		time.Sleep(idle - 1)
		e.wantNothing(t, "before the idle end that a request has moved")
		time.Sleep(3 * storeResolution)
		e.want(t, "after it", ErrInvalid)

		value = r.signIn("alice")
		begun := time.Now()
		var deadline ear
		defer r.wantUser("alice", value).Watch(deadline.ended)()
		for time.Since(begun) < 2*idle-time.Minute {
			time.Sleep(time.Minute)
			r.wantUser("alice", value)
		}
		deadline.wantNothing(t, "before the absolute end")
		time.Sleep(time.Minute + 3*storeResolution)
		deadline.want(t, "after the absolute end", ErrInvalid)
	})
}

// A stream is served as long as a new request would be: for the lease and the outage grace
// when the store can't be reached.
func TestStreamsInAnOutage(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			r := newHearing(t, func(o *Options) { o.OutageGrace = grace })
			feed := muteFeed{make(chan store.Feed, 1)}
			r.Feed = feed
			r.run(t)
			told := <-feed.heard
			value := r.signIn("alice")
			var e ear
			defer r.wantUser("alice", value).Watch(e.ended)()
			for range 20 {
				told.Current(time.Now())
				time.Sleep(lease)
			}
			r.probe.forget(failing("get"))
			told.Reset()
			begun := time.Now().Add(-lease)
			time.Sleep(grace - lease)
			e.wantNothing(t, "within the grace")
			time.Sleep(lease + checkAgain)
			synctest.Wait()
			if e.told.Load() != 1 || coatcheck.CodeOf(e.err) != coatcheck.CodeUnknown || errors.Is(e.err, ErrInvalid) {
				t.Errorf("grace %v: after %v: %v", grace, time.Since(begun), e.err)
			}
		})
	}
}

// A gap in the feed, and a store without one: the records of open streams are read.
func TestStreamsAreReadAgain(t *testing.T) {
	for _, hearing := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newHearing(t)
			feed := muteFeed{make(chan store.Feed, 1)}
			if r.Feed = feed; !hearing {
				r.Feed = nil
			}
			r.run(t)
			value := r.signIn("alice")
			var e ear
			defer r.wantUser("alice", value).Watch(e.ended)()
			time.Sleep(time.Second)
			handle, _, _ := strings.Cut(value, ".")
			if err := r.memory.Delete(t.Context(), handle); err != nil { // nobody is told
				t.Fatal(err)
			}
			if hearing {
				told := <-feed.heard
				told.Reset()
				told.Current(time.Now())
			}
			time.Sleep(2 * lease)
			e.want(t, "after the gap", ErrInvalid)
		})
	}
}

// What changes while the record is being looked at is looked at again.
func TestStreamsChangeDuringACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		value := r.signIn("alice")
		live := r.wantUser("alice", value)
		var e ear
		defer live.Watch(e.ended)()
		synctest.Wait()
		slow := make(chan struct{})
		r.Manager.Store = lateStore{r.Manager.Store, slow}
		r.streams.changed(r.Manager, live.handle) // for whatever reason
		synctest.Wait()
		if err := r.memory.Delete(t.Context(), live.handle); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(slow)
		time.Sleep(time.Second)
		e.want(t, "after a change during a check", ErrInvalid)
	})
}

// A lateStore answers reads with what was there when they came, later.
type lateStore struct {
	store.Store
	wait chan struct{}
}

func (s lateStore) Get(ctx context.Context, key string) (store.Record, error) {
	rec, err := s.Store.Get(ctx, key)
	<-s.wait
	return rec, err
}
