package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/store"
)

// life is ttl as the statements take it. In them, clock_timestamp() is the time at which
// a row is looked at, after any wait for it. statement_timestamp() is a little earlier,
// and the one that an index can be searched with.
func life(ttl time.Duration) time.Duration { return max(ttl, store.MinTTL) }

// blob makes an empty value an empty bytea; nil would be NULL.
func blob(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, wrap("get", err)
	}
	var r store.Record
	err := s.read(ctx, "get", func(ctx context.Context, conn *pgx.Conn) error {
		var revision int64
		err := conn.QueryRow(ctx, `
			SELECT value, revision, expires - clock_timestamp() FROM records JOIN bodies USING (key) WHERE key = $1`,
			[]byte(key)).Scan(&r.Value, &revision, &r.TTL)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && r.TTL <= 0 {
			return store.ErrNotFound
		}
		r.Revision = uint64(revision)
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	return r, nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("create", err)
	}
	// A revision starts anywhere, so that none of an earlier record of the same key fits
	// the new one.
	revision := rand.Int64N(1 << 62)
	return s.write(ctx, "create", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `
			WITH created AS (
				INSERT INTO records AS r (key, revision, expires, due)
				VALUES ($1, $2, clock_timestamp() + $3::interval, statement_timestamp() + $3::interval)
				ON CONFLICT (key) DO UPDATE
				SET revision = $2, expires = clock_timestamp() + $3::interval, due = statement_timestamp() + $3::interval
				WHERE r.expires <= clock_timestamp()
				RETURNING key)
			INSERT INTO bodies (key, value) SELECT key, $4 FROM created
			ON CONFLICT (key) DO UPDATE SET value = excluded.value`,
			[]byte(key), revision, life(ttl), blob(value))
		return affected(tag, err, store.ErrExists)
	})
}

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("replace", err)
	}
	return s.write(ctx, "replace", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `
			WITH replaced AS (
				UPDATE records
				SET revision = revision + 1, expires = clock_timestamp() + $3::interval,
					due = least(due, statement_timestamp() + $3::interval)
				WHERE key = $1 AND revision = $2 AND expires > clock_timestamp()
				RETURNING key),
			body AS (
				INSERT INTO bodies (key, value) SELECT key, $4 FROM replaced
				ON CONFLICT (key) DO UPDATE SET value = excluded.value)
			SELECT pg_notify($5, $6) FROM replaced`,
			[]byte(key), int64(revision), life(ttl), blob(value), s.channel(changes), encode(key))
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
		var lives bool
		err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM records WHERE key = $1 AND expires > clock_timestamp())`,
			[]byte(key)).Scan(&lives)
		switch {
		case err != nil:
			return err
		case lives:
			return store.ErrConflict
		default:
			return store.ErrNotFound
		}
	})
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("touch", err)
	}
	return s.write(ctx, "touch", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `
			UPDATE records SET expires = greatest(expires, clock_timestamp() + $2::interval)
			WHERE key = $1 AND expires > clock_timestamp()`, []byte(key), life(ttl))
		return affected(tag, err, store.ErrNotFound)
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("delete", err)
	}
	return s.write(ctx, "delete", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `
			WITH deleted AS (DELETE FROM records WHERE key = $1 RETURNING key)
			SELECT pg_notify($2, $3) FROM deleted`, []byte(key), s.channel(changes), encode(key))
		return err
	})
}
