package session

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// A SealedCount tells of how many sessions in the store a key has sealed. It counts records,
// not the list of sessions: one that is not listed can be used too.
type SealedCount struct {
	Sealed int // by the key
	// Unread may be sealed by any key: they have a later format, by which nothing is ended.
	Unread int
	All    int // with those
}

// SealedBy counts the sessions that a key has sealed.
func (m *Manager) SealedBy(ctx context.Context, records store.Lister, key string) (SealedCount, error) {
	return m.eachSealedBy(ctx, records, key, func(context.Context, string, store.Record) (bool, error) { return true, nil })
}

// EndSealedBy ends the sessions that a key has sealed, for every node, and counts those that it
// has ended as sealed. The key is to be retired: no node may seal with it any more,
// though nodes may open what it has sealed. A session that a node seals anew meanwhile lives.
//
// An error of one session, of which the error says how many there are, keeps no other from
// ending. It may leave one that nodes don't know whether to serve (CodeUnknown). Called again,
// EndSealedBy ends the rest.
func (m *Manager) EndSealedBy(ctx context.Context, records store.Lister, key string) (SealedCount, error) {
	return m.eachSealedBy(ctx, records, key, func(ctx context.Context, handle string, rec store.Record) (bool, error) {
		return m.endSealedBy(ctx, handle, rec, key)
	})
}

// eachSealedBy calls act with the record of each session that a key has sealed, several at
// once, and counts those of which it is true. What fails of one session keeps none of the
// others back.
func (m *Manager) eachSealedBy(ctx context.Context, records store.Lister, key string,
	act func(ctx context.Context, handle string, rec store.Record) (bool, error),
) (SealedCount, error) {
	var counted, unread, sessions, failures atomic.Int64
	var err error
	seen := map[string]bool{}
	var group errgroup.Group // returns the first error
	group.SetLimit(atOnce)
	for handle, listErr := range records.Keys(ctx, m.Jar.Session()+"-") {
		if err = errors.Join(listErr, ctx.Err()); err != nil {
			break
		}
		if seen[handle] || !isHandle(m.Jar.Session(), handle) {
			continue
		}
		seen[handle] = true
		group.Go(func() error {
			rec, err := m.Store.Get(ctx, handle)
			if errors.Is(err, store.ErrNotFound) {
				return nil // it has ended meanwhile
			}
			if err != nil {
				failures.Add(1)
				return err
			}
			sessions.Add(1)
			id, ok := sealer(rec)
			if !ok {
				unread.Add(1)
			}
			if id != key {
				return nil
			}
			did, err := act(ctx, handle, rec)
			if did {
				counted.Add(1)
			}
			if err != nil {
				failures.Add(1)
			}
			return err
		})
	}
	if err != nil {
		err = fmt.Errorf("list the sessions: %w", err)
	}
	if first := group.Wait(); first != nil {
		err = errors.Join(fmt.Errorf("%d sessions could not be looked at, or may not have ended: %w", failures.Load(), first), err)
	}
	if err != nil {
		err = fmt.Errorf("session: sealed by %s: %w", key, err)
	}
	return SealedCount{int(counted.Load()), int(unread.Load()), int(sessions.Load())}, err
}

// sealer returns the ID of the key that has sealed a record, also of one that was withdrawn. It
// is not ok if that can't be read.
func sealer(rec store.Record) (id string, ok bool) {
	sealed, ok := seal.Withdrawn(rec.Value)
	if !ok {
		sealed = rec.Value
	}
	return seal.KeyID(sealed)
}

// endSealedBy ends a session unless it is sealed anew meanwhile, and tells whether it has.
//
// A node that still has the key may do that any moment, so the record is withdrawn by
// compare-and-set before anything else: from then on the session is unknown to all nodes, and
// it ends as others do. Whoever is interrupted in between leaves that to the next call.
func (m *Manager) endSealedBy(ctx context.Context, handle string, rec store.Record, key string) (bool, error) {
	for {
		if _, ok := seal.Withdrawn(rec.Value); ok {
			break
		}
		err := m.Store.Replace(ctx, handle, rec.Revision, seal.Withdraw(rec.Value), rec.TTL)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrConflict) {
			return false, ignoreGone(err)
		}
		if rec, err = m.Store.Get(ctx, handle); err != nil {
			return false, ignoreGone(err)
		}
		if id, _ := sealer(rec); id != key {
			return false, nil
		}
	}
	ctx = context.WithoutCancel(ctx) // what is withdrawn is ended
	e, err := m.listedAs(ctx, coatcheck.MakeRef(handle))
	switch {
	case err != nil:
		return false, err
	case e != nil:
		err = m.endListed(ctx, e.listed, coatcheck.ReasonKeyRetired, nil)
	default: // the registry has lost it, or somebody else has just ended it
		if err = m.Store.Delete(ctx, handle); err == nil {
			m.forget(handle)
		}
	}
	return err == nil, err
}

// ignoreGone returns err unless it says that the record is gone.
func ignoreGone(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
