package session

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// End ends the session for every node, and clears the cookie in the response header h. in is
// the header of the request that it was loaded for; without it, tokens that it got since then
// are not revoked. If the store can't be reached it returns an error with CodeUnknown, and the
// cookie stays: a person who was told "signed out" must be.
func (m *Manager) End(ctx context.Context, h, in http.Header, l *Live, reason coatcheck.Reason) error {
	if err := m.end(ctx, m.holdingOf(in, l), reason); err != nil {
		return coatcheck.E(coatcheck.CodeUnknown, "session.end", err)
	}
	m.Clear(h)
	return nil
}

// A holding is a session as it was loaded, and the ticket that opens it.
type holding struct {
	ticket ticket
	live   *Live
}

// holdingOf returns a session with the ticket that the header of a request has of it, or with
// one that opens nothing.
func (m *Manager) holdingOf(in http.Header, l *Live) holding {
	var buf [maxCandidates]string
	candidates, _ := m.candidates(in, buf[:0])
	for _, value := range candidates {
		if t, err := parseTicket(m.Jar.Session(), value); err == nil && t.handle == l.handle {
			return holding{t, l}
		}
	}
	return holding{ticket{handle: l.handle}, l}
}

// end ends a session that was loaded.
func (m *Manager) end(ctx context.Context, h holding, reason coatcheck.Reason) error {
	return m.endListed(ctx, m.listing(h.live.Session, h.live.handle, h.live.verifier), reason, &h)
}

// endListed marks an entry as ending, and finishes it. One that is not listed, for the
// registry has lost it, is ended all the same; and so is one that can't be marked, by a
// store that refuses to write: the record is deleted, and the entry follows when it can.
// h is the session, nil if nobody holds its ticket.
func (m *Manager) endListed(ctx context.Context, listing store.Entry, reason coatcheck.Reason, h *holding) error {
	marked, err := m.mark(ctx, listing, reason)
	if err != nil {
		return m.endUnmarked(ctx, listing, reason, h, err)
	}
	return m.finish(ctx, marked, h)
}

// mark marks an entry as ending, and returns it as it is then.
func (m *Manager) mark(ctx context.Context, listing store.Entry, reason coatcheck.Reason) (store.Entry, error) {
	marked, err := m.Registry.End(ctx, listing, string(reason))
	if errors.Is(err, store.ErrNotFound) {
		marked, err = listing, nil
		marked.Ending = string(reason)
	}
	return marked, err
}

// endUnmarked ends a session whose entry could not be marked for cause.
func (m *Manager) endUnmarked(ctx context.Context, listing store.Entry, reason coatcheck.Reason, h *holding, cause error) error {
	e, _ := m.describe(listing)
	_ = m.bury(ctx, e, reason) // a store that refuses writes has no room for it, perhaps
	granted := m.granted(ctx, listing, reason, h)
	if err := m.Store.Delete(ctx, listing.Record); err != nil {
		return errors.Join(cause, err)
	}
	m.revokeLater(granted)
	m.forget(listing.Record)
	m.upkeep.deleted(listing.Record)
	m.upkeep.leave(listing, reason)
	return nil
}

// finish ends what is left of a session whose entry is marked as ending. It returns nil
// once nobody can use the session; what then fails of the rest is done again by whichever
// node reaps the entry. h is the session, nil if nobody holds its ticket.
func (m *Manager) finish(ctx context.Context, listed store.Entry, h *holding) error {
	e, _ := m.describe(listed) // one of another version ends without a word of explanation
	reason := e.reason()
	if err := m.bury(ctx, e, reason); err != nil {
		m.Logger.DebugContext(ctx, "an ended session will not be able to say why", "session", e.Ref, "error", err)
	}
	granted := m.granted(ctx, listed, reason, h)
	if err := m.Store.Delete(ctx, listed.Record); err != nil {
		return err
	}
	m.forget(listed.Record)
	m.revokeLater(granted)
	if listed.Ending != store.ReasonExpired {
		m.upkeep.deleted(listed.Record)
	}
	if reason != abandoned {
		ended := m.event(coatcheck.EventEnded, e, 0)
		ended.Reason = reason
		if err := m.Events.Record(ctx, ended); err != nil {
			m.Logger.DebugContext(ctx, "the end of a session is not recorded yet", "session", e.Ref, "error", err)
			return nil // not removed: it must be recorded first
		}
	}
	if err := m.Registry.Remove(ctx, listed); err != nil {
		m.Logger.DebugContext(ctx, "an ended session is still listed", "session", e.Ref, "error", err)
	}
	return nil
}

// forget drops what this node keeps of a record that has changed or ended, and looks after
// the streams that stand on it.
func (m *Manager) forget(handle string) {
	m.cache.changed(handle)
	m.streams.changed(m, handle)
	m.renewal.changed(handle)
}

// A Query says which sessions. At most one of Subject, SID and Ref is set; Issuer goes with
// Subject and SID. The zero Query stands for all sessions of the tenant.
type Query struct {
	Issuer  string
	Subject string
	SID     string
	Ref     coatcheck.Ref
}

func (m *Manager) storeQuery(q Query) store.Query {
	sq := store.Query{Tenant: m.tenantName(), ID: string(q.Ref)}
	if q.Subject != "" {
		sq.User = m.userName(q.Issuer, q.Subject)
	}
	if q.SID != "" {
		sq.SID = m.sidName(q.Issuer, q.SID)
	}
	return sq
}

// Find yields the listed sessions of the tenant that match q, page by page, in no particular
// order. A listed session may have ended a moment ago. An entry that can't be read comes
// with ErrUndescribed, without ending the list; an error of the store ends it.
func (m *Manager) Find(ctx context.Context, q Query) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for listed, err := range m.Registry.Find(ctx, m.storeQuery(q)) {
			var e Entry
			if err == nil {
				e, err = m.describe(listed)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Revoke ends a session that Find has found, for every node. An error leaves open whether it
// has ended.
func (m *Manager) Revoke(ctx context.Context, e Entry, reason coatcheck.Reason) error {
	return m.endListed(ctx, e.listed, reason, nil)
}

// EndAll ends all listed sessions that match q, for every node, and returns how many lived
// until then. Only with a nil error can none of them be used any more. q must say whose
// sessions, which of the provider's, or which one; except is left out, unless it is "".
func (m *Manager) EndAll(ctx context.Context, q Query, except coatcheck.Ref, reason coatcheck.Reason) (ended int, err error) {
	const op = "session.end_all"
	if q.Subject == "" && q.SID == "" && q.Ref == "" {
		return 0, coatcheck.E(coatcheck.CodeInternal, op, errors.New("the query names nobody"))
	}
	ended, err = m.endAll(ctx, m.storeQuery(q), func(e store.Entry) bool { return e.ID == string(except) }, reason)
	if err != nil {
		return ended, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	return ended, nil
}

// endAll ends all listed sessions that match q but those that are spared; nil spares none.
// Those that somebody else is ending already are ended as well: nobody knows how far that is.
func (m *Manager) endAll(ctx context.Context, q store.Query, spared func(store.Entry) bool, reason coatcheck.Reason) (ended int, err error) {
	var count, failures atomic.Int64
	var group errgroup.Group
	group.SetLimit(atOnce)
	var findErr error
	for listed, err := range m.Registry.Find(ctx, q) {
		if err != nil {
			findErr = fmt.Errorf("find the sessions: %w", err)
			break
		}
		if spared != nil && spared(listed) {
			continue
		}
		group.Go(func() error {
			if err := m.endListed(ctx, listed, reason, nil); err != nil {
				failures.Add(1)
				return err
			}
			if listed.Ending == "" {
				count.Add(1)
			}
			return nil
		})
	}
	if err = group.Wait(); err != nil {
		err = fmt.Errorf("%d sessions may not have ended: %w", failures.Load(), err)
	}
	return int(count.Load()), errors.Join(findErr, err)
}

// event returns an event of a session. n tells apart events of one type.
func (m *Manager) event(typ coatcheck.EventType, e Entry, n int64) coatcheck.Event {
	return coatcheck.Event{
		ID: coatcheck.MakeEventID(typ, e.Ref, n), Type: typ, Time: m.Now(),
		Tenant: e.Tenant, Issuer: e.Issuer, Subject: e.Subject, Ref: e.Ref, App: e.Origin.App,
	}
}

// record takes down an event that nothing waits for.
func (m *Manager) record(ctx context.Context, ev coatcheck.Event) {
	if err := m.Events.Record(ctx, ev); err != nil {
		m.Logger.WarnContext(ctx, "other nodes may not hear of an event", "event", ev.Type, "session", ev.Ref, "error", err)
	}
}

// tellRenewed tells that a session is still in use, when the use moved its idle end into
// another half of the idle timeout: left is what was left before.
func (m *Manager) tellRenewed(ctx context.Context, l *Live, left time.Duration) {
	half := m.Idle / 2
	now := m.Now().Sub(l.Created)
	before := now - max(m.Idle-left, 0)
	if half <= 0 || before/half == now/half {
		return
	}
	m.record(ctx, m.event(coatcheck.EventRenewed, Entry{
		Ref: l.Ref, Tenant: l.Tenant, Issuer: l.Identity.Issuer, Subject: l.Identity.Subject, Origin: l.Origin,
	}, int64(now/half)))
}
