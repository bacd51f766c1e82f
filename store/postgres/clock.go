package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Now implements store.Clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	err := s.read(ctx, "now", func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT statement_timestamp()`).Scan(&now)
	})
	return now, err
}
