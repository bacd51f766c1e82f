// Package session turns a cookie into a session and back: it begins, loads, lists and ends
// sessions, and enforces their lifetimes and limits.
//
// A session lives in a [store.Store] as a sealed record; the browser holds a ticket,
// which names the record and opens it. Every question has three answers (invariant
// 1): the session is valid, it is invalid ([ErrInvalid]), or nobody can tell now (an
// error with coatcheck.CodeUnknown). Only the second may cost a person the cookie.
//
// What can be used is listed in a [store.Registry] (invariant 4). A session begins in the
// order record, entry, cookie, and ends in the order entry marked as ending, record
// deleted, entry removed; whatever a node leaves unfinished of that, another one finishes.
package session

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// ErrInvalid: the request has a session cookie, and it opens no live session. It may
// be cleared.
var ErrInvalid = errors.New("session: no live session for this cookie")

// maxCandidates is how many different session cookies one request may carry. More
// than one arrives when somebody else may set cookies for our host.
const maxCandidates = 4

// storeResolution is how far a store's rounding may move a record's end.
const storeResolution = 2 * time.Millisecond

// listedLonger is how much longer than its record an entry is listed, so that no record
// outlives its entry where the two are kept by servers with clocks of their own.
const listedLonger = 5 * time.Second

// touchAgain is how long after a touch that failed the next one is tried.
const touchAgain = time.Second

// purpose binds records to what they are (invariant 12).
const purpose = "session"

// Options are what a Manager needs. All fields are required, except where the comment says
// what zero means.
type Options struct {
	Store    store.Store
	Registry store.Registry
	Feed     store.Watcher // tells of changes; nil: every request reads the store
	Leases   store.Leaser  // required where there is a Provider
	Provider Provider      // nil: nobody is asked anew, and no token is revoked
	Events   Recorder      // nil: nobody is told
	// CountRefresh counts a refresh token that was redeemed: "ok", or the coatcheck.Outcome's
	// name. Nil: nobody counts.
	CountRefresh func(result string)
	Ring         *seal.Ring
	Jar          *cookie.Jar
	Tenant       string
	Node         string // this node's name, for the list
	// Idle ends a session that is not used for so long, Absolute ends every one.
	// Idle is at most Absolute.
	Idle, Absolute time.Duration
	// Limits bound how many sessions there may be at once; none if zero.
	Limits store.Limits
	// Tombstones is how long a session that has ended can say why; not at all if zero.
	Tombstones time.Duration
	// CacheSize bounds the near cache, in bytes; zero turns it off. CacheLease is how
	// long after the feed was last known to be complete it may be served from; it is required
	// where there is a Feed.
	CacheSize  int
	CacheLease time.Duration
	// OutageGrace is how long sessions that were in the near cache are served while the
	// store can't be reached, counted from when the store was last known to have them. A
	// session that is revoked meanwhile goes on for that long. Zero: not at all.
	OutageGrace time.Duration
	// RotationGrace is for how long after it was redeemed the provider takes a refresh token
	// once more, and answers as it did. Zero: it may never be sent twice.
	RotationGrace time.Duration
	// Recheck is how often the provider is asked whether it still vouches for somebody who
	// has got no new tokens meanwhile. Zero: never.
	Recheck time.Duration
	// Escrow keeps the refresh token of each session a second time, sealed to the ring
	// alone, so that it can be revoked by whoever ends the session without its ticket.
	Escrow bool
	Now    func() time.Time // time.Now if nil
	Logger *slog.Logger     // nothing is logged if nil
}

// A Recorder takes down what happens to sessions, for the whole cluster. An error means
// that an event may be lost; recording it again, with the same ID, is no harm.
type Recorder interface {
	Record(ctx context.Context, e coatcheck.Event) error
}

// A Manager keeps the sessions of one tenant. It is safe for concurrent use. Run does what
// has to be done beside requests.
type Manager struct {
	Options
	slack time.Duration
	*state
}

// A state is what a manager and those made of it by With have in common.
type state struct {
	cache   *cache
	streams streams
	upkeep  upkeep
	turns   turns
	renewal renewals
	grants  chan grant              // of sessions that have ended, to be revoked at the provider
	warned  atomic.Int64            // when a failed touch was logged last, in Unix seconds
	latest  atomic.Pointer[Manager] // which what is done beside requests goes by
}

// New returns a Manager.
func New(o Options) *Manager {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = nobody{}
	}
	if o.CountRefresh == nil {
		o.CountRefresh = func(string) {}
	}
	s := &state{cache: newCache(o.CacheSize, o.CacheLease, o.Logger), grants: make(chan grant, maxGrants)}
	s.renewal.init()
	m := s.manager(o)
	m.TakeOver()
	return m
}

// With returns a Manager of the same sessions, and of all that is known of them, that goes by
// other rules: change may set Idle, Absolute, Limits, Tombstones, OutageGrace, RotationGrace,
// Recheck and Escrow, and another Provider, and nothing else. m stays as it is, for requests
// that it has begun to serve, and what Run does goes by m until TakeOver is called.
//
// No session ends of it: the times that a session was given when it began, or was used last,
// stay, and a limit is asked for by the next sign-in.
func (m *Manager) With(change func(*Options)) *Manager {
	o := m.Options
	change(&o)
	return m.state.manager(o)
}

// TakeOver has Run, which is not to be called again, go by m from now on.
func (m *Manager) TakeOver() { m.latest.Store(m) }

func (s *state) manager(o Options) *Manager {
	// A use is written down only once in so long. The session ends by at most that
	// much early, and never late.
	return &Manager{Options: o, slack: min(o.Idle/20, 30*time.Second), state: s}
}

type nobody struct{}

func (nobody) Record(context.Context, coatcheck.Event) error { return nil }

// A Live is a session that was loaded for a request. It is shared and must not be changed.
type Live struct {
	*coatcheck.Session
	Ref coatcheck.Ref
	// Unverified is how long ago the store last confirmed a session that is served though
	// the store can't be reached (Options.OutageGrace). Zero for all others.
	Unverified time.Duration

	handle   string
	verifier []byte
	quiet    *atomic.Int64 // an instant: before it nothing is asked of the provider
	touching chan struct{} // holds one while a request moves the idle end
	manager  *Manager
}

// Load returns the session of the request with header h, or nil without an error if
// it carries no session cookie.
//
// It returns ErrInvalid for a cookie without a live session, and otherwise an
// *coatcheck.Error: CodeUnknown if the store or the ring can't tell,
// CodeAmbiguousSession if two cookies open two sessions, CodeMalformed for cookies
// that no browser of ours would send.
func (m *Manager) Load(ctx context.Context, h http.Header) (*Live, error) {
	var buf [maxCandidates]string
	candidates, err := m.candidates(h, buf[:0])
	if err != nil || len(candidates) == 0 {
		return nil, err
	}
	var live *Live
	var known *cached
	var cookie string
	for _, value := range candidates {
		l, k, err := m.open(ctx, value)
		switch {
		case errors.Is(err, ErrInvalid):
		case err != nil:
			return nil, err
		case live != nil:
			return nil, coatcheck.E(coatcheck.CodeAmbiguousSession, "session.load",
				fmt.Errorf("the request carries the live sessions %s and %s", live.Ref, l.Ref))
		default:
			live, known, cookie = l, k, value
		}
	}
	if live == nil {
		return nil, ErrInvalid
	}
	if known != nil {
		if err := m.touch(ctx, cookie, known); err != nil {
			return nil, err
		}
		return m.upToDate(ctx, cookie, live)
	}
	return live, nil
}

// candidates appends the different values of the session cookie to list. The order of
// duplicates means nothing (RFC 6265bis §5.8.3: servers should not rely on it), so all
// of them are looked at.
func (m *Manager) candidates(h http.Header, list []string) ([]string, error) {
	const op = "session.load"
	name := m.Jar.Session()
next:
	for n, value := range cookie.Each(h) {
		if n != name {
			if index, ok := m.Jar.Part(n); ok && index < 0 {
				return nil, coatcheck.E(coatcheck.CodeMalformed, op, errors.New("a part of the session cookie has no valid number"))
			}
			continue
		}
		for _, seen := range list {
			if seen == value {
				continue next
			}
		}
		if len(list) == maxCandidates {
			return nil, coatcheck.E(coatcheck.CodeMalformed, op, fmt.Errorf("more than %d different session cookies", maxCandidates))
		}
		list = append(list, value)
	}
	return list, nil
}

// open returns the session that one cookie value opens, and what is known of its record,
// nil if it is served without asking the store. The record is only read: one that doesn't
// open is left alone, for it may be somebody else's.
func (m *Manager) open(ctx context.Context, value string) (*Live, *cached, error) {
	const op = "session.load"
	t, err := parseTicket(m.Jar.Session(), value)
	if err != nil {
		return nil, nil, ErrInvalid
	}
	known, fresh := m.cache.find(t, instantOf(time.Now()))
	if !fresh {
		flight, err := m.cache.read(ctx, m.Store, t.handle)
		switch {
		case errors.Is(err, store.ErrNotFound):
			m.cache.changed(t.handle)
			return nil, nil, ErrInvalid
		case err != nil && known != nil && ctx.Err() == nil:
			live, err := m.unverified(known, err)
			return live, nil, err
		case err != nil:
			return nil, nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
		}
		live := (*Live)(nil)
		if known != nil && known.sealed == sha256.Sum256(flight.rec.Value) && m.Ring.Holds(flight.rec.Value) == nil {
			live = known.live
		} else if live, err = m.unseal(t, flight.rec.Value); errors.Is(err, seal.ErrRetired) {
			return nil, nil, m.endRetired(ctx, t)
		} else if err != nil {
			return nil, nil, err
		}
		known = m.cache.put(t, flight, live)
	}
	if !m.Now().Before(known.deadline) {
		return nil, nil, ErrInvalid
	}
	return known.live, known, nil
}

// unverified returns a session that was in the near cache when the store went away, within
// the outage grace. cause is why the store can't tell.
func (m *Manager) unverified(known *cached, cause error) (*Live, error) {
	now := instantOf(time.Now())
	since := time.Duration(now - m.cache.confirmed(known.read, known.epoch))
	if since > m.OutageGrace || now >= known.ends.Load() || !m.Now().Before(known.live.Deadline) {
		return nil, coatcheck.E(coatcheck.CodeUnknown, "session.load", cause)
	}
	live := *known.live
	live.Unverified = max(since, 1)
	return &live, nil
}

// unseal returns the session that a record's value holds.
func (m *Manager) unseal(t ticket, sealed []byte) (*Live, error) {
	const op = "session.load"
	plain, err := m.Ring.OpenRecord(m.place(t.handle), t.secret[:], sealed)
	switch {
	case errors.Is(err, seal.ErrBroken):
		return nil, ErrInvalid
	case err != nil: // another node's key, which may reach this node any moment
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	s, err := decode(plain)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	if s.Tenant != m.Tenant {
		return nil, ErrInvalid
	}
	return m.live(t, s), nil
}

// live keeps nothing of the request: t's handle may be a part of its header.
func (m *Manager) live(t ticket, s *coatcheck.Session) *Live {
	handle := strings.Clone(t.handle)
	l := new(struct {
		Live
		quiet atomic.Int64 // in one place with what each request reads anyway
	})
	l.quiet.Store(never)
	l.Live = Live{
		Session: s, Ref: coatcheck.MakeRef(handle),
		handle: handle, verifier: m.verifier(t), quiet: &l.quiet, touching: make(chan struct{}, 1), manager: m,
	}
	return &l.Live
}

// seal returns what the store keeps of a session. Every write of a record is made by it.
func (m *Manager) seal(t ticket, s *coatcheck.Session) ([]byte, error) {
	plain, err := encode(s)
	if err != nil {
		return nil, err
	}
	var escrowed []byte
	if m.Escrow {
		escrowed = []byte(s.Tokens.Refresh.Reveal())
	}
	return m.Ring.SealRecord(m.place(t.handle), t.secret[:], plain, escrowed)
}

// touch moves the idle end of a session that is in use, at most once in m.slack, and
// once more when the absolute end is nearer than that, so that it comes no sooner. The
// entry is renewed first, so that what can be used is listed. A session that ended between
// the read and the touch is invalid: it was ended on purpose. Any other failure costs
// nothing now, since the read was good and a later request tries again.
//
// On that occasion a record that an old key has sealed is sealed anew, by the ticket in the
// cookie.
func (m *Manager) touch(ctx context.Context, cookie string, c *cached) error {
	now := time.Now()
	if instantOf(now) < c.untouch.Load() {
		return nil
	}
	until := c.live.Deadline.Sub(m.Now())
	want, slack := min(m.Idle, until), m.slack
	if want < m.Idle {
		slack = min(slack, storeResolution)
	}
	left := time.Duration(c.ends.Load() - instantOf(now))
	if wait := left - (want - slack); wait >= 0 {
		// As long as the absolute end is not nearer than the idle end may be, it is known
		// when to look again. With another idle timeout it may be sooner, so it is soon.
		c.untouch.Store(instantOf(now.Add(min(wait, max(until-m.Idle, 0), m.slack))))
		return nil
	}
	select {
	case c.live.touching <- struct{}{}:
		defer func() { <-c.live.touching }()
	default:
		return nil
	}
	entry := m.listing(c.live.Session, c.live.handle, c.live.verifier)
	err := m.Registry.Renew(ctx, entry, want+listedLonger)
	if err == nil {
		err = m.Store.Touch(ctx, c.live.handle, want)
		if errors.Is(err, store.ErrNotFound) {
			m.unlist(ctx, entry)
		}
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrEnding):
		m.cache.changed(c.live.handle)
		return ErrInvalid
	case err != nil && ctx.Err() == nil:
		c.untouch.Store(instantOf(now.Add(touchAgain)))
		m.warn(ctx, err)
	case err == nil:
		c.ends.Store(instantOf(now) + int64(want))
		m.tellRenewed(ctx, c.live, left)
		if c.sealedBy != m.Ring.Current() {
			m.startReseal(cookie, c.live)
		}
	}
	return nil
}

// awaitTouch waits until no request moves the idle end, or ctx ends.
func (l *Live) awaitTouch(ctx context.Context) {
	select {
	case l.touching <- struct{}{}:
		<-l.touching
	case <-ctx.Done():
	}
}

// unlist takes back a Renew whose record is gone: the session ended in between, or the entry
// of one that is over was just listed again.
func (m *Manager) unlist(ctx context.Context, entry store.Entry) {
	if ended, err := m.Registry.End(ctx, entry, store.ReasonExpired); err == nil {
		_ = m.finish(ctx, ended, nil) // or whoever reaps it
	}
}

// warn logs that a touch failed, once a minute: if that stays so, everybody is signed
// out when the idle timeout is over, though requests are served until then.
func (m *Manager) warn(ctx context.Context, err error) {
	now, last := m.Now().Unix(), m.warned.Load()
	if now-last >= 60 && m.warned.CompareAndSwap(last, now) {
		m.Logger.WarnContext(ctx, "sessions in use can't be extended, and will end at the idle timeout", "error", err)
	}
}

// ttl is how long a session that is used now may live.
func (m *Manager) ttl(s *coatcheck.Session) time.Duration {
	return min(m.Idle, s.Deadline.Sub(m.Now()))
}

// Clear deletes the session cookie in the response header h. It is for a cookie that
// Load found invalid.
func (m *Manager) Clear(h http.Header) { m.Jar.Expire(h, m.Jar.Session()) }

// logPanic logs a panic with the value v, which the caller has just recovered. The value's text
// may quote anything and stays out of the log (invariant 13).
func logPanic(ctx context.Context, l *slog.Logger, where string, v any, more ...any) {
	l.ErrorContext(ctx, "panic while "+where, append(more, "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))...)
}

// errPanicked is what comes of a piece of work that panicked.
var errPanicked = errors.New("session: panicked")

// guarded does a piece of the work that belongs to no request. A panic ends that piece alone,
// as one in a request's goroutine ends the request: a record that makes the code panic would
// else stop one node after the other.
func (m *Manager) guarded(ctx context.Context, where string, do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			logPanic(ctx, m.Logger, where, v)
			err = errPanicked
		}
	}()
	return do()
}

func (m *Manager) place(handle string) seal.Place {
	return seal.Place{Purpose: purpose, Tenant: m.Tenant, Cookie: m.Jar.Session(), Key: handle}
}
