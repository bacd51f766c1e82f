package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

func runRegistry(t *testing.T, opts Options, outages []storetest.Outage) {
	storetest.RunLister(t, storetest.BackendHarness{Open: opener[store.Backend](opts)})
	storetest.RunRegistry(t, storetest.RegistryHarness{Open: opener[store.Registry](opts), Outages: outages})
	storetest.RunLeaser(t, storetest.LeaserHarness{Open: opener[store.Leaser](opts), Outages: outages})
	storetest.RunJournal(t, storetest.JournalHarness{Open: opener[store.Journal](opts), Outages: outages})
}

// A-K1 to A-K5 are among what the suites try.
func TestRegistryConformance(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	runRegistry(t, Options{URL: server.URL(), Timeout: time.Second}, []storetest.Outage{
		{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
		{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
		{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
	})
}

func TestRegistryOnSentinel(t *testing.T) {
	env := testenv.StartSentinel(t, testenv.SentinelOptions{})
	opts := Options{
		Sentinel: &Sentinel{Addresses: env.Addresses(), Master: testenv.SentinelMaster},
		Timeout:  5 * time.Second,
	}
	t.Run("Suites", func(t *testing.T) { runRegistry(t, opts, nil) })

	// What was acknowledged, and replicated, is there after a failover.
	t.Run("Failover", func(t *testing.T) {
		s, ctx, e := open(t, opts), t.Context(), entry("a", "alice")
		if _, err := s.Admit(ctx, e, time.Hour, store.Limits{}, ""); err != nil {
			t.Fatal(err)
		}
		old := env.Primary()
		old.Must("WAIT", "1", "5000")
		old.Kill()
		env.WaitFailover(old)
		waitUp(t, s)
		if got := find(t, s, store.Query{Tenant: "acme"}); got != "a" {
			t.Errorf("after the failover %q is listed", got)
		}
		// The new primary has no script yet.
		if err := errors.Join(s.Renew(ctx, e, 2*time.Hour), s.Remove(ctx, e)); err != nil {
			t.Error(err)
		}
	})
}

// No call touches two slots.
func TestRegistryOnCluster(t *testing.T) {
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{Empty: 1})
	opts := Options{Cluster: &Cluster{Addresses: env.Addresses()}}
	t.Run("Suites", func(t *testing.T) { runRegistry(t, opts, nil) })

	// A-Z4: slots move, under everything that the registry does.
	t.Run("Reshard", func(t *testing.T) {
		s := open(t, opts)
		busy, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			var errs []error
			for i := 0; busy.Err() == nil; i++ {
				errs = append(errs, useAll(t.Context(), s, fmt.Sprint("id", i)))
			}
			done <- errors.Join(errs...)
		}()
		for _, key := range []string{
			s.userKey("acme", "alice"), s.seatsKey("acme"), s.sidKey("acme", "sid"), s.journalKey(),
			s.dueKey("0"), s.dueKey("1"), s.tenantKey("acme", "0"), s.tenantKey("acme", "1"),
		} {
			env.Migrate(env.Slot(key), env.Nodes()[3])
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func entry(id, user string) store.Entry {
	return store.Entry{
		ID: id, Tenant: "acme", User: user, App: "shop", SID: "sid",
		Record: "coatcheck-" + id, Data: []byte("data of " + id),
	}
}

// useAll calls everything once.
func useAll(ctx context.Context, s *Store, id string) error {
	e, next := entry(id, "alice"), entry(id+"-next", "alice")
	_, admitted := s.Admit(ctx, e, time.Hour, store.Limits{PerUser: 2, Total: 2, OnLimit: store.EvictOldest}, "")
	_, replaced := s.Admit(ctx, next, time.Hour, store.Limits{PerUser: 2, Total: 2}, id)
	renewed := s.Renew(ctx, next, 2*time.Hour)
	n := 0
	for _, q := range []store.Query{{Tenant: "acme"}, {Tenant: "acme", User: "alice"}, {Tenant: "acme", SID: "sid"}, {Tenant: "acme", ID: next.ID}} {
		for got, err := range s.Find(ctx, q) {
			if err != nil {
				return err
			}
			if got.ID == next.ID {
				n++
			}
		}
	}
	var missed error
	if n != 4 {
		missed = fmt.Errorf("found %d times of 4", n)
	}
	_, reaped := s.Reap(ctx, 10)
	_, ended := s.End(ctx, next, "revoked")
	lease, acquired := s.Acquire(ctx, "lease of "+id, time.Minute)
	var released error
	if acquired == nil {
		released = lease.Release(ctx)
	}
	return errors.Join(admitted, replaced, renewed, missed, reaped, ended, acquired, released,
		s.Append(ctx, []byte(id)), s.Remove(ctx, e), s.Remove(ctx, next))
}

// find returns the IDs of what Find finds, in no particular order.
func find(t testing.TB, s *Store, q store.Query) string {
	t.Helper()
	var ids []string
	for e, err := range s.Find(t.Context(), q) {
		if err != nil {
			t.Fatalf("Find %+v: %v", q, err)
		}
		ids = append(ids, e.ID)
	}
	return strings.Join(ids, " ")
}

// scripts returns how many the server ran.
func scripts(server *testenv.Redis) int {
	info := server.Must("INFO", "commandstats")
	text, _ := info.ToString()
	n := 0
	for line := range strings.SplitSeq(text, "\r\n") {
		if _, stats, ok := strings.Cut(line, "cmdstat_eval"); ok {
			_, calls, _ := strings.Cut(stats, "calls=")
			calls, _, _ = strings.Cut(calls, ",")
			more, _ := strconv.Atoi(calls)
			n += more
		}
	}
	return n
}

// Renew is one command until a quarter of the lifetime has passed.
func TestRenewIsOneCommand(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx, e := open(t, Options{URL: server.URL()}), t.Context(), entry("a", "alice")
	const ttl = 8 * time.Second
	admit(t, s, entry("b", "bob"), ttl, store.Limits{})
	if err := s.Renew(ctx, entry("b", "bob"), ttl); err != nil { // so that the server knows the script
		t.Fatal(err)
	}
	renew := func() int {
		t.Helper()
		before := scripts(server)
		if err := s.Renew(ctx, e, ttl); err != nil {
			t.Fatal(err)
		}
		return scripts(server) - before
	}
	written := time.Now() // or a little later
	admit(t, s, e, ttl, store.Limits{})
	for again := 0; again < 2; time.Sleep(20 * time.Millisecond) {
		asked := time.Now()
		n := renew()
		switch took := time.Since(written); {
		case n == 1 && asked.Sub(written) > ttl/2:
			t.Fatalf("Renew does not write the indexes after %s", took)
		case n > 1 && took < ttl/4:
			t.Fatalf("Renew ran %d scripts after %s, want 1", n, took)
		case n > 1:
			written = asked
			again++
		}
	}
}

// The memory of an entry, with names as long as keyed hashes are, and of two entries of
// one user.
func TestEntryMemory(t *testing.T) {
	const users = 2000
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL(), KeyPrefix: "coatcheck:"}), t.Context()
	used := func() int64 {
		info := server.Must("INFO", "memory")
		text, _ := info.ToString()
		_, rest, _ := strings.Cut(text, "used_memory:")
		n, _, _ := strings.Cut(rest, "\r\n")
		bytes, err := strconv.ParseInt(n, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	admit := func(nth int) {
		for i := range users {
			name := func(of string) string { return fmt.Sprintf("%s%021d", of, i) }
			e := store.Entry{
				ID: fmt.Sprintf("%d%s", nth, name("i")), Tenant: "acme", User: name("u"), App: "shop",
				SID: fmt.Sprintf("%d%s", nth, name("s")), Record: "__Host-coatcheck-" + strings.Repeat("0", 32),
				Data: []byte(strings.Repeat("x", 200)),
			}
			if _, err := s.Admit(ctx, e, time.Hour, store.Limits{}, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	admit(0)
	before := used() // the tables of the server and of the indexes have grown
	admit(1)
	second := used()
	t.Logf("%d bytes for a user's second entry, with 200 bytes of data", (second-before)/users)
	server.Must("FLUSHALL")
	empty := used()
	admit(0)
	t.Logf("%d bytes for a user's first entry, with 200 bytes of data", (used()-empty)/users)
}
