// Package postgres keeps everything in a PostgreSQL, 13 or newer, shared by any number of
// nodes: records, registry, leases, and through LISTEN and NOTIFY the feed of changes and
// the journal.
//
// The store's clock is the server's. What a call has done is committed when it returns, as
// safely as the server's synchronous_commit says. A failover to a standby that had not
// received it loses it.
//
// PostgreSQL commits transactions that notify one after the other. Create, Touch and
// Renew don't; Replace, Delete and Append do, and their rate is bounded by how fast the
// server commits.
//
// A pooler between coatcheck and PostgreSQL must pool sessions: LISTEN means nothing
// elsewhere, and neither do the settings that a connection begins with.
package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Backend = (*Store)(nil)

// A Store is a store.Backend in PostgreSQL.
type Store struct {
	pool    *pgxpool.Pool
	config  *pgx.ConnConfig // of connections outside the pool; see connect
	tls     tlsFiles
	schema  string
	timeout time.Duration
	log     *slog.Logger
	stop    context.CancelFunc // ends the reaper
	reaper  sync.WaitGroup
	unfit   atomic.Bool  // the log was told that the schema is; see fitness
	deaf    atomic.Int32 // how many ears don't hear
}

// Open returns a Store. Only wrong options are an error: a server that can't be reached,
// refuses the password or lacks the schema is for Ping to tell. Each call connects anew
// where there is no connection, so the Store works as soon as its server does.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s, err := start(ctx, opts)
	if err != nil {
		return nil, wrap("open", err)
	}
	return s, nil
}

func start(ctx context.Context, opts Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Store{timeout: opts.Timeout, log: opts.Logger}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	pool, schema, err := opts.config(s.timeout)
	if err != nil {
		return nil, err
	}
	s.schema, s.config = schema, pool.ConnConfig.Copy()
	s.tls = tlsFiles{opts: opts, timeout: s.timeout, log: s.log, last: pool.ConnConfig.Copy()}
	pool.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { s.tls.apply(c); return nil }
	pool.MaxConns = defaultMaxConns
	if opts.MaxConns > 0 {
		pool.MaxConns = int32(min(opts.MaxConns, math.MaxInt32))
	}
	if s.pool, err = pgxpool.NewWithConfig(ctx, pool); err != nil {
		return nil, err
	}
	reaping, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.reaper.Go(func() { s.reap(reaping) })
	return s, nil
}

// connect makes a connection outside the pool.
func (s *Store) connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	s.tls.apply(config)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, attempts{err}
	}
	return conn, nil
}

// Close implements store.Store. It waits for the calls under way.
func (s *Store) Close() error {
	s.stop()
	s.reaper.Wait()
	s.pool.Close()
	return nil
}

// A statement does its work on a connection that is its own meanwhile.
type statement func(ctx context.Context, conn *pgx.Conn) error

// read runs a statement that changes nothing. It is run a second time if its connection
// ended under it.
func (s *Store) read(ctx context.Context, op string, do statement) error {
	lost, err := s.run(ctx, do)
	if lost {
		_, err = s.run(ctx, do)
	}
	return wrap(op, err)
}

// write runs a statement that changes something, once. pgconn.SafeToRetry is not asked: of
// a COMMIT that was sent and whose answer was lost it says that it is.
func (s *Store) write(ctx context.Context, op string, do statement) error {
	_, err := s.run(ctx, do)
	return wrap(op, err)
}

// run runs a statement with a connection of the pool. lost: the connection ended under it
// and there is time left.
func (s *Store) run(ctx context.Context, do statement) (lost bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return false, attempts{err}
	}
	defer conn.Release()
	// A caller that leaves must not cost a connection: its statement takes a moment to
	// its end, a new connection takes the server a process. Deadlines do.
	deadline, _ := ctx.Deadline()
	sent, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	err = s.fitness(do(sent, conn.Conn()))
	return err != nil && conn.Conn().IsClosed() && sent.Err() == nil, err
}

// rollback ends the transaction that err has left open, if it did, and returns err.
func rollback(ctx context.Context, conn *pgx.Conn, err error) error {
	if err != nil && !conn.IsClosed() && conn.PgConn().TxStatus() != 'I' {
		_, _ = conn.Exec(ctx, `ROLLBACK`) // else the pool closes the connection
	}
	return err
}

// SQLSTATE codes that are told apart.
const (
	codeReadOnly = "25006"
	codeNoSchema = "3F000"
	codeNoTable  = "42P01"
	codeNoRight  = "42501"
)

func hasCode(err error, codes ...string) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && slices.Contains(codes, e.Code)
}

// An attempts is the error of connecting. pgx tells of each attempt in a line of its own;
// those that failed alike, with TLS and without, are told as one.
type attempts struct{ error }

func (a attempts) Unwrap() error { return a.error }

func (a attempts) Error() string {
	lines := slices.Compact(strings.Split(a.error.Error(), "\n\t"))
	if len(lines) == 1 {
		return lines[0]
	}
	return lines[0] + " " + strings.Join(lines[1:], "; ")
}

// wrap names op in an error, unless the error is an outcome.
func wrap(op string, err error) error {
	if err == nil || store.IsOutcome(err) {
		return err
	}
	return fmt.Errorf("store/postgres: %s: %w", op, err)
}

// lockID returns the number of an advisory lock on something of this schema. Two things
// that share one, by chance, only wait for each other.
func (s *Store) lockID(names ...string) int64 {
	h := sha256.New()
	for _, name := range append([]string{"coatcheck", s.schema}, names...) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(name)))
		_, _ = h.Write([]byte(name))
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}

// affected returns the error of a statement, or none if it changed nothing.
func affected(tag pgconn.CommandTag, err, none error) error {
	if err == nil && tag.RowsAffected() == 0 {
		return none
	}
	return err
}
