package session

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// with returns a rig that goes by other rules, on the same manager's sessions.
func (r *rig) with(change func(*Options)) *rig {
	return &rig{Manager: r.With(change), t: r.t, probe: r.probe, memory: r.memory}
}

// A session stays what it was when its node goes by other rules, hot and all; what it may do
// next is what the rules say that it is asked by.
func TestWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newHearing(t, func(o *Options) { o.Tombstones = time.Hour })
		before.run(t)
		alice := before.signIn("alice")
		deadline := before.wantUser("alice", alice).Deadline
		time.Sleep(lease)
		before.wantUser("alice", alice)
		before.probe.forget(nil)
		after := before.with(func(o *Options) {
			o.Idle, o.Absolute, o.Tombstones = idle/2, absolute/2, 0
			o.Limits = store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
		})
		if live := after.wantUser("alice", alice); !live.Deadline.Equal(deadline) {
			t.Errorf("the session ends at %v, and began to at %v", live.Deadline, deadline)
		}
		if n := before.probe.count("get"); n != 0 {
			t.Errorf("%d reads of a hot session", n)
		}

		h := http.Header{}
		second, err := before.Begin(t.Context(), h, carrying(), user("alice"), before.Now())
		if err != nil || !second.Deadline.Equal(time.Now().Add(absolute)) {
			t.Fatalf("by the rules of before: %v, %v", second, err)
		}
		after.wantUser("alice", before.cookieIn(h))
		after.wantUser("alice", alice)
		third, err := after.Begin(t.Context(), http.Header{}, carrying(), user("alice"), after.Now())
		if err != nil || !third.Deadline.Equal(time.Now().Add(absolute/2)) {
			t.Fatalf("by the new rules: %v, %v", third, err)
		}
		synctest.Wait()
		before.wantInvalid(alice)
		after.wantInvalid(before.cookieIn(h))
		if reason := after.ended(alice); reason != "" {
			t.Errorf("a tombstone says %q, though there are none any more", reason)
		}
	})
}

// The idle end of a session is moved by the rules that it is used by.
func TestWithAnotherIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newHearing(t)
		before.run(t)
		after := before.with(func(o *Options) { o.Idle = 2 * idle })
		alice, bob := before.signIn("alice"), before.signIn("bob")
		time.Sleep(idle / 2)
		before.wantUser("alice", alice)
		after.wantUser("bob", bob)
		time.Sleep(idle + time.Minute)
		after.wantInvalid(alice)
		after.wantUser("bob", bob)
	})
}

// A session in use slides on when the idle timeout was shorter for a while.
func TestWithAShorterIdleForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newHearing(t)
		before.run(t)
		alice := before.signIn("alice")
		time.Sleep(time.Minute)
		shorter := before.with(func(o *Options) { o.Idle = time.Minute })
		shorter.wantUser("alice", alice) // 29 minutes are left, which is enough for now
		restored := shorter.with(func(o *Options) { o.Idle = idle })
		for range idle / time.Minute {
			time.Sleep(time.Minute)
			restored.wantUser("alice", alice)
		}
		time.Sleep(2 * time.Minute)
		restored.wantUser("alice", alice)
	})
}

// Whatever manager a stream began with, it ends with its session, and in an outage by the
// grace of the manager that has taken over.
func TestStreamsWith(t *testing.T) {
	for name, took := range map[string]bool{"built": false, "taken over": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before := newHearing(t)
				before.run(t)
				alice, bob := before.signIn("alice"), before.signIn("bob")
				var alices, bobs ear
				defer before.wantUser("alice", alice).Watch(alices.ended)()
				after := before.with(func(o *Options) { o.OutageGrace = time.Hour })
				defer after.wantUser("bob", bob).Watch(bobs.ended)()
				if took {
					after.TakeOver()
				}
				live := after.wantUser("alice", alice)
				if err := after.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
					t.Fatal(err)
				}
				alices.want(t, "after the end", ErrInvalid)

				before.probe.forget(failing("get", "touch"))
				before.cache.reset()
				time.Sleep(time.Minute)
				if took {
					bobs.wantNothing(t, "in the grace")
				} else if synctest.Wait(); bobs.told.Load() != 1 || errors.Is(bobs.err, ErrInvalid) {
					t.Errorf("without a grace: told %d times: %v", bobs.told.Load(), bobs.err)
				}
			})
		})
	}
}

// What was granted for sessions that have ended is revoked where the manager says that has
// taken over, and what it is to be done beside requests goes by it.
func TestUpkeepWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, first, _ := newRevokingRig(t, func(o *Options) { o.Tombstones = time.Hour })
		second := new(revoker)
		after := before.with(func(o *Options) { o.Provider, o.Tombstones = second, 0 })
		end := func(sub, value string) {
			t.Helper()
			if err := before.End(t.Context(), http.Header{}, nil, before.wantUser(sub, value), coatcheck.ReasonSignedOut); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		end("alice", before.signIn("alice"))
		if list := first.take(); !slices.Equal(list, []string{"refresh_token refresh token of alice"}) {
			t.Errorf("nobody has taken over, and revoked is %q", list)
		}
		carol := before.signIn("carol")
		after.TakeOver()
		end("bob", before.signIn("bob"))
		if list := second.take(); !slices.Equal(list, []string{"refresh_token refresh token of bob"}) || len(first.take()) > 0 {
			t.Errorf("revoked is %q", list)
		}
		time.Sleep(idle + time.Minute)
		if reason := before.ended(carol); reason != "" {
			t.Errorf("the session that was reaped left a tombstone: %q", reason)
		}
	})
}

// A provider is asked nothing about sessions of another one, and is sent none of their tokens.
func TestWithAnotherIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, first, _ := newRevokingRig(t, func(o *Options) { o.Escrow, o.Recheck = true, time.Minute })
		alice, bob := before.signIn("alice"), before.signIn("bob")
		second := stranger{new(revoker)}
		after := before.with(func(o *Options) { o.Provider = second })
		after.TakeOver()
		time.Sleep(time.Hour / 3)
		live := after.wantUser("alice", alice)
		if err := after.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
			t.Fatal(err)
		}
		if _, err := after.EndAll(t.Context(), Query{Issuer: issuer, Subject: "bob"}, "", coatcheck.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		after.wantInvalid(bob)
		time.Sleep(time.Minute)
		if first.tried()+second.tried() != 0 {
			t.Errorf("tokens were revoked: %q, %q", first.take(), second.take())
		}
		after.wantNoRenewals()
		wanting := *live.Session
		wanting.Tokens.Access, wanting.Tokens.AccessExpiry = "an access token", time.Now()
		if need := before.needOf(&wanting, time.Now()); need != needFresh {
			t.Errorf("it wants %d of its own provider", need)
		}
		if need := after.needOf(&wanting, time.Now()); need != needNothing {
			t.Errorf("it wants %d of a provider that does not know it", need)
		}
	})
}

// A stranger knows none of the sessions.
type stranger struct{ *revoker }

func (stranger) Knows(string, string) bool { return false }

// A session's tokens are refreshed where the manager says that has taken over, though another
// one began to want that, and whether the
// provider is asked anew is decided for a session that is hot already, too.
func TestRefreshWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, first := newRefreshing(t, 1)
		before := nodes[0]
		alice := before.enter("alice", first)
		second := newProvider(accessLife)
		second.good["refresh 1"] = true
		after := before.with(func(o *Options) { o.Provider, o.Recheck = second, time.Minute })
		before.wantUser("alice", alice)
		time.Sleep(2 * time.Minute)
		before.wantUser("alice", alice)
		time.Sleep(lookAgain)
		if synctest.Wait(); second.checks+first.checks != 0 {
			t.Errorf("asked though nobody wants to: %d, %d", first.checks, second.checks)
		}
		after.TakeOver()
		after.wantUser("alice", alice)
		if synctest.Wait(); second.checks != 1 || first.checks != 0 {
			t.Errorf("asked: %d, %d", first.checks, second.checks)
		}
		time.Sleep(accessLife)
		after.wantUser("alice", alice)
		if len(first.sent) != 0 || len(second.sent) != 1 {
			t.Errorf("refreshed: %d, %d", len(first.sent), len(second.sent))
		}
		time.Sleep(accessLife)
		before.wantUser("alice", alice)
		if len(first.sent) != 0 || len(second.sent) != 2 {
			t.Errorf("refreshed by a request of before: %d, %d", len(first.sent), len(second.sent))
		}
	})
}
