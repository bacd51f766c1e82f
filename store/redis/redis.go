// Package redis keeps records in a standalone Redis, 6.0 or newer, shared by any
// number of nodes.
//
// A record is one string key that expires by itself: eight bytes of revision, big
// endian, and the value. The store's clock is the server's. What Redis acknowledged
// survives its restart as far as its persistence goes; with appendfsync everysec
// that is all but the last second.
package redis

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Store = (*Store)(nil)

// A Store is a store.Store in Redis.
type Store struct {
	client  rueidis.Client
	prefix  string
	timeout time.Duration
}

// Open returns a Store. Only wrong options are an error: a server that can't be
// reached, or refuses the password, is for Ping to tell. Each call connects anew
// where there is no connection, so the Store works as soon as its server does. Open
// waits for the first attempt, at most twice Options.Timeout.
func Open(ctx context.Context, opts Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, wrap("open", err)
	}
	c, err := opts.client()
	if err != nil {
		return nil, wrap("open", err)
	}
	timeout := opts.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}

	c.ForceSingleClient = true // so that NewClient returns a client without a server, too
	c.Dialer.Timeout = timeout
	// A connection that answers nothing is asked for a PONG, and given up after the
	// timeout. That also frees those who found its queue full of commands whose
	// callers have left: they wait twice the timeout at most.
	c.Dialer.KeepAlive = timeout / 2
	c.ConnWriteTimeout = timeout

	// One connection carries everybody's commands, so that those of many requests
	// share one write and one read. Always: a lone caller's deadline would else be
	// the connection's, and end it.
	c.AlwaysPipelining = true
	c.PipelineMultiplex = -1
	c.ReadBufferEachConn = 32 << 10
	c.WriteBufferEachConn = 32 << 10

	// A read is sent a second time if the connection ended under it. A write never
	// is: whether it was done is unknown, and a second Create would find the first.
	c.RetryDelay = retryOnce

	c.DisableCache = true
	c.ClientName = "coatcheck"
	c.ClientSetInfo = rueidis.DisableClientSetInfo

	client, err := rueidis.NewClient(c)
	if client == nil {
		return nil, wrap("open", err)
	}
	return &Store{client: client, prefix: opts.KeyPrefix, timeout: timeout}, nil
}

func retryOnce(attempts int, _ rueidis.Completed, _ error) time.Duration {
	if attempts > 1 {
		return -1
	}
	return 0
}

func dialSocket(ctx context.Context, path string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
	return d.DialContext(ctx, "unix", path)
}

// revisionLen is the length of the revision before a value.
const revisionLen = 8

func encode(revision uint64, value []byte) string {
	b := make([]byte, revisionLen+len(value))
	binary.BigEndian.PutUint64(b, revision)
	copy(b[revisionLen:], value)
	return rueidis.BinaryString(b)
}

func millis(ttl time.Duration) int64 { return max(ttl, store.MinTTL).Milliseconds() }

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, wrap("get", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	key = s.prefix + key
	// Both travel as one write and one read. In between the record may only have
	// been touched, replaced or ended; the lifetime, asked last, is always that of
	// what lives under the key now, and a record that has just ended is absent.
	answers := s.client.DoMulti(ctx, s.client.B().Get().Key(key).Build(), s.client.B().Pttl().Key(key).Build())
	b, err := answers[0].AsBytes()
	if rueidis.IsRedisNil(err) {
		return store.Record{}, store.ErrNotFound
	}
	if err != nil {
		return store.Record{}, wrap("get", err)
	}
	ttl, err := answers[1].AsInt64()
	if err != nil {
		return store.Record{}, wrap("get", err)
	}
	switch {
	case ttl == pttlAbsent:
		return store.Record{}, store.ErrNotFound
	case ttl == pttlForEver, len(b) < revisionLen:
		return store.Record{}, wrap("get", errForeign)
	}
	return store.Record{
		Value:    b[revisionLen:],
		Revision: binary.BigEndian.Uint64(b),
		TTL:      max(time.Duration(ttl)*time.Millisecond, store.MinTTL),
	}, nil
}

// What PTTL answers but a lifetime.
const (
	pttlForEver = -1
	pttlAbsent  = -2
)

var errForeign = errors.New("the key holds something that is not a record of ours")

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("create", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// A revision starts anywhere, so that none of an earlier record of the same key
	// fits the new one.
	err := s.client.Do(ctx, s.client.B().Set().Key(s.prefix+key).Value(encode(rand.Uint64(), value)).
		Nx().PxMilliseconds(millis(ttl)).Build()).Error()
	if rueidis.IsRedisNil(err) {
		return store.ErrExists
	}
	return wrap("create", err)
}

// What a script answers.
const (
	scriptDone     = 1
	scriptAbsent   = 0
	scriptConflict = -1
)

var replaceScript = rueidis.NewLuaScript(`
local revision = redis.call('GETRANGE', KEYS[1], 0, 7)
if revision == '' then return 0 end
if revision ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("replace", err)
	}
	return s.run(ctx, "replace", replaceScript, key,
		encode(revision, nil), encode(revision+1, value), strconv.FormatInt(millis(ttl), 10))
}

var touchScript = rueidis.NewLuaScript(`
local left = redis.call('PTTL', KEYS[1])
if left == -2 then return 0 end
if left >= 0 and left < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1`)

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("touch", err)
	}
	return s.run(ctx, "touch", touchScript, key, strconv.FormatInt(millis(ttl), 10))
}

func (s *Store) run(ctx context.Context, op string, script *rueidis.Lua, key string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	switch n, err := script.Exec(ctx, s.client, []string{s.prefix + key}, args).AsInt64(); {
	case err != nil:
		return wrap(op, err)
	case n == scriptAbsent:
		return store.ErrNotFound
	case n == scriptConflict:
		return store.ErrConflict
	default:
		return nil
	}
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("delete", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return wrap("delete", s.client.Do(ctx, s.client.B().Del().Key(s.prefix+key).Build()).Error())
}

// Ping implements store.Store. It reads, for a server that is loading its data, a
// replica cut off from its primary and a user without rights answer a PING as well. The
// key is the empty one, which no record has.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.client.Do(ctx, s.client.B().Get().Key(s.prefix).Build()).Error()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	return wrap("ping", err)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.client.Close()
	return nil
}

// wrap names op in an error. What the server says of a command it does not know
// repeats the command's arguments, keys, values and passwords among them; they are
// left out.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := rueidis.IsRedisErr(err); ok {
		said, _, _ := strings.Cut(e.Error(), ", with args")
		err = errors.New(said)
	}
	return fmt.Errorf("store/redis: %s: %w", op, err)
}
