package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// Watch implements store.Watcher.
func (s *Store) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	return s.listen(ctx, ear{
		channel: s.channel(changes),
		beat:    beat,
		begin: func(context.Context, *pgx.Conn) error {
			feed.Reset()
			return nil
		},
		told:    func(key []byte) { feed.Changed(string(key)) },
		current: feed.Current,
	})
}
