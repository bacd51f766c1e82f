package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const (
	// clusterRefresh is how often the map of a cluster's slots is read without a reason:
	// what a node answers and connections that end are reasons.
	clusterRefresh = 10 * time.Second
	// sentinelRefresh is how often sentinels are asked for the primary, in case that
	// word of a failover was lost.
	sentinelRefresh = 5 * time.Second
	// maxRedirects bounds how often a cluster sends one command on.
	maxRedirects = 8
	// Between two attempts to reach a server for the first time.
	minReachDelay = 50 * time.Millisecond
	maxReachDelay = time.Second
)

// fillIn completes what rueidis is told.
func (s *Store) fillIn(c *rueidis.ClientOption) {
	c.DialCtxFn = s.dial
	c.Dialer.Timeout = s.timeout
	// A connection that answers nothing is asked for a PONG, and given up after the
	// timeout. That also frees those who found its queue full of commands whose
	// callers have left: they wait twice the timeout at most.
	c.Dialer.KeepAlive = s.timeout / 2
	c.ConnWriteTimeout = s.timeout

	// One connection to each server carries everybody's commands, so that those of many
	// requests share one write and one read. Always: a lone caller's deadline would
	// else be the connection's, and end it.
	c.AlwaysPipelining = true
	c.PipelineMultiplex = -1
	c.ReadBufferEachConn = 32 << 10
	c.WriteBufferEachConn = 32 << 10

	// A read is sent a second time if the connection ended under it. A write never
	// is: whether it was done is unknown, and a second Create would find the first.
	// So every read is pinned. rueidis would else use its memory for another command
	// once it is answered, and the connection that ended may still be reading there.
	c.RetryDelay = retryOnce

	// Every connection is told of every change of a value key on its server. rueidis's
	// own cache stays empty.
	c.ClientTrackingOptions = []string{"BCAST", "PREFIX", s.valuePrefix()}
	c.OnInvalidations = s.invalidated
	c.NewCacheStoreFn = func(rueidis.CacheStoreOption) rueidis.CacheStore { return noCache{} }

	c.ClientName = "coatcheck"
	c.ClientSetInfo = rueidis.DisableClientSetInfo
	c.Sentinel.ClientName = c.ClientName
	c.Sentinel.Dialer = c.Dialer
	c.Sentinel.TopologyRefreshInterval = sentinelRefresh
	c.ClusterOption.ShardsRefreshInterval = clusterRefresh
	c.ClusterOption.MaxMovedRedirections = maxRedirects
}

func retryOnce(attempts int, _ rueidis.Completed, _ error) time.Duration {
	if attempts > 1 {
		return -1
	}
	return 0
}

// reach makes the client, and tries until it has one whose server is as it must be.
// tried is called after each attempt.
func (s *Store) reach(ctx context.Context, o rueidis.ClientOption, tried func()) {
	defer close(s.stopped)
	defer tried()
	for delay := minReachDelay; ; {
		client, err := rueidis.NewClient(o)
		if err == nil {
			err = s.check(ctx, client, o)
		}
		if err == nil {
			s.tracking = !o.DisableCache
			s.current.Store(&client)
			close(s.reached)
			return
		}
		if client != nil {
			client.Close()
		}
		if !o.DisableCache && forbidsTracking(err) {
			s.log.Warn("Redis does not tell of changes (CLIENT TRACKING); every session is read each time", "error", firstWords(err))
			o.DisableCache = true
			o.OnInvalidations = nil
			continue
		}
		if last := s.trouble.Load(); *last == nil || cause(*last) != cause(err) {
			s.log.Warn("Redis is not ready; trying again", "error", stripped(err))
		}
		s.trouble.Store(&err)
		tried()
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, maxReachDelay)
	}
}

// cause returns what is wrong, whichever server says so.
func cause(err error) string {
	if refused, ok := errors.AsType[*refusedError](err); ok {
		return refused.cause
	}
	return err.Error()
}

// forbidsTracking says whether err is that of a server that will not track, now or later,
// in whatever words it says so.
func forbidsTracking(err error) bool {
	return errors.Is(err, rueidis.ErrNoCache) && !passing(firstWords(err))
}

// passes begins what a server says that can't serve for now, or does not know us yet. Asked
// later, it may say something else.
var passes = []string{
	"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY",
	"OOM", "MISCONF", "NOREPLICAS", "NOAUTH", "WRONGPASS",
}

func passing(said string) bool {
	code, _, _ := strings.Cut(said, " ")
	return slices.Contains(passes, code)
}

// firstWords returns what the server said of CLIENT TRACKING, without the command.
func firstWords(err error) string {
	said, _, _ := strings.Cut(err.Error(), ": [")
	return said
}

// placeholder makes the client of a server that has not been reached: one that can't
// connect, for the reason that the last attempt had.
func (s *Store) placeholder() error {
	var none error
	s.trouble.Store(&none)
	client, _ := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"unreached"},
		ForceSingleClient: true,
		DisableCache:      true,
		DisableRetry:      true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			if err := *s.trouble.Load(); err != nil {
				return nil, err
			}
			return nil, errors.New("not connected yet")
		},
	})
	if client == nil {
		return errors.New("rueidis makes no client")
	}
	s.current.Store(&client)
	return nil
}

// dial connects, to a sentinel as well. secure says whether TLS is spoken; how is for the
// files to say.
func (s *Store) dial(ctx context.Context, addr string, d *net.Dialer, secure *tls.Config) (net.Conn, error) {
	var conn net.Conn
	var err error
	switch {
	case filepath.IsAbs(addr):
		conn, err = d.DialContext(ctx, "unix", addr)
	case secure != nil:
		conn, err = (&tls.Dialer{NetDialer: d, Config: s.tls.config()}).DialContext(ctx, "tcp", addr)
	default:
		conn, err = d.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return &countedConn{Conn: conn, answered: func(words []byte) error {
		s.connected()
		return s.opts.refused(addr, words)
	}}, nil
}

// A countedConn counts itself with its first answer, before anybody sees that, and fails if
// that says that we are not let in.
type countedConn struct {
	net.Conn
	answered func(words []byte) error
	counted  bool
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.counted {
		c.counted = true
		if err := c.answered(b[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

// A refusedError says that a server, or a sentinel, does not accept the password. rueidis
// would not say which.
type refusedError struct{ addr, cause string }

func (e *refusedError) Error() string { return e.addr + " " + e.cause }

// refused returns a *refusedError if words, the first that a server says, are that.
func (o Options) refused(addr string, words []byte) error {
	said, ok := strings.CutPrefix(string(words), "-WRONGPASS ")
	if !ok {
		return nil
	}
	said, _, _ = strings.Cut(said, "\r")
	user, from := o.Username, o.PasswordFrom
	if o.Sentinel != nil && slices.Contains(o.Sentinel.Addresses, addr) {
		user, from = o.Sentinel.Username, o.Sentinel.PasswordFrom
	}
	return &refusedError{addr, fmt.Sprintf("does not accept user %s with the password from %s: WRONGPASS %s",
		cmp.Or(user, "default"), cmp.Or(from, "its options"), said)}
}

// noCache is a rueidis.CacheStore of nothing. Its Flight and Update are never called,
// for no command of ours goes through the cache.
type noCache struct{}

func (noCache) Flight(string, string, time.Duration, time.Time) (rueidis.RedisMessage, rueidis.CacheEntry) {
	return rueidis.RedisMessage{}, nil
}
func (noCache) Update(string, string, rueidis.RedisMessage) int64 { return 0 }
func (noCache) Cancel(string, string, error)                      {}
func (noCache) Delete([]rueidis.RedisMessage)                     {}
func (noCache) Close(error)                                       {}
