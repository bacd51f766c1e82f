package postgres

import (
	"context"
	"iter"

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
