package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// seatShards is how many rows share the count of a tenant's seats. Which one counts an
// entry stands in the entry.
const seatShards = 16

// takeSeat counts one more seat. It comes last in its transaction, since whoever needs the
// same row waits until that is committed.
const takeSeat = `
	INSERT INTO seats AS s (tenant, shard, taken) VALUES ($1, $2, 1)
	ON CONFLICT (tenant, shard) DO UPDATE SET taken = s.taken + 1`

// lockUser is what keeps the transactions of one user apart: all that count entries, or
// move a seat. Renew of what is listed and End need none.
func (s *Store) lockUser(b *pgx.Batch, e store.Entry) {
	b.Queue(`SELECT pg_advisory_xact_lock($1)`, s.lockID("user", e.Tenant, e.User))
}

// Renew implements store.Registry.
func (s *Store) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if err := store.CheckEntry(e); err != nil {
		return wrap("renew", err)
	}
	return s.write(ctx, "renew", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `
			UPDATE entries SET expires = greatest(expires, clock_timestamp() + $4::interval), seen = clock_timestamp()
			WHERE tenant = $1 AND user_id = $2 AND id = $3 AND ending = '' AND seat IS NOT NULL`,
			e.Tenant, e.User, e.ID, life(ttl))
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
		return rollback(ctx, conn, s.relist(ctx, conn, e, ttl))
	})
}

// relist lists what is in use and is not listed, or has lost its seat, in a transaction.
func (s *Store) relist(ctx context.Context, conn *pgx.Conn, e store.Entry, ttl time.Duration) error {
	var ending string
	seat := rand.N[int16](seatShards)
	seated := false
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	s.lockUser(b, e)
	b.Queue(`SELECT ending, seat IS NOT NULL FROM entries WHERE tenant = $1 AND user_id = $2 AND id = $3 FOR UPDATE`,
		e.Tenant, e.User, e.ID).
		QueryRow(func(row pgx.Row) error {
			if err := row.Scan(&ending, &seated); !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			return nil
		})
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if ending != "" {
		return store.ErrEnding
	}
	b = &pgx.Batch{}
	b.Queue(`
		INSERT INTO entries AS e (tenant, user_id, id, app, sid, record, data, seat, ending, started, seen, expires, due)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, '', now, now, now + $9::interval, now + $9::interval
		FROM clock_timestamp() AS now
		ON CONFLICT (tenant, user_id, id) DO UPDATE
		SET seat = coalesce(e.seat, excluded.seat), seen = excluded.seen, expires = greatest(e.expires, excluded.expires)`,
		e.Tenant, e.User, e.ID, e.App, e.SID, []byte(e.Record), blob(e.Data), seat, life(ttl))
	if !seated {
		b.Queue(takeSeat, e.Tenant, seat)
	}
	b.Queue(`COMMIT`)
	return conn.SendBatch(ctx, b).Close()
}

// End implements store.Registry.
func (s *Store) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	err := store.CheckNamed(e)
	if err == nil {
		err = store.CheckReason(reason)
	}
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	var now store.Entry
	err = s.write(ctx, "end", func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			UPDATE entries
			SET ending = CASE ending WHEN '' THEN $4 ELSE ending END,
				due = CASE ending WHEN '' THEN clock_timestamp() + $5::interval ELSE due END
			WHERE tenant = $1 AND user_id = $2 AND id = $3
			RETURNING `+entryColumns, e.Tenant, e.User, e.ID, reason, store.EndingPatience)
		if err != nil {
			return err
		}
		now, err = pgx.CollectExactlyOneRow(rows, scanEntry)
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrNotFound
		}
		return err
	})
	if err != nil {
		return store.Entry{}, err
	}
	return now, nil
}

// Remove implements store.Registry.
func (s *Store) Remove(ctx context.Context, e store.Entry) error {
	if err := store.CheckNamed(e); err != nil {
		return wrap("remove", err)
	}
	return s.write(ctx, "remove", func(ctx context.Context, conn *pgx.Conn) error {
		b := &pgx.Batch{} // which is one transaction
		s.lockUser(b, e)
		b.Queue(`
			WITH removed AS (
				DELETE FROM entries WHERE tenant = $1 AND user_id = $2 AND id = $3 RETURNING tenant, seat)
			UPDATE seats SET taken = taken - 1 FROM removed
			WHERE seats.tenant = removed.tenant AND seats.shard = removed.seat`, e.Tenant, e.User, e.ID)
		b.Queue(`DELETE FROM seats WHERE tenant = $1 AND taken <= 0`, e.Tenant)
		return conn.SendBatch(ctx, b).Close()
	})
}
