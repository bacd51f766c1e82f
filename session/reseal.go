package session

import (
	"context"
	"crypto/subtle"
	"strings"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// KeysChanged says that the ring has other keys now. Sessions are read again before they are
// served, since one of their keys may have been retired.
func (m *Manager) KeysChanged() { m.cache.reset() }

// startReseal begins to seal a session's record by the key that seals now, if the one that
// sealed it is older. It belongs to no request. What fails is tried again at another use.
func (m *Manager) startReseal(cookie string, live *Live) {
	t, err := parseTicket(m.Jar.Session(), strings.Clone(cookie))
	if err != nil {
		return
	}
	m.renewal.background(func() {
		ctx, cancel := context.WithTimeout(context.Background(), flightLimit)
		defer cancel()
		err := m.guarded(ctx, "a session was sealed anew", func() error {
			rec, err := m.Store.Get(ctx, t.handle)
			if err != nil || !m.Ring.Outdated(rec.Value) {
				return err
			}
			_, err = m.rewrite(ctx, t, func(*coatcheck.Session) bool { return true })
			return err
		})
		if err != nil {
			m.Logger.DebugContext(ctx, "a session is not sealed by the new key yet", "session", live.Ref, "error", err)
		}
	})
}

// endRetired ends a session whose record was sealed by a key that is retired, so that nobody
// can open it any more. It is asked for by whoever holds the ticket, which the entry in the
// registry proves; for anybody else it does nothing. It returns ErrInvalid, or CodeUnknown
// where the store can't tell.
func (m *Manager) endRetired(ctx context.Context, t ticket) error {
	q := store.Query{Tenant: m.tenantName(), ID: string(coatcheck.MakeRef(t.handle))}
	for listed, err := range m.Registry.Find(ctx, q) {
		var e Entry
		if err == nil {
			e, err = m.describe(listed)
		}
		if err == nil && subtle.ConstantTimeCompare(e.verifier, m.verifier(t)) == 1 {
			err = m.endListed(ctx, listed, coatcheck.ReasonKeyRetired, nil)
		}
		if err != nil {
			return coatcheck.E(coatcheck.CodeUnknown, "session.load", err)
		}
	}
	return ErrInvalid
}
