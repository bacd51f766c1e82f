package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// followBeat is how often Follow makes sure that it hears.
	followBeat = time.Second
	// overlap is how much of what was told already Follow reads again when it catches up:
	// an event has the time at which it was written, and is seen when it is committed.
	overlap = 10 * time.Second
	// keepEvents is how long events stay: JournalLife for those who follow, and the rest
	// for what a reader and a reaper are late.
	keepEvents = store.JournalLife + time.Minute
	// catchUpPage bounds how many events are read at once.
	catchUpPage = 500
)

// Append implements store.Journal.
func (s *Store) Append(ctx context.Context, data []byte) error {
	if len(data) > store.MaxEvent {
		return wrap("append", store.ErrTooLarge)
	}
	return s.write(ctx, "append", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `WITH e AS (INSERT INTO events (data) VALUES ($1)) SELECT pg_notify($2, $3)`,
			blob(data), s.channel(journal), encode(string(data)))
		return err
	})
}

// Follow implements store.Journal. Events come as notifications; the table is read after
// an interruption only.
func (s *Store) Follow(ctx context.Context, ready func(), told func(data []byte)) error {
	var heard time.Time // until when nothing was missed
	return s.listen(ctx, ear{
		channel: s.channel(journal),
		beat:    followBeat,
		begin: func(ctx context.Context, conn *pgx.Conn) error {
			if heard.IsZero() {
				heard = time.Now()
				ready()
				return nil
			}
			return s.catchUp(ctx, conn, time.Since(heard)+overlap, told)
		},
		told:    told,
		current: func(asOf time.Time) { heard = asOf },
	})
}

// catchUp tells the events of the last moments. The server's clock says how long ago they
// were, since the one before it may have had another clock.
func (s *Store) catchUp(ctx context.Context, conn *pgx.Conn, last time.Duration, told func([]byte)) error {
	var at time.Time
	var id int64
	err := s.soon(ctx, func(ctx context.Context) error {
		return conn.QueryRow(ctx, `SELECT clock_timestamp() - $1::interval`, min(last, keepEvents)).Scan(&at)
	})
	for n := catchUpPage; err == nil && n == catchUpPage; {
		var page [][]byte
		err = s.soon(ctx, func(ctx context.Context) error {
			rows, err := conn.Query(ctx, `
				SELECT data, at, id FROM events WHERE (at, id) > ($1, $2) ORDER BY at, id LIMIT $3`, at, id, catchUpPage)
			if err != nil {
				return err
			}
			var data []byte
			_, err = pgx.ForEachRow(rows, []any{&data, &at, &id}, func() error {
				page = append(page, data)
				data = nil
				return nil
			})
			return err
		})
		for _, data := range page {
			told(data)
		}
		n = len(page)
	}
	return err
}
