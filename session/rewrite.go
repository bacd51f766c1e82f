package session

import (
	"context"
	"errors"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// read returns the session that the store has for a ticket.
func (m *Manager) read(ctx context.Context, t ticket) (*Live, error) {
	rec, err := m.Store.Get(ctx, t.handle)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrInvalid
	}
	if err != nil {
		return nil, err
	}
	return m.unseal(t, rec.Value)
}

// rewrite changes a session's record by compare-and-set, again and again until nobody was
// faster. The function change is given the session as it is then, and tells whether there
// is anything to be written. It returns the session as it is afterwards, ErrInvalid where it
// has ended, and every other error where the outcome is not known.
//
// The record lives as long as it did: where a use moves its idle end at the same moment, that may
// be undone. So a renewal waits for the use that it comes of (awaitTouch), and one within m.slack
// of that is not written down anyway.
func (m *Manager) rewrite(ctx context.Context, t ticket, change func(*coatcheck.Session) bool) (*Live, error) {
	for {
		rec, err := m.Store.Get(ctx, t.handle)
		if errors.Is(err, store.ErrNotFound) {
			return nil, ErrInvalid
		}
		if err != nil {
			return nil, err
		}
		live, err := m.unseal(t, rec.Value)
		if err != nil {
			return nil, err
		}
		next := *live.Session
		if !change(&next) {
			return live, nil
		}
		sealed, err := m.seal(t, &next)
		if err != nil {
			return nil, err
		}
		live = m.live(t, &next)
		err = m.Store.Replace(ctx, t.handle, rec.Revision, sealed, rec.TTL)
		switch {
		case err == nil:
			m.forget(live.handle)
			return live, nil
		case errors.Is(err, store.ErrNotFound):
			m.forget(live.handle)
			return nil, ErrInvalid
		case !errors.Is(err, store.ErrConflict):
			m.forget(live.handle)
			return nil, err
		}
	}
}
