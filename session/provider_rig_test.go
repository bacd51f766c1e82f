package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A provider is a double, since no real one can be made to answer at a chosen instant of a
// test's own clock: it rotates refresh tokens, and takes each of them once.
type provider struct {
	life time.Duration // of access tokens

	mu      sync.Mutex
	good    map[coatcheck.Secret]bool // refresh tokens that may be redeemed
	sent    []coatcheck.Secret        // refresh tokens, each time they came
	checks  int
	revoked []coatcheck.Secret
	serial  int
	groups  []string
	// answer, unless it is nil, is asked before a request is answered. With before its
	// error is the answer and nothing was done; otherwise the answer is lost.
	answer func(n int) (before bool, err error)
}

func newProvider(life time.Duration) *provider {
	return &provider{life: life, good: map[coatcheck.Secret]bool{}, groups: []string{"agent"}}
}

// tokens returns new tokens, as at a sign-in.
func (p *provider) tokens(now time.Time) coatcheck.Tokens {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.issue(now)
}

func (p *provider) issue(now time.Time) coatcheck.Tokens {
	p.serial++
	refresh := coatcheck.Secret(fmt.Sprintf("refresh %d", p.serial))
	p.good[refresh] = true
	return coatcheck.Tokens{
		Access: coatcheck.Secret(fmt.Sprintf("access %d", p.serial)), Refresh: refresh, AccessExpiry: now.Add(p.life),
	}
}

func (p *provider) Knows(name, issuer string) bool {
	return name == "corp" && issuer == "https://idp.example"
}

func (p *provider) Refresh(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error) {
	p.mu.Lock()
	p.sent = append(p.sent, s.Tokens.Refresh)
	n, answer := len(p.sent), p.answer
	p.mu.Unlock()
	var lost error
	if answer != nil {
		before, err := answer(n)
		if before && err != nil {
			return nil, err
		}
		lost = err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.good[s.Tokens.Refresh] {
		return nil, &coatcheck.RenewalError{Outcome: coatcheck.OutcomeRefused, Err: errors.New("invalid_grant")}
	}
	p.good[s.Tokens.Refresh] = false
	next := *s
	next.Tokens = p.issue(time.Now())
	next.Identity.Groups = slices.Clone(p.groups)
	if lost != nil {
		return nil, lost
	}
	return &next, nil
}

func (p *provider) Check(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks++
	if p.answer != nil {
		if _, err := p.answer(p.checks); err != nil {
			return nil, err
		}
	}
	next := *s
	next.Identity.Groups = slices.Clone(p.groups)
	return &next, nil
}

func (p *provider) Revoke(_ context.Context, token coatcheck.Secret, _ coatcheck.TokenKind) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked = append(p.revoked, token)
	return nil
}

func (p *provider) setAnswer(answer func(n int) (bool, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = answer
}

// uses returns how often refresh tokens were sent, and fails the test if one was twice.
func (p *provider) uses(t *testing.T) int {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[coatcheck.Secret]bool{}
	for _, token := range p.sent {
		if seen[token] {
			t.Errorf("%q was sent twice", token.Reveal())
		}
		seen[token] = true
	}
	return len(p.sent)
}

func outcome(o coatcheck.Outcome) error {
	return &coatcheck.RenewalError{Outcome: o, Err: errors.New("the test says so")}
}

func always(before bool, err error) func(int) (bool, error) {
	return func(int) (bool, error) { return before, err }
}

const accessLife = 10 * time.Minute

// newRefreshing returns nodes on one store, with a provider whose access tokens live for
// accessLife.
func newRefreshing(t *testing.T, n int, change ...func(*Options)) ([]*rig, *provider) {
	t.Helper()
	p := newProvider(accessLife)
	first := newHearing(t, append([]func(*Options){func(o *Options) {
		o.Provider, o.Leases, o.Tombstones = p, o.Store.(store.Leaser), time.Hour
		o.Feed = o.Store.(store.Watcher)
	}}, change...)...)
	rigs := []*rig{first}
	for range n - 1 {
		rigs = append(rigs, first.beside(func(*Options) {}))
	}
	for _, r := range rigs {
		r.run(t)
	}
	return rigs, p
}

// enter begins a session with tokens of the provider.
func (r *rig) enter(sub string, p *provider) string {
	r.t.Helper()
	s := user(sub)
	s.Tokens = p.tokens(time.Now())
	h := map[string][]string{}
	if _, err := r.Begin(r.t.Context(), h, carrying(), s, r.Now()); err != nil {
		r.t.Fatal(err)
	}
	return r.cookieIn(h)
}

// ended returns why the session of a dead cookie ended.
func (r *rig) ended(value string) coatcheck.Reason {
	reason := r.Ended(context.Background(), carrying(value))
	return reason
}
