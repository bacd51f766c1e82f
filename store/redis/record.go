package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

// A record is two keys of one slot, and lives while both exist. The value key holds
// eight bytes of revision, big endian, and the value. The deadline key holds nothing and
// expires when the record does. Whoever follows changes follows value keys, so a record
// that is touched, which only moves its deadline, stays in everybody's cache.
//
// The value key expires by itself, too, later than the deadline: at twice the lifetime
// it was written with. Touch moves that end when it would come before the deadline.
func (s *Store) valueKey(key string) string    { return s.valuePrefix() + tag(key) }
func (s *Store) deadlineKey(key string) string { return s.prefix + "t:" + tag(key) }
func (s *Store) valuePrefix() string           { return s.prefix + "r:" }

// tag makes all of key the hash tag: a slot is found by what stands between the first
// brace and the first one that closes. No two keys have the same tag.
func tag(key string) string { return "{" + tagEscaper.Replace(key) + "}" }

// untag is the inverse of tag, and false for what tag does not return.
func untag(t string) (string, bool) {
	t, opened := strings.CutPrefix(t, "{")
	t, closed := strings.CutSuffix(t, "}")
	return tagUnescaper.Replace(t), opened && closed
}

var (
	tagEscaper   = strings.NewReplacer("%", "%25", "}", "%7D")
	tagUnescaper = strings.NewReplacer("%25", "%", "%7D", "}")
)

// revisionLen is the length of the revision before a value.
const revisionLen = 8

func encode(revision uint64, value []byte) string {
	b := make([]byte, revisionLen+len(value))
	binary.BigEndian.PutUint64(b, revision)
	copy(b[revisionLen:], value)
	return rueidis.BinaryString(b)
}

// lifetimes returns the milliseconds that deadline key and value key live.
func lifetimes(ttl time.Duration) (deadline, value string) {
	ms := max(ttl, store.MinTTL).Milliseconds()
	return strconv.FormatInt(ms, 10), strconv.FormatInt(2*ms, 10)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, wrap("get", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// Both travel as one write and one read. In between the record may only have
	// been touched, replaced or ended; the lifetime, asked last, is always that of
	// what lives under the key now, and a record that has just ended is absent.
	c := s.redis()
	answers := c.DoMulti(ctx, c.B().Get().Key(s.valueKey(key)).Build().Pin(), c.B().Pttl().Key(s.deadlineKey(key)).Build().Pin())
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

// What a script on a record answers. Its KEYS are the value key and the deadline key.
const (
	scriptDone     = 1
	scriptAbsent   = 0
	scriptConflict = -1
	scriptExists   = -2
)

var createScript = rueidis.NewLuaScript(`
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 2 then return -2 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SET', KEYS[2], '', 'PX', ARGV[2])
return 1`)

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("create", err)
	}
	deadline, life := lifetimes(ttl)
	// A revision starts anywhere, so that none of an earlier record of the same key
	// fits the new one.
	return s.change(ctx, "create", createScript, key, encode(rand.Uint64(), value), deadline, life)
}

var replaceScript = rueidis.NewLuaScript(`
local revision = redis.call('GETRANGE', KEYS[1], 0, 7)
if revision == '' or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if revision ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
redis.call('SET', KEYS[2], '', 'PX', ARGV[3])
return 1`)

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := store.CheckWrite(key, value); err != nil {
		return wrap("replace", err)
	}
	deadline, life := lifetimes(ttl)
	return s.change(ctx, "replace", replaceScript, key, encode(revision, nil), encode(revision+1, value), deadline, life)
}

var touchScript = rueidis.NewLuaScript(`
local life, left = redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])
if life == -2 or left == -2 then return 0 end
local ttl = tonumber(ARGV[1])
if left >= 0 and left < ttl then
	if life >= 0 and life < ttl then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
	redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return 1`)

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := store.CheckKey(key); err != nil {
		return wrap("touch", err)
	}
	deadline, life := lifetimes(ttl)
	return s.change(ctx, "touch", touchScript, key, deadline, life)
}

func (s *Store) change(ctx context.Context, op string, script *rueidis.Lua, key string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	switch n, err := s.eval(ctx, script, []string{s.valueKey(key), s.deadlineKey(key)}, args).AsInt64(); {
	case err != nil:
		return wrap(op, err)
	case n == scriptAbsent:
		return store.ErrNotFound
	case n == scriptConflict:
		return store.ErrConflict
	case n == scriptExists:
		return store.ErrExists
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
	return wrap("delete", s.settled(ctx, func(c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Del().Key(s.valueKey(key), s.deadlineKey(key)).Build())
	}).Error())
}

// eval runs a script whose keys share a slot.
func (s *Store) eval(ctx context.Context, script *rueidis.Lua, keys, args []string) rueidis.RedisResult {
	return s.settled(ctx, func(c rueidis.Client) rueidis.RedisResult { return script.Exec(ctx, c, keys, args) })
}

// settled sends a command of several keys. While their slot moves between two nodes of
// a cluster, and they are not all on one of them, it is refused with TRYAGAIN, not
// carried out, and sent again until ctx ends.
func (s *Store) settled(ctx context.Context, send func(rueidis.Client) rueidis.RedisResult) rueidis.RedisResult {
	for {
		answer := send(s.redis())
		if e, ok := rueidis.IsRedisErr(answer.Error()); !ok || !e.IsTryAgain() {
			return answer
		}
		select {
		case <-ctx.Done():
			return answer
		case <-time.After(tryAgainDelay):
		}
	}
}

const tryAgainDelay = 5 * time.Millisecond
