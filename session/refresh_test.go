package session

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Invariant 7, A-S5: whoever comes, on whichever node, the token is sent once. Ahead of its
// end nobody waits, and afterwards everybody gets the new one.
func TestOneRefresh(t *testing.T) {
	for name, test := range map[string]struct {
		after    time.Duration // of the sign-in
		provider time.Duration // that the provider takes
		waits    bool
	}{
		"ahead":               {accessLife - maxAhead, time.Second, false},
		"ahead, and slow":     {accessLife - maxAhead, 30 * time.Second, false},
		"at the end":          {accessLife, 0, true},
		"at the end and slow": {accessLife, 15 * time.Second, true}, // A-S6: longer than the lease
		"long after":          {accessLife + 15*time.Minute, time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 3)
				value := nodes[0].enter("alice", p)
				nodes[1].wantUser("alice", value)
				p.setAnswer(func(int) (bool, error) { time.Sleep(test.provider); return false, nil })
				p.groups = []string{"changed"}
				time.Sleep(test.after)
				began := time.Now()
				var all sync.WaitGroup
				for i := range 100 {
					all.Go(func() {
						live := nodes[i%3].wantUser("alice", value)
						if got := live.Tokens.Access == "access 2"; got != test.waits {
							t.Errorf("served with %q", live.Tokens.Access.Reveal())
						}
					})
				}
				all.Wait()
				if waited := time.Since(began); test.waits && waited < test.provider || !test.waits && waited > 0 {
					t.Errorf("they waited for %v", waited)
				}
				time.Sleep(time.Minute)
				for _, n := range nodes {
					live := n.wantUser("alice", value)
					if live.Tokens.Access != "access 2" || !slices.Equal(live.Identity.Groups, []string{"changed"}) {
						t.Errorf("afterwards %q, groups %v", live.Tokens.Access.Reveal(), live.Identity.Groups)
					}
				}
				if n := p.uses(t); n != 1 {
					t.Errorf("%d refreshes", n)
				}
				nodes[0].wantKept(value)
			})
		})
	}
}

// Between two looks at what a session wants, nothing is missed: not the moment when new
// tokens are due, and not that from which nobody is served with the old ones.
func TestRefreshIsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(int) (bool, error) { time.Sleep(2 * time.Minute); return false, nil })
		live := nodes[0].wantUser("alice", value)
		time.Sleep(time.Until(live.Renewal.NotBefore) - lookAgain/2)
		nodes[0].wantUser("alice", value)
		if synctest.Wait(); p.uses(t) != 0 {
			t.Error("refreshed before it is due")
		}
		time.Sleep(lookAgain / 2)
		nodes[0].wantUser("alice", value)
		if synctest.Wait(); p.uses(t) != 1 {
			t.Error("not refreshed when it was due")
		}

		p.setAnswer(nil)
		bob := nodes[0].enter("bob", p)
		live = nodes[0].wantUser("bob", bob)
		lease, err := nodes[0].Leases.Acquire(t.Context(), nodes[0].leaseName(live.handle), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Until(live.Tokens.AccessExpiry)+time.Second, func() { _ = lease.Release(t.Context()) })
		time.Sleep(time.Until(live.Tokens.AccessExpiry) - lookAgain/2)
		if again := nodes[0].wantUser("bob", bob); again.Tokens.Access != live.Tokens.Access {
			t.Error("somebody waited while the old token lived")
		}
		time.Sleep(lookAgain / 2)
		if again := nodes[0].wantUser("bob", bob); again.Tokens.Access == live.Tokens.Access {
			t.Error("served with a token that has ended")
		}
	})
}

// A session in use is refreshed again and again, one that is not isn't.
func TestRefreshGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value, unused := nodes[0].enter("alice", p), nodes[0].enter("bob", p)
		for i := range 4 * 60 {
			time.Sleep(15 * time.Second)
			nodes[i%2].wantUser("alice", value)
		}
		if n := p.uses(t); n < 6 || n > 7 {
			t.Errorf("%d refreshes in an hour of tokens that live for %v", n, accessLife)
		}
		nodes[0].wantInvalid(unused)
	})
}

// A refresh is no reason for a session to live longer than its use and its deadline say.
func TestRefreshKeepsTheEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.Absolute = 2 * time.Hour })
		began := time.Now()
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife + time.Minute)
		nodes[0].wantUser("alice", value)
		time.Sleep(idle - time.Second)
		nodes[0].wantUser("alice", value)
		for time.Since(began) < 2*time.Hour-time.Minute {
			time.Sleep(time.Minute)
			nodes[0].wantUser("alice", value)
		}
		time.Sleep(time.Minute)
		nodes[0].wantInvalid(value)
	})
}

// A-S7: a provider that is down, or does not know this client, costs nobody the session, and
// is not asked with every request.
func TestRefreshFails(t *testing.T) {
	for _, o := range []coatcheck.Outcome{coatcheck.OutcomeNone, coatcheck.OutcomeMisconfigured} {
		t.Run(o.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2)
				value := nodes[0].enter("alice", p)
				p.setAnswer(always(true, outcome(o)))
				time.Sleep(accessLife - time.Minute)
				for i := range 600 { // ten minutes, most of them with a token that has ended
					if live := nodes[i%2].wantUser("alice", value); live.Tokens.Access != "access 1" {
						t.Fatalf("served with %q", live.Tokens.Access.Reveal())
					}
					time.Sleep(time.Second)
				}
				if n := len(p.sent); n < 10 || n > 40 {
					t.Errorf("the provider was asked %d times in ten minutes", n)
				}
				p.setAnswer(nil)
				for range 2 * int(maxRetry/time.Second) {
					time.Sleep(time.Second)
					nodes[1].wantUser("alice", value)
				}
				if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 2" || live.Renewal.Failures != 0 {
					t.Errorf("afterwards %q, %+v", live.Tokens.Access.Reveal(), live.Renewal)
				}
			})
		})
	}
}

// A-S7: what the provider has ended is over, and the person is told why.
func TestRefreshRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value := nodes[0].enter("alice", p)
		p.good["refresh 1"] = false
		time.Sleep(accessLife)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() { nodes[i%2].wantInvalid(value) })
		}
		all.Wait()
		if n := p.uses(t); n != 1 || nodes[1].ended(value) != coatcheck.ReasonRefreshRefused {
			t.Errorf("asked %d times, ended for %q", n, nodes[1].ended(value))
		}
		nodes[0].wantKept()
	})
}

// Invariant 7: a token that may have been used up is not sent again. The old access token
// serves while it lives, and then the person is told.
func TestRefreshLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value := nodes[0].enter("alice", p)
		p.setAnswer(always(false, outcome(coatcheck.OutcomeUnknown)))
		time.Sleep(accessLife - maxAhead)
		for i := range 59 {
			nodes[i%2].wantUser("alice", value)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		nodes[1].wantInvalid(value)
		nodes[0].wantInvalid(value)
		if n := p.uses(t); n != 1 || nodes[0].ended(value) != coatcheck.ReasonRefreshLost {
			t.Errorf("sent %d times, ended for %q", n, nodes[0].ended(value))
		}
		nodes[0].wantKept()
	})
}

// Within the provider's grace the token is sent again, and not after it.
func TestRotationGrace(t *testing.T) {
	for _, heals := range []bool{true, false} {
		t.Run(fmt.Sprint(heals), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2, func(o *Options) { o.RotationGrace = 20 * time.Second })
				value := nodes[0].enter("alice", p)
				p.setAnswer(func(n int) (bool, error) {
					if heals && n == 3 {
						return false, nil
					}
					return true, outcome(coatcheck.OutcomeUnknown)
				})
				time.Sleep(accessLife - maxAhead)
				began := time.Now()
				for i := range 55 {
					nodes[i%2].wantUser("alice", value)
					time.Sleep(time.Second)
				}
				p.mu.Lock()
				sent := len(p.sent)
				p.mu.Unlock()
				if heals != (sent == 3) || sent < 3 {
					t.Errorf("sent %d times", sent)
				}
				time.Sleep(accessLife - time.Since(began) - 2*time.Minute)
				if heals {
					nodes[0].wantUser("alice", value)
				} else {
					nodes[0].wantInvalid(value)
				}
			})
		})
	}
}

// A lossyStore does what it is asked and loses the answer, as often as it is told.
type lossyStore struct {
	store.Store
	mu   sync.Mutex
	lose int
}

func (l *lossyStore) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	err := l.Store.Replace(ctx, key, revision, value, ttl)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lose > 0 && err == nil {
		l.lose--
		return errDown
	}
	return err
}

// A store that fails while a refresh is written down costs nobody the session: neither when
// it is not known whether the intent stands there, nor when the new tokens can't be kept for
// a while.
func TestRefreshSurvivesTheStore(t *testing.T) {
	t.Run("the intent's answer is lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			lossy := &lossyStore{}
			nodes, p := newRefreshing(t, 2, func(o *Options) { lossy.Store = o.Store; o.Store = lossy })
			value := nodes[0].enter("alice", p)
			time.Sleep(accessLife - maxAhead)
			lossy.lose = 1
			nodes[0].wantUser("alice", value)
			time.Sleep(20 * time.Second)
			if n := p.uses(t); n != 0 {
				t.Fatalf("sent %d times, and nobody knew that it was noted", n)
			}
			nodes[1].wantUser("alice", value)
			time.Sleep(20 * time.Second)
			if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" {
				t.Errorf("not refreshed afterwards: %+v", live.Renewal)
			}
		})
	})
	t.Run("the tokens can't be written", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 2)
			value := nodes[0].enter("alice", p)
			time.Sleep(accessLife - maxAhead)
			p.setAnswer(func(int) (bool, error) {
				nodes[0].probe.forget(failing("replace"))
				return false, nil
			})
			nodes[0].wantUser("alice", value)
			time.Sleep(30 * time.Second)
			nodes[1].wantUser("alice", value)
			nodes[0].probe.forget(nil)
			time.Sleep(10 * time.Second)
			if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
				t.Errorf("the new tokens were lost: %+v", live.Renewal)
			}
		})
	})
}

// A-L15, invariant 2: a session that ends while its tokens are refreshed stays ended, and
// the fresh tokens are revoked.
func TestRefreshDoesNotResurrect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
		time.Sleep(accessLife - maxAhead)
		live := nodes[0].wantUser("alice", value)
		time.Sleep(5 * time.Second)
		if err := nodes[1].end(t.Context(), nodes[1].holdingOf(nil, live), coatcheck.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		nodes[0].wantInvalid(value)
		nodes[0].wantKept()
		p.mu.Lock()
		defer p.mu.Unlock()
		if !slices.Contains(p.revoked, "refresh 2") {
			t.Errorf("revoked: %d tokens, and not the fresh one", len(p.revoked))
		}
	})
}

// An answer that comes when another node has got further, within the grace, is not kept.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2, func(o *Options) { o.RotationGrace = time.Minute })
		slow := nodes[0].beside(func(o *Options) { o.Leases = dying{o.Leases} })
		slow.run(t)
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(n int) (bool, error) {
			if n == 1 {
				time.Sleep(40 * time.Second)
				p.mu.Lock()
				p.good["refresh 1"] = true // as a provider with a grace does
				p.mu.Unlock()
			}
			return false, nil
		})
		time.Sleep(accessLife - maxAhead)
		slow.wantUser("alice", value)
		synctest.Wait()
		for range 30 {
			time.Sleep(time.Second)
			nodes[1].wantUser("alice", value)
		}
		if live := nodes[1].wantUser("alice", value); live.Tokens.Refresh != "refresh 2" {
			t.Fatalf("not refreshed within the grace: %+v", live.Renewal)
		}
		time.Sleep(time.Minute)
		if live := slow.wantUser("alice", value); live.Tokens.Refresh != "refresh 2" {
			t.Errorf("the late answer was kept: %q", live.Tokens.Refresh.Reveal())
		}
	})
}

// A stopping is a Leaser whose node is stopped (SIGSTOP) when it has been given a lease: it
// hears of it late, and renews nothing meanwhile.
type stopping struct {
	store.Leaser
	stop chan struct{} // closed when the node goes on
}

func (s stopping) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	l, err := s.Leaser.Acquire(ctx, name, ttl)
	<-s.stop
	return l, err
}

// The holder of the lease is stopped before it has sent anything: another node takes over,
// and the first one sends nothing when it goes on.
func TestRefreshHolderStopsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		stop := make(chan struct{})
		stopped := nodes[0].beside(func(o *Options) { o.Leases = stopping{o.Leases, stop} })
		stopped.run(t)
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife)
		var first sync.WaitGroup
		first.Go(func() { stopped.wantUser("alice", value) })
		synctest.Wait()
		if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" {
			t.Errorf("the other node serves %q", live.Tokens.Access.Reveal())
		}
		close(stop)
		first.Wait()
		time.Sleep(time.Minute)
		stopped.wantUser("alice", value)
		if n := p.uses(t); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

// Whoever holds the lease may have come when it was done already, and tells nothing. Who
// waits for it does not wait for that.
func TestHeldForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife)
		late := nodes[0].beside(func(*Options) {}) // does not hear: what it has is old
		live, _, err := late.open(t.Context(), value)
		if err != nil {
			t.Fatal(err)
		}
		nodes[0].wantUser("alice", value)
		l, err := late.Leases.Acquire(t.Context(), late.leaseName(live.handle), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Release(context.Background()) }()
		began := time.Now()
		live, err = late.upToDate(t.Context(), value, live)
		if err != nil || live.Tokens.Access != "access 2" || time.Since(began) > 0 {
			t.Errorf("%+v, %v, after %v", live, err, time.Since(began))
		}
	})
}

// A dying is a Leaser whose node dies while it holds a lease.
type dying struct{ store.Leaser }

func (d dying) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	l, err := d.Leaser.Acquire(ctx, name, ttl)
	return unrenewable{l}, err
}

type unrenewable struct{ store.Lease }

func (unrenewable) Renew(context.Context, time.Duration) error { return errDown }
func (unrenewable) Release(context.Context) error              { return errDown }

// The holder dies after it has sent the token: nobody sends it again, and the session ends
// with its access token. If the holder has not died but was only stopped for long, what it
// then brings is kept.
func TestRefreshHolderStopsAfter(t *testing.T) {
	for _, returns := range []bool{false, true} {
		t.Run(fmt.Sprintf("returns=%t", returns), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2)
				dead := nodes[0].beside(func(o *Options) { o.Leases = dying{o.Leases} })
				dead.run(t)
				value := nodes[0].enter("alice", p)
				back := make(chan struct{})
				unblock := sync.OnceFunc(func() { close(back) })
				t.Cleanup(unblock)
				p.setAnswer(func(int) (bool, error) { <-back; return false, nil })
				time.Sleep(accessLife - maxAhead)
				dead.wantUser("alice", value)
				synctest.Wait()
				for i := range 40 {
					nodes[i%2].wantUser("alice", value)
					time.Sleep(time.Second)
				}
				if returns {
					unblock()
					synctest.Wait()
				}
				time.Sleep(30 * time.Second)
				if returns {
					if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" {
						t.Errorf("served with %q, %+v", live.Tokens.Access.Reveal(), live.Renewal)
					}
				} else {
					nodes[1].wantInvalid(value)
					if got := nodes[0].ended(value); got != coatcheck.ReasonRefreshLost {
						t.Errorf("ended for %q", got)
					}
					unblock()
				}
				if n := p.uses(t); n != 1 {
					t.Errorf("sent %d times", n)
				}
			})
		})
	}
}

// A session without a refresh token, or whose provider does not say how long its tokens
// live, is let be.
func TestNothingToRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		for _, tokens := range []coatcheck.Tokens{{Access: "a", AccessExpiry: time.Now().Add(time.Minute)}, {Access: "a", Refresh: "r"}} {
			s := user("alice")
			s.Tokens = tokens
			h := map[string][]string{}
			if _, err := nodes[0].Begin(t.Context(), h, carrying(), s, nodes[0].Now()); err != nil {
				t.Fatal(err)
			}
			value := nodes[0].cookieIn(h)
			for range 60 {
				time.Sleep(time.Minute)
				nodes[0].wantUser("alice", value)
			}
		}
		if len(p.sent)+p.checks != 0 {
			t.Errorf("%d refreshes and %d checks", len(p.sent), p.checks)
		}
	})
}

// Where nobody can be asked anew, nothing is, whatever tokens a session has.
func TestNobodyToAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		alone := nodes[0].beside(func(o *Options) { o.Provider = nil })
		for range 40 {
			time.Sleep(time.Minute)
			alone.wantUser("alice", value)
		}
		if len(p.sent) != 0 {
			t.Errorf("%d refreshes", len(p.sent))
		}
	})
}

// What came of each refresh is counted, once.
func TestRefreshesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var counted []string
		nodes, p := newRefreshing(t, 1, func(o *Options) {
			o.CountRefresh = func(result string) { counted = append(counted, result) }
		})
		value := nodes[0].enter("alice", p)
		var want []string
		for _, o := range []coatcheck.Outcome{coatcheck.OutcomeNone, coatcheck.OutcomeMisconfigured} {
			p.setAnswer(always(true, outcome(o)))
			time.Sleep(accessLife)
			nodes[0].wantUser("alice", value)
			want = append(want, o.String())
		}
		p.setAnswer(nil)
		time.Sleep(maxRetry)
		nodes[0].wantUser("alice", value)
		p.setAnswer(always(true, outcome(coatcheck.OutcomeUnknown)))
		time.Sleep(accessLife)
		nodes[0].wantInvalid(value)
		if want = append(want, "ok", coatcheck.OutcomeUnknown.String()); !slices.Equal(counted, want) {
			t.Errorf("counted %q, want %q", counted, want)
		}
	})
}
