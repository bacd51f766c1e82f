package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"iter"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Entries implements store.Lister.
func (s *Store) Entries(ctx context.Context, tenant string) iter.Seq2[store.Entry, error] {
	return s.Find(ctx, store.Query{Tenant: tenant})
}

// Keys implements store.Lister. Between pages it holds no connection.
func (s *Store) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		query := "SELECT key FROM records WHERE key >= ? AND expires > ? ORDER BY key LIMIT ?"
		for after := []byte(prefix); ; {
			var page [][]byte
			err := on(ctx, s.readers, "keys", func(c *conn) error {
				return c.each(func(row []driver.Value) error {
					key, ok := row[0].([]byte)
					if !ok {
						return errors.New("a key is of another type than this program writes")
					}
					page = append(page, key)
					return nil
				}, query, after, time.Now().UnixMilli(), int64(findPage))
			})
			if err != nil {
				yield("", err)
				return
			}
			for _, key := range page {
				if !strings.HasPrefix(string(key), prefix) || !yield(string(key), nil) {
					return
				}
			}
			if len(page) < findPage {
				return
			}
			query = strings.Replace(query, ">=", ">", 1)
			after = page[len(page)-1]
		}
	}
}
