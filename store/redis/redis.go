// Package redis keeps records in Redis, 6.2 or newer, shared by any number of nodes: a
// standalone server, a primary that sentinels watch over, or a Redis Cluster.
//
// The store's clock is the server's. What Redis acknowledged survives its restart as
// far as its persistence goes; with appendfsync everysec that is all but the last
// second. What it acknowledged survives the loss of a primary as far as its
// replication goes, which is asynchronous.
//
// All keys that one command or script names share a hash tag, and so a slot.
package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

var (
	_ store.Store   = (*Store)(nil)
	_ store.Watcher = (*Store)(nil)
)

// A Store is a store.Backend in Redis.
type Store struct {
	prefix  string
	timeout time.Duration
	log     *slog.Logger
	tls     tlsFiles
	opts    Options

	current  atomic.Pointer[rueidis.Client] // see redis
	reached  chan struct{}                  // closed once current is a client of the server
	tracking bool                           // the connections are told of changes; set before reached is closed
	trouble  atomic.Pointer[error]          // why the server has not been reached
	stop     context.CancelFunc
	stopped  chan struct{} // closed once nothing tries to reach the server any more

	answering atomic.Int64                  // connections that have answered anything, ever
	renewed   atomic.Pointer[chan struct{}] // closed, and another one, when one more does
	feedsMu   sync.Mutex
	feeds     map[*store.Feed]bool // whom Watch tells
}

// Open returns a Store. Only wrong options are an error: a server that can't be
// reached, refuses the password or is not set up as coatcheck needs it, is for Ping to
// tell, and is tried again until it is right. Open waits for the first attempt, at most
// twice Options.Timeout.
func Open(ctx context.Context, opts Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, wrap("open", err)
	}
	c, err := opts.client()
	if err != nil {
		return nil, wrap("open", err)
	}
	opts.Username = c.Username // which may be the URL's
	s := &Store{
		prefix:  opts.KeyPrefix,
		timeout: opts.Timeout,
		log:     opts.Logger,
		opts:    opts,
		reached: make(chan struct{}),
		stopped: make(chan struct{}),
		feeds:   make(map[*store.Feed]bool),
	}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.tls = tlsFiles{tls: opts.TLS, log: s.log, last: c.TLSConfig}
	renewed := make(chan struct{})
	s.renewed.Store(&renewed)
	s.fillIn(&c)
	if err := s.placeholder(); err != nil {
		return nil, wrap("open", err)
	}

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	tried := make(chan struct{})
	go s.reach(background, c, sync.OnceFunc(func() { close(tried) }))
	select {
	case <-tried:
	case <-time.After(2 * s.timeout):
	case <-ctx.Done():
	}
	return s, nil
}

// redis returns the client. Until the server is reached for the first time it is one
// whose calls fail with the reason why.
func (s *Store) redis() rueidis.Client { return *s.current.Load() }

// Ping implements store.Store. It reads, for a server that is loading its data, a
// replica cut off from its primary and a user without rights answer a PING as well. The
// key is the empty one, which no record has.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c := s.redis()
	err := c.Do(ctx, c.B().Get().Key(s.prefix).Build().Pin()).Error()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	return wrap("ping", err)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.stop()
	<-s.stopped
	s.redis().Close()
	return nil
}

// wrap names op in an error. What the server says of a command it does not know
// repeats the command's arguments, keys, values and passwords among them; they are
// left out.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store/redis: %s: %w", op, stripped(err))
}

// refusals begin what a server says that answers and takes no writes: it is out of memory,
// can't write to its disk, or has too few replicas.
var refusals = []string{"OOM ", "MISCONF ", "NOREPLICAS "}

func stripped(err error) error {
	if e, ok := rueidis.IsRedisErr(err); ok {
		said, _, _ := strings.Cut(e.Error(), ", with args")
		for _, refusal := range refusals {
			if strings.HasPrefix(said, refusal) {
				return fmt.Errorf("%w: %s", store.ErrRefused, said)
			}
		}
		if strings.HasPrefix(said, "NOAUTH ") {
			return fmt.Errorf("%s: set store.redis.username and password_file (those of store.redis.sentinel for Sentinels)", said)
		}
		return errors.New(said)
	}
	return err
}
