package session

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// maxGrants bounds how many tokens wait to be revoked. Those that find no room are left
	// to expire: the provider's answer is worth less than that people can sign out.
	maxGrants = 4096
	// revokers is how many requests to revoke are under way at once.
	revokers = 4
	// revokeTries is how often a token is tried that the provider could not be told of, and
	// revokePause is how long the first pause between two tries is; each is four times as
	// long as the one before.
	revokeTries = 4
	revokePause = time.Second
	// revokeLimit bounds one try.
	revokeLimit = 10 * time.Second
	// revokeDrain is how long a node that stops goes on revoking.
	revokeDrain = 3 * time.Second
)

// A grant is what a provider has granted for a session that has ended.
type grant struct {
	ref   coatcheck.Ref
	sid   string // of the provider's session, as the registry lists it
	token coatcheck.Secret
	kind  coatcheck.TokenKind
	// provider and issuer are those of the session.
	provider, issuer string
}

// granted returns what is to be revoked at the provider once a session has ended, for whose
// record it is the last chance; the zero grant is nothing. Without the session, h, it is what
// the escrow holds.
//
// A session that a new one of the same browser replaces has, as a rule, the provider's
// session in common with it, and a provider may take back with a token all that was granted
// there. So what it was granted is revoked only where it is known to be another one.
func (m *Manager) granted(ctx context.Context, listed store.Entry, reason coatcheck.Reason, h *holding) grant {
	if m.Provider == nil {
		return grant{}
	}
	switch reason {
	case coatcheck.ReasonSignedOut, coatcheck.ReasonSignedOutElsewhere, coatcheck.ReasonEvicted,
		coatcheck.ReasonRevoked, coatcheck.ReasonBackChannel:
	case coatcheck.ReasonReplaced:
		if listed.SID == "" {
			return grant{}
		}
	default:
		return grant{}
	}
	if h == nil {
		e, _ := m.describe(listed) // of one of another version no provider knows
		return grant{
			ref: e.Ref, sid: listed.SID, token: m.escrowed(ctx, listed.Record), kind: coatcheck.RefreshToken,
			provider: e.Provider, issuer: e.Issuer,
		}
	}
	live := h.live
	if live.Tokens == (coatcheck.Tokens{}) {
		return grant{}
	}
	// What the request holds may have been refreshed since. What a refresh brings between this
	// and the deletion of the record is revoked by that refresh: see keep.
	if now, err := m.read(ctx, h.ticket); err == nil {
		live = now
	}
	return m.grantOf(live)
}

// grantOf returns what the provider has granted for a session: revoking a refresh token
// revokes the access tokens that came of it (RFC 7009 §2.1).
func (m *Manager) grantOf(l *Live) grant {
	g := grant{ref: l.Ref, token: l.Tokens.Refresh, kind: coatcheck.RefreshToken, provider: l.Provider, issuer: l.Identity.Issuer}
	if l.ProviderSID != "" {
		g.sid = m.sidName(l.Identity.Issuer, l.ProviderSID)
	}
	if g.token == "" {
		g.token, g.kind = l.Tokens.Access, coatcheck.AccessToken
	}
	return g
}

// escrowed returns the refresh token of a record whose ticket nobody holds, "" if there is
// none that can be had.
func (m *Manager) escrowed(ctx context.Context, handle string) coatcheck.Secret {
	if !m.Escrow {
		return ""
	}
	rec, err := m.Store.Get(ctx, handle)
	if err != nil {
		return ""
	}
	token, err := m.Ring.OpenEscrow(m.place(handle), rec.Value)
	if err != nil {
		return ""
	}
	return coatcheck.Secret(token)
}

// revokeLater hands a grant to those who revoke. It never waits.
func (m *Manager) revokeLater(g grant) {
	if g.token == "" {
		return
	}
	select {
	case m.grants <- g:
	default:
		m.Logger.Warn("too many tokens wait to be revoked at the provider: one is left to expire", "session", g.ref)
	}
}

// revokeGrants revokes what is handed to it until ctx ends, and then what is left for a
// little while.
func (m *Manager) revokeGrants(ctx context.Context) {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(revokeDrain, stop) })()
	var workers sync.WaitGroup
	for range revokers {
		workers.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case g := <-m.grants:
					m.revokeGrant(working, ctx.Done(), g)
				}
			}
			for working.Err() == nil {
				select {
				case g := <-m.grants:
					m.revokeGrant(working, ctx.Done(), g)
				default:
					return
				}
			}
		})
	}
	workers.Wait()
}

// revokeGrant revokes a grant, in several tries while nobody is in a hurry. A token that
// may have been revoked is revoked once more: that does no harm.
func (m *Manager) revokeGrant(ctx context.Context, hurry <-chan struct{}, g grant) {
	pause := revokePause
	for try := 1; ; try++ {
		err := m.guarded(ctx, "a token was revoked", func() error { return m.tryRevoke(ctx, g) })
		if err == nil {
			return
		}
		outcome := outcomeOf(err)
		again := outcome == coatcheck.OutcomeNone || outcome == coatcheck.OutcomeUnknown
		if again && try < revokeTries {
			select {
			case <-hurry:
			case <-time.After(pause/2 + rand.N(pause)):
				pause *= 4
				continue
			}
		}
		m.Logger.Warn("a token of an ended session could not be revoked at the provider, and is left to expire",
			"session", g.ref, "outcome", outcome.String(), "error", err)
		return
	}
}

// tryRevoke revokes a grant unless another session stands on the provider's session that
// it was given for, or the provider is another one by now.
func (m *Manager) tryRevoke(ctx context.Context, g grant) error {
	ctx, cancel := context.WithTimeout(ctx, revokeLimit)
	defer cancel()
	if g.sid != "" {
		for listed, err := range m.Registry.Find(ctx, store.Query{Tenant: m.tenantName(), SID: g.sid}) {
			if err != nil {
				return &coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: err}
			}
			if listed.Ending == "" && listed.ID != string(g.ref) {
				return nil
			}
		}
	}
	provider := m.latest.Load().Provider
	if !provider.Knows(g.provider, g.issuer) {
		return nil
	}
	return provider.Revoke(ctx, g.token, g.kind)
}
