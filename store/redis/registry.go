package redis

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

var _ store.Registry = (*Store)(nil)

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
		{command: "SET", key: s.idKey(e.Tenant, e.ID), args: []string{e.User, "PX", ms(listed)}},
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

// onLimit is how admitScript calls what OnLimit says.
func onLimit(o store.OnLimit) string {
	switch o {
	case store.EvictOldest:
		return "evict_oldest"
	case store.EvictIdle:
		return "evict_idle"
	default:
		return "deny"
	}
}

// Admit implements store.Registry. It takes time in proportion to the number of the user's
// own entries.
func (s *Store) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	err := store.CheckEntry(e)
	if err == nil && replaces != "" {
		err = store.CheckQuery(store.Query{Tenant: e.Tenant, ID: replaces})
	}
	if err != nil {
		return nil, wrap("admit", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ttl = max(ttl, store.MinTTL)
	a := admission{Store: s, e: e, ttl: ttl, limits: limits, replaces: replaces}
	ending, err := a.run(ctx)
	return ending, wrap("admit", err)
}

// An admission is one call of Admit.
type admission struct {
	*Store
	e        store.Entry
	ttl      time.Duration
	limits   store.Limits
	replaces string
	reserved bool // a seat is there for e, or none is needed
	mine     bool // which this call has reserved
}

func (a *admission) run(ctx context.Context) ([]store.Entry, error) {
	// Whoever replaces another entry takes over its seat, and needs one of its own only
	// where that fails.
	if a.replaces == "" {
		if err := a.reserve(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.doAll(ctx, a.list(a.e, a.ttl)...); err != nil {
		return nil, err
	}
	said, words, err := a.step(ctx)
	if err == nil && said == "needs seat" {
		if err = a.reserve(ctx); err == nil {
			said, words, err = a.step(ctx)
		}
	}
	var refused *store.LimitError
	switch {
	case errors.As(err, &refused):
	case err != nil:
		// Nobody knows whether the entry is listed. A seat that was reserved ends soon.
		return nil, err
	case said == "admitted":
		return a.settle(ctx, words[0], words[1:])
	default:
		refused = &store.LimitError{Limit: store.LimitKind(said)}
	}
	if words[0] == "0" {
		a.giveUp(ctx)
	}
	return nil, refused
}

// reserve reserves a seat, or returns a *LimitError.
func (a *admission) reserve(ctx context.Context) error {
	a.reserved = true
	if a.limits.Total <= 0 {
		return nil
	}
	n, err := a.do(ctx, call{script: seatScript, key: a.seatsKey(a.e.Tenant), args: []string{
		a.e.ID, ms(min(a.ttl, reservation)), strconv.Itoa(a.limits.Total),
	}})[0].AsInt64()
	if err == nil && n == 0 {
		err = &store.LimitError{Limit: store.LimitTotal}
	}
	a.mine = n == 1
	return err
}

// step runs admitScript and returns what it said and the words behind that.
func (a *admission) step(ctx context.Context) (said string, words []string, err error) {
	reserved := "0"
	if a.reserved {
		reserved = "1"
	}
	words, err = texts(a.do(ctx, call{script: admitScript, key: a.userKey(a.e.Tenant, a.e.User), args: []string{
		a.e.ID, ms(a.ttl), ms(a.ttl + listSlack(a.ttl)), a.e.App, rest(a.e), a.replaces, reserved,
		strconv.Itoa(a.limits.PerUser), strconv.Itoa(a.limits.PerApp), onLimit(a.limits.OnLimit),
		ms(store.EndingPatience), ms(overdueLife), ms(overdue),
	}})[0])
	if err != nil {
		return "", nil, err
	}
	return words[0], words[1:], nil
}

// texts returns a script's answer, in which numbers stand as text.
func texts(r rueidis.RedisResult) ([]string, error) {
	answer, err := r.ToArray()
	if err != nil {
		return nil, err
	}
	out := make([]string, len(answer))
	for i, m := range answer {
		if n, err := m.AsInt64(); err == nil && m.IsInt64() {
			out[i] = strconv.FormatInt(n, 10)
		} else if out[i], err = m.ToString(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// giveUp takes back what was written before a refusal. What it fails to take back ends by
// itself, and hinders nobody but for a seat, which ends soon.
func (a *admission) giveUp(ctx context.Context) {
	calls := append(a.unlist(a.e), a.unlook(a.e))
	if a.mine {
		calls = append(calls, a.release(a.e, ownSeat))
	}
	_ = a.doAll(ctx, calls...)
}

// settle makes the seat last as long as the entry, and makes the reaper look after the
// entries that are ending now. found has pairs, as admitScript answers them.
func (a *admission) settle(ctx context.Context, seat string, found []string) ([]store.Entry, error) {
	calls := []call{a.take(a.e, seat, a.ttl)}
	if a.mine && seatName(a.e, seat) != a.e.ID {
		calls = append(calls, a.release(a.e, ownSeat))
	}
	var ending []store.Entry
	for i := 0; i+1 < len(found); i += 2 {
		id, packed := found[i], found[i+1]
		if packed == "" {
			calls = append(calls, a.look(store.Entry{Tenant: a.e.Tenant, User: a.e.User, ID: id}, 0))
			continue
		}
		e, err := unpack(packed)
		if err != nil {
			return nil, err
		}
		e.Tenant, e.User, e.ID = a.e.Tenant, a.e.User, id
		ending = append(ending, e)
		calls = append(calls, a.look(e, store.EndingPatience))
	}
	if err := a.doAll(ctx, calls...); err != nil {
		return nil, err
	}
	return ending, nil
}

// Renew implements store.Registry. It is one command, but where the indexes have to be
// written.
func (s *Store) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if err := store.CheckEntry(e); err != nil {
		return wrap("renew", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ttl = max(ttl, store.MinTTL)
	step := func(listed time.Duration) ([]string, error) {
		return texts(s.do(ctx, call{script: renewScript, key: s.userKey(e.Tenant, e.User), args: []string{
			e.ID, ms(ttl), strconv.FormatInt(listed.Milliseconds(), 10), e.App, rest(e), ms(overdueLife),
		}})[0])
	}
	said, err := step(0)
	if err == nil && said[0] == "list" {
		if err = s.doAll(ctx, append(s.list(e, ttl), s.take(e, said[1], ttl))...); err == nil {
			said, err = step(ttl + listSlack(ttl))
		}
		if err == nil && said[0] == "ending" {
			// Somebody began to end it meanwhile. The reaper has to look as soon as it did.
			err = s.doAll(ctx, s.look(e, store.EndingPatience))
		}
	}
	if err != nil {
		return wrap("renew", err)
	}
	if said[0] == "ending" {
		return store.ErrEnding
	}
	return nil
}

// checkNamed is CheckEntry for an entry that is only named.
func checkNamed(e store.Entry) error {
	e.Record, e.Data = "any", nil
	return store.CheckEntry(e)
}

// End implements store.Registry.
func (s *Store) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	err := checkNamed(e)
	if err == nil {
		err = store.CheckReason(reason)
	}
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// The reaper looks early even if this node stops in the midst. Where it finds the
	// entry alive, it comes back later.
	if err := s.doAll(ctx, s.look(e, store.EndingPatience)); err != nil {
		return store.Entry{}, wrap("end", err)
	}
	packed, err := s.do(ctx, call{script: endScript, key: s.userKey(e.Tenant, e.User), args: []string{
		e.ID, reason, ms(store.EndingPatience),
	}})[0].ToString()
	if rueidis.IsRedisNil(err) {
		_ = s.doAll(ctx, s.unlook(e)) // or the reaper does
		return store.Entry{}, store.ErrNotFound
	}
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	now, err := unpack(packed)
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	now.Tenant, now.User, now.ID = e.Tenant, e.User, e.ID
	return now, nil
}

// Remove implements store.Registry. The entry goes after its seat and its indexes, and the
// reaper's index last, so that the reaper finishes a Remove that was cut short.
func (s *Store) Remove(ctx context.Context, e store.Entry) error {
	if err := checkNamed(e); err != nil {
		return wrap("remove", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	user := s.userKey(e.Tenant, e.User)
	seat, err := s.do(ctx, call{script: leaveScript, key: user, args: []string{
		e.ID, string(coatcheck.ReasonLost), ms(store.EndingPatience),
	}})[0].ToString()
	if rueidis.IsRedisNil(err) {
		return wrap("remove", s.doAll(ctx, s.unlook(e)))
	}
	if err == nil {
		calls := s.unlist(e)
		if seat != "" {
			calls = append(calls, s.release(e, seat[1:]))
		}
		err = s.doAll(ctx, calls...)
	}
	if err == nil {
		err = s.doAll(ctx, call{command: "HDEL", key: user, args: []string{e.ID}})
	}
	if err == nil {
		err = s.doAll(ctx, s.unlook(e))
	}
	return wrap("remove", err)
}
