// Package sqlite keeps records, the registry and leases in a SQLite file, for a
// coatcheck of one node. It needs nothing beside itself: no server, no cgo.
//
// The file is in WAL mode. A crash of the process loses nothing that was
// acknowledged; a crash of the machine may lose the last moments before it, and
// leaves the file sound (synchronous=NORMAL). The store's clock is this process's
// wall clock.
//
// One process owns the file, so the feed of changes and the journal of events stay
// inside it, and end with it: who would follow them further has ended too.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Backend = (*Store)(nil)

// Options say which file.
type Options struct {
	// File is the database's path. It and its folder are made if missing, for
	// their owner alone. Beside it stand FILE-wal, FILE-shm and FILE.lock.
	File string
	// Logger is told when the reaper fails, and when it works again. Nil: nobody is.
	Logger *slog.Logger
}

const (
	// busyTimeout bounds the wait for a lock that a program other than coatcheck
	// holds, a backup for one.
	busyTimeout = "busy_timeout(1000)"
	// reapEvery is how long an expired record or lease may stay in the file, plus the
	// time it takes to remove those before it.
	reapEvery = 10 * time.Second
	// reapBatch bounds how long a caller's write waits for the reaper's.
	reapBatch = 128
)

// A Store is a store.Backend in a SQLite file.
type Store struct {
	log     *slog.Logger
	lock    *flock.Flock
	writer  chan *conn    // holds the one connection that writes, while nobody does
	readers chan *conn    // holds the idle reading ones
	conns   int           // all there are
	stop    chan struct{} // closed to end the reaper
	reaper  sync.WaitGroup
	close   func() error
	fence   int64 // the last one; whoever holds the writer holds it too
	feeds   feeds
	journal journal
}

// Open opens the file and takes it for this process. It returns ErrInUse where
// another one has it, and an error that says so where the file is something else
// than a coatcheck database.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s, err := open(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("store/sqlite: open %s: %w", opts.File, err)
	}
	return s, nil
}

func open(ctx context.Context, opts Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opts.File == "" {
		return nil, errors.New("no file given")
	}
	path, err := resolve(opts.File)
	if err != nil {
		return nil, err
	}
	l, err := lock(path)
	if err != nil {
		return nil, err
	}
	readers := max(2, min(runtime.GOMAXPROCS(0), 8))
	s := &Store{
		log:     opts.Logger,
		lock:    l,
		writer:  make(chan *conn, 1),
		readers: make(chan *conn, readers),
		stop:    make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
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
	if s.fence, err = w.number(`SELECT coalesce(max(fence), 0) FROM leases`); err != nil {
		return err
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

// wrap names op in an error, unless the error is an outcome.
func wrap(op string, err error) error {
	if err == nil || store.IsOutcome(err) {
		return err
	}
	return fmt.Errorf("store/sqlite: %s: %w", op, err)
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

// reap removes what has expired, and what the journal has kept long enough, until Close. The
// log is told when it begins to fail, why, and when that is over. Expired entries stay until
// someone has claimed and acknowledged them.
func (s *Store) reap() {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	trouble := ""
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.journal.trim(time.Now())
		switch err := s.sweep(); {
		case err == nil && trouble != "":
			s.log.Info("store/sqlite: what has expired is removed again")
			trouble = ""
		case err != nil && err.Error() != trouble:
			s.log.Warn("store/sqlite: what has expired stays for now", "error", err)
			trouble = err.Error()
		}
	}
}

// sweep removes expired records and leases, a small batch at a time, until none are left or
// Close is called.
func (s *Store) sweep() error {
	for {
		n, err := s.reapSome()
		if err != nil || n < reapBatch {
			return err
		}
		select {
		case <-s.stop:
			return nil
		default:
		}
	}
}

// reapSome removes one batch of each and returns the size of the larger. What an error
// leaves is removed by a later batch.
func (s *Store) reapSome() (n int64, err error) {
	err = on(context.Background(), s.writer, "reap", func(c *conn) error {
		now := time.Now()
		records, err := c.exec(`
			DELETE FROM records WHERE rowid IN
				(SELECT rowid FROM records WHERE expires <= ? ORDER BY expires LIMIT ?)`,
			now.UnixMilli(), int64(reapBatch))
		if err != nil {
			return err
		}
		leases, err := c.exec(`
			DELETE FROM leases WHERE name IN
				(SELECT name FROM leases WHERE expires <= ? ORDER BY expires LIMIT ?)`,
			now.UnixMicro(), int64(reapBatch))
		n = max(records, leases)
		return err
	})
	return n, err
}
