package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// now returns the store's clock, and when a record written now with ttl ends.
func now(ttl time.Duration) (now, expires int64) {
	t := time.Now()
	return t.UnixMilli(), t.Add(max(ttl, store.MinTTL)).UnixMilli()
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, wrap("get", err)
	}
	var r store.Record
	err := on(ctx, s.readers, "get", func(c *conn) error {
		now, _ := now(0)
		row, err := c.query(`SELECT revision, expires, value FROM records WHERE key = ? AND expires > ?`, []byte(key), now)
		if err != nil {
			return err
		}
		if row == nil {
			return store.ErrNotFound
		}
		revision, ok1 := row[0].(int64)
		expires, ok2 := row[1].(int64)
		value, ok3 := row[2].([]byte)
		if !ok1 || !ok2 || !ok3 {
			return errors.New("the record is of other types than this program writes")
		}
		r = store.Record{
			Value:    value,
			Revision: uint64(revision),
			TTL:      time.Duration(expires-now) * time.Millisecond,
		}
		return nil
	})
	return r, err
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("create", err)
	}
	// A revision starts anywhere, so that none of an earlier record of the same key
	// fits the new one.
	revision := rand.Int64N(1 << 62)
	return on(ctx, s.writer, "create", func(c *conn) error {
		now, expires := now(ttl)
		n, err := c.exec(`
			INSERT INTO records (key, revision, expires, value) VALUES (?1, ?2, ?3, ?4)
			ON CONFLICT (key) DO UPDATE SET revision = ?2, expires = ?3, value = ?4 WHERE expires <= ?5`,
			[]byte(key), revision, expires, blob(value), now)
		return affected(n, err, store.ErrExists)
	})
}

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("replace", err)
	}
	err := on(ctx, s.writer, "replace", func(c *conn) error {
		now, expires := now(ttl)
		n, err := c.exec(`
			UPDATE records SET revision = revision + 1, expires = ?, value = ?
			WHERE key = ? AND expires > ? AND revision = ?`,
			expires, blob(value), []byte(key), now, int64(revision))
		if err != nil || n > 0 {
			return err
		}
		// Nothing was written, and nobody else writes before we return.
		row, err := c.query(`SELECT 1 FROM records WHERE key = ? AND expires > ?`, []byte(key), now)
		if err == nil && row == nil {
			return store.ErrNotFound
		}
		if err == nil {
			return store.ErrConflict
		}
		return err
	})
	if err != store.ErrNotFound && err != store.ErrConflict {
		s.feeds.changed(key)
	}
	return err
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("touch", err)
	}
	return on(ctx, s.writer, "touch", func(c *conn) error {
		now, expires := now(ttl)
		n, err := c.exec(`UPDATE records SET expires = max(expires, ?) WHERE key = ? AND expires > ?`,
			expires, []byte(key), now)
		return affected(n, err, store.ErrNotFound)
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("delete", err)
	}
	err := on(ctx, s.writer, "delete", func(c *conn) error {
		_, err := c.exec(`DELETE FROM records WHERE key = ?`, []byte(key))
		return err
	})
	s.feeds.changed(key)
	return err
}

// affected returns the error of a statement, or none if it changed nothing.
func affected(n int64, err, none error) error {
	if err == nil && n == 0 {
		return none
	}
	return err
}

// blob makes an empty value an empty BLOB; nil would be NULL.
func blob(value []byte) driver.Value {
	if value == nil {
		return []byte{}
	}
	return value
}
