package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A barrier says that a provider has ended a session, or all of a person's, and when. It
// holds against sign-ins that the provider had completed before that and that are still on
// their way here: whoever logs out writes the barrier and then looks for sessions to end,
// and Begin lists the new session and then looks for barriers. So one of the two sees the
// other, whatever their order.
type barrier struct {
	Version int   `cbor:"0,keyasint"`
	At      int64 `cbor:"1,keyasint"` // when the provider said so, in Unix milliseconds
}

const (
	barrierVersion = 1
	// barrierLife is how long a barrier stands.
	barrierLife = 2 * time.Minute
	// longestSignIn is how long the provider's word for a person may be on its way to
	// Begin. After that a barrier against it may be gone.
	longestSignIn = barrierLife - 10*time.Second
	// clockError is how much two nodes may differ about the time.
	clockError = time.Second
)

func sidBarrier(name string) string { return "barrier-sid-" + name }

func userBarrier(name string) string { return "barrier-user-" + name }

// raise writes a barrier, unless a later one stands there.
func (m *Manager) raise(ctx context.Context, key string, at time.Time) error {
	value := must(encMode.Marshal(barrier{barrierVersion, at.UnixMilli()}))
	for {
		err := m.Store.Create(ctx, key, value, barrierLife)
		if !errors.Is(err, store.ErrExists) {
			return err
		}
		before, revision, err := m.readBarrier(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			continue
		case err != nil:
			return err
		case !before.Before(at):
			return nil
		}
		err = m.Store.Replace(ctx, key, revision, value, barrierLife)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
}

func (m *Manager) readBarrier(ctx context.Context, key string) (at time.Time, revision uint64, err error) {
	rec, err := m.Store.Get(ctx, key)
	if err != nil {
		return time.Time{}, 0, err
	}
	var b barrier
	if err := decMode.Unmarshal(rec.Value, &b); err != nil || b.Version != barrierVersion {
		return time.Time{}, 0, errors.New("session: a barrier can't be read: it is of another version, or broken")
	}
	return time.UnixMilli(b.At), rec.Revision, nil
}

// barred tells whether the provider has ended what it said of a person before: the session
// by its sid, whenever that was, or all of the person's at or after asked, which is before the
// provider was asked. The session must be listed already. An error leaves it open.
func (m *Manager) barred(ctx context.Context, listing store.Entry, asked time.Time) (bool, error) {
	if listing.SID != "" {
		_, _, err := m.readBarrier(ctx, sidBarrier(listing.SID))
		if !errors.Is(err, store.ErrNotFound) {
			return err == nil, err
		}
	}
	at, _, err := m.readBarrier(ctx, userBarrier(listing.User))
	switch {
	case err == nil && !at.Add(clockError).Before(asked):
		return true, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return false, err
	}
	if took := m.Now().Sub(asked); took > longestSignIn {
		return false, fmt.Errorf("session: the sign-in took %v, too long to tell whether the provider has ended it meanwhile", took)
	}
	return false, nil
}
