package redis

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

var _ store.Registry = (*Store)(nil)

// Admit implements store.Registry. It takes time in proportion to the number of the user's
// own entries, with limits and without: the ending ones are found among all of them. Its
// server answers nobody meanwhile.
func (s *Store) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	if err := store.CheckAdmit(e, replaces); err != nil {
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
		strconv.Itoa(a.limits.PerUser), strconv.Itoa(a.limits.PerApp), string(a.limits.OnLimit),
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
	said, seat, err := s.renew(ctx, e, ttl, "0")
	if err == nil && said == "list" {
		said, err = s.relist(ctx, e, ttl, seat)
	}
	if err == nil && said == "ending" {
		return store.ErrEnding
	}
	return wrap("renew", err)
}

// renew runs renewScript. listed is until when the indexes list e, in milliseconds from
// now, or 0.
func (s *Store) renew(ctx context.Context, e store.Entry, ttl time.Duration, listed string) (said, seat string, err error) {
	words, err := texts(s.do(ctx, call{script: renewScript, key: s.userKey(e.Tenant, e.User), args: []string{
		e.ID, ms(ttl), listed, e.App, rest(e), ms(overdueLife),
	}})[0])
	if err != nil {
		return "", "", err
	}
	return words[0], words[1], nil
}

// relist is Renew where the indexes have to be written, and the seat taken for longer.
func (s *Store) relist(ctx context.Context, e store.Entry, ttl time.Duration, seat string) (said string, err error) {
	if err := s.doAll(ctx, append(s.list(e, ttl), s.take(e, seat, ttl))...); err != nil {
		return "", err
	}
	said, seat, err = s.renew(ctx, e, ttl, ms(ttl+listSlack(ttl)))
	if err == nil && said == "ending" {
		// Somebody began to end it meanwhile. The reaper has to look as soon as it did,
		// and a seat that was given back is nobody's.
		calls := []call{s.look(e, store.EndingPatience)}
		if seat, givenBack := strings.CutPrefix(seat, "!"); givenBack {
			calls = append(calls, s.release(e, seat))
		}
		err = s.doAll(ctx, calls...)
	}
	return said, err
}

// End implements store.Registry.
func (s *Store) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	err := store.CheckNamed(e)
	if err == nil {
		err = store.CheckReason(reason)
	}
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// The reaper looks early even if this node stops in the midst. Where it finds the
	// entry alive, it comes back later. It is told again at the end, for a Renew may
	// have put it off until then.
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
	if err == nil {
		err = s.doAll(ctx, s.look(e, store.EndingPatience))
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
	if err := store.CheckNamed(e); err != nil {
		return wrap("remove", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.leave(ctx, e)
	if err == nil {
		err = s.doAll(ctx, call{command: "HDEL", key: s.userKey(e.Tenant, e.User), args: []string{e.ID}})
	}
	if err == nil {
		err = s.doAll(ctx, s.unlook(e))
	}
	return wrap("remove", err)
}

// leave takes from an entry all that it has elsewhere, so that only Remove can follow. It
// leaves an entry of which there is nothing in the user's hash, or one that is another
// user's, as it is.
func (s *Store) leave(ctx context.Context, e store.Entry) error {
	seat, err := s.do(ctx, call{script: leaveScript, key: s.userKey(e.Tenant, e.User), args: []string{
		e.ID, string(coatcheck.ReasonLost), ms(store.EndingPatience),
	}})[0].ToString()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	if err != nil {
		return err
	}
	calls := s.unlist(e)
	if seat, ours := strings.CutPrefix(seat, "!"); ours {
		calls = append(calls, s.release(e, seat))
	}
	return s.doAll(ctx, calls...)
}
