package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// told is what people tell, all together.
type told struct {
	Begun    atomic.Int64
	Requests atomic.Int64 // that were answered
	Retried  atomic.Int64 // that were not, or with 5xx, and were sent again
	// Uncertain counts sign-ins whose answer never came: there may be a session that
	// nobody has.
	Uncertain atomic.Int64

	SignedOut, Revoked, Replaced, Evicted, LeftToExpire atomic.Int64

	// Certain counts requests of which it was clear what had to become of them: served, or
	// not because the session had ended.
	Certain atomic.Int64
	// None of these may happen.
	Lost    atomic.Int64 // a session that lives, and was not served
	Foreign atomic.Int64 // a request served as somebody else
	Undead  atomic.Int64 // a session that had ended, and was served

	mu       sync.Mutex
	examples []string // of what may not happen
}

func (t *told) complain(count *atomic.Int64, format string, args ...any) {
	count.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.examples) < 10 {
		t.examples = append(t.examples, fmt.Sprintf(format, args...))
	}
}

// A person signs in again and again, uses the sessions, ends some of them, and knows what
// must have become of each.
type person struct {
	*site
	*told
	name   string
	random *rand.Rand
	known  string // the provider's cookie

	live   []*held // oldest first
	dead   []*held
	ghosts int // sessions that nobody has, and that may count all the same
}

// held is a session as its person sees it.
type held struct {
	cookie      string
	begun, used time.Time // before the request that was answered
	// unsure: a sign-in whose answer never came may have put an end to it.
	unsure bool
	died   time.Time
	how    string
}

// lives tells whether a session must be alive now.
func (h *held) lives(now time.Time) bool {
	return h.died.IsZero() && !h.unsure &&
		now.Sub(h.used) < *idle-*idle/20-time.Second && now.Sub(h.begun) < absolute()-time.Second
}

// deadFor is how long after its end a session may still be served by a node that has not
// heard of it: the lease of the near cache, and time for a busy machine.
const deadFor = 3 * time.Second

func (p *person) visit(ctx context.Context, times int) error {
	for range times {
		if err := p.signInSomehow(ctx); err != nil {
			return err
		}
		for _, h := range slices.Clone(p.live) {
			if p.random.IntN(3) > 0 {
				if err := p.use(ctx, h); err != nil {
					return err
				}
			}
		}
		if err := p.endOne(ctx); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(p.random.Int64N(int64(500*time.Millisecond)))); err != nil {
			return err
		}
	}
	if err := pause(ctx, deadFor); err != nil {
		return err
	}
	for _, h := range slices.Concat(p.live, p.dead) {
		if err := p.use(ctx, h); err != nil {
			return err
		}
	}
	p.LeftToExpire.Add(int64(len(p.live)))
	return nil
}

// signInSomehow signs in until that succeeds, now and then in a browser that is signed in
// already.
func (p *person) signInSomehow(ctx context.Context) error {
	var carried *held
	if len(p.live) > 0 && p.random.IntN(6) == 0 {
		carried = p.live[p.random.IntN(len(p.live))]
	}
	for {
		h := &held{begun: time.Now()}
		h.used = h.begun
		cookie, sent, err := p.signIn(ctx, p, carried)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && sent: // the node may have begun a session all the same
			p.Uncertain.Add(1)
			p.ghosts++
			if carried != nil {
				carried.unsure = true
			}
			p.makeRoom()
			fallthrough
		case err != nil:
			p.Retried.Add(1)
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		p.Begun.Add(1)
		if carried != nil {
			p.bury(carried, "replaced", &p.Replaced)
		}
		h.cookie = cookie
		p.live = append(p.live, h)
		p.makeRoom()
		return nil
	}
}

// makeRoom works out who had to give way to the latest sign-in: the oldest ones, beyond
// perUser. Sessions that nobody has may have been counted as well, or not.
func (p *person) makeRoom() {
	newer, sureNewer := p.ghosts, 0
	for _, h := range slices.Backward(slices.Clone(p.live)) {
		switch {
		case sureNewer >= perUser:
			p.bury(h, "evicted", &p.Evicted)
			continue
		case newer >= perUser:
			h.unsure = true
		}
		newer++
		if h.lives(time.Now()) {
			sureNewer++
		}
	}
}

// bury notes the end of a session. One that had expired before is listed a little longer.
func (p *person) bury(h *held, how string, count *atomic.Int64) {
	now := time.Now()
	if !h.lives(now) {
		p.ghosts++
	}
	h.died, h.how = now, how
	p.live = slices.DeleteFunc(p.live, func(other *held) bool { return other == h })
	p.dead = append(p.dead, h)
	count.Add(1)
}

// endOne ends one session, now and then.
func (p *person) endOne(ctx context.Context) error {
	if len(p.live) == 0 {
		return nil
	}
	h := p.live[p.random.IntN(len(p.live))]
	choice := p.random.IntN(8)
	if choice == 2 && p.list == nil {
		choice = 0
	}
	switch choice {
	case 0, 1:
		if err := p.signOut(ctx, p, h); err != nil {
			return err
		}
		p.bury(h, "signed out", &p.SignedOut)
	case 2:
		if err := p.revoke(ctx, h.cookie); err != nil {
			return err
		}
		p.bury(h, "revoked", &p.Revoked)
	}
	return nil
}

// use sends a request with a session and judges the answer.
func (p *person) use(ctx context.Context, h *held) error {
	sent := time.Now()
	user, said, err := p.whoami(ctx, p, h)
	if err != nil {
		return err
	}
	ended := !h.died.IsZero() && sent.Sub(h.died) >= deadFor
	now := time.Now()
	mustLive := h.lives(now)
	if ended || mustLive {
		p.Certain.Add(1)
	}
	switch {
	case user != "" && user != p.name:
		p.complain(&p.Foreign, "%s was served as %s", p.name, user)
	case user != "" && ended:
		p.complain(&p.Undead, "%s was served with a session that was %s %s before", p.name, h.how, sent.Sub(h.died))
	case user == "" && mustLive:
		p.complain(&p.Lost, "%s was not served at %s with a session of %s, last used %s ago: %s",
			p.name, sent.UTC().Format(time.TimeOnly), now.Sub(h.begun), now.Sub(h.used), said)
	}
	if user != "" {
		h.used = sent
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
