package redis

import (
	"encoding/binary"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Numbers of keys over which indexes are spread, so that a Cluster spreads them over its
// servers. They can't change while entries are listed.
const (
	dueShards    = 64
	tenantShards = 32
)

func shard(id string, n uint32) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return strconv.FormatUint(uint64(h.Sum32()%n), 10)
}

// The registry's keys. No name in an entry has a colon in it.

func (s *Store) userKey(tenant, user string) string { return s.prefix + "u:" + tenant + ":" + user }
func (s *Store) idKey(tenant, id string) string     { return s.prefix + "i:" + tenant + ":" + id }
func (s *Store) sidKey(tenant, sid string) string   { return s.prefix + "s:" + tenant + ":" + sid }
func (s *Store) seatsKey(tenant string) string      { return s.prefix + "q:" + tenant }
func (s *Store) dueKey(shard string) string         { return s.prefix + "x:" + shard }
func (s *Store) tenantKey(tenant, shard string) string {
	return s.prefix + "a:" + tenant + ":" + shard
}

// The members of the expiry index, and of those by tenant and by sid.

func dueMember(e store.Entry) string  { return e.Tenant + ":" + e.User + ":" + e.ID }
func listMember(e store.Entry) string { return e.User + ":" + e.ID }

// named returns the entry that a member of the expiry index names.
func named(member string) (e store.Entry, ok bool) {
	tenant, rest, _ := strings.Cut(member, ":")
	user, id, ok := strings.Cut(rest, ":")
	return store.Entry{Tenant: tenant, User: user, ID: id}, ok
}

// A packed entry is what a script leaves of one in its user's hash, under its ID:
//
//	expires, started, seen   the entry's times, in milliseconds since 1970
//	listed                   until when the indexes list it
//	left                     until when an ending entry is left to whoever marked or claimed it
//	ending, seat, app        strings of up to 255 bytes
//	rest                     record, sid and data, which no script reads
//
// Times are six bytes, big endian.
const (
	timeLen = 6
	nTimes  = 5
)

// rest returns what no script reads.
func rest(e store.Entry) string {
	b := make([]byte, 0, 2*binary.MaxVarintLen16+len(e.Record)+len(e.SID)+len(e.Data))
	b = appendString(b, e.Record)
	b = appendString(b, e.SID)
	return string(append(b, e.Data...))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// unpack returns a packed entry, but for the names that its place says.
func unpack(packed string) (e store.Entry, err error) {
	r := reader{left: packed}
	e.Expires, e.Started, e.Seen = r.time(), r.time(), r.time()
	r.bytes((nTimes - 3) * timeLen)
	e.Ending = r.bytes(int(r.byte()))
	r.bytes(int(r.byte())) // the seat
	e.App = r.bytes(int(r.byte()))
	e.Record = r.string()
	e.SID = r.string()
	if r.short {
		return store.Entry{}, errForeign
	}
	e.Data = []byte(r.left)
	return e, nil
}

// A reader takes a packed entry apart. It reads zeros from where it is too short.
type reader struct {
	left  string
	short bool
}

func (r *reader) bytes(n int) string {
	if n < 0 || n > len(r.left) {
		r.left, r.short = "", true
		return ""
	}
	b := r.left[:n]
	r.left = r.left[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != "" {
		return b[0]
	}
	return 0
}

func (r *reader) time() time.Time {
	var ms int64
	for _, b := range []byte(r.bytes(timeLen)) {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

func (r *reader) string() string {
	n, width := binary.Uvarint([]byte(r.left[:min(len(r.left), binary.MaxVarintLen16)]))
	if width <= 0 {
		r.short = true
		return ""
	}
	r.bytes(width)
	return r.bytes(int(n))
}
