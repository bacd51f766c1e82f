package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// A lease is known by its fence: there is one sequence for all names.
type lease struct {
	s     *Store
	name  []byte
	fence int64
}

// Acquire implements store.Leaser.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	if err := store.CheckKey(name); err != nil {
		return nil, wrap("acquire", err)
	}
	l := &lease{s: s, name: []byte(name)}
	err := s.write(ctx, "acquire", func(ctx context.Context, conn *pgx.Conn) error {
		// The lock comes first: of two who insert at once, the one that took its fence
		// later could else be the first to hold the lease.
		b := &pgx.Batch{}
		b.Queue(`SELECT pg_advisory_xact_lock($1)`, s.lockID("lease", name))
		b.Queue(`
			INSERT INTO leases AS l (name, fence, expires)
			VALUES ($1, nextval('fences'), clock_timestamp() + $2::interval)
			ON CONFLICT (name) DO UPDATE SET fence = excluded.fence, expires = clock_timestamp() + $2::interval
			WHERE l.expires <= clock_timestamp()
			RETURNING fence`, l.name, life(ttl)).
			QueryRow(func(row pgx.Row) error { return row.Scan(&l.fence) })
		err := conn.SendBatch(ctx, b).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrHeld
		}
		return err
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
	return l.s.write(ctx, "renew lease", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `
			UPDATE leases SET expires = clock_timestamp() + $3::interval
			WHERE name = $1 AND fence = $2 AND expires > clock_timestamp()`, l.name, l.fence, life(ttl))
		return affected(tag, err, store.ErrLost)
	})
}

// Release implements store.Lease.
func (l *lease) Release(ctx context.Context) error {
	return l.s.write(ctx, "release lease", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `DELETE FROM leases WHERE name = $1 AND fence = $2`, l.name, l.fence)
		return err
	})
}
