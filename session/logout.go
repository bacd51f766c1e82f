package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A Logout is what a provider says, server to server, of sessions that have ended there
// (OpenID Connect Back-Channel Logout 1.0). Whoever hands it on has verified it.
type Logout struct {
	Issuer  string
	SID     string // ends the sessions of that session at the provider
	Subject string // without SID: ends all sessions of that person
	ID      string // names the logout, once for the issuer
	// Expires is after when no node hands the logout on any more. So long its ID is remembered.
	Expires time.Time
}

// ErrReplayed: a logout of that ID was carried out already.
var ErrReplayed = errors.New("session: this logout was carried out already")

// replayMargin is for how much longer than until Logout.Expires a logout's ID is remembered: one
// that was handed on in time may be carried out a little later.
const replayMargin = 2 * time.Minute

// logoutRecord is what is remembered of a logout.
type logoutRecord struct {
	Version int   `cbor:"0,keyasint"`
	At      int64 `cbor:"1,keyasint"` // when it came first, in Unix milliseconds
	Done    bool  `cbor:"2,keyasint"`
}

const logoutVersion = 1

// BackChannelLogout carries out a logout, and returns how many sessions lived until then.
// With a nil error none of those that the logout is for can be used any more, on any node,
// nor those of sign-ins that are still in their callback.
//
// It returns ErrReplayed, and ends nothing, once the same logout was carried out. Every
// other error leaves open which sessions have ended; the same logout may then come again. By a
// SID it ends what it has left. By a Subject alone it does not touch what has begun since it
// came first, unless the store could not write down then that it came: better one sign-in too
// many than a session that the provider has ended.
func (m *Manager) BackChannelLogout(ctx context.Context, l Logout) (ended int, err error) {
	const op = "session.logout"
	ended, err = m.backChannelLogout(ctx, l)
	if err != nil && !errors.Is(err, ErrReplayed) {
		err = coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	return ended, err
}

func (m *Manager) backChannelLogout(ctx context.Context, l Logout) (ended int, err error) {
	if l.Issuer == "" || l.ID == "" || l.SID == "" && l.Subject == "" {
		return 0, errors.New("session: a logout that says too little")
	}
	key := "logout-token-" + m.name("logout token", l.Issuer, l.ID)
	at := m.Now()
	first, revision, err := m.readLogout(ctx, key)
	again := err == nil
	switch {
	case again && first.Done:
		return 0, ErrReplayed
	case again:
		at = time.UnixMilli(first.At)
	case !errors.Is(err, store.ErrNotFound):
		return 0, err
	}

	q := store.Query{Tenant: m.tenantName()}
	var spared func(store.Entry) bool
	wall := ""
	if l.SID != "" {
		q.SID = m.sidName(l.Issuer, l.SID)
		wall = sidBarrier(q.SID)
	} else {
		q.User = m.userName(l.Issuer, l.Subject)
		wall = userBarrier(q.User)
		if again { // who has signed in since then has done so after the logout, or met the barrier
			spared = func(listed store.Entry) bool {
				e, _ := m.describe(listed)
				return e.Started.After(at.Add(clockError))
			}
		}
	}
	if err := m.raise(ctx, wall, at); err != nil {
		return 0, fmt.Errorf("raise the barrier: %w", err)
	}
	if !again { // only now: a logout that is remembered has its barrier
		err := m.Store.Create(ctx, key, encodeLogout(at, false), m.replayLife(l))
		switch {
		case errors.Is(err, store.ErrExists): // it came twice at once
			return m.backChannelLogout(ctx, l)
		case err != nil:
			return 0, fmt.Errorf("remember the logout: %w", err)
		}
	}
	ended, err = m.endAll(ctx, q, spared, coatcheck.ReasonBackChannel)
	if err != nil {
		return ended, err
	}
	m.logoutDone(ctx, l, key, at, revision)
	return ended, nil
}

// replayLife is how long a logout's ID is remembered from now.
func (m *Manager) replayLife(l Logout) time.Duration {
	return max(l.Expires.Sub(m.Now()), 0) + replayMargin
}

// logoutDone notes that a logout was carried out. If that fails the logout is taken once
// more, should it come again, and finds nothing that it may end.
func (m *Manager) logoutDone(ctx context.Context, l Logout, key string, at time.Time, revision uint64) {
	var err error
	if revision == 0 {
		_, revision, err = m.readLogout(ctx, key)
	}
	if err == nil {
		err = m.Store.Replace(ctx, key, revision, encodeLogout(at, true), m.replayLife(l))
	}
	if err != nil {
		m.Logger.DebugContext(ctx, "a logout is not noted as carried out", "error", err)
	}
}

func (m *Manager) readLogout(ctx context.Context, key string) (r logoutRecord, revision uint64, err error) {
	rec, err := m.Store.Get(ctx, key)
	if err != nil {
		return r, 0, err
	}
	if err := decMode.Unmarshal(rec.Value, &r); err != nil || r.Version != logoutVersion {
		return r, 0, errors.New("session: what is remembered of a logout can't be read: it is of another version, or broken")
	}
	return r, rec.Revision, nil
}

func encodeLogout(at time.Time, done bool) []byte {
	return must(encMode.Marshal(logoutRecord{logoutVersion, at.UnixMilli(), done}))
}
