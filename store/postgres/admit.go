package postgres

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// A listed is an entry as Admit looks at it: its ID, App, Started and Seen, and
type listed struct {
	store.Entry
	seat   *int16
	counts bool // it is neither ending nor expired
}

// Admit implements store.Registry.
func (s *Store) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	if err := store.CheckAdmit(e, replaces); err != nil {
		return nil, wrap("admit", err)
	}
	var ending []store.Entry
	err := s.write(ctx, "admit", func(ctx context.Context, conn *pgx.Conn) (err error) {
		ending, err = s.admit(ctx, conn, e, ttl, limits, replaces)
		return rollback(ctx, conn, err)
	})
	if err != nil {
		return nil, err
	}
	return ending, nil
}

// admit is Admit in a transaction of two round trips, so that locks are held for one and
// the commit.
func (s *Store) admit(ctx context.Context, conn *pgx.Conn, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	ofUser, taken, err := s.lockAndList(ctx, conn, e, limits, replaces)
	if err != nil {
		return nil, err
	}
	victims, err := store.GiveWay(counted(ofUser, e.ID, replaces), e.App, limits)
	if err != nil {
		return nil, err
	}
	seat, from := inherit(ofUser, e, replaces)
	if from == "" && limits.Total > 0 && taken >= limits.Total {
		if taken, err = freeSeats(ctx, conn, e.Tenant); err != nil {
			return nil, err
		}
		if taken >= limits.Total {
			return nil, &store.LimitError{Limit: store.LimitTotal}
		}
	}
	return admission{e, ttl, victims, replaces, seat, from}.commit(ctx, conn)
}

// lockAndList begins the transaction, takes the locks and returns the user's entries that
// matter, and how many seats of the tenant are taken. Whoever is to keep to a total is
// alone with the tenant's count; others only keep those out.
func (s *Store) lockAndList(ctx context.Context, conn *pgx.Conn, e store.Entry, limits store.Limits, replaces string) (found []listed, taken int, err error) {
	lockTenant := `SELECT pg_advisory_xact_lock_shared($1)`
	if limits.Total > 0 {
		lockTenant = `SELECT pg_advisory_xact_lock($1)`
	}
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	b.Queue(lockTenant, s.lockID("tenant", e.Tenant))
	s.lockUser(b, e)
	b.Queue(`
		SELECT id, app, started, seen, seat, ending = '' AND expires > clock_timestamp()
		FROM entries
		WHERE tenant = $1 AND user_id = $2 AND (id IN ($3, $4) OR $5 AND ending = '' AND expires > clock_timestamp())`,
		e.Tenant, e.User, e.ID, replaces, limits.PerUser > 0 || limits.PerApp > 0).
		Query(func(rows pgx.Rows) error {
			var l listed
			_, err := pgx.ForEachRow(rows, []any{&l.ID, &l.App, &l.Started, &l.Seen, &l.seat, &l.counts}, func() error {
				found = append(found, l)
				l.seat = nil
				return nil
			})
			return err
		})
	if limits.Total > 0 {
		countSeats(b, e.Tenant, &taken)
	}
	err = conn.SendBatch(ctx, b).Close()
	return found, taken, err
}

// counted returns those of a user's entries that the one called id is counted beside.
func counted(ofUser []listed, id, replaces string) (others []store.Entry) {
	for _, l := range ofUser {
		if l.counts && l.ID != id && l.ID != replaces {
			others = append(others, l.Entry)
		}
	}
	return others
}

// inherit returns the seat that e takes over, and the ID of the entry it takes it from: its
// own, where it was listed already, or the one it replaces. From nobody it returns a place to
// be counted in.
func inherit(ofUser []listed, e store.Entry, replaces string) (seat int16, from string) {
	for _, id := range []string{e.ID, replaces} {
		for _, l := range ofUser {
			if l.ID == id && l.seat != nil {
				return *l.seat, id
			}
		}
	}
	return rand.N[int16](seatShards), ""
}

func countSeats(b *pgx.Batch, tenant string, taken *int) {
	b.Queue(`SELECT coalesce(sum(taken), 0)::bigint FROM seats WHERE tenant = $1`, tenant).
		QueryRow(func(row pgx.Row) error { return row.Scan(taken) })
}

// freeSeats gives back the seats of entries that have expired, as far as they are easily
// found, and returns how many are taken now. It looks at the entries of all tenants that
// are due the longest.
func freeSeats(ctx context.Context, conn *pgx.Conn, tenant string) (taken int, err error) {
	const look = 1000
	b := &pgx.Batch{}
	b.Queue(`
		WITH first AS (
			SELECT tenant, user_id, id FROM entries
			WHERE due <= statement_timestamp() ORDER BY due LIMIT $2),
		expired AS (
			SELECT e.tenant, e.user_id, e.id, e.seat FROM entries e JOIN first USING (tenant, user_id, id)
			WHERE e.tenant = $1 AND e.expires <= statement_timestamp() AND e.seat IS NOT NULL
			FOR UPDATE OF e SKIP LOCKED),
		freed AS (
			UPDATE entries e SET seat = NULL FROM expired x
			WHERE e.tenant = x.tenant AND e.user_id = x.user_id AND e.id = x.id
			RETURNING x.seat),
		counted AS (SELECT seat, count(*) AS n FROM freed GROUP BY seat)
		UPDATE seats SET taken = taken - n FROM counted WHERE tenant = $1 AND shard = seat`, tenant, look)
	countSeats(b, tenant, &taken)
	err = conn.SendBatch(ctx, b).Close()
	return taken, err
}

// An admission is what Admit has decided.
type admission struct {
	store.Entry
	ttl      time.Duration
	victims  []string
	replaces string
	seat     int16
	from     string // whose seat that was; empty: nobody's
}

// commit writes it, ends the transaction, and returns the user's ending entries.
func (a admission) commit(ctx context.Context, conn *pgx.Conn) (ending []store.Entry, err error) {
	b := &pgx.Batch{}
	if len(a.victims) > 0 {
		b.Queue(`
			UPDATE entries SET ending = $3, due = clock_timestamp() + $4::interval
			WHERE tenant = $1 AND user_id = $2 AND id = ANY($5) AND ending = ''`,
			a.Tenant, a.User, store.ReasonEvicted, store.EndingPatience, a.victims)
	}
	if a.replaces != "" {
		b.Queue(`
			UPDATE entries
			SET ending = CASE ending WHEN '' THEN $4 ELSE ending END,
				due = CASE ending WHEN '' THEN clock_timestamp() + $5::interval ELSE due END,
				seat = CASE WHEN $6 THEN NULL ELSE seat END
			WHERE tenant = $1 AND user_id = $2 AND id = $3`,
			a.Tenant, a.User, a.replaces, store.ReasonReplaced, store.EndingPatience, a.from == a.replaces)
	}
	b.Queue(`
		INSERT INTO entries (tenant, user_id, id, app, sid, record, data, seat, ending, started, seen, expires, due)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, '', now, now, now + $9::interval, now + $9::interval
		FROM clock_timestamp() AS now
		ON CONFLICT (tenant, user_id, id) DO UPDATE
		SET app = excluded.app, sid = excluded.sid, record = excluded.record, data = excluded.data,
			seat = excluded.seat, ending = '', started = excluded.started, seen = excluded.seen,
			expires = excluded.expires, due = excluded.due`,
		a.Tenant, a.User, a.ID, a.App, a.SID, []byte(a.Record), blob(a.Data), a.seat, life(a.ttl))
	b.Queue(`SELECT `+entryColumns+` FROM entries WHERE tenant = $1 AND user_id = $2 AND ending <> ''`, a.Tenant, a.User).
		Query(func(rows pgx.Rows) (err error) {
			ending, err = pgx.CollectRows(rows, scanEntry)
			return err
		})
	if a.from == "" {
		b.Queue(takeSeat, a.Tenant, a.seat)
	}
	b.Queue(`COMMIT`)
	err = conn.SendBatch(ctx, b).Close()
	return ending, err
}
