package redis

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Leaser = (*Store)(nil)

// A lease is the key l:NAME behind the prefix: its fence, its end in milliseconds, and its
// holder's token, or none once it was released. The fence is the server's time in
// microseconds, or one more than the last where that is higher, so no name's fence has to
// be kept for ever. It is kept for fenceMemory after the lease's end, for the next primary
// may have a clock that is behind.
const fenceMemory = 10 * time.Second

const luaLease = luaCommon + `
local layout = '>I8I6'
local held = redis.call('GET', KEYS[1])
local fence, ends, token = 0, 0, ''
if held then
	local at
	fence, ends, at = struct.unpack(layout, held)
	token = string.sub(held, at)
end
local function save(fence, ends, token, life)
	redis.call('SET', KEYS[1], struct.pack(layout, fence, ends) .. token, 'PX', life)
end
`

// acquireScript answers the fence, or nothing where somebody holds the lease. ARGV are a
// token, the lease's life, and that and fenceMemory.
var acquireScript = newScript(luaLease, `
local t, now = redis.call('TIME'), clock()
if token ~= '' and ends > now then return false end
fence = math.max(fence + 1, t[1] * 1000000 + t[2])
save(fence, now + ARGV[2], ARGV[1], ARGV[3])
return fence
`)

// renewLeaseScript has the same ARGV, and answers 1, or 0 where the lease is lost.
var renewLeaseScript = newScript(luaLease, `
local now = clock()
if token ~= ARGV[1] or ends <= now then return 0 end
save(fence, now + ARGV[2], token, ARGV[3])
return 1
`)

// releaseScript ends the lease of token ARGV[1], and remembers its fence for ARGV[2].
var releaseScript = newScript(luaLease, `
if token == ARGV[1] then save(fence, 0, '', ARGV[2]) end
return 1
`)

// Acquire implements store.Leaser.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	if err := store.CheckKey(name); err != nil {
		return nil, wrap("acquire", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	l := &lease{s: s, key: s.prefix + "l:" + name, token: rand.Text()}
	fence, err := l.run(ctx, acquireScript, lives(ttl)...).AsUint64()
	if rueidis.IsRedisNil(err) {
		return nil, store.ErrHeld
	}
	if err != nil {
		return nil, wrap("acquire", err)
	}
	l.fence = fence
	return l, nil
}

// A lease is one holder's side of it.
type lease struct {
	s          *Store
	key, token string
	fence      uint64
}

func (l *lease) run(ctx context.Context, script *script, args ...string) rueidis.RedisResult {
	return l.s.do(ctx, call{script: script, key: l.key, args: append([]string{l.token}, args...)})[0]
}

// lives returns how long a lease lives, and how long its key.
func lives(ttl time.Duration) []string {
	ttl = max(ttl, store.MinTTL)
	return []string{ms(ttl), ms(ttl + fenceMemory)}
}

// Fence implements store.Lease.
func (l *lease) Fence() uint64 { return l.fence }

// Renew implements store.Lease.
func (l *lease) Renew(ctx context.Context, ttl time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, l.s.timeout)
	defer cancel()
	held, err := l.run(ctx, renewLeaseScript, lives(ttl)...).AsInt64()
	if err == nil && held == 0 {
		return store.ErrLost
	}
	return wrap("renew lease", err)
}

// Release implements store.Lease.
func (l *lease) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.s.timeout)
	defer cancel()
	return wrap("release lease", l.run(ctx, releaseScript, ms(fenceMemory)).Error())
}
