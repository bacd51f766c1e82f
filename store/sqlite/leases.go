package sqlite

import (
	"context"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A lease is one holder's side of a row.
type lease struct {
	s     *Store
	name  []byte
	fence int64
}

// Acquire implements store.Leaser. A lease outlives the process that held it. Fences are
// this machine's time, so they rise beyond a restart as long as its clock does.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	if err := store.CheckKey(name); err != nil {
		return nil, wrap("acquire", err)
	}
	l := &lease{s: s, name: []byte(name)}
	err := on(ctx, s.writer, "acquire", func(c *conn) error {
		now := time.Now().UnixMicro()
		// A released lease leaves no row behind, so the last fence is kept here, one
		// for all names.
		l.fence = max(s.fence+1, now)
		n, err := c.exec(`
			INSERT INTO leases (name, fence, expires) VALUES (?1, ?2, ?3)
			ON CONFLICT (name) DO UPDATE SET fence = ?2, expires = ?3 WHERE expires <= ?4`,
			l.name, l.fence, until(now, ttl), now)
		if err := affected(n, err, store.ErrHeld); err != nil {
			return err
		}
		s.fence = l.fence
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Fence implements store.Lease.
func (l *lease) Fence() uint64 { return uint64(l.fence) }

// Renew implements store.Lease.
func (l *lease) Renew(ctx context.Context, ttl time.Duration) error {
	return on(ctx, l.s.writer, "renew lease", func(c *conn) error {
		now := time.Now().UnixMicro()
		n, err := c.exec(`UPDATE leases SET expires = ? WHERE name = ? AND fence = ? AND expires > ?`,
			until(now, ttl), l.name, l.fence, now)
		return affected(n, err, store.ErrLost)
	})
}

// Release implements store.Lease.
func (l *lease) Release(ctx context.Context) error {
	return on(ctx, l.s.writer, "release lease", func(c *conn) error {
		_, err := c.exec(`DELETE FROM leases WHERE name = ? AND fence = ?`, l.name, l.fence)
		return err
	})
}
