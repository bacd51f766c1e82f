package memory

import (
	"context"
	"maps"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// held is what is known of a lease that was handed out.
type held struct {
	fence   uint64
	expires time.Time
}

// A lease is one holder's side of it.
type lease struct {
	s     *Store
	name  string
	fence uint64
}

// trimLeases forgets the leases whose time is over. s.mu is held.
func (s *Store) trimLeases(now time.Time) {
	maps.DeleteFunc(s.leases, func(_ string, h held) bool { return !now.Before(h.expires) })
}

// Acquire implements store.Leaser.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	if err := admit(ctx, "acquire", store.CheckKey(name)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.trimLeases(now)
	if _, ok := s.leases[name]; ok {
		return nil, store.ErrHeld
	}
	s.fence++ // one counter serves all names, so nothing is kept of a name
	s.leases[name] = held{s.fence, now.Add(max(ttl, store.MinTTL))}
	return &lease{s, name, s.fence}, nil
}

// holds says whether l is not lost. l.s.mu is held.
func (l *lease) holds(now time.Time) bool {
	h, ok := l.s.leases[l.name]
	return ok && h.fence == l.fence && now.Before(h.expires)
}

// Fence implements store.Lease.
func (l *lease) Fence() uint64 { return l.fence }

// Renew implements store.Lease.
func (l *lease) Renew(ctx context.Context, ttl time.Duration) error {
	if err := admit(ctx, "renew lease", nil); err != nil {
		return err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	now := time.Now()
	if !l.holds(now) {
		return store.ErrLost
	}
	l.s.leases[l.name] = held{l.fence, now.Add(max(ttl, store.MinTTL))}
	return nil
}

// Release implements store.Lease.
func (l *lease) Release(ctx context.Context) error {
	if err := admit(ctx, "release lease", nil); err != nil {
		return err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.holds(time.Now()) {
		delete(l.s.leases, l.name)
	}
	return nil
}
