package session

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

// The provider is asked at an interval whether it still vouches for somebody.
func TestRecheck(t *testing.T) {
	every := func(o *Options) { o.Recheck = time.Minute }
	// use uses the session for so long, once a second.
	use := func(r *rig, value string, d time.Duration) (last *Live) {
		for range int(d / time.Second) {
			live, err := r.load(value)
			if err != nil {
				return nil
			}
			last = live
			time.Sleep(time.Second)
		}
		return last
	}
	t.Run("changes take effect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 2, every)
			value := nodes[0].enter("alice", p)
			p.groups = []string{"changed"}
			live := use(nodes[1], value, 70*time.Second)
			if live == nil || !slices.Equal(live.Identity.Groups, []string{"changed"}) || p.checks != 1 || len(p.sent) != 0 {
				t.Errorf("%+v, %d checks, %d refreshes", live, p.checks, len(p.sent))
			}
		})
	})
	t.Run("a provider that is down ends nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			value := nodes[0].enter("alice", p)
			p.answer = always(true, outcome(coatcheck.OutcomeNone))
			if use(nodes[0], value, 5*time.Minute) == nil {
				t.Error("the session has ended")
			}
			if p.checks > 5*60/int(renewalPause/time.Second) || p.checks < 3 {
				t.Errorf("%d checks in four minutes", p.checks)
			}
		})
	})
	t.Run("refused, and there is a refresh token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			value := nodes[0].enter("alice", p)
			first := true
			p.answer = func(int) (bool, error) {
				if first {
					first = false
					return true, outcome(coatcheck.OutcomeRefused)
				}
				return false, nil
			}
			if live := use(nodes[0], value, 70*time.Second); live == nil || live.Tokens.Access != "access 2" || p.uses(t) != 1 {
				t.Errorf("%+v", live)
			}
		})
	})
	t.Run("refused, and there is none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			s := user("alice")
			s.Tokens = coatcheck.Tokens{Access: "access", AccessExpiry: time.Now().Add(accessLife)}
			h := map[string][]string{}
			if _, err := nodes[0].Begin(t.Context(), h, carrying(), s, nodes[0].Now()); err != nil {
				t.Fatal(err)
			}
			value := nodes[0].cookieIn(h)
			p.answer = always(true, outcome(coatcheck.OutcomeRefused))
			if use(nodes[0], value, 70*time.Second); nodes[0].ended(value) != coatcheck.ReasonRefreshRefused {
				t.Errorf("ended for %q", nodes[0].ended(value))
			}
		})
	})
}

// A userinfo is a Provider with another userinfo endpoint.
type userinfo struct {
	Provider
	check func(*coatcheck.Session) (*coatcheck.Session, error)
}

func (u userinfo) Check(_ context.Context, s *coatcheck.Session) (*coatcheck.Session, error) {
	return u.check(s)
}

// refusing returns what gives p a userinfo endpoint that takes no access token, and asks it
// every minute.
func refusing(o *Options) {
	o.Recheck = time.Minute
	o.Provider = userinfo{o.Provider, func(*coatcheck.Session) (*coatcheck.Session, error) {
		return nil, outcome(coatcheck.OutcomeRefused)
	}}
}

// What the provider said before it gave new tokens to another node takes nothing back of what
// came with those.
func TestRecheckIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2)
		back := make(chan struct{})
		stopped := nodes[0].beside(func(o *Options) {
			o.Recheck, o.Leases = time.Minute, dying{o.Leases}
			o.Provider = userinfo{p, func(s *coatcheck.Session) (*coatcheck.Session, error) {
				next := *s
				next.Identity.Groups = []string{"admins"}
				<-back
				return &next, nil
			}}
		})
		stopped.run(t)
		value := nodes[0].enter("alice", p)
		time.Sleep(accessLife - 100*time.Second)
		stopped.wantUser("alice", value)
		synctest.Wait()
		p.groups = []string{"removed from admins"}
		time.Sleep(100 * time.Second)
		nodes[1].wantUser("alice", value)
		close(back)
		synctest.Wait()
		if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" || !slices.Equal(live.Identity.Groups, p.groups) {
			t.Errorf("%q, groups %q", live.Tokens.Access.Reveal(), live.Identity.Groups)
		}
	})
}

// A refresh that userinfo has made necessary keeps to what every other does: it is tried ever
// more seldom, and a provider that is down is not asked for each session.
func TestRecheckWaitsItsTurn(t *testing.T) {
	for name, tc := range map[string]struct {
		sessions int
		outcome  coatcheck.Outcome
		most     int // requests in five minutes
	}{
		"one session":   {1, coatcheck.OutcomeMisconfigured, 9},
		"many sessions": {5 * maxRenewals, coatcheck.OutcomeNone, 2 * maxRenewals},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 1, refusing)
				values := map[string]string{}
				for i := range tc.sessions {
					name := fmt.Sprint("user", i)
					values[name] = nodes[0].enter(name, p)
				}
				p.setAnswer(always(true, outcome(tc.outcome)))
				for range 6 * 60 {
					for name, value := range values {
						nodes[0].wantUser(name, value)
					}
					time.Sleep(time.Second)
				}
				synctest.Wait()
				if n := len(p.sent); n < 3 || n > tc.most {
					t.Errorf("a token endpoint that gives nothing was asked %d times in five minutes", n)
				}
			})
		})
	}
}

// Within the provider's grace the token is sent once more, though the access token is not
// taken any more: it may have been taken back with the answer that was lost.
func TestRecheckInGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 2, refusing, func(o *Options) { o.RotationGrace = 20 * time.Second })
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(n int) (bool, error) {
			return true, map[bool]error{true: outcome(coatcheck.OutcomeUnknown)}[n == 1]
		})
		time.Sleep(time.Minute)
		for i := range 40 {
			nodes[i%2].wantUser("alice", value)
			time.Sleep(time.Second / 4)
		}
		if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 2" || len(p.sent) != 2 {
			t.Errorf("%q after %d requests", live.Tokens.Access.Reveal(), len(p.sent))
		}
	})
}

// A node that was cut off with a session's new tokens has the time to bring them, though the
// access token before is not taken any more. After that the session is over.
func TestRecheckWhileLost(t *testing.T) {
	for _, brings := range []bool{true, false} {
		t.Run(fmt.Sprint(brings), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 3, refusing)
				cutOff := nodes[0].beside(func(o *Options) { o.Leases = dying{o.Leases} })
				cutOff.run(t)
				value := nodes[0].enter("alice", p)
				back := make(chan struct{})
				p.setAnswer(func(int) (bool, error) { <-back; return false, nil })
				time.Sleep(time.Minute)
				cutOff.wantUser("alice", value)
				time.Sleep(refreshLease)
				nodes[1].wantUser("alice", value)
				synctest.Wait()
				if live := nodes[1].wantUser("alice", value); !lost(live.Session) {
					t.Fatalf("%+v: the test shows nothing", live.Renewal)
				}
				for range 11 {
					nodes[2].wantUser("alice", value)
					time.Sleep(lostPatience / 12)
				}
				synctest.Wait()
				if brings {
					close(back)
					time.Sleep(time.Minute / 2)
					if live := nodes[1].wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
						t.Errorf("%q after %d requests", live.Tokens.Access.Reveal(), len(p.sent))
					}
					return
				}
				time.Sleep(2 * renewalPause)
				nodes[1].wantUser("alice", value)
				synctest.Wait()
				if nodes[1].wantInvalid(value); nodes[1].ended(value) != coatcheck.ReasonRefreshRefused {
					t.Errorf("ended for %q", nodes[1].ended(value))
				}
				close(back)
			})
		})
	}
}

// A provider that refuses an access token late ends nothing that goes on with another one.
func TestRecheckIsRefusedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		live := nodes[0].wantUser("alice", value)
		before := *live
		session := *live.Session
		before.Session, session.Tokens.Refresh = &session, ""
		time.Sleep(accessLife)
		nodes[0].wantUser("alice", value)
		refused := nodes[0].beside(refusing)
		tk, err := parseTicket(name, value)
		if err != nil {
			t.Fatal(err)
		}
		if live, err := refused.recheck(t.Context(), tk, &before); err != nil || live.Tokens.Access != "access 2" {
			t.Errorf("%+v, %v", live, err)
		}
		nodes[0].wantUser("alice", value)
	})
}
