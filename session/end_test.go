package session

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// newSilent returns a rig that runs with a near cache, for a lease and to which nobody tells
// anything but the test.
func newSilent(t *testing.T, change ...func(*Options)) (*rig, store.Feed) {
	t.Helper()
	r := newHearing(t, change...)
	feed := muteFeed{make(chan store.Feed, 1)}
	r.Feed = feed
	r.run(t)
	return r, <-feed.heard
}

// Whoever ends a session does not serve it any more, before the store's feed has told of it.
func TestEndedHereAtOnce(t *testing.T) {
	for _, full := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r, _ := newSilent(t)
			value := r.signIn("alice")
			live := r.wantUser("alice", value)
			if full {
				r.Manager.Registry = fullRegistry{r.memory}
			}
			if err := r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
				t.Fatal(err)
			}
			r.wantInvalid(value)
		})
	}
}

// A sign-out in a full store is final as well: it is made again when the store may have
// forgotten it, though its entry still can't be marked.
func TestReassertInAFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed, r.Manager.Registry = feed, fullRegistry{r.memory}
		r.run(t)
		told := <-feed.heard
		value := r.signIn("alice")
		rec, _ := r.record(value)
		handle, _, _ := strings.Cut(value, ".")
		if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", value), coatcheck.ReasonSignedOut); err != nil {
			t.Fatal(err)
		}
		if err := r.memory.Create(t.Context(), handle, rec.Value, idle); err != nil { // after a failover
			t.Fatal(err)
		}
		told.Reset()
		time.Sleep(2 * upkeepEvery)
		r.wantInvalid(value)
	})
}

// A session that ends between the read and the use is not listed again by its use.
func TestUseAfterTheEndListsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events = &events })
		other := r.beside(func(*Options) {})
		value := r.signIn("alice")
		live := other.wantUser("alice", value)
		r.Manager.Registry = lateRegistry{r.memory, func() {
			if err := other.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
				t.Error(err)
			}
		}}
		time.Sleep(time.Minute)
		r.wantInvalid(value)
		r.wantKept()
	})
}

// A lateRegistry has something happen before each Renew.
type lateRegistry struct {
	store.Registry
	before func()
}

func (r lateRegistry) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	r.before()
	return r.Registry.Renew(ctx, e, ttl)
}
