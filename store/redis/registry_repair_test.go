package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

func (s *Store) dueOf(e store.Entry) string { return s.dueKey(shard(e.ID, dueShards)) }

func admit(t testing.TB, s *Store, e store.Entry, ttl time.Duration, limits store.Limits) []store.Entry {
	t.Helper()
	ending, err := s.Admit(t.Context(), e, ttl, limits, "")
	if err != nil {
		t.Fatalf("Admit %s: %v", e.ID, err)
	}
	return ending
}

func reap(t testing.TB, s *Store) (ids []string) {
	t.Helper()
	claimed, err := s.Reap(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range claimed {
		ids = append(ids, e.ID)
	}
	slices.Sort(ids)
	return ids
}

// Whatever key a server loses, a session in use makes it whole.
func TestRenewRepairs(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	whole := func() (problems []string) {
		for _, q := range []store.Query{{Tenant: "acme"}, {Tenant: "acme", User: "alice"}, {Tenant: "acme", SID: "sid"}, {Tenant: "acme", ID: "a"}} {
			if find(t, s, q) != "a" {
				problems = append(problems, fmt.Sprintf("%+v", q))
			}
		}
		for _, of := range [][]string{{"seats", s.seatsKey("acme"), "a"}, {"due", s.dueOf(e), dueMember(e)}} {
			if _, err := server.Do("ZSCORE", of[1], of[2]).AsFloat64(); err != nil {
				problems = append(problems, of[0])
			}
		}
		return problems
	}
	ttl := time.Hour
	admit(t, s, e, ttl, store.Limits{})
	for _, key := range []string{
		s.userKey("acme", "alice"), s.tenantKey("acme", shard("a", tenantShards)), s.idKey("acme", "a"),
		s.sidKey("acme", "sid"), s.seatsKey("acme"), s.dueOf(e), "",
	} {
		if p := whole(); p != nil {
			t.Fatalf("before %q was lost, these lack the entry: %v", key, p)
		}
		if key == "" {
			server.Must("FLUSHALL")
		} else {
			server.Must("DEL", key)
		}
		if whole() == nil {
			t.Errorf("nobody looks into %q", key)
		}
		ttl *= 2 // more than the quarter after which indexes are written again
		if err := s.Renew(t.Context(), e, ttl); err != nil {
			t.Fatal(err)
		}
	}
	if p := whole(); p != nil {
		t.Errorf("these lack the entry: %v", p)
	}
	if _, err := s.Admit(t.Context(), entry("b", "bob"), time.Hour, store.Limits{Total: 1}, ""); err == nil {
		t.Error("the seat was not taken again")
	}
}

// Entries finds what no index names any more, and nothing of others.
func TestEntriesWithoutIndexes(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, others := open(t, Options{URL: server.URL(), KeyPrefix: "*:"}), open(t, Options{URL: server.URL(), KeyPrefix: "x:"})
	e := entry("a", "alice")
	admit(t, s, e, time.Hour, store.Limits{})
	admit(t, others, entry("b", "bob"), time.Hour, store.Limits{})
	server.Must("DEL", s.tenantKey("acme", shard("a", tenantShards)), s.idKey("acme", "a"), s.sidKey("acme", "sid"), s.dueOf(e))
	for _, q := range []store.Query{{Tenant: "acme"}, {Tenant: "acme", SID: "sid"}, {Tenant: "acme", ID: "a"}} {
		if got := find(t, s, q); got != "" {
			t.Errorf("Find %+v: %s, of lost indexes", q, got)
		}
	}
	var ids []string
	for e, err := range s.Entries(t.Context(), "acme") {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	if !slices.Equal(ids, []string{"a"}) {
		t.Errorf("Entries: %v", ids)
	}
}

// The reaper's index may be wrong in every way.
func TestReapVerifies(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	dueNow := func() { server.Must("ZADD", s.dueOf(e), "1", dueMember(e)) }
	began := time.Now()
	// wantLook checks when the reaper looks at e again: after in, from some time since began.
	wantLook := func(step string, in time.Duration) {
		t.Helper()
		m := server.Must("ZSCORE", s.dueOf(e), dueMember(e))
		score, err := m.AsFloat64()
		if err != nil {
			t.Fatal(err)
		}
		at := time.UnixMilli(int64(score))
		if from, to := began.Add(in-time.Second), time.Now().Add(in+time.Second); at.Before(from) || at.After(to) {
			t.Errorf("%s: the reaper looks again in %s, want %s", step, time.Until(at), in)
		}
	}
	want := func(step string, ids []string, in time.Duration) {
		t.Helper()
		dueNow()
		if got := reap(t, s); !slices.Equal(got, ids) {
			t.Errorf("%s: Reap returned %v, want %v", step, got, ids)
		}
		wantLook(step, in)
	}
	admit(t, s, e, time.Hour, store.Limits{})
	want("alive", nil, time.Hour)
	if _, err := s.End(t.Context(), e, "revoked"); err != nil {
		t.Fatal(err)
	}
	wantLook("after End", store.EndingPatience)
	want("left to whoever marked it", nil, store.EndingPatience)
	server.Must("DEL", s.userKey("acme", "alice"))
	dueNow()
	if got := reap(t, s); got != nil {
		t.Errorf("Reap returned %v, which is gone", got)
	}
	if err := server.Do("ZSCORE", s.dueOf(e), dueMember(e)).Error(); !rueidis.IsRedisNil(err) {
		t.Errorf("Reap left what is gone in its index; %v", err)
	}

	// Who wrote to the index since the claim knows better.
	admit(t, s, e, time.Hour, store.Limits{})
	if r, err := s.claim(t.Context(), []due{{s.dueOf(e), dueMember(e), "1"}}); err != nil || r != nil {
		t.Errorf("claim: %v, %v", r, err)
	}
	server.Must("DEL", s.userKey("acme", "alice"))
	if r, err := s.claim(t.Context(), []due{{s.dueOf(e), dueMember(e), "1"}}); err != nil || r != nil {
		t.Errorf("claim: %v, %v", r, err)
	}
	wantLook("after a claim that came late", time.Hour)
}

// A Renew that writes the indexes while somebody ends the session, and removes it, neither
// puts off the reaper nor keeps a seat.
func TestRenewBesideEnd(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, other, ctx := open(t, Options{URL: server.URL()}), open(t, Options{URL: server.URL()}), t.Context()
	for round := range 100 {
		e := entry(fmt.Sprint("s", round), "alice")
		admit(t, s, e, time.Hour, store.Limits{})
		renewing, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ttl := 2 * time.Hour; renewing.Err() == nil; ttl += 24 * time.Hour {
					if err := other.Renew(ctx, e, ttl); err != nil && !errors.Is(err, store.ErrEnding) {
						t.Errorf("Renew: %v", err)
					}
				}
			})
		}
		_, err := s.End(ctx, e, "revoked")
		if remove := round%2 == 0; remove {
			err = errors.Join(err, s.Remove(ctx, e))
		}
		stop()
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if round%2 != 0 {
			score, err := server.Do("ZSCORE", s.dueOf(e), dueMember(e)).AsFloat64()
			if in := time.Until(time.UnixMilli(int64(score))); in > store.EndingPatience || err != nil {
				t.Fatalf("the reaper looks in %s; %v", in, err)
			}
		}
		// What was renewed after Remove is listed, and has its seat.
		if err := s.Remove(ctx, e); err != nil {
			t.Fatal(err)
		}
		if err := server.Do("ZSCORE", s.seatsKey("acme"), e.ID).Error(); !rueidis.IsRedisNil(err) {
			t.Fatalf("a removed session keeps its seat; %v", err)
		}
	}
}

// The same, at the worst moment: all of Remove but its end is done.
func TestRelistBesideRemove(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx, e := open(t, Options{URL: server.URL()}), t.Context(), entry("a", "alice")
	admit(t, s, e, time.Hour, store.Limits{})
	said, seat, err := s.renew(ctx, e, 2*time.Hour, "0")
	if said != "list" || seat != ownSeat || err != nil {
		t.Fatal(said, seat, err)
	}
	if err := s.leave(ctx, e); err != nil {
		t.Fatal(err)
	}
	if said, err = s.relist(ctx, e, 2*time.Hour, seat); said != "ending" || err != nil {
		t.Fatal(said, err)
	}
	if n, err := server.Do("EXISTS", s.seatsKey("acme")).AsInt64(); n != 0 || err != nil {
		t.Errorf("a seat that was given back is taken; %v", err)
	}
	score, err := server.Do("ZSCORE", s.dueOf(e), dueMember(e)).AsFloat64()
	if in := time.Until(time.UnixMilli(int64(score))); in > store.EndingPatience || err != nil {
		t.Errorf("the reaper looks in %s; %v", in, err)
	}
	// The reaper finishes a Remove that got no further.
	server.Must("ZADD", s.dueOf(e), "1", dueMember(e))
	if got := reap(t, s); got != nil {
		t.Errorf("Reap: %v, of what is left to whoever removes it", got)
	}
	if _, err := s.Admit(ctx, entry("b", "alice"), time.Hour, store.Limits{Total: 1}, "a"); err != nil {
		t.Errorf("Admit: %v", err)
	}
	if err := s.Remove(ctx, e); err != nil {
		t.Fatal(err)
	}
	// A seat that is being given back is not taken over.
	if _, err := server.Do("ZSCORE", s.seatsKey("acme"), "b").AsFloat64(); err != nil {
		t.Errorf("b has no seat of its own: %v", err)
	}
}

// The reaper finishes a Remove that was cut short.
func TestRemoveCutShort(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	admit(t, s, e, time.Hour, store.Limits{})
	server.Must("ACL", "SETUSER", "default", "-hdel")
	if err := s.Remove(t.Context(), e); err == nil {
		t.Fatal("Remove without HDEL succeeded")
	}
	if _, err := server.Do("ZSCORE", s.dueOf(e), dueMember(e)).AsFloat64(); err != nil {
		t.Errorf("the reaper does not know of it: %v", err)
	}
}

// A seat whose entry never came is not kept for as long as that would have lived.
func TestReservationEnds(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	a := admission{Store: s, e: entry("a", "alice"), ttl: time.Hour, limits: store.Limits{Total: 1}}
	if err := a.reserve(t.Context()); err != nil {
		t.Fatal(err)
	}
	seat := server.Must("ZSCORE", s.seatsKey("acme"), "a")
	if ends, err := seat.AsFloat64(); err != nil || time.Until(time.UnixMilli(int64(ends))) > reservation {
		t.Errorf("the seat is reserved until %.0f; %v", ends, err)
	}
}

// Indexes lie on other servers than the entries, whose clocks may be ahead by half a minute:
// the entry's server says until when it takes them to list it.
func TestIndexesOnAnEarlierClock(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	admit(t, s, e, time.Hour, store.Limits{})
	m := server.Must("HGET", s.userKey("acme", "alice"), "a")
	packed, err := m.ToString()
	if err != nil {
		t.Fatal(err)
	}
	r := reader{left: packed[3*timeLen:]}
	least := r.time().Add(30 * time.Second).UnixMilli()
	for _, key := range []string{s.tenantKey("acme", shard(e.ID, tenantShards)), s.sidKey("acme", e.SID)} {
		score := server.Must("ZSCORE", key, listMember(e))
		if ends, err := score.AsFloat64(); err != nil || int64(ends) < least {
			t.Errorf("%s lists the entry until %.0f, want %d at least; %v", key, ends, least, err)
		}
	}
	ttl := server.Must("PEXPIRETIME", s.idKey("acme", e.ID))
	if ends, err := ttl.AsInt64(); err != nil || ends < least {
		t.Errorf("the ID is listed until %d, want %d at least; %v", ends, least, err)
	}
}

// An expired entry of which the reaper knows nothing is found by the user's next sign-in.
func TestAdmitFindsWhatReapMissed(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	admit(t, s, e, time.Hour, store.Limits{})
	m := server.Must("HGET", s.userKey("acme", "alice"), "a")
	packed, err := m.ToString()
	if err != nil {
		t.Fatal(err)
	}
	var ends [8]byte
	binary.BigEndian.PutUint64(ends[:], uint64(time.Now().Add(-2*overdue).UnixMilli()))
	server.Must("HSET", s.userKey("acme", "alice"), "a", string(ends[2:])+packed[timeLen:])
	server.Must("DEL", s.dueOf(e))
	if got := reap(t, s); got != nil {
		t.Fatalf("Reap: %v", got)
	}
	if ending := admit(t, s, entry("b", "alice"), time.Hour, store.Limits{}); ending != nil {
		t.Errorf("Admit returned %v", ending)
	}
	time.Sleep(5 * time.Millisecond)
	if got := reap(t, s); !slices.Equal(got, []string{"a"}) {
		t.Errorf("Reap: %v, want a", got)
	}
}

// Invariant 5: when all sessions have ended, nothing of ours is left.
func TestRegistryLeavesNothing(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	limits := store.Limits{PerUser: 2, Total: 30}
	for name, end := range map[string]func(i int, e store.Entry) error{
		"ended": func(_ int, e store.Entry) error {
			_, err := s.End(ctx, e, "revoked")
			return errors.Join(err, s.Remove(ctx, e), s.Remove(ctx, e))
		},
		"removed": func(_ int, e store.Entry) error { return s.Remove(ctx, e) },
		"renewed and removed": func(_ int, e store.Entry) error {
			return errors.Join(s.Renew(ctx, e, 9*time.Hour), s.Remove(ctx, e))
		},
		"replaced": func(i int, e store.Entry) error {
			next := entry(e.ID+"-next", e.User)
			_, err := s.Admit(ctx, next, time.Hour, limits, e.ID)
			if i%2 == 0 {
				e, next = next, e
			}
			return errors.Join(err, s.Remove(ctx, e), s.Remove(ctx, next))
		},
		"refused": func(_ int, e store.Entry) error {
			second := entry(e.ID+"-second", e.User)
			var refused *store.LimitError
			for _, l := range []store.Limits{{PerUser: 1}, {PerApp: 1, Total: 100}, {Total: 1}} {
				for _, replaces := range []string{"", "unknown"} {
					if _, err := s.Admit(ctx, second, time.Hour, l, replaces); !errors.As(err, &refused) {
						return fmt.Errorf("Admit: %w", err)
					}
				}
			}
			_, err := s.End(ctx, second, "revoked")
			if !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("End: %w", err)
			}
			return s.Remove(ctx, e)
		},
		"expired and reaped": func(int, store.Entry) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ttl := time.Hour
			if name == "expired and reaped" {
				ttl = 30 * time.Millisecond
			}
			const n = 20
			for i := range n {
				admit(t, s, entry(fmt.Sprint("s", i), fmt.Sprint("user", i)), ttl, limits)
			}
			for i := range n {
				if err := end(i, entry(fmt.Sprint("s", i), fmt.Sprint("user", i))); err != nil {
					t.Fatal(err)
				}
			}
			if name == "expired and reaped" {
				time.Sleep(2 * ttl)
				claimed, err := s.Reap(ctx, 100)
				if err != nil || len(claimed) != n {
					t.Fatalf("Reap: %d, %v", len(claimed), err)
				}
				for _, e := range claimed {
					if err := s.Remove(ctx, e); err != nil {
						t.Fatal(err)
					}
				}
			}
			wantKeys(t, server, 0)
		})
	}
}

// Invariant 5, where no node ever reaps, ends or removes anything: each key has its end.
func TestRegistryKeysExpire(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	began := time.Now()
	a, b, c := entry("a", "alice"), entry("b", "alice"), entry("c", "carol")
	admit(t, s, a, time.Hour, store.Limits{Total: 5})
	admit(t, s, b, time.Hour, store.Limits{PerUser: 1, OnLimit: store.EvictOldest})
	admit(t, s, c, time.Millisecond, store.Limits{})
	lease, err := s.Acquire(ctx, "name", time.Hour)
	if err == nil {
		err = errors.Join(lease.Renew(ctx, time.Hour), s.Append(ctx, []byte("event")), s.Renew(ctx, b, time.Hour))
	}
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	if got := reap(t, s); !slices.Equal(got, []string{"c"}) {
		t.Errorf("Reap: %v", got)
	}
	listed := time.Hour + listSlack(time.Hour)
	want := map[string]time.Duration{
		s.userKey("acme", "alice"):                    time.Hour + overdueLife,
		s.userKey("acme", "carol"):                    store.ClaimLife + overdueLife,
		s.idKey("acme", "a"):                          listed + skew,
		s.idKey("acme", "b"):                          listed + skew,
		s.idKey("acme", "c"):                          skew,
		s.sidKey("acme", "sid"):                       listed + skew,
		s.seatsKey("acme"):                            listed,
		s.prefix + "l:name":                           time.Hour + fenceMemory,
		s.journalKey():                                store.JournalLife,
		s.tenantKey("acme", shard("a", tenantShards)): listed + skew,
		s.tenantKey("acme", shard("b", tenantShards)): listed + skew,
		s.tenantKey("acme", shard("c", tenantShards)): skew,
		s.dueOf(a):                                    time.Hour + overdueLife,
		s.dueOf(b):                                    time.Hour + overdueLife,
		s.dueOf(c):                                    store.ClaimLife + overdueLife,
	}
	wantKeys(t, server, int64(len(want)))
	const about = 2500 * time.Millisecond
	for key, want := range want {
		m := server.Must("PTTL", key)
		ms, err := m.AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Duration(ms) * time.Millisecond; left > want+about || left < want-about-time.Since(began) {
			t.Errorf("%s lives for %s, want %s", key, left, want)
		}
	}
}

// What an index lists too much goes by its own scores, a few at a time.
func TestIndexesAreTrimmed(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	keys := []string{s.tenantKey("acme", shard("a", tenantShards)), s.sidKey("acme", "sid"), s.seatsKey("acme")}
	for _, key := range keys {
		for i := range 20 {
			server.Must("ZADD", key, "1", fmt.Sprint("gone:", i))
		}
	}
	for range 2 {
		admit(t, s, e, time.Hour, store.Limits{})
	}
	for _, key := range keys {
		m := server.Must("ZCARD", key)
		if n, err := m.AsInt64(); n != 1 || err != nil {
			t.Errorf("%s has %d members, want 1; %v", key, n, err)
		}
	}
}

// Of two Renews at once the one that lists for longer stays, whichever comes last.
func TestIndexesAreNotShortened(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, e := open(t, Options{URL: server.URL()}), entry("a", "alice")
	for _, ttl := range []time.Duration{2 * time.Hour, time.Hour} {
		if err := s.doAll(t.Context(), append(s.list(e, ttl), s.take(e, ownSeat, ttl))...); err != nil {
			t.Fatal(err)
		}
	}
	for key, member := range map[string]string{
		s.tenantKey("acme", shard("a", tenantShards)): listMember(e), s.sidKey("acme", "sid"): listMember(e),
		s.seatsKey("acme"): "a", s.idKey("acme", "a"): "",
	} {
		ms, err := server.Do("PTTL", key).AsInt64()
		if left := time.Duration(ms) * time.Millisecond; left < 2*time.Hour || err != nil {
			t.Errorf("%s lives %s; %v", key, left, err)
		}
		if member == "" {
			continue
		}
		score, err := server.Do("ZSCORE", key, member).AsFloat64()
		if in := time.Until(time.UnixMilli(int64(score))); in < 2*time.Hour || err != nil {
			t.Errorf("%s lists the entry for %s; %v", key, in, err)
		}
	}
}

// What others wrote under our keys is an error, not an entry.
func TestForeignEntries(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	server.Must("HSET", s.userKey("acme", "alice"), "a", "short")
	for _, err := range s.Find(t.Context(), store.Query{Tenant: "acme", User: "alice"}) {
		if !errors.Is(err, errForeign) {
			t.Errorf("Find: %v", err)
		}
	}
	for n := range 200 {
		packed := make([]byte, n)
		for i := range packed {
			packed[i] = byte(n)
		}
		_, _ = unpack(string(packed))
	}
}
