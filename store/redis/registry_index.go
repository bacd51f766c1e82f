package redis

import (
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// The registry's keys, each behind the prefix, and each with an end of its own:
//
//	u:TENANT:USER    hash: ID → entry; it decides everything about the user's entries
//	x:SHARD          sorted set of TENANT:USER:ID by when the reaper has to look
//	a:TENANT:SHARD   sorted set of USER:ID by until when they are listed
//	s:TENANT:SID     the same, of one session of the provider
//	i:TENANT:ID      string: USER
//	q:TENANT         sorted set of seats by until when they are taken
//
// A script works on one key only. So a user's hash changes in one step, and what the
// indexes say is verified there when it is used. They are written before the hash and to
// a time somewhat past the entry's end, so that most calls of Renew write the hash alone;
// one that would leave that time writes them anew. That also repairs what a server lost
// of them, within listSlack of use: until then Find misses an entry, or Reap does, whose
// hash then ends by itself. An index that lists too much is trimmed by its own scores,
// and the reaper drops or puts off what it finds gone or alive.
//
// An entry's seat is called like its ID, or like that of the first in a row of entries
// each of which replaced the one before.

const (
	// overdueLife is how much longer than its last entry a user's hash lives, for the
	// reaper to come; and how long after its time the expiry index lives.
	overdueLife = 10 * time.Minute
	// overdue is how long after an entry's end Admit takes it that the reaper does not
	// know of it.
	overdue = time.Minute
	// skew is how much clocks of a Cluster's servers may differ without an index losing
	// what is listed.
	skew = time.Minute
	// reservation is how long a seat waits for its entry, at most.
	reservation = time.Minute
)

// listSlack is how much longer than its entry an index lists it.
func listSlack(ttl time.Duration) time.Duration { return min(ttl/4, 15*time.Minute) }

func ms(d time.Duration) string {
	return strconv.FormatInt(max(d, store.MinTTL).Milliseconds(), 10)
}

// list returns the calls that make the indexes list e for ttl and its slack.
func (s *Store) list(e store.Entry, ttl time.Duration) []call {
	listed := ttl + listSlack(ttl) + skew
	calls := []call{
		s.look(e, ttl),
		{script: listScript, key: s.tenantKey(e.Tenant, shard(e.ID, tenantShards)), args: []string{listMember(e), ms(listed)}},
		{script: listNameScript, key: s.idKey(e.Tenant, e.ID), args: []string{e.User, ms(listed)}},
	}
	if e.SID != "" {
		calls = append(calls, call{script: listScript, key: s.sidKey(e.Tenant, e.SID), args: []string{listMember(e), ms(listed)}})
	}
	return calls
}

// look returns the call that makes the reaper look at e.
func (s *Store) look(e store.Entry, in time.Duration) call {
	return call{script: lookScript, key: s.dueKey(shard(e.ID, dueShards)), args: []string{dueMember(e), ms(in), ms(overdueLife)}}
}

// unlist returns the calls that take e off the indexes, but for the reaper's.
func (s *Store) unlist(e store.Entry) []call {
	calls := []call{
		{command: "ZREM", key: s.tenantKey(e.Tenant, shard(e.ID, tenantShards)), args: []string{listMember(e)}},
		{command: "DEL", key: s.idKey(e.Tenant, e.ID)},
	}
	if e.SID != "" {
		calls = append(calls, call{command: "ZREM", key: s.sidKey(e.Tenant, e.SID), args: []string{listMember(e)}})
	}
	return calls
}

// unlook returns the call that takes e off the reaper's index.
func (s *Store) unlook(e store.Entry) call {
	return call{command: "ZREM", key: s.dueKey(shard(e.ID, dueShards)), args: []string{dueMember(e)}}
}

// take returns the call that takes a seat as long as the indexes list its entry, whether
// it was reserved or not.
func (s *Store) take(e store.Entry, seat string, ttl time.Duration) call {
	return call{script: listScript, key: s.seatsKey(e.Tenant), args: []string{seatName(e, seat), ms(ttl + listSlack(ttl))}}
}

// release returns the call that gives a seat back.
func (s *Store) release(e store.Entry, seat string) call {
	return call{command: "ZREM", key: s.seatsKey(e.Tenant), args: []string{seatName(e, seat)}}
}

// seatName resolves the name of e's seat, as its packed entry has it.
func seatName(e store.Entry, seat string) string {
	if seat == ownSeat {
		return e.ID
	}
	return seat
}

// ownSeat stands for the seat called like its entry.
const ownSeat = "="

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
