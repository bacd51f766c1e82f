package postgres

import (
	"context"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// findPage is how many entries Find reads at once.
const findPage = 256

const entryColumns = "id, tenant, user_id, app, sid, record, data, started, seen, expires, ending"

func scanEntry(row pgx.CollectableRow) (store.Entry, error) {
	var e store.Entry
	var record []byte
	err := row.Scan(&e.ID, &e.Tenant, &e.User, &e.App, &e.SID, &record, &e.Data, &e.Started, &e.Seen, &e.Expires, &e.Ending)
	e.Record = string(record)
	return e, err
}

// Find implements store.Registry. Each page is a statement of its own, so a reader that
// takes its time holds nothing.
func (s *Store) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if err := store.CheckQuery(q); err != nil {
			yield(store.Entry{}, wrap("find", err))
			return
		}
		var last store.Entry
		for more := true; more; {
			page, err := s.page(ctx, q, last)
			if err != nil {
				yield(store.Entry{}, err)
				return
			}
			for _, last = range page {
				if !yield(last, nil) {
					return
				}
			}
			more = len(page) == findPage
		}
	}
}

// page returns the entries that stand behind last, in the order of the index that the
// query is answered from.
func (s *Store) page(ctx context.Context, q store.Query, last store.Entry) (page []store.Entry, err error) {
	args := []any{q.Tenant, last.ID, findPage}
	where, order := `(id, user_id) > ($2, $4)`, `id, user_id`
	switch {
	case q.User != "":
		where, order = `id > $2 AND user_id = $4`, `id`
		args = append(args, q.User)
	case q.SID != "":
		where += ` AND sid = $5 AND sid <> ''`
		args = append(args, last.User, q.SID)
	case q.ID != "":
		where += ` AND id = $5`
		args = append(args, last.User, q.ID)
	default:
		args = append(args, last.User)
	}
	err = s.read(ctx, "find", func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT `+entryColumns+` FROM entries
			WHERE tenant = $1 AND expires > clock_timestamp() AND `+where+`
			ORDER BY `+order+` LIMIT $3`, args...)
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, scanEntry)
		return err
	})
	return page, err
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
