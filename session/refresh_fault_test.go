package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// use loads a session on each of the nodes in turn, once a second for so long.
func use(t *testing.T, nodes []*rig, value string, d time.Duration) {
	t.Helper()
	for i := range int(d / time.Second) {
		nodes[i%len(nodes)].wantUser("alice", value)
		time.Sleep(time.Second)
	}
}

// A failover takes back that an attempt was noted, while the provider answers. The tokens
// are kept all the same: the old one is used up.
func TestRefreshNoteIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value := nodes[0].enter("alice", p)
		before, _ := nodes[0].record(value)
		p.setAnswer(func(n int) (bool, error) {
			if n == 1 {
				nodes[0].putSealed(nodes[0].kept()[0], before.Value)
			}
			return false, nil
		})
		time.Sleep(accessLife - maxAhead)
		use(t, nodes, value, 2*time.Minute)
		if live := nodes[1].wantUser("alice", value); live.Tokens.Refresh != "refresh 2" || p.uses(t) != 1 {
			t.Errorf("the new tokens were not kept: %+v", live.Renewal)
		}
	})
}

// A lateWriter does not answer when it is asked to replace something, and does it later.
type lateWriter struct {
	store.Store
	late atomic.Bool
}

func (l *lateWriter) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if l.late.Swap(false) {
		time.AfterFunc(2*time.Second, func() { _ = l.Store.Replace(context.Background(), key, revision, value, ttl) })
		return errDown
	}
	return l.Store.Replace(ctx, key, revision, value, ttl)
}

// An attempt that was given up, because nobody could tell that it was noted, is not noted
// later either: nothing was sent.
func TestRefreshNoteIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &lateWriter{}
		nodes, p := newRefreshing(t, 1, func(o *Options) { late.Store = o.Store; o.Store = late })
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife - maxAhead)
		late.late.Store(true)
		use(t, nodes, value, 2*time.Minute)
		if n := p.uses(t); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

// The store goes away while a token is redeemed, for longer than the lease and the access
// token live. Whoever comes when it is back finds the attempt, and does not end the session
// before the node that holds the new tokens has had the time to write them down.
func TestRefreshOutlivesAnOutage(t *testing.T) {
	for _, back := range []time.Duration{0, 300 * time.Millisecond, 700 * time.Millisecond} {
		t.Run(back.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2)
				holder := nodes[0].beside(func(o *Options) { o.Leases = dying{o.Leases} })
				holder.run(t)
				value := nodes[0].enter("alice", p)
				p.setAnswer(func(int) (bool, error) {
					nodes[0].probe.forget(failing("get", "replace", "touch", "create", "delete"))
					return false, nil
				})
				time.Sleep(accessLife - maxAhead)
				holder.wantUser("alice", value)
				time.Sleep(2*time.Minute + back)
				nodes[0].probe.forget(nil)
				use(t, nodes, value, 10*time.Second)
				if live := nodes[1].wantUser("alice", value); live.Tokens.Refresh != "refresh 2" || p.uses(t) != 1 {
					t.Errorf("the new tokens were not kept: %+v", live.Renewal)
				}
			})
		})
	}
}

// What a node holds of a session may be older than the tokens that were brought after all.
// It does not end the session over that.
func TestRefreshIsNotLostByHearsay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		cutOff := nodes[0].beside(func(o *Options) { o.Leases = dying{o.Leases} })
		cutOff.run(t)
		value := nodes[0].enter("alice", p)
		back := make(chan struct{})
		p.setAnswer(func(int) (bool, error) { <-back; return false, nil })
		time.Sleep(accessLife - maxAhead)
		cutOff.wantUser("alice", value)
		synctest.Wait()
		use(t, nodes, value, 40*time.Second)
		deaf := nodes[0].beside(func(*Options) {})
		old, _, err := deaf.open(t.Context(), value)
		if err != nil || !lost(old.Session) {
			t.Fatalf("%+v, %v: want a session whose token was given up", old, err)
		}
		time.Sleep(maxAhead)
		close(back)
		synctest.Wait()
		if live, err := deaf.upToDate(t.Context(), value, old); err != nil || live.Tokens.Access != "access 2" {
			t.Errorf("%+v, %v", live, err)
		}
		nodes[0].wantUser("alice", value)
	})
}

// The new tokens can't be written down, by a store that still takes reads: requests wait for
// them once, and not each of them anew.
func TestRefreshPatienceIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(int) (bool, error) {
			nodes[0].probe.forget(failing("replace"))
			return false, nil
		})
		time.Sleep(accessLife)
		began := time.Now()
		for range 10 {
			nodes[0].wantUser("alice", value)
			time.Sleep(time.Second)
		}
		if waited := time.Since(began) - 10*time.Second; waited != freshPatience {
			t.Errorf("ten requests in turn waited for %v", waited)
		}
		nodes[0].probe.forget(nil)
		time.Sleep(2 * saveAgain)
		if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
			t.Errorf("the new tokens were not kept: %+v", live.Renewal)
		}
	})
}

// A haltingStore stops its node (SIGSTOP) when it has replaced something.
type haltingStore struct {
	store.Store
	halt   atomic.Bool
	resume chan struct{}
}

func (h *haltingStore) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	err := h.Store.Replace(ctx, key, revision, value, ttl)
	if h.halt.Swap(false) {
		<-h.resume
	}
	return err
}

// The holder is stopped after it has noted its attempt and before it has sent anything.
// Others go on, where they may; when it goes on itself it sends nothing that may have been
// sent long ago.
func TestRefreshHolderStopsBetween(t *testing.T) {
	for _, grace := range []time.Duration{0, 20 * time.Second} {
		t.Run(fmt.Sprint("grace ", grace), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2, func(o *Options) { o.RotationGrace = grace })
				halting := &haltingStore{Store: nodes[0].Manager.Store, resume: make(chan struct{})}
				holder := nodes[0].beside(func(o *Options) { o.Store, o.Leases = halting, dying{o.Leases} })
				holder.run(t)
				value := nodes[0].enter("alice", p)
				time.Sleep(accessLife - maxAhead)
				halting.halt.Store(true)
				holder.wantUser("alice", value)
				synctest.Wait()
				use(t, nodes, value, 50*time.Second)
				close(halting.resume)
				use(t, nodes, value, time.Minute)
				if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
					t.Errorf("%+v, sent %d times", live.Renewal, p.uses(t))
				}
			})
		})
	}
}

// A hanging is a Leaser that is slow to tell of a lease, and does not answer when it is
// renewed for the first time.
type hanging struct{ store.Leaser }

func (h hanging) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	l, err := h.Leaser.Acquire(ctx, name, ttl)
	time.Sleep(100 * time.Millisecond)
	return &hangingLease{Lease: l}, err
}

type hangingLease struct {
	store.Lease
	again atomic.Bool
}

func (h *hangingLease) Renew(ctx context.Context, ttl time.Duration) error {
	if h.again.Swap(true) {
		return h.Lease.Renew(ctx, ttl)
	}
	<-ctx.Done()
	return ctx.Err()
}

// One renewal that fails does not cost the lease.
func TestRefreshLeaseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := newRefreshing(t, 1)
		lease, err := hanging{nodes[0].Leases}.Acquire(t.Context(), "refresh", refreshLease)
		if err != nil {
			t.Fatal(err)
		}
		release := hold(lease)
		defer release()
		for range 30 {
			time.Sleep(time.Second)
			if _, err := nodes[0].Leases.Acquire(t.Context(), "refresh", refreshLease); !errors.Is(err, store.ErrHeld) {
				t.Fatalf("Acquire = %v, want ErrHeld", err)
			}
		}
		release()
		if _, err := nodes[0].Leases.Acquire(t.Context(), "refresh", refreshLease); err != nil {
			t.Error(err)
		}
	})
}

// The grace is as long for a node whose clock is wrong.
func TestRotationGraceByAnotherClock(t *testing.T) {
	now := time.Now()
	m := &Manager{Options: Options{RotationGrace: 20 * time.Second}}
	s := &coatcheck.Session{Renewal: coatcheck.Renewal{Attempt: "a", AttemptAt: now}}
	for off, want := range map[time.Duration]bool{
		0: true, 19 * time.Second: true, 20 * time.Second: false,
		-time.Second: true, -20 * time.Second: false, -5 * time.Minute: false,
	} {
		if got := m.maySendAgain(s, now.Add(off)); got != want {
			t.Errorf("%v after the attempt: %t", off, got)
		}
	}
}

// A forgetfulLeaser has lost its leases in a failover, and grants every one.
type forgetfulLeaser struct{}

func (forgetfulLeaser) Acquire(context.Context, string, time.Duration) (store.Lease, error) {
	return forgottenLease{}, nil
}

type forgottenLease struct{}

func (forgottenLease) Renew(context.Context, time.Duration) error { return nil }
func (forgottenLease) Release(context.Context) error              { return nil }
func (forgottenLease) Fence() uint64                              { return 0 }

// The holder is stopped between its read of the record and its note there, and another node
// gets the lease. The note is not made then, whether the other one has its answer or waits
// for it.
func TestRefreshHolderStopsBeforeItsNote(t *testing.T) {
	for _, answered := range []bool{false, true} {
		t.Run(fmt.Sprint("answered ", answered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 1)
				resume, answer := make(chan struct{}), make(chan struct{})
				own := &probe{Store: nodes[0].memory}
				stopped := nodes[0].beside(func(o *Options) { o.Store, o.Leases = own, dying{o.Leases} })
				other := nodes[0].beside(func(o *Options) { o.Leases = forgetfulLeaser{} })
				other.run(t)
				value := nodes[0].enter("alice", p)
				time.Sleep(accessLife - maxAhead/2)
				gets := 0
				own.forget(func(_ context.Context, op, _ string) error {
					if op == "get" {
						gets++ // of the request, under the lease, for the note
					}
					if op == "get" && gets == 3 {
						<-resume
					}
					return nil
				})
				stopped.wantUser("alice", value)
				if synctest.Wait(); gets != 3 {
					t.Fatalf("%d reads: the test shows nothing", gets)
				}
				if !answered {
					p.setAnswer(func(int) (bool, error) { <-answer; return false, nil })
				}
				other.wantUser("alice", value)
				if synctest.Wait(); p.uses(t) != 1 {
					t.Fatal("the other one has not sent it")
				}
				close(resume)
				synctest.Wait()
				close(answer)
				synctest.Wait()
				if live := other.wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
					t.Errorf("%q, sent %d times", live.Tokens.Access.Reveal(), p.uses(t))
				}
			})
		})
	}
}

// An answer that is certain, within the grace, says nothing of what became of the token when
// it was sent before: once the grace is over it is not sent again.
func TestRotationGraceEndsAfterACertainFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.RotationGrace = 20 * time.Second })
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(n int) (bool, error) {
			if n == 1 {
				return false, outcome(coatcheck.OutcomeUnknown)
			}
			return true, outcome(coatcheck.OutcomeNone)
		})
		time.Sleep(accessLife - maxAhead)
		use(t, nodes, value, 6*time.Second)
		within := len(p.sent)
		time.Sleep(25 * time.Second)
		nodes[0].wantUser("alice", value)
		synctest.Wait()
		if within < 2 || len(p.sent) != within {
			t.Errorf("sent %d times within the grace, %d in all", within, len(p.sent))
		}
	})
}

// A downLeaser grants nothing.
type downLeaser struct{}

func (downLeaser) Acquire(context.Context, string, time.Duration) (store.Lease, error) {
	return nil, errDown
}

// Without a lease nothing is sent, and nobody loses the session.
func TestRefreshWithoutLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.Leases = downLeaser{} })
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife)
		use(t, nodes, value, 10*time.Second)
		if n := p.uses(t); n != 0 {
			t.Errorf("sent %d times", n)
		}
	})
}

// What became of an attempt is not written over another one, nor is the token of another one
// forgotten.
func TestAnotherAttemptStays(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	before := r.wantUser("alice", value)
	another, err := r.rewrite(t.Context(), r.ticket(value), func(s *coatcheck.Session) bool {
		s.Renewal.Attempt = "another"
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func() (*Live, error){
		"settle": func() (*Live, error) {
			return r.settle(t.Context(), r.ticket(value), before, "mine", r.failed(coatcheck.OutcomeNone, false))
		},
		"lose": func() (*Live, error) { return r.lose(t.Context(), r.ticket(value), before, r.Now()) },
	} {
		live, err := write()
		if err != nil || live.Tokens.Refresh != another.Tokens.Refresh || live.Renewal.Attempt != "another" || live.Renewal.Failures != 0 {
			t.Errorf("%s: %+v, %v", name, live.Renewal, err)
		}
	}
}

// Whoever waits for another node while the store goes away is served within the outage grace,
// as soon as that is noticed.
func TestHeldWhileTheStoreGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.OutageGrace = time.Hour })
		value := nodes[0].enter("alice", p)
		live := nodes[0].wantUser("alice", value)
		lease, err := nodes[0].Leases.Acquire(t.Context(), nodes[0].leaseName(live.handle), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lease.Release(context.Background()) }()
		time.Sleep(accessLife)
		time.AfterFunc(time.Second, func() {
			nodes[0].probe.forget(failing("get"))
			nodes[0].cache.reset()
			nodes[0].renewal.missed()
		})
		began := time.Now()
		if live := nodes[0].wantUser("alice", value); live.Unverified == 0 || time.Since(began) != time.Second {
			t.Errorf("served after %v, unverified for %v", time.Since(began), live.Unverified)
		}
	})
}

// How long to wait for another node depends on whether its end would be heard of.
func TestHeldPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := newRefreshing(t, 1)
		synctest.Wait()
		if d := nodes[0].heldPatience(); d < refreshLease/2 {
			t.Errorf("with a feed %v", d)
		}
		if d := newRig(t).heldPatience(); d > time.Second {
			t.Errorf("without one %v", d)
		}
	})
}

// A Provider whose userinfo endpoint is down.
type withoutUserinfo struct{ Provider }

func (withoutUserinfo) Check(context.Context, *coatcheck.Session) (*coatcheck.Session, error) {
	return nil, outcome(coatcheck.OutcomeNone)
}

// A userinfo endpoint that is down keeps nobody from getting new tokens.
func TestGateOfChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.Recheck, o.Provider = time.Minute, withoutUserinfo{o.Provider} })
		bob := nodes[0].enter("bob", p)
		time.Sleep(accessLife / 2)
		alice := nodes[0].enter("alice", p)
		use(t, nodes, alice, accessLife/2)
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if live := nodes[0].wantUser("bob", bob); live.Tokens.Access == "access 1" {
					t.Error("not refreshed")
				}
			})
		}
		all.Wait()
	})
}
