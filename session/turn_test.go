package session

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// slowly is a hook by which every call takes a while, so that what can overlap does.
func slowly(context.Context, string, string) error {
	time.Sleep(time.Millisecond)
	return nil
}

// Many sign-ins of one user at once end each session that has to give way once, and those
// of others don't wait for them.
func TestSignInsOfOneUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, limited(store.Limits{PerUser: 2, OnLimit: store.EvictOldest}))
		r.probe.forget(slowly)
		const crowd = 100
		var all sync.WaitGroup
		for range crowd {
			all.Go(func() { r.signIn("alice") })
		}
		began := time.Now()
		all.Go(func() {
			r.signIn("bob")
			if waited := time.Since(began); waited > 10*time.Millisecond {
				t.Errorf("bob waited %v for alice", waited)
			}
		})
		all.Wait()
		if n := r.probe.count("delete"); n != crowd-2 {
			t.Errorf("%d deletes for %d sessions that gave way", n, crowd-2)
		}
		if n := len(r.turns.users); n != 0 {
			t.Errorf("%d users are still waiting", n)
		}
	})
}

// Who has replaced a session needs not end it again.
func TestReplacedIsEndedOnce(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	r.probe.forget(nil)
	r.signIn("alice", value)
	if n := r.probe.count("delete"); n != 1 {
		t.Errorf("%d deletes", n)
	}
}

// A sign-in whose person leaves while it waits has done nothing, and holds up nobody.
func TestSignInLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		end, err := r.turns.take(t.Context(), r.userName("https://idp.example", "alice"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		live, err := r.Begin(ctx, http.Header{}, http.Header{}, user("alice"), r.Now())
		wantCode(t, live, err, coatcheck.CodeUnknown)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		r.wantKept()
		end()
		r.wantKept(r.signIn("alice"))
		if n := len(r.turns.users); n != 0 {
			t.Errorf("%d users are still waiting", n)
		}
	})
}
