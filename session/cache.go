package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// A cache is the near cache: sessions as they were opened, so that one in use costs
// neither a read of the store nor a decryption.
//
// What it holds may be served only while it is fresh. The store's feed says which records
// have changed, and up to when that is the whole truth; beyond Options.CacheLease after that
// moment, and after every gap in the feed, a session is read again. What isn't fresh is
// kept all the same: if the store still has the very same bytes they need not be opened
// again, and an outage grace may go back to it.
//
// A session is found by its handle and served to the holder of the ticket's secret alone,
// which is compared by a keyed hash, in constant time; the secret itself is not kept.
//
// It is safe for concurrent use. Handles are random, so its shards share the work evenly
// and no lock is everybody's.
type cache struct {
	lease  time.Duration
	room   int // bytes of a shard
	key    [sha256.Size]byte
	shards [cacheShards]cacheShard

	// hearing guards the fields below where they change together.
	hearing sync.Mutex
	epoch   atomic.Uint64 // counts the gaps in the feed
	current atomic.Int64  // until when the feed has told everything, as an instant
	// lastCurrent is what current was when each of the last epochs ended.
	lastCurrent [16]atomic.Int64

	hits, misses, stale atomic.Uint64

	logger *slog.Logger
}

const (
	cacheShards = 64
	// reorder is how old the order of the list may be by which sessions are forgotten.
	reorder = instant(100 * time.Millisecond)
)

type cacheShard struct {
	mu      sync.Mutex
	cached  map[string]*cached // by handle
	used    cached             // root of the list, the one used last first
	bytes   int
	changes uint64 // counts calls of changed, of any handle
	flights map[string]*flight
}

// A cached is an opened session. Only the atomic fields change once it is in the cache, and
// moved, next and prev under the shard's lock.
type cached struct {
	// What each request looks at stands together, and is copied from live: of many sessions
	// each is in no processor's cache, and what is read of it costs a wait.
	moved    instant // when it came to the front of the list, under the shard's lock
	epoch    uint64
	ends     atomic.Int64 // an instant: the idle end, as far as this node knows
	untouch  atomic.Int64 // an instant: before it the idle end need not be moved, or should not be tried again
	deadline time.Time
	live     *Live
	mac      [sha256.Size]byte // of the ticket

	sealed   [sha256.Size]byte // hash of the record's value
	sealedBy string            // the key of the ring that sealed it
	read     instant           // when the read that found it began
	bytes    int

	next, prev *cached
}

// An instant is a time by this process's monotonic clock.
type instant = int64

var base = time.Now()

// never is before every instant, and can be subtracted from one.
const never instant = -1 << 62

func instantOf(t time.Time) instant { return int64(t.Sub(base)) }

// newCache returns a cache of at most size bytes, which keeps nothing if that is 0.
func newCache(size int, lease time.Duration, logger *slog.Logger) *cache {
	c := &cache{lease: lease, room: size / cacheShards, logger: logger}
	rand.Read(c.key[:]) // never fails (crypto/rand)
	c.current.Store(never)
	for i := range c.lastCurrent {
		c.lastCurrent[i].Store(never)
	}
	for i := range c.shards {
		h := &c.shards[i]
		h.cached, h.flights = make(map[string]*cached), make(map[string]*flight)
		h.used.next, h.used.prev = &h.used, &h.used
	}
	return c
}

// shard returns the shard of a handle, by its last two digits.
func (c *cache) shard(handle string) *cacheShard {
	n := len(handle)
	digit := func(b byte) byte { return b&15 + b>>6*9 }
	return &c.shards[(digit(handle[n-1])<<4|digit(handle[max(n-2, 0)]))%cacheShards]
}

// mac is the keyed hash of a ticket. Everything in it has a fixed length but the handle,
// which comes last.
func (c *cache) mac(t ticket) [sha256.Size]byte {
	var buf [sha256.Size + secretSize + 128]byte
	b := append(buf[:0], c.key[:]...)
	b = append(b, t.secret[:]...)
	b = append(b, t.handle...)
	return sha256.Sum256(b)
}

// find returns what is cached for the ticket, or nil, and whether it may be served now.
func (c *cache) find(t ticket, now instant) (found *cached, fresh bool) {
	mac := c.mac(t)
	h := c.shard(t.handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	found = h.cached[t.handle]
	if found == nil || subtle.ConstantTimeCompare(found.mac[:], mac[:]) != 1 {
		c.misses.Add(1)
		return nil, false
	}
	if now-found.moved > reorder { // its neighbours are in nobody's processor's cache
		found.unlink()
		h.used.push(found)
		found.moved = now
	}
	// current first: what is heard in a later epoch says nothing of this one.
	current := c.current.Load()
	if found.epoch != c.epoch.Load() || now-current > int64(c.lease) || now >= found.ends.Load() {
		c.stale.Add(1)
		return found, false
	}
	c.hits.Add(1)
	return found, true
}

// confirmed returns up to when the store is known to have had what was read at an instant
// of an epoch, if nothing was told of a change since then.
func (c *cache) confirmed(read instant, epoch uint64) instant {
	current := c.current.Load() // before the epoch, as in find
	switch age := c.epoch.Load() - epoch; {
	case age == 0:
		return max(read, current)
	case age < uint64(len(c.lastCurrent)):
		return max(read, c.lastCurrent[epoch%uint64(len(c.lastCurrent))].Load())
	default:
		return read
	}
}

// put keeps an opened session that the flight f has read, unless its record has changed
// since that began.
func (c *cache) put(t ticket, f *flight, live *Live) *cached {
	now := f.began
	sealedBy, _ := seal.KeyID(f.rec.Value)
	e := &cached{
		live: live, deadline: live.Deadline, mac: c.mac(t), sealed: sha256.Sum256(f.rec.Value), sealedBy: sealedBy,
		read: now, moved: now, epoch: f.epoch, bytes: sizeOf(live),
	}
	e.ends.Store(now + int64(f.rec.TTL))
	e.untouch.Store(never)
	h := c.shard(t.handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.opened != nil && subtle.ConstantTimeCompare(f.opened.mac[:], e.mac[:]) == 1 {
		return f.opened // by another request of those that waited, so that one of them touches
	}
	f.opened = e
	if h.changes != f.changes || e.bytes > c.room {
		return e
	}
	if old := h.cached[live.handle]; old != nil {
		h.drop(old)
	}
	h.cached[live.handle] = e
	h.used.push(e)
	h.bytes += e.bytes
	for h.bytes > c.room {
		h.drop(h.used.prev)
	}
	return e
}

// changed forgets a record, and what any read of it that is under way will find.
func (c *cache) changed(handle string) {
	if handle == "" {
		return
	}
	h := c.shard(handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes++
	delete(h.flights, handle)
	if e := h.cached[handle]; e != nil {
		h.drop(e)
	}
}

// trim forgets sessions that have reached their idle end. Whoever was used last is at the
// front, so those that ended first are at the back.
func (c *cache) trim(now instant) {
	for i := range c.shards {
		h := &c.shards[i]
		h.mu.Lock()
		for last := h.used.prev; last != &h.used && now >= last.ends.Load(); last = h.used.prev {
			h.drop(last)
		}
		h.mu.Unlock()
	}
}

// reset notes a gap in the feed: nothing that was read before is fresh any more.
func (c *cache) reset() {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	epoch := c.epoch.Load()
	c.lastCurrent[epoch%uint64(len(c.lastCurrent))].Store(c.current.Load())
	c.current.Store(never)
	c.epoch.Store(epoch + 1)
}

// heard notes that the feed has told everything up to asOf.
func (c *cache) heard(asOf time.Time) {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	if at := instantOf(asOf); at > c.current.Load() {
		c.current.Store(at)
	}
}

// fresh tells whether the feed hears: whether anything could be served without a read.
func (c *cache) fresh(now instant) bool { return now-c.current.Load() <= int64(c.lease) }

// size returns the bytes that the cache accounts for.
func (c *cache) size() (bytes int) {
	for i := range c.shards {
		h := &c.shards[i]
		h.mu.Lock()
		bytes += h.bytes
		h.mu.Unlock()
	}
	return bytes
}

// drop removes an entry. The shard is locked.
func (h *cacheShard) drop(e *cached) {
	e.unlink()
	delete(h.cached, e.live.handle)
	h.bytes -= e.bytes
}

func (root *cached) push(e *cached) {
	e.prev, e.next = root, root.next
	e.prev.next, e.next.prev = e, e
}

func (e *cached) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// sizeOf is what an opened session takes in memory, more rather than less: its texts, and
// what the structs and the map around them come to.
func sizeOf(l *Live) int {
	const around = 1200
	s := l.Session
	size := around + len(l.handle) + len(l.Ref) +
		len(s.Tenant) + len(s.Provider) + len(s.ProviderSID) +
		len(s.Identity.Issuer) + len(s.Identity.Subject) + len(s.Identity.Email) +
		len(s.Identity.PreferredUsername) + len(s.Identity.Name) +
		len(s.Tokens.ID) + len(s.Tokens.Access) + len(s.Tokens.Refresh) +
		len(s.Origin.App) + len(s.Origin.IP) + len(s.Origin.UserAgent) + len(s.Origin.Node) +
		len(s.Renewal.Attempt) + len(s.Unknown)
	for _, g := range s.Identity.Groups {
		size += len(g) + 24
	}
	return size
}

// A flight is one read of a record, for all who ask for it while it is under way: when
// everything cached goes stale at once, each record is read once.
type flight struct {
	done    chan struct{}
	began   instant
	epoch   uint64
	changes uint64
	rec     store.Record
	err     error
	panic   any     // what the store panicked with
	opened  *cached // what put has made of it, under the shard's lock
}

// read returns the flight that reads the handle's record, when it has landed. The read began
// after the last change this node knows of, and at most a lease ago; with a cache of size 0,
// with this call. It belongs to nobody: a caller who leaves takes nothing from the others. An
// error of ctx is returned as such.
func (c *cache) read(ctx context.Context, s store.Store, handle string) (*flight, error) {
	now := instantOf(time.Now())
	h := c.shard(handle)
	h.mu.Lock()
	f := h.flights[handle]
	if f == nil || c.room == 0 || now-f.began > int64(c.lease) {
		f = &flight{
			done: make(chan struct{}), began: now,
			epoch: c.epoch.Load(), changes: h.changes,
		}
		// The handle is part of the request's header, which must not stay with it.
		handle = strings.Clone(handle)
		h.flights[handle] = f
		h.mu.Unlock()
		go c.fly(context.WithoutCancel(ctx), s, handle, f)
	} else {
		h.mu.Unlock()
	}
	select {
	case <-f.done:
		if f.panic != nil {
			panic(f.panic) // in the goroutine of a request, where it is caught
		}
		return f, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// flightLimit bounds a read whose store has no deadline of its own.
const flightLimit = 10 * time.Second

func (c *cache) fly(ctx context.Context, s store.Store, handle string, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, flightLimit)
	defer cancel()
	defer func() {
		if f.panic = recover(); f.panic != nil { // here, since the stack ends with this goroutine
			logPanic(ctx, c.logger, "a session was read", f.panic)
		}
		h := c.shard(handle)
		h.mu.Lock()
		if h.flights[handle] == f {
			delete(h.flights, handle)
		}
		h.mu.Unlock()
		close(f.done)
	}()
	f.rec, f.err = s.Get(ctx, handle)
}

// CacheStats says how the near cache does.
type CacheStats struct {
	Hits   uint64 // sessions served from it
	Misses uint64 // sessions that it did not hold
	Stale  uint64 // sessions that it held, and that had to be read again
	Bytes  int    // what it accounts for now
	// Hearing: the store's feed is heard, so that sessions can be served from it.
	Hearing bool
}

// CacheStats returns the state of the near cache.
func (m *Manager) CacheStats() CacheStats {
	return CacheStats{
		Hits: m.cache.hits.Load(), Misses: m.cache.misses.Load(), Stale: m.cache.stale.Load(),
		Bytes: m.cache.size(), Hearing: m.cache.fresh(instantOf(time.Now())),
	}
}
