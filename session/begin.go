package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// abandoned marks the entry of a session whose sign-in failed at its last step: nobody ever
// held the ticket, so it ends without a word to anybody.
const abandoned coatcheck.Reason = "abandoned"

// Begin keeps a new session for s and puts its ticket into the response header h. The
// ticket is always new; a session that the request (header in) still carries ends, so
// that nobody who planted a ticket gains by the sign-in (OWASP ASVS 7.2.4). s.Created,
// s.Deadline, s.Tenant, s.Renewal and s.Origin.Node are set here.
//
// The limits hold when Begin returns: the sessions that had to give way can't be used any
// more. A session of the same person that the request carries gives its place to the new
// one.
//
// asked is a time before the provider was asked for what it says in s, by Options.Now. If the
// provider has ended that session since then, or all of the person's, it is ended here too
// before anybody gets it.
//
// With an error no cookie is set and no session exists that anybody could use. It has
// CodeSessionEnded, with *EndedError, where the provider has ended it, CodeLimit where a
// limit refuses it, and CodeUnknown where the store or the ring can't tell; any other is a
// defect of ours.
func (m *Manager) Begin(ctx context.Context, h, in http.Header, s *coatcheck.Session, asked time.Time) (*Live, error) {
	const op = "session.begin"
	s.Tenant = m.Tenant
	s.Created = m.Now()
	s.Deadline = s.Created.Add(m.Absolute)
	s.Origin.Node = m.Node
	s.Origin.UserAgent = legibleUserAgent(s.Origin.UserAgent)
	m.planRenewal(s)
	t := newTicket(m.Jar.Session())
	sealed, err := m.seal(t, s)
	if err != nil {
		return nil, err
	}
	live := m.live(t, s)
	listing := m.listing(s, t.handle, live.verifier)
	entry, err := m.describe(listing)
	if err != nil {
		return nil, err
	}
	endTurn, err := m.turns.take(ctx, listing.User)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	defer endTurn()
	carried, err := m.carried(ctx, in)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, fmt.Errorf("look at the session before: %w", err))
	}

	// Unless the ticket is handed out, what is left in the store goes at the next occasion.
	left := abandoned
	defer func() {
		if left != "" {
			m.upkeep.leave(listing, left)
		}
	}()
	ttl := m.ttl(s)
	if err := m.Store.Create(ctx, t.handle, sealed, ttl); err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	ending, err := m.admit(ctx, listing, ttl+listedLonger, replaced(carried, s))
	if limit := (*store.LimitError)(nil); errors.As(err, &limit) {
		if m.Store.Delete(ctx, t.handle) == nil {
			left = ""
		}
		denied := m.event(coatcheck.EventLimitDenied, entry, 0)
		denied.Limit = string(limit.Limit)
		m.record(ctx, denied)
		return nil, coatcheck.E(coatcheck.CodeLimit, op, err)
	}
	if err == nil {
		err = m.giveWay(ctx, ending, carried)
	}
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	over, err := m.barred(ctx, listing, asked)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	left = ""
	m.record(ctx, m.event(coatcheck.EventStarted, entry, 0))
	if over {
		if err := m.end(ctx, holding{t, live}, coatcheck.ReasonBackChannel); err != nil {
			left = coatcheck.ReasonBackChannel
		}
		return nil, coatcheck.E(coatcheck.CodeSessionEnded, op, &EndedError{coatcheck.ReasonBackChannel})
	}
	m.Jar.Set(h, m.Jar.Session(), t.cookieValue(), m.Absolute)
	return live, nil
}

// giveWay ends what a new session displaces: the entries that its admission has marked as
// ending, and the sessions that its request carries.
func (m *Manager) giveWay(ctx context.Context, ending []store.Entry, carried []holding) error {
	for _, victim := range ending {
		if err := m.finish(ctx, victim, carriedOf(victim, carried)); err != nil {
			return fmt.Errorf("end the session before: %w", err)
		}
	}
	for _, before := range carried {
		if slices.ContainsFunc(ending, func(e store.Entry) bool { return e.ID == string(before.live.Ref) }) {
			continue
		}
		if err := m.end(ctx, before, coatcheck.ReasonReplaced); err != nil {
			return fmt.Errorf("end the session before: %w", err)
		}
	}
	return nil
}

// An EndedError says why a session has ended.
type EndedError struct{ Reason coatcheck.Reason }

// Error implements error.
func (e *EndedError) Error() string { return "the session has ended: " + string(e.Reason) }

// admit is Registry.Admit, with a second try where the list denies for sessions that are
// gone, because the store has lost them.
func (m *Manager) admit(ctx context.Context, e store.Entry, ttl time.Duration, replaces string) ([]store.Entry, error) {
	ending, err := m.Registry.Admit(ctx, e, ttl, m.Limits, replaces)
	var limit *store.LimitError
	if !errors.As(err, &limit) || limit.Limit == store.LimitTotal {
		return ending, err
	}
	gone := 0
	for listed, findErr := range m.Registry.Find(ctx, store.Query{Tenant: e.Tenant, User: e.User}) {
		if findErr != nil {
			return nil, findErr
		}
		if listed.Ending != "" {
			continue
		}
		if _, getErr := m.Store.Get(ctx, listed.Record); !errors.Is(getErr, store.ErrNotFound) {
			continue
		}
		lost, endErr := m.Registry.End(ctx, listed, string(coatcheck.ReasonLost))
		if endErr == nil {
			endErr = m.finish(ctx, lost, nil)
		}
		if endErr != nil && !errors.Is(endErr, store.ErrNotFound) {
			return nil, endErr
		}
		gone++
	}
	if gone == 0 {
		return nil, err
	}
	return m.Registry.Admit(ctx, e, ttl, m.Limits, replaces)
}

// replaced returns the ID of the carried session that gives its place to s: one of the same
// person.
func replaced(carried []holding, s *coatcheck.Session) string {
	for _, before := range carried {
		if id := before.live.Identity; id.Issuer == s.Identity.Issuer && id.Subject == s.Identity.Subject {
			return string(before.live.Ref)
		}
	}
	return ""
}

// carriedOf returns the session of an entry if it is one of those that the request carries,
// nil if not.
func carriedOf(e store.Entry, carried []holding) *holding {
	for i, before := range carried {
		if e.ID == string(before.live.Ref) {
			return &carried[i]
		}
	}
	return nil
}

// carried returns the live sessions that a request carries.
func (m *Manager) carried(ctx context.Context, in http.Header) ([]holding, error) {
	var buf [maxCandidates]string
	candidates, err := m.candidates(in, buf[:0])
	if err != nil {
		return nil, nil // such cookies open nothing
	}
	var list []holding
	for _, value := range candidates {
		l, _, err := m.open(ctx, value)
		if errors.Is(err, ErrInvalid) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t, _ := parseTicket(m.Jar.Session(), value) // which open has read too
		list = append(list, holding{t, l})
	}
	return list, nil
}
