package session

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A revoker is a provider of which nothing but revocation is asked.
type revoker struct {
	mu      sync.Mutex
	revoked []string // token_type_hint and token
	tries   int
	err     error         // of the tries to come
	slow    chan struct{} // unless it is nil, an answer waits for it
}

func (p *revoker) Knows(name, issuer string) bool {
	return name == "corp" && issuer == "https://idp.example"
}

func (p *revoker) Refresh(context.Context, *coatcheck.Session) (*coatcheck.Session, error) {
	return nil, &coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: errDown}
}

func (p *revoker) Check(context.Context, *coatcheck.Session) (*coatcheck.Session, error) {
	return nil, &coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: errDown}
}

func (p *revoker) Revoke(ctx context.Context, token coatcheck.Secret, kind coatcheck.TokenKind) error {
	p.mu.Lock()
	p.tries++
	err, slow := p.err, p.slow
	p.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return &coatcheck.RenewalError{Outcome: coatcheck.OutcomeUnknown, Err: ctx.Err()}
		}
	}
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.revoked = append(p.revoked, string(kind)+" "+token.Reveal())
	}
	return err
}

// take returns what was revoked so far, and forgets it.
func (p *revoker) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.revoked
	p.revoked = nil
	slices.Sort(list)
	return list
}

// fail makes the tries to come fail, unless err is nil.
func (p *revoker) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *revoker) tried() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tries
}

// newRevokingRig returns a rig that runs and whose provider revokes. stop ends it.
func newRevokingRig(t *testing.T, change ...func(*Options)) (r *rig, p *revoker, stop func()) {
	t.Helper()
	p = new(revoker)
	r = newRig(t, append([]func(*Options){func(o *Options) { o.Provider, o.Leases = p, o.Registry.(store.Leaser) }}, change...)...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return r, p, stop
}

// What a provider has granted is taken back when its session ends on purpose: with the
// ticket, or by escrow.
func TestTokensAreRevoked(t *testing.T) {
	const token = "refresh_token refresh token of alice"
	byReason := func(reason coatcheck.Reason) func(*rig, string) {
		return func(r *rig, _ string) {
			if _, err := r.EndAll(r.t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", reason); err != nil {
				r.t.Error(err)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		sid    string
		end    func(r *rig, cookie string)
		holder bool // the ticket is at hand
		never  bool
	}{
		{name: "signed out", holder: true, end: func(r *rig, cookie string) {
			if err := r.End(r.t.Context(), http.Header{}, nil, r.wantUser("alice", cookie), coatcheck.ReasonSignedOut); err != nil {
				r.t.Error(err)
			}
		}},
		{name: "somebody else signs in with this browser", sid: "s1", holder: true, end: func(r *rig, cookie string) { r.signIn("bob", cookie) }},
		{name: "the same person signs in again, elsewhere at the provider", sid: "s1", holder: true, end: func(r *rig, cookie string) {
			if _, err := r.Begin(r.t.Context(), http.Header{}, carrying(cookie), atProvider("alice", "s2"), r.Now()); err != nil {
				r.t.Error(err)
			}
		}},
		// The provider would take back what the new session was granted.
		{name: "the same person signs in again", sid: "s1", never: true, end: func(r *rig, cookie string) {
			if _, err := r.Begin(r.t.Context(), http.Header{}, carrying(cookie), atProvider("alice", "s1"), r.Now()); err != nil {
				r.t.Error(err)
			}
		}},
		{name: "the same person signs in again, at a provider that names no sessions", never: true, end: func(r *rig, cookie string) { r.signIn("alice", cookie) }},
		{name: "revoked", end: byReason(coatcheck.ReasonRevoked)},
		{name: "signed out elsewhere", end: byReason(coatcheck.ReasonSignedOutElsewhere)},
		{name: "front channel", never: true, end: byReason(coatcheck.ReasonFrontChannel)},
		{name: "refused already", never: true, end: byReason(coatcheck.ReasonRefreshRefused)},
		{name: "back channel", end: func(r *rig, _ string) {
			if _, err := r.BackChannelLogout(r.t.Context(), Logout{Issuer: issuer, Subject: "alice", ID: "1"}); err != nil {
				r.t.Error(err)
			}
		}},
		{name: "evicted", end: func(r *rig, _ string) {
			time.Sleep(time.Second)
			s := atProvider("alice", "")
			s.Tokens = coatcheck.Tokens{Access: "another"}
			if _, err := r.beginAt(s, r.Now()); err != nil {
				r.t.Error(err)
			}
		}},
		{name: "idle", never: true, end: func(*rig, string) { time.Sleep(idle + time.Minute) }},
	} {
		for _, escrow := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, p, stop := newRevokingRig(t, limited(store.Limits{PerUser: 1, OnLimit: store.EvictOldest}), func(o *Options) { o.Escrow = escrow })
					defer stop()
					cookie := r.mustBegin("alice", tc.sid)
					tc.end(r, cookie)
					r.wantInvalid(cookie)
					time.Sleep(time.Second)
					want := []string{token}
					if tc.never || !tc.holder && !escrow {
						want = nil
					}
					if got := p.take(); !slices.Equal(got, want) {
						t.Errorf("escrow %t: revoked are %q, want %q", escrow, got, want)
					}
				})
			})
		}
	}
}

// Without a refresh token it is the access token that is revoked.
func TestAccessTokenIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, stop := newRevokingRig(t, func(o *Options) { o.Escrow = true })
		defer stop()
		s := atProvider("alice", "")
		s.Tokens = coatcheck.Tokens{Access: "a1"}
		cookie, err := r.beginAt(s, r.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", cookie), coatcheck.ReasonSignedOut); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if got := p.take(); !slices.Equal(got, []string{"access_token a1"}) {
			t.Errorf("revoked are %q", got)
		}
	})
}

// A grant is left alone while another session stands on the same one of the provider's.
func TestSharedGrantStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, stop := newRevokingRig(t)
		defer stop()
		one, other := r.mustBegin("alice", "s1"), r.mustBegin("alice", "s1")
		for i, cookie := range []string{one, other} {
			if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", cookie), coatcheck.ReasonSignedOut); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
			if got := p.take(); len(got) != i {
				t.Errorf("after %d sessions: %q", i+1, got)
			}
		}
	})
}

// A-L14: a provider that is down keeps nobody signed in. It is told later, a few times.
func TestRevocationIsNeverInTheWay(t *testing.T) {
	for _, tc := range []struct {
		outcome coatcheck.Outcome
		tries   int
	}{
		{coatcheck.OutcomeNone, revokeTries},
		{coatcheck.OutcomeUnknown, revokeTries},
		{coatcheck.OutcomeRefused, 1},
		{coatcheck.OutcomeMisconfigured, 1},
	} {
		t.Run(tc.outcome.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p, stop := newRevokingRig(t)
				defer stop()
				p.fail(&coatcheck.RenewalError{Outcome: tc.outcome, Err: errDown})
				cookie := r.mustBegin("alice", "")
				before := time.Now()
				if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", cookie), coatcheck.ReasonSignedOut); err != nil {
					t.Error(err)
				}
				if took := time.Since(before); took > 0 {
					t.Errorf("the sign-out took %v", took)
				}
				r.wantInvalid(cookie)
				time.Sleep(5 * time.Minute)
				if tries := p.tried(); tries != tc.tries {
					t.Errorf("%d tries, want %d", tries, tc.tries)
				}
			})
		})
	}
	t.Run("back in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, p, stop := newRevokingRig(t)
			defer stop()
			p.fail(&coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: errDown})
			if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", r.mustBegin("alice", "")), coatcheck.ReasonSignedOut); err != nil {
				t.Error(err)
			}
			time.Sleep(revokePause / 4)
			p.fail(nil)
			time.Sleep(time.Minute)
			if got := p.take(); len(got) != 1 {
				t.Errorf("revoked are %q", got)
			}
		})
	})
	t.Run("more than there is room for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, p, stop := newRevokingRig(t)
			defer stop()
			p.slow = make(chan struct{})
			for range maxGrants + revokers + 10 {
				r.revokeLater(grant{provider: "corp", issuer: issuer, token: "t", kind: coatcheck.RefreshToken})
			}
			synctest.Wait()
			close(p.slow)
			time.Sleep(time.Second)
			if got := len(p.take()); got < maxGrants || got > maxGrants+revokers {
				t.Errorf("%d were revoked", got)
			}
		})
	})
}

// A node that stops tells the provider what it can in a little while, and no longer.
func TestRevocationAtShutdown(t *testing.T) {
	t.Run("the provider answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, p, stop := newRevokingRig(t)
			for range 50 {
				r.revokeLater(grant{provider: "corp", issuer: issuer, token: "t", kind: coatcheck.RefreshToken})
			}
			stop()
			if got := len(p.take()); got != 50 {
				t.Errorf("%d were revoked", got)
			}
		})
	})
	t.Run("it does not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, p, stop := newRevokingRig(t)
			p.slow = make(chan struct{})
			for range 50 {
				r.revokeLater(grant{provider: "corp", issuer: issuer, token: "t", kind: coatcheck.RefreshToken})
			}
			synctest.Wait()
			before := time.Now()
			stop()
			if took := time.Since(before); took > revokeDrain+time.Second {
				t.Errorf("that took %v", took)
			}
		})
	})
}

// ticket returns the ticket in the value of a cookie.
func (r *rig) ticket(value string) ticket {
	r.t.Helper()
	t, err := parseTicket(r.Jar.Session(), value)
	if err != nil {
		r.t.Fatal(err)
	}
	return t
}

// refreshed gives a session the refresh token "later", as another node does.
func (r *rig) refreshed(value string) {
	r.t.Helper()
	if _, err := r.rewrite(context.Background(), r.ticket(value), func(s *coatcheck.Session) bool {
		s.Tokens.Refresh = "later"
		return true
	}); err != nil {
		r.t.Error(err)
	}
}

// What is revoked is what the session has when it ends, and not what it had when the request
// was let in that ends it.
func TestFreshTokenIsRevoked(t *testing.T) {
	for name, end := range map[string]func(r *rig, cookie string) error{
		"signed out": func(r *rig, cookie string) error {
			live := r.wantUser("alice", cookie)
			r.refreshed(cookie)
			return r.End(r.t.Context(), http.Header{}, carrying("another", cookie), live, coatcheck.ReasonSignedOut)
		},
		"replaced by the same person": func(r *rig, cookie string) error {
			r.probe.forget(func(_ context.Context, op, _ string) error {
				if op == "create" {
					r.probe.forget(nil)
					r.refreshed(cookie)
				}
				return nil
			})
			_, err := r.Begin(r.t.Context(), http.Header{}, carrying(cookie), atProvider("alice", "s2"), r.Now())
			return err
		},
		"replaced by somebody else": func(r *rig, cookie string) error {
			r.probe.forget(func(_ context.Context, op, _ string) error {
				if op == "create" {
					r.probe.forget(nil)
					r.refreshed(cookie)
				}
				return nil
			})
			_, err := r.Begin(r.t.Context(), http.Header{}, carrying(cookie), atProvider("bob", "s2"), r.Now())
			return err
		},
		"revoked, by escrow": func(r *rig, cookie string) error {
			r.refreshed(cookie)
			_, err := r.EndAll(r.t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", coatcheck.ReasonRevoked)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p, stop := newRevokingRig(t, func(o *Options) { o.Escrow = true })
				defer stop()
				cookie := r.mustBegin("alice", "s1")
				if err := end(r, cookie); err != nil {
					t.Error(err)
				}
				r.wantInvalid(cookie)
				time.Sleep(time.Second)
				if got := p.take(); !slices.Equal(got, []string{"refresh_token later"}) {
					t.Errorf("revoked are %q", got)
				}
			})
		})
	}
}

// A store that can't be read keeps nobody from revoking what the request holds, and neither
// does a request without its cookie.
func TestTokenAtHandIsRevoked(t *testing.T) {
	for name, in := range map[string]func(r *rig, cookie string) http.Header{
		"the store can't be read": func(r *rig, cookie string) http.Header {
			r.probe.forget(failing("get"))
			return carrying(cookie)
		},
		"without a cookie":        func(*rig, string) http.Header { return nil },
		"with somebody else's":    func(r *rig, _ string) http.Header { return carrying(r.signIn("bob")) },
		"with too many, and none": func(*rig, string) http.Header { return carrying("1", "2", "3", "4", "5") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p, stop := newRevokingRig(t)
				defer stop()
				cookie := r.mustBegin("alice", "")
				live := r.wantUser("alice", cookie)
				if err := r.End(t.Context(), http.Header{}, in(r, cookie), live, coatcheck.ReasonSignedOut); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
				if got := p.take(); !slices.Equal(got, []string{"refresh_token refresh token of alice"}) {
					t.Errorf("revoked are %q", got)
				}
			})
		})
	}
}

// A registry that does not write keeps nobody from revoking.
func TestRevokedThoughStillListed(t *testing.T) {
	for name, broken := range map[string]func(store.Registry) store.Registry{
		"it can't be marked":  func(r store.Registry) store.Registry { return fullRegistry{r} },
		"it can't be removed": func(r store.Registry) store.Registry { return stubbornRegistry{r} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p, stop := newRevokingRig(t, func(o *Options) { o.Registry = broken(o.Registry) })
				defer stop()
				cookie := r.mustBegin("alice", "s1")
				if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", cookie), coatcheck.ReasonSignedOut); err != nil {
					t.Error(err)
				}
				r.wantInvalid(cookie)
				time.Sleep(time.Second)
				if got := p.take(); len(got) != 1 {
					t.Errorf("revoked are %q", got)
				}
			})
		})
	}
}

// A stubbornRegistry removes nothing.
type stubbornRegistry struct{ store.Registry }

func (stubbornRegistry) Remove(context.Context, store.Entry) error { return errDown }

// A session that is ending too keeps no grant.
func TestGrantOfTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, stop := newRevokingRig(t)
		defer stop()
		one, other := r.mustBegin("alice", "s1"), r.mustBegin("alice", "s1")
		last := r.wantUser("alice", other)
		if _, err := r.memory.End(t.Context(), r.listing(last.Session, last.handle, last.verifier), string(coatcheck.ReasonRevoked)); err != nil {
			t.Fatal(err)
		}
		if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("alice", one), coatcheck.ReasonSignedOut); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if got := p.take(); len(got) != 1 {
			t.Errorf("revoked are %q", got)
		}
	})
}

// Where there can be nothing to be revoked, nobody reads a record to look for it.
func TestNothingGrantedNoRead(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Provider, o.Leases = new(revoker), o.Registry.(store.Leaser) })
	s := atProvider("bob", "")
	s.Tokens = coatcheck.Tokens{}
	bob, err := r.beginAt(s, r.Now())
	if err != nil {
		t.Fatal(err)
	}
	live := r.wantUser("bob", bob)
	r.probe.forget(nil)
	if err := r.End(t.Context(), http.Header{}, carrying(bob), live, coatcheck.ReasonSignedOut); err != nil {
		t.Error(err)
	}
	if n := r.probe.count("get"); n != 0 {
		t.Errorf("without tokens: %d reads", n)
	}
	r.mustBegin("alice", "")
	r.probe.forget(nil)
	if _, err := r.EndAll(t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", coatcheck.ReasonRevoked); err != nil {
		t.Error(err)
	}
	if n := r.probe.count("get"); n != 0 {
		t.Errorf("without escrow: %d reads", n)
	}
}
