package session

import (
	mathrand "math/rand/v2"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A need is what a session wants of its provider.
type need uint8

const (
	needNothing need = iota
	needCheck        // whether the provider still vouches for the person
	needRefresh      // new tokens, soon
	needFresh        // new tokens, before the next request is served
	needEnd          // nothing any more: the new tokens were lost
)

// needOf says what a session wants at a time. It only looks at what stands in the record:
// whether somebody is about it already is for the lease to say.
//
// An access token that has ended and can't be replaced ends nobody's session: that is what
// the session's own timeouts are for.
func (m *Manager) needOf(s *coatcheck.Session, now time.Time) need {
	r, expiry := &s.Renewal, s.Tokens.AccessExpiry
	ended := !expiry.IsZero() && !now.Before(expiry)
	switch {
	case m.Provider == nil, !m.Provider.Knows(s.Provider, s.Identity.Issuer):
		return needNothing
	case lost(s) && ended && !now.Before(r.NotBefore):
		return needEnd
	case lost(s):
	case s.Tokens.Refresh == "" || expiry.IsZero() || now.Before(r.NotBefore):
	case ended:
		return needFresh
	case r.NotBefore.IsZero() && now.Before(expiry.Add(-maxAhead)): // nobody has planned it
	default:
		return needRefresh
	}
	if m.Recheck > 0 && !ended && s.Tokens.Access != "" && !now.Before(r.Checked.Add(m.Recheck)) {
		return needCheck
	}
	return needNothing
}

// lost tells whether the session's refresh token may have been used up by somebody who was
// not heard of again. It is forgotten then, and the attempt stays.
func lost(s *coatcheck.Session) bool { return s.Tokens.Refresh == "" && s.Renewal.Attempt != "" }

// renewalDue returns the first time at which needOf may want something, where there is a
// Provider; zero for never.
func (m *Manager) renewalDue(s *coatcheck.Session) time.Time {
	r, expiry := &s.Renewal, s.Tokens.AccessExpiry
	var due time.Time
	switch {
	case lost(s):
		if due = expiry; due.Before(r.NotBefore) {
			due = r.NotBefore
		}
	case s.Tokens.Refresh == "" || expiry.IsZero():
	case r.NotBefore.IsZero():
		due = expiry.Add(-maxAhead)
	default:
		due = r.NotBefore
	}
	if m.Recheck > 0 && s.Tokens.Access != "" {
		if check := r.Checked.Add(m.Recheck); due.IsZero() || check.Before(due) {
			due = check
		}
	}
	return due
}

// planRenewal says when new tokens are due: ahead of the access token's end, and not at the
// same moment for all who have signed in together. s has just got its tokens.
func (m *Manager) planRenewal(s *coatcheck.Session) {
	now := m.Now()
	s.Renewal = coatcheck.Renewal{Checked: now}
	if s.Tokens.Refresh == "" || s.Tokens.AccessExpiry.IsZero() {
		return
	}
	ahead := min(max(s.Tokens.AccessExpiry.Sub(now), 0)/5, maxAhead)
	if ahead > 0 {
		ahead += mathrand.N(ahead/2 + 1)
	}
	s.Renewal.NotBefore = s.Tokens.AccessExpiry.Add(-ahead)
}
