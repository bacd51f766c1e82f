package soak

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/coatcheck/coatcheck/store"
)

// sqliteBackend is the file of a node that has it for itself.
type sqliteBackend struct{ file string }

func startSQLite(t *testing.T) backend {
	return &sqliteBackend{filepath.Join(t.TempDir(), "coatcheck.db")}
}

func (*sqliteBackend) version() string { return "SQLite" }

func (*sqliteBackend) nodes() int { return 1 }

func (b *sqliteBackend) config() string {
	return fmt.Sprintf("{driver: sqlite, sqlite: {file: %s}}", b.file)
}

func (*sqliteBackend) open(*testing.T) store.Backend { return nil }

// left reads beside the node, which SQLite allows and the driver does not. The journal is
// the process's own.
func (b *sqliteBackend) left(ctx context.Context) (l left, err error) {
	db, err := sql.Open("sqlite", "file:"+b.file+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	names, err := column[string](ctx, db, `SELECT name FROM sqlite_schema WHERE type = 'table'`)
	if err != nil {
		return nil, err
	}
	l = left{}
	for _, table := range names {
		if table == "records" {
			continue
		}
		counts, err := column[int](ctx, db, `SELECT count(*) FROM `+table)
		if err != nil {
			return nil, err
		}
		for range counts[0] {
			l.add(table, -1)
		}
	}
	rows, err := db.QueryContext(ctx, `SELECT key, expires FROM records`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key []byte
		var expires int64
		if err := rows.Scan(&key, &expires); err != nil {
			return nil, err
		}
		l.add(ofRecord(string(key)), max(0, time.Until(time.UnixMilli(expires))))
	}
	return l, rows.Err()
}

// column returns the one column of a query.
func column[T any](ctx context.Context, db *sql.DB, query string) (list []T, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var value T
		if err := rows.Scan(&value); err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	return list, rows.Err()
}
