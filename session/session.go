// Package session turns a cookie into a session and back: it begins, loads and ends
// sessions, and enforces their lifetimes.
//
// A session lives in a [store.Store] as a sealed record; the browser holds a ticket,
// which names the record and opens it. Every question has three answers (invariant
// 1): the session is valid, it is invalid ([ErrInvalid]), or nobody can tell now (an
// error with coatcheck.CodeUnknown). Only the second may cost a person the cookie.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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

// purpose binds records to what they are (invariant 12).
const purpose = "session"

// Options are what a Manager needs. All of it is required but Now.
type Options struct {
	Store  store.Store
	Ring   *seal.Ring
	Jar    *cookie.Jar
	Tenant string
	// Idle ends a session that is not used for so long, Absolute ends every one.
	// Idle is at most Absolute.
	Idle, Absolute time.Duration
	Now            func() time.Time // time.Now if nil
	Logger         *slog.Logger     // for touches that fail; nothing is logged if nil
}

// A Manager keeps the sessions of one tenant. It is safe for concurrent use.
type Manager struct {
	Options
	slack  time.Duration
	opened opened
	warned atomic.Int64 // when a failed touch was logged last, in Unix seconds
}

// New returns a Manager.
func New(o Options) *Manager {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	// A use is written down only once in so long. The session ends by at most that
	// much early, and never late.
	return &Manager{Options: o, slack: min(o.Idle/20, 30*time.Second)}
}

// A Live is a session that was loaded for a request.
type Live struct {
	*coatcheck.Session
	Ref    coatcheck.Ref
	handle string
	ttl    time.Duration // what was left of the record's life when it was read
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
	for _, value := range candidates {
		l, err := m.open(ctx, value)
		switch {
		case errors.Is(err, ErrInvalid):
		case err != nil:
			return nil, err
		case live != nil:
			return nil, coatcheck.E(coatcheck.CodeAmbiguousSession, "session.load",
				fmt.Errorf("the request carries the live sessions %s and %s", live.Ref, l.Ref))
		default:
			live = l
		}
	}
	if live == nil {
		return nil, ErrInvalid
	}
	if err := m.touch(ctx, live); err != nil {
		return nil, err
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

// open returns the session that one cookie value opens. The record is only read: one
// that doesn't open is left alone, for it may be somebody else's.
func (m *Manager) open(ctx context.Context, value string) (*Live, error) {
	const op = "session.load"
	t, err := parseTicket(m.Jar.Session(), value)
	if err != nil {
		return nil, ErrInvalid
	}
	rec, err := m.Store.Get(ctx, t.handle)
	if errors.Is(err, store.ErrNotFound) {
		m.opened.forget(t.handle)
		return nil, ErrInvalid
	}
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	s := m.opened.find(m.Now(), t, rec.Value)
	if s == nil {
		if s, err = m.unseal(t, rec.Value); err != nil {
			return nil, err
		}
		m.opened.keep(m.Now(), t, rec.Value, s)
	}
	if s.Tenant != m.Tenant || !m.Now().Before(s.Deadline) {
		return nil, ErrInvalid
	}
	return &Live{Session: s, Ref: coatcheck.MakeRef(t.handle), handle: t.handle, ttl: rec.TTL}, nil
}

// unseal returns the session that a record's value holds.
func (m *Manager) unseal(t ticket, sealed []byte) (*coatcheck.Session, error) {
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
	return s, nil
}

// touch moves the idle end of a session that is in use, at most once in m.slack, and
// once more when the absolute end is nearer than that, so that it comes no sooner. A
// session that ended between the read and the touch is invalid: it was ended on
// purpose. Any other failure costs nothing now, since the read was good and the next
// request tries again.
func (m *Manager) touch(ctx context.Context, l *Live) error {
	want, slack := m.ttl(l.Session), m.slack
	if want < m.Idle {
		slack = min(slack, storeResolution)
	}
	if l.ttl >= want-slack {
		return nil
	}
	switch err := m.Store.Touch(ctx, l.handle, want); {
	case errors.Is(err, store.ErrNotFound):
		return ErrInvalid
	case err != nil && ctx.Err() == nil:
		m.warn(ctx, err)
	}
	return nil
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

// Begin keeps a new session for s and puts its ticket into the response header h. The
// ticket is always new; a session that the request (header in) still carries ends, so
// that nobody who planted a ticket gains by the sign-in (OWASP ASVS 7.2.4). s.Created
// and s.Deadline are set here.
//
// With an error no cookie is set and no session exists that anybody could use. It has
// CodeUnknown where the store or the ring can't tell; any other is a defect of ours.
func (m *Manager) Begin(ctx context.Context, h, in http.Header, s *coatcheck.Session) (*Live, error) {
	const op = "session.begin"
	s.Tenant = m.Tenant
	s.Created = m.Now()
	s.Deadline = s.Created.Add(m.Absolute)
	plain, err := encode(s)
	if err != nil {
		return nil, err
	}
	t := newTicket(m.Jar.Session())
	sealed, err := m.Ring.SealRecord(m.place(t.handle), t.secret[:], plain)
	if err != nil {
		return nil, err
	}
	if err := m.Store.Create(ctx, t.handle, sealed, m.ttl(s)); err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	if err := m.endCarried(ctx, in); err != nil {
		// Nobody holds the new ticket; if this fails too, the record just expires.
		_ = m.Store.Delete(ctx, t.handle)
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, fmt.Errorf("end the session before: %w", err))
	}
	m.Jar.Set(h, m.Jar.Session(), t.cookieValue(), m.Absolute)
	return &Live{Session: s, Ref: coatcheck.MakeRef(t.handle), handle: t.handle}, nil
}

// endCarried deletes every live session that a request carries.
func (m *Manager) endCarried(ctx context.Context, in http.Header) error {
	var buf [maxCandidates]string
	candidates, err := m.candidates(in, buf[:0])
	if err != nil {
		return nil // such cookies open nothing
	}
	for _, value := range candidates {
		l, err := m.open(ctx, value)
		if errors.Is(err, ErrInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		if err := m.Store.Delete(ctx, l.handle); err != nil {
			return err
		}
		m.opened.forget(l.handle)
	}
	return nil
}

// End ends the session at once and for every node, and clears the cookie in the
// response header h. If the store can't be reached it returns an error with
// CodeUnknown, and the session and the cookie stay: a person who was told "signed
// out" must be.
func (m *Manager) End(ctx context.Context, h http.Header, l *Live) error {
	if err := m.Store.Delete(ctx, l.handle); err != nil {
		return coatcheck.E(coatcheck.CodeUnknown, "session.end", err)
	}
	m.opened.forget(l.handle)
	m.Clear(h)
	return nil
}

// Clear deletes the session cookie in the response header h. It is for a cookie that
// Load found invalid.
func (m *Manager) Clear(h http.Header) { m.Jar.Expire(h, m.Jar.Session()) }

func (m *Manager) place(handle string) seal.Place {
	return seal.Place{Purpose: purpose, Tenant: m.Tenant, Cookie: m.Jar.Session(), Key: handle}
}
