package session

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A tombstone says why a session ended, for a while, to the holder of its ticket
// (invariant 15). It lies in the store under a keyed hash, and holds a verifier that only
// the ticket's secret and the index key together make: whoever ends a session knows it
// from the registry, and whoever asks must hold the ticket.
type tombstone struct {
	Version  int    `cbor:"0,keyasint"`
	Reason   string `cbor:"1,keyasint"`
	Verifier []byte `cbor:"2,keyasint"`
}

const tombstoneVersion = 1

// maxSkew is how much the clocks of node and store may differ before somebody is told of a
// session that ended idle that it was lost.
const maxSkew = time.Minute

func (m *Manager) tombstoneKey(handle string) string {
	sum := m.Ring.Index("tombstone", m.Tenant, handle)
	return "tombstone-" + hex.EncodeToString(sum[:16])
}

// verifier is what proves that somebody holds a ticket, to those who don't know it.
func (m *Manager) verifier(t ticket) []byte {
	sum := m.Ring.Index("verifier", m.Tenant, t.handle, string(t.secret[:]))
	return sum[:]
}

// bury leaves a tombstone. The first reason stays.
func (m *Manager) bury(ctx context.Context, e Entry, reason coatcheck.Reason) error {
	if m.Tombstones <= 0 || reason == abandoned || e.verifier == nil {
		return nil
	}
	data := must(encMode.Marshal(tombstone{tombstoneVersion, string(reason), e.verifier}))
	err := m.Store.Create(ctx, m.tombstoneKey(e.listed.Record), data, m.Tombstones)
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return err
}

// Ended tells why the session of a request's dead cookie ended: "" where nobody knows (any
// more), or the request does not hold its ticket. It reads the store up to four times for each
// session cookie, so it is for requests whose answer tells the reason to somebody.
func (m *Manager) Ended(ctx context.Context, h http.Header) coatcheck.Reason {
	var buf [maxCandidates]string
	candidates, err := m.candidates(h, buf[:0])
	if err != nil {
		return ""
	}
	for _, value := range candidates {
		t, err := parseTicket(m.Jar.Session(), value)
		if err != nil {
			continue
		}
		if reason := m.readTombstone(ctx, t); reason != "" {
			return reason
		}
		if reason := m.readEnding(ctx, t); reason != "" {
			return reason
		}
	}
	return ""
}

// readTombstone returns what the tombstone says to the holder of the ticket, or "".
func (m *Manager) readTombstone(ctx context.Context, t ticket) coatcheck.Reason {
	if m.Tombstones <= 0 {
		return ""
	}
	rec, err := m.Store.Get(ctx, m.tombstoneKey(t.handle))
	if err != nil {
		return ""
	}
	var stone tombstone
	if err := decMode.Unmarshal(rec.Value, &stone); err != nil || stone.Version != tombstoneVersion {
		return ""
	}
	if subtle.ConstantTimeCompare(stone.Verifier, m.verifier(t)) != 1 {
		return ""
	}
	return coatcheck.Reason(stone.Reason)
}

// readEnding looks at the registry, for a session whose record is gone while nobody has
// left a tombstone yet. It returns "" where that says nothing.
func (m *Manager) readEnding(ctx context.Context, t ticket) coatcheck.Reason {
	q := store.Query{Tenant: m.tenantName(), ID: string(coatcheck.MakeRef(t.handle))}
	for listed, err := range m.Registry.Find(ctx, q) {
		if err != nil {
			return ""
		}
		e, err := m.describe(listed)
		if err != nil || subtle.ConstantTimeCompare(e.verifier, m.verifier(t)) != 1 {
			return ""
		}
		if _, err = m.Store.Get(ctx, t.handle); !errors.Is(err, store.ErrNotFound) {
			return ""
		}
		if e.Ending != "" || !m.Now().Add(maxSkew).Before(e.Expires) {
			return e.reason()
		}
		// Its time was not over. Unless it was ended between these reads, nobody did.
		return cmp.Or(m.readTombstone(ctx, t), coatcheck.ReasonLost)
	}
	return ""
}

// reason says why a listed session whose record is gone has ended. Its record ends by
// itself at e.Expires or at e.Deadline, which is the same where that came first.
func (e *Entry) reason() coatcheck.Reason {
	switch {
	case e.Ending != "" && e.Ending != store.ReasonExpired:
		return e.Ending
	case !e.Deadline.IsZero() && !e.Expires.Add(time.Second).Before(e.Deadline):
		return coatcheck.ReasonAbsolute
	default:
		return coatcheck.ReasonIdle
	}
}
