package postgres

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// keysPage is how many keys Keys reads at once.
const keysPage = 1000

// Entries implements store.Lister.
func (s *Store) Entries(ctx context.Context, tenant string) iter.Seq2[store.Entry, error] {
	return s.Find(ctx, store.Query{Tenant: tenant})
}

// Keys implements store.Lister.
func (s *Store) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		from := []byte(prefix)
		for from != nil {
			var page [][]byte
			err := s.read(ctx, "keys", func(ctx context.Context, conn *pgx.Conn) error {
				rows, err := conn.Query(ctx, `
					SELECT key FROM records
					WHERE key >= $1 AND ($2::bytea IS NULL OR key < $2) AND expires > clock_timestamp()
					ORDER BY key LIMIT $3`, from, behind(prefix), keysPage)
				if err != nil {
					return err
				}
				page, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
				return err
			})
			if err != nil {
				yield("", err)
				return
			}
			for _, key := range page {
				if !yield(string(key), nil) {
					return
				}
			}
			from = nil
			if len(page) == keysPage {
				from = append(page[keysPage-1], 0) // the next one that there can be
			}
		}
	}
}

// behind returns the first key behind all those that begin with prefix; nil: there is
// none.
func behind(prefix string) []byte {
	for end := []byte(prefix); len(end) > 0; end = end[:len(end)-1] {
		if last := &end[len(end)-1]; *last < 0xff {
			*last++
			return end
		}
	}
	return nil
}
