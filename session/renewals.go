package session

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
)

const (
	// maxRenewals bounds how many sessions a node renews at once.
	maxRenewals = 64
	// renewalPause is how long a node leaves a session alone after an attempt that brought
	// nothing, unless a request waits for it or its record changes.
	renewalPause = 5 * time.Second
	// gateFailures is after how many failures in a row a node takes its provider for down.
	// From then on one session at a time tries, ever more seldom.
	gateFailures = 8
	gateMost     = 30 * time.Second
)

// renewals are the sessions that this node has renewed, one attempt each whatever number of
// requests wait for it. An attempt belongs to no request: clients come and go.
type renewals struct {
	// refreshes and checks go to different endpoints, of which one may be down alone.
	refreshes, checks gate

	mu       sync.Mutex
	attempts map[string]*attempt // by handle
	busy     int                 // attempts being made
	// urgent and queue are for when fewer than maxRenewals are being made: first those that
	// requests wait for. Who waits there costs nothing but memory, and may be in both.
	urgent, queue []*attempt
	pauses        map[string]instant       // before which nobody who does not wait tries
	watching      map[string]*changeWaiter // who waits for a change of a record
	running       sync.WaitGroup
	closed        bool
}

// An attempt's result may be read once done is closed.
type attempt struct {
	ticket ticket
	before *Live
	began  time.Time
	done   chan struct{}

	need   need // under the lock of renewals, like queued
	queued bool

	live *Live
	held bool // another node is about it
	err  error
}

type changeWaiter struct {
	changed chan struct{}
	count   int
}

func (r *renewals) init() {
	r.attempts = make(map[string]*attempt)
	r.pauses = make(map[string]instant)
	r.watching = make(map[string]*changeWaiter)
}

// startRenewal returns the attempt to renew a session that is under way on this node, begun
// now if there was none; nil where none is to be made now. Whoever needs new tokens waits for
// it, and does not keep to the pause.
func (m *Manager) startRenewal(t ticket, live *Live, need need) *attempt {
	r := &m.renewal
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.attempts[live.handle]; a != nil {
		if a.queued && need == needFresh && a.need != needFresh {
			a.need = needFresh
			r.urgent = append(r.urgent, a)
		}
		return a
	}
	now := instantOf(time.Now())
	pause, paused := r.pauses[live.handle]
	if r.closed || need != needFresh && paused && now < pause || !r.gate(need).enter(now) {
		return nil
	}
	t.handle = live.handle // the ticket's is a part of the request's header
	a := &attempt{ticket: t, before: live, began: time.Now(), done: make(chan struct{}), need: need}
	r.attempts[live.handle] = a
	if r.busy == maxRenewals {
		a.queued = true
		if need == needFresh {
			r.urgent = append(r.urgent, a)
		} else {
			r.queue = append(r.queue, a)
		}
		return a
	}
	r.busy++
	r.running.Go(func() {
		for a != nil {
			m := m.latest.Load() // another one may have taken over while the attempt waited
			m.makeAttempt(a)
			a = m.finishAttempt(a)
		}
	})
	return a
}

func (m *Manager) makeAttempt(a *attempt) {
	ctx, cancel := context.WithTimeout(context.Background(), refreshLimit)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			a.live, a.held, a.err = a.before, false, nil
			logPanic(ctx, m.Logger, "a session was renewed", p, "session", a.before.Ref)
		}
	}()
	a.before.awaitTouch(ctx) // which rewrite might undo
	a.live, a.held, a.err = m.renewNow(ctx, a.ticket, a.before)
}

// finishAttempt tells those who wait for the attempt, and returns the one to be made next, or
// nil.
func (m *Manager) finishAttempt(a *attempt) (next *attempt) {
	r := &m.renewal
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.attempts, a.before.handle)
	if a.err == nil && m.needOf(a.live.Session, m.Now()) != needNothing {
		r.pauses[a.before.handle] = instantOf(time.Now().Add(renewalPause))
	}
	close(a.done)
	if next = r.next(); next == nil {
		r.busy--
	}
	return next
}

// next takes the next attempt from the queues, or returns nil. Since it came there its
// provider may have been found down; then it is not made, and who waits for it goes on.
func (r *renewals) next() *attempt {
	for {
		q := &r.urgent
		if len(*q) == 0 {
			q = &r.queue
		}
		if len(*q) == 0 {
			return nil
		}
		a := (*q)[0]
		(*q)[0] = nil
		*q = (*q)[1:]
		switch {
		case !a.queued: // it was in the other one too
		case r.gate(a.need).enter(instantOf(time.Now())):
			a.queued = false
			return a
		default:
			r.drop(a)
		}
	}
}

// drop ends an attempt that is queued and will not be made.
func (r *renewals) drop(a *attempt) {
	a.queued = false
	a.live = a.before
	delete(r.attempts, a.before.handle)
	close(a.done)
}

// gate returns what keeps a session from asking its provider for what it needs.
func (r *renewals) gate(n need) *gate {
	if n == needCheck {
		return &r.checks
	}
	return &r.refreshes
}

// background runs a task that belongs to no request and that close waits for.
func (r *renewals) background(task func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.running.Go(task)
	}
}

// watch returns a channel that is closed at the next change of the handle's record that this
// node hears of, or when it may have missed one. The function release ends the watch.
func (r *renewals) watch(handle string) (changed <-chan struct{}, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watching[handle]
	if w == nil {
		w = &changeWaiter{changed: make(chan struct{})}
		r.watching[handle] = w
	}
	w.count++
	return w.changed, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if w.count--; w.count == 0 && r.watching[handle] == w {
			delete(r.watching, handle)
		}
	}
}

// changed wakes who waits for a change of the handle's record.
func (r *renewals) changed(handle string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pauses, handle)
	if w := r.watching[handle]; w != nil {
		delete(r.watching, handle)
		close(w.changed)
	}
}

// missed wakes everybody: the feed has had a gap.
func (r *renewals) missed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for handle, w := range r.watching {
		delete(r.watching, handle)
		close(w.changed)
	}
}

// trim forgets pauses that are over.
func (r *renewals) trim(now instant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for handle, until := range r.pauses {
		if now >= until {
			delete(r.pauses, handle)
		}
	}
}

// close ends the attempts: none is begun any more, and those under way have until ctx ends
// to write down what the provider says. A node that leaves without that costs people a
// sign-in.
func (r *renewals) close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	for _, a := range slices.Concat(r.urgent, r.queue) {
		if a.queued {
			r.drop(a)
		}
	}
	r.urgent, r.queue = nil, nil
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { r.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A gate keeps a node from asking a provider that is down for each of its sessions. The zero
// value lets everybody through.
type gate struct {
	mu       sync.Mutex
	failures int
	until    instant
}

// enter tells whether a session may be tried.
func (g *gate) enter(now instant) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures < gateFailures {
		return true
	}
	if now < g.until {
		return false
	}
	// One tries. If nothing is heard of it, because it found nothing to do, another one may.
	g.until = instantOf(time.Now().Add(minRetry))
	return true
}

// failed notes an outcome that is the provider's, and not one person's.
func (g *gate) failed(o coatcheck.Outcome) {
	if o == coatcheck.OutcomeRefused {
		g.passed() // it answers
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failures++
	if over := g.failures - gateFailures; over >= 0 {
		g.until = instantOf(time.Now().Add(min(minRetry<<min(over, 10), gateMost)))
	}
}

func (g *gate) passed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failures = 0
}
