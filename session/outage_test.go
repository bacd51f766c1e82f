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

// Outage grace: who was in the near cache goes on for that long, marked, and not longer.
func TestOutageGrace(t *testing.T) {
	for _, grace := range []time.Duration{0, 10 * time.Second} {
		t.Run(grace.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHearing(t, func(o *Options) { o.OutageGrace = grace })
				feed := muteFeed{make(chan store.Feed, 1)}
				r.Feed = feed
				r.run(t)
				told := <-feed.heard
				alice, bob, carol := r.signIn("alice"), r.signIn("bob"), r.signIn("carol")
				r.wantUser("alice", alice)
				r.wantUser("bob", bob)
				for range 60 { // a hot session, read long ago
					told.Current(time.Now())
					time.Sleep(lease)
				}
				r.wantUser("alice", alice)
				handle, _, _ := strings.Cut(bob, ".")
				told.Changed(handle) // before the outage
				r.probe.forget(failing("get", "touch"))
				told.Reset()
				told.Reset()
				for waited := lease; waited <= 20*time.Second; waited += time.Second {
					live, err := r.load(alice)
					if waited > grace {
						wantCode(t, live, err, coatcheck.CodeUnknown, alice)
					} else if err != nil || live.Unverified != waited || live.Identity.Subject != "alice" {
						t.Fatalf("after %v: %+v, %v", waited, live, err)
					}
					for _, value := range []string{bob, carol} {
						live, err := r.load(value)
						wantCode(t, live, err, coatcheck.CodeUnknown, value)
					}
					time.Sleep(time.Second)
				}
				r.probe.forget(nil)
				if live := r.wantUser("alice", alice); live.Unverified != 0 {
					t.Error("a session that the store has confirmed is marked")
				}
			})
		})
	}
}

// The grace is no longer than the session.
func TestOutageGraceEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t, func(o *Options) { o.Idle, o.OutageGrace = time.Minute, time.Hour })
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed = feed
		r.run(t)
		<-feed.heard
		value := r.signIn("alice")
		r.wantUser("alice", value)
		r.probe.forget(failing("get"))
		time.Sleep(time.Minute - 1)
		r.wantUser("alice", value)
		time.Sleep(time.Nanosecond)
		live, err := r.load(value)
		wantCode(t, live, err, coatcheck.CodeUnknown, value)
	})
}

// Who leaves before the store has answered is not served from what was known before it: the
// store is there, and may know better.
func TestNoGraceForWhoLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newSilent(t, func(o *Options) { o.OutageGrace = time.Hour })
		value := r.signIn("alice")
		r.wantUser("alice", value)
		time.Sleep(lease + 1)
		r.probe.forget(func(context.Context, string, string) error {
			time.Sleep(time.Second)
			return nil
		})
		leaving, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		live, err := r.Load(leaving, carrying(value))
		wantCode(t, live, err, coatcheck.CodeUnknown, value)
		time.Sleep(2 * time.Second) // the read belongs to nobody, and ends
	})
}

// A store that is full refuses to mark an entry, and deletes a record all the same: people
// can sign out, and be signed out. The entry follows.
func TestEndInAFullStore(t *testing.T) {
	var events notebook
	r := newRig(t, func(o *Options) { o.Events = &events })
	value := r.signIn("alice")
	events.told()
	r.Manager.Registry = fullRegistry{r.memory}
	if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", value), coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	r.wantInvalid(value)
	if left := r.FinishLeft(t.Context()); left != 1 {
		t.Errorf("%d are left, want 1", left)
	}
	events.want(t)
	r.Manager.Registry = r.memory
	if left := r.FinishLeft(t.Context()); left != 0 {
		t.Errorf("%d are left", left)
	}
	r.wantKept()
	events.want(t, "session.ended alice signed_out")

	// But nobody is told "signed out" who isn't.
	value = r.signIn("alice")
	live := r.wantUser("alice", value)
	r.Manager.Registry = fullRegistry{r.memory}
	r.probe.forget(failing("delete"))
	wantCode(t, nil, r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut), coatcheck.CodeUnknown)
}

type fullRegistry struct{ store.Registry }

func (fullRegistry) End(context.Context, store.Entry, string) (store.Entry, error) {
	return store.Entry{}, errDown
}
