// Package sqlite keeps records in a SQLite file, for a coatcheck of one node. It
// needs nothing beside itself: no server, no cgo.
//
// The file is in WAL mode. A crash of the process loses nothing that was
// acknowledged; a crash of the machine may lose the last moments before it, and
// leaves the file sound (synchronous=NORMAL). The store's clock is this process's
// wall clock.
package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Store = (*Store)(nil)

// Options say which file.
type Options struct {
	// File is the database's path. It and its folder are made if missing, for
	// their owner alone. Beside it stand FILE-wal, FILE-shm and FILE.lock.
	File string
}

const (
	// busyTimeout bounds the wait for a lock that a program other than coatcheck
	// holds, a backup for one.
	busyTimeout = "busy_timeout(1000)"
	// reapEvery is how long an expired record may stay in the file, plus the time
	// it takes to remove those before it.
	reapEvery = 10 * time.Second
	// reapBatch bounds how long a caller's write waits for the reaper's.
	reapBatch = 128
)

// A Store is a store.Store in a SQLite file.
type Store struct {
	lock    *flock.Flock
	writer  chan *conn    // holds the one connection that writes, while nobody does
	readers chan *conn    // holds the idle reading ones
	conns   int           // all there are
	stop    chan struct{} // closed to end the reaper
	reaper  sync.WaitGroup
	close   func() error
}

// Open opens the file and takes it for this process. It returns ErrInUse where
// another one has it, and an error that says so where the file is something else
// than a coatcheck database.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s, err := open(ctx, opts.File)
	if err != nil {
		return nil, fmt.Errorf("store/sqlite: open %s: %w", opts.File, cause(err))
	}
	return s, nil
}

func open(ctx context.Context, file string) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if file == "" {
		return nil, errors.New("no file given")
	}
	path, err := resolve(file)
	if err != nil {
		return nil, err
	}
	l, err := lock(path)
	if err != nil {
		return nil, err
	}
	readers := max(2, min(runtime.GOMAXPROCS(0), 8))
	s := &Store{
		lock:    l,
		writer:  make(chan *conn, 1),
		readers: make(chan *conn, readers),
		stop:    make(chan struct{}),
	}
	s.close = sync.OnceValue(s.release)
	if err := s.dial(path, readers); err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.reaper.Go(s.reap)
	return s, nil
}

// dial opens the connections. The writer comes first: it makes the schema and turns
// the file to WAL.
func (s *Store) dial(path string, readers int) error {
	if err := create(path); err != nil {
		return err
	}
	w, err := dial(path, busyTimeout, "synchronous(NORMAL)")
	if err != nil {
		return explain(err)
	}
	s.conns++
	s.writer <- w
	if err := migrate(w); err != nil {
		return err
	}
	row, err := w.query("PRAGMA journal_mode = WAL")
	if err != nil {
		return err
	}
	if len(row) != 1 || row[0] != "wal" {
		return errors.New("this file system can't hold a database in WAL mode; use a local one")
	}
	for range readers {
		r, err := dial(path, busyTimeout, "query_only(1)")
		if err != nil {
			return err
		}
		s.conns++
		s.readers <- r
	}
	return nil
}

// on runs do with a connection of the pool, or returns the context's error. Its
// error is that of op.
func on(ctx context.Context, pool chan *conn, op string, do func(*conn) error) error {
	err := ctx.Err()
	if err == nil {
		select {
		case c := <-pool:
			err = do(c)
			pool <- c
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return wrap(op, err)
}

// wrap names op in an error, unless the error is an outcome of store.Store.
func wrap(op string, err error) error {
	switch err {
	case nil, store.ErrNotFound, store.ErrExists, store.ErrConflict:
		return err
	}
	return fmt.Errorf("store/sqlite: %s: %w", op, err)
}

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
	return on(ctx, s.writer, "replace", func(c *conn) error {
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
	return on(ctx, s.writer, "delete", func(c *conn) error {
		_, err := c.exec(`DELETE FROM records WHERE key = ?`, []byte(key))
		return err
	})
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	return on(ctx, s.readers, "ping", func(c *conn) error {
		_, err := c.query(`SELECT 1 FROM records LIMIT 1`)
		return err
	})
}

// Close implements store.Store. It waits for the calls under way.
func (s *Store) Close() error { return s.close() }

func (s *Store) release() error {
	close(s.stop)
	s.reaper.Wait()
	var err error
	for range s.conns {
		var c *conn
		select {
		case c = <-s.readers:
		case c = <-s.writer:
		}
		err = errors.Join(err, c.Close())
	}
	return wrap("close", errors.Join(err, s.lock.Close()))
}

// reap removes expired records, a small batch at a time, until Close.
func (s *Store) reap() {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		for s.reapSome() == reapBatch {
			select {
			case <-s.stop:
				return
			default:
			}
		}
	}
}

// reapSome removes one batch and returns its size. What an error leaves is removed
// by a later batch.
func (s *Store) reapSome() (n int64) {
	_ = on(context.Background(), s.writer, "reap", func(c *conn) (err error) {
		now, _ := now(0)
		n, err = c.exec(`
			DELETE FROM records WHERE rowid IN
				(SELECT rowid FROM records WHERE expires <= ? ORDER BY expires LIMIT ?)`, now, int64(reapBatch))
		return err
	})
	return n
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
