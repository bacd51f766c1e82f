package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Expiry: whichever node comes along finishes it, records it and forgets it.
func TestReap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events, o.Tombstones = &events, time.Hour; o.Absolute = 45 * time.Minute })
		alice, bob := r.signIn("alice"), r.signIn("bob")
		time.Sleep(25 * time.Minute)
		r.wantUser("bob", bob)
		time.Sleep(5*time.Minute + 1)
		// Nobody has reaped yet, and alice is told all the same.
		r.wantInvalid(alice)
		r.wantEnded(coatcheck.ReasonIdle, alice)
		r.run(t)
		time.Sleep(listedLonger + 2*upkeepEvery)
		events.want(t, "session.started alice", "session.started bob", "session.renewed bob", "session.ended alice idle")
		r.wantEnded(coatcheck.ReasonIdle, alice)
		time.Sleep(15 * time.Minute)
		events.want(t, "session.ended bob absolute")
		r.wantEnded(coatcheck.ReasonAbsolute, bob)
		time.Sleep(time.Hour)
		r.wantKept()
		for _, key := range r.probe.made {
			if _, err := r.memory.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s is left", key)
			}
		}
		if reason := r.Ended(t.Context(), carrying(alice)); reason != "" {
			t.Error("a tombstone stands for ever")
		}
	})
}

// A claim is acknowledged after its event is recorded, and a repeat has the same id.
func TestReapRecordsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events = &events })
		r.signIn("alice")
		events.failing(errDown)
		r.run(t)
		time.Sleep(idle + listedLonger + 3*time.Second)
		events.want(t, "session.started alice")
		events.failing(nil)
		time.Sleep(store.ClaimLife + 3*time.Second)
		events.want(t, "session.ended alice idle")
		time.Sleep(5 * store.ClaimLife)
		events.want(t)
		r.wantKept()
	})
}

// A node that dies between the mark and the end leaves it to the others.
func TestUnfinishedEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events, o.Tombstones = &events, time.Hour })
		alice, bob := r.signIn("alice"), r.signIn("bob")
		for e := range r.Find(t.Context(), Query{Issuer: "https://idp.example", Subject: "alice"}) {
			if _, err := r.memory.End(t.Context(), e.listed, string(coatcheck.ReasonRevoked)); err != nil {
				t.Fatal(err)
			}
		}
		r.wantUser("alice", alice) // marked, and not ended yet
		r.run(t)
		time.Sleep(store.EndingPatience + 2*upkeepEvery)
		r.wantInvalid(alice)
		r.wantEnded(coatcheck.ReasonRevoked, alice)
		r.wantKept(bob)
		events.want(t, "session.started alice", "session.started bob", "session.ended alice revoked")
	})
}

// A registry that has lost a Renew does not sign anybody out.
func TestReapRelists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events = &events })
		value := r.signIn("alice")
		time.Sleep(idle / 2)
		handle, _, _ := strings.Cut(value, ".")
		if err := r.memory.Touch(t.Context(), handle, idle); err != nil { // the Renew before it is lost
			t.Fatal(err)
		}
		r.run(t)
		time.Sleep(idle/2 + listedLonger + 3*upkeepEvery)
		r.wantKept(value)
		rec, _ := r.record(value)
		for e := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
			if longer := time.Until(e.Expires) - rec.TTL; longer != listedLonger {
				t.Errorf("it is listed for %v longer than its record lives, want %v", longer, listedLonger)
			}
		}
		r.wantUser("alice", value)
		events.want(t, "session.started alice", "session.renewed alice")
		time.Sleep(idle + listedLonger + 3*upkeepEvery)
		r.wantKept()
	})
}

// Revocations of the last minute are made again after a gap in the feed: the store may have
// failed over to a copy that has not heard of them.
func TestReassert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed = feed
		r.run(t)
		told := <-feed.heard
		old, lately := r.signIn("alice"), r.signIn("bob")
		oldRecord, _ := r.record(old)
		lateRecord, _ := r.record(lately)
		end := func(value, sub string) {
			if err := r.End(t.Context(), http.Header{}, nil, r.wantUser(sub, value), coatcheck.ReasonSignedOut); err != nil {
				t.Fatal(err)
			}
		}
		end(old, "alice")
		time.Sleep(reassertFor)
		end(lately, "bob")
		time.Sleep(time.Second)
		for value, rec := range map[string]store.Record{old: oldRecord, lately: lateRecord} {
			handle, _, _ := strings.Cut(value, ".")
			if err := r.memory.Create(t.Context(), handle, rec.Value, idle); err != nil {
				t.Fatal(err)
			}
		}
		r.probe.forget(failing("delete"))
		told.Reset()
		time.Sleep(10 * time.Second)
		r.probe.forget(nil)
		time.Sleep(2 * upkeepEvery)
		r.wantInvalid(lately)
		r.wantUser("alice", old) // longer ago than the store may forget
		r.probe.forget(nil)
		time.Sleep(10 * time.Second)
		if n := r.probe.count("delete"); n != 0 {
			t.Errorf("%d more deletes", n)
		}
	})
}

// A gap that comes while revocations are made again begins that anew: what has just been
// deleted may be back.
func TestReassertOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed = feed
		r.run(t)
		told := <-feed.heard
		value := r.signIn("alice")
		rec, _ := r.record(value)
		handle, _, _ := strings.Cut(value, ".")
		if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", value), coatcheck.ReasonSignedOut); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		failedOver := make(chan struct{})
		again := sync.OnceFunc(func() {
			time.Sleep(10 * time.Millisecond)
			told.Reset()
			close(failedOver)
		})
		r.probe.forget(func(_ context.Context, op, _ string) error {
			if op == "delete" {
				again()
			}
			return nil
		})
		told.Reset()
		<-failedOver
		synctest.Wait() // until the first pass is over
		if err := r.memory.Create(t.Context(), handle, rec.Value, idle); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * upkeepEvery)
		r.wantInvalid(value)
		r.probe.forget(nil)
		time.Sleep(10 * time.Second)
		if n := r.probe.count("delete"); n != 0 {
			t.Errorf("%d more deletes", n)
		}
	})
}

// Where nobody tells of changes, a store that did not answer for a while is one that may
// have failed over.
func TestReassertWithoutAFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		down := &switchedRegistry{Registry: r.memory}
		r.Manager.Registry = down
		r.run(t)
		value := r.signIn("alice")
		rec, _ := r.record(value)
		if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", value), coatcheck.ReasonSignedOut); err != nil {
			t.Fatal(err)
		}
		handle, _, _ := strings.Cut(value, ".")
		down.down.Store(true)
		time.Sleep(5 * time.Second)
		if err := r.memory.Create(t.Context(), handle, rec.Value, idle); err != nil {
			t.Fatal(err)
		}
		r.wantUser("alice", value)
		down.down.Store(false)
		time.Sleep(3 * upkeepEvery)
		r.wantInvalid(value)
	})
}

type switchedRegistry struct {
	store.Registry
	down atomic.Bool
}

func (s *switchedRegistry) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	if s.down.Load() {
		return nil, errDown
	}
	return s.Registry.Reap(ctx, limit)
}

func TestUpkeepIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u upkeep
		for i := range maxDeleted + 1000 {
			u.deleted(fmt.Sprint(i))
		}
		if n := len(u.deletions); n > maxDeleted {
			t.Errorf("%d deletions are remembered", n)
		}
		time.Sleep(reassertFor + 1)
		if u.trim(); len(u.deletions) != 0 {
			t.Errorf("%d deletions are remembered for ever", len(u.deletions))
		}
		for range maxLeft + 1 {
			u.leave(store.Entry{}, abandoned)
		}
		if n := len(u.left); n > maxLeft {
			t.Errorf("%d leftovers are remembered", n)
		}
	})
}

// What a node has left to do is bounded, also while the store refuses it again and again.
func TestLeftoversAreBounded(t *testing.T) {
	r := newRig(t)
	asked := 0
	fill := func() {
		for range maxLeft {
			r.upkeep.leave(store.Entry{}, coatcheck.ReasonRevoked)
		}
	}
	r.Manager.Registry = refusingRegistry{r.memory, func() { asked++; fill() }} // other requests leave more
	fill()
	r.finishLeft(t.Context())
	if n := r.upkeep.waiting(); n != maxLeft {
		t.Errorf("%d leftovers are remembered", n)
	}
	if asked != leftFailures {
		t.Errorf("a store that is down was asked %d times in a row", asked)
	}
}

type refusingRegistry struct {
	store.Registry
	asked func()
}

func (r refusingRegistry) End(context.Context, store.Entry, string) (store.Entry, error) {
	r.asked()
	return store.Entry{}, errDown
}

// A part of the store that is out keeps nothing back from the others.
func TestLeftoversThatAreRefused(t *testing.T) {
	r := newRig(t)
	leave := func(value string) {
		for e, err := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
			if handle, _, _ := strings.Cut(value, "."); err == nil && e.Record == handle {
				r.upkeep.leave(e, coatcheck.ReasonRevoked)
			}
		}
	}
	out, values := map[string]bool{}, []string{}
	for range 2 * leftFailures {
		value := r.signIn("alice")
		values = append(values, value)
		handle, _, _ := strings.Cut(value, ".")
		out[handle] = true
		leave(value)
	}
	leave(r.signIn("bob"))
	r.probe.forget(func(_ context.Context, op, key string) error {
		if op == "delete" && out[key] {
			return errDown
		}
		return nil
	})
	for range 3 {
		r.finishLeft(t.Context())
	}
	r.wantKept(values...)
	r.probe.forget(nil)
	for range 2 {
		r.finishLeft(t.Context())
	}
	r.wantKept()
}
