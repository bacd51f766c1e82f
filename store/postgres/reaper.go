package postgres

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// reapEvery is about how long what has expired may stay in the tables, plus the time
	// it takes to remove what was there before it. The reapers of several nodes share the
	// work: none waits for rows that another one has locked.
	reapEvery = 10 * time.Second
	// reapBatch bounds how many rows a reaper locks at once.
	reapBatch = 500
)

// reap removes what nobody needs until ctx ends: records that have expired, leases
// likewise, and old events. It pings first, so that the log is told of a schema that is not
// as it must be whoever else asks. Of a server that does not answer the feed tells.
func (s *Store) reap(ctx context.Context) {
	_ = s.Ping(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(reapEvery/2 + rand.N(reapEvery)):
		}
		if s.Ping(ctx) != nil {
			continue
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("store/postgres: what has expired stays for now", "error", err)
		}
	}
}

// sweep removes all that is due now.
func (s *Store) sweep(ctx context.Context) error {
	for _, remove := range []string{
		// Of the records that are due, those that were touched move on.
		`WITH picked AS (
			SELECT key, expires FROM records WHERE due <= statement_timestamp()
			ORDER BY due LIMIT $1 FOR UPDATE SKIP LOCKED),
		moved AS (
			UPDATE records r SET due = p.expires FROM picked p
			WHERE r.key = p.key AND p.expires > statement_timestamp()),
		removed AS (
			DELETE FROM records r USING picked p
			WHERE r.key = p.key AND p.expires <= statement_timestamp())
		SELECT FROM picked`,
		`DELETE FROM leases l USING (
			SELECT name FROM leases WHERE expires <= statement_timestamp()
			ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED) AS picked
		WHERE l.name = picked.name`,
		`DELETE FROM events e USING (
			SELECT at, id FROM events WHERE at <= statement_timestamp() - interval '` + keepEvents.String() + `'
			ORDER BY at LIMIT $1 FOR UPDATE SKIP LOCKED) AS picked
		WHERE e.at = picked.at AND e.id = picked.id`,
	} {
		for n := int64(reapBatch); n == reapBatch; {
			err := s.write(ctx, "reap", func(ctx context.Context, conn *pgx.Conn) error {
				tag, err := conn.Exec(ctx, remove, reapBatch)
				n = tag.RowsAffected()
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Reap implements store.Registry. Nodes that reap at once share the work: none waits for
// what another one claims.
func (s *Store) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	var claimed []store.Entry
	// Of what is due, the entries that were renewed are only moved to their new end. They
	// don't count, so there may be more to claim behind them.
	for began := time.Now(); len(claimed) < limit && time.Since(began) < s.timeout; {
		looked := 0
		err := s.write(ctx, "reap", func(ctx context.Context, conn *pgx.Conn) error {
			rows, err := conn.Query(ctx, `
				WITH picked AS (
					SELECT tenant, user_id, id FROM entries WHERE due <= statement_timestamp()
					ORDER BY due LIMIT $1 FOR UPDATE SKIP LOCKED)
				UPDATE entries e
				SET ending = CASE WHEN ending <> '' THEN ending WHEN expires <= statement_timestamp() THEN $2 ELSE '' END,
					due = CASE WHEN ending = '' AND expires > statement_timestamp() THEN expires
						ELSE statement_timestamp() + $3::interval END
				FROM picked p
				WHERE e.tenant = p.tenant AND e.user_id = p.user_id AND e.id = p.id
				RETURNING e.id, e.tenant, e.user_id, app, sid, record, data, started, seen, expires, ending`,
				limit-len(claimed), store.ReasonExpired, store.ClaimLife)
			if err != nil {
				return err
			}
			page, err := pgx.CollectRows(rows, scanEntry)
			looked = len(page)
			for _, e := range page {
				if e.Ending != "" {
					claimed = append(claimed, e)
				}
			}
			return err
		})
		if err != nil && len(claimed) == 0 {
			return nil, err
		}
		if err != nil || looked == 0 {
			break
		}
	}
	return claimed, nil
}
