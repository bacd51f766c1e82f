package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// one returns what a statement of the test's own answers.
func one[T any](t testing.TB, s *Store, statement string, args ...any) T {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rows returns the tables that are not empty, and how many rows they have.
func rows(t testing.TB, s *Store) string {
	t.Helper()
	var left []string
	for _, table := range []string{"records", "bodies", "entries", "seats", "leases", "events"} {
		if n := one[int](t, s, "SELECT count(*) FROM "+table); n > 0 {
			left = append(left, fmt.Sprint(n, " ", table))
		}
	}
	return strings.Join(left, ", ")
}

// Invariant 5: when everything is over, nothing is left, whoever the reaper is.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	nodes, ctx := openAll(t, Options{URL: server.URL()}, 2), t.Context()
	s := nodes[0]
	const brief = 10 * time.Millisecond
	user := func(i int) store.Entry {
		return store.Entry{ID: fmt.Sprint("e", i), Tenant: fmt.Sprint("t", i%3), User: fmt.Sprint("u", i%7), SID: fmt.Sprint("s", i), Record: "k"}
	}
	for i := range 60 {
		key := fmt.Sprint("k", i)
		must(t, s.Create(ctx, key, make([]byte, 3000), brief))
		limits := store.Limits{PerUser: 2, OnLimit: store.EvictOldest}
		ending, err := s.Admit(ctx, user(i), brief, limits, fmt.Sprint("e", i-21))
		must(t, err)
		for _, e := range ending {
			must(t, s.Remove(ctx, e))
		}
		if i%5 == 0 {
			if err := s.Touch(ctx, key, 2*brief); !errors.Is(err, store.ErrNotFound) { // which it may be by now
				must(t, err)
			}
			must(t, s.Renew(ctx, user(i), 2*brief))
		}
		if i%7 == 0 {
			must(t, s.Remove(ctx, user(i)))
			must(t, s.Delete(ctx, key))
			must(t, s.Renew(ctx, user(i), brief))
		}
		_, err = s.Acquire(ctx, key, brief)
		must(t, err)
		must(t, s.Append(ctx, []byte(key)))
	}
	time.Sleep(3 * brief)
	if total := one[int](t, s, "SELECT sum(taken)::bigint FROM seats"); total != one[int](t, s, "SELECT count(*) FROM entries") {
		t.Errorf("%d seats are taken: %s", total, rows(t, s))
	}
	_, err := s.pool.Exec(ctx, "UPDATE events SET at = at - $1::interval WHERE id % 2 = 0", keepEvents)
	must(t, err)

	for _, s := range nodes {
		must(t, s.sweep(ctx))
	}
	entries, seats := one[int](t, s, "SELECT count(*) FROM entries"), one[int](t, s, "SELECT count(*) FROM seats")
	if left := rows(t, s); left != fmt.Sprint(entries, " entries, ", seats, " seats, 30 events") {
		t.Errorf("after a sweep there are %s", left)
	}
	for n := -1; n != 0; {
		n = 0
		for _, s := range nodes {
			claimed, err := s.Reap(ctx, 7)
			must(t, err)
			for _, e := range claimed {
				must(t, s.Remove(ctx, e))
			}
			n += len(claimed)
		}
	}
	_, err = s.pool.Exec(ctx, "UPDATE events SET at = at - $1::interval", keepEvents)
	must(t, err)
	must(t, nodes[1].sweep(ctx))
	if left := rows(t, s); left != "" {
		t.Errorf("in the end there are %s", left)
	}
	// Fences go on rising where nothing is known of a name.
	l, err := s.Acquire(ctx, "k0", time.Hour)
	if must(t, err); l.Fence() <= 60 {
		t.Errorf("the fence is %d after 60 leases", l.Fence())
	}
}

// The reaper works by itself, and is gone after Close.
func TestReaperRuns(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the reaper, which takes its time")
	}
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	must(t, s.Create(t.Context(), "k", []byte("v"), time.Millisecond))
	for end := time.Now().Add(3 * reapEvery); rows(t, s) != ""; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %s there are %s", 3*reapEvery, rows(t, s))
		}
	}
}

// What is used again and again costs the indexes nothing: the time at which the reaper
// looks stays, and is moved when it has looked.
func TestUseMovesNoIndex(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s, ctx := openAll(t, Options{URL: server.URL()}, 1)[0], t.Context()
	e := store.Entry{ID: "e", Tenant: "acme", User: "alice", Record: "k"}
	must(t, s.Create(ctx, "k", []byte("v"), time.Minute))
	_, err := s.Admit(ctx, e, time.Minute, store.Limits{}, "")
	must(t, err)
	for _, table := range []string{"records", "entries"} {
		use := func(ttl time.Duration) error { return s.Touch(ctx, "k", ttl) }
		look := func() error { return s.sweep(ctx) }
		if table == "entries" {
			use = func(ttl time.Duration) error { return s.Renew(ctx, e, ttl) }
			look = func() error {
				claimed, err := s.Reap(ctx, 10)
				if len(claimed) > 0 {
					err = errors.Join(err, fmt.Errorf("claimed %+v", claimed))
				}
				return err
			}
		}
		due := func() time.Time { return one[time.Time](t, s, "SELECT due FROM "+table) }
		first := due()
		for i := range 5 {
			must(t, use(time.Hour+time.Duration(i)*time.Minute))
		}
		if now := due(); !now.Equal(first) {
			t.Errorf("%s: being used moved due from %s to %s", table, first, now)
		}
		// Its first end has come.
		_, err := s.pool.Exec(ctx, "UPDATE "+table+" SET due = clock_timestamp() - interval '1 second'")
		must(t, err)
		must(t, look())
		if !one[bool](t, s, "SELECT due = expires FROM "+table) {
			t.Errorf("%s: the reaper looked and left due where it was", table)
		}
	}
	// A value is not written again with its record's end.
	before := one[string](t, s, "SELECT ctid::text FROM bodies")
	must(t, s.Touch(ctx, "k", 3*time.Hour))
	if after := one[string](t, s, "SELECT ctid::text FROM bodies"); after != before {
		t.Errorf("Touch wrote the value again")
	}
	// A shorter life brings the reaper earlier.
	r, err := s.Get(ctx, "k")
	must(t, err)
	must(t, s.Replace(ctx, "k", r.Revision, nil, time.Millisecond))
	time.Sleep(2 * time.Millisecond)
	must(t, s.sweep(ctx))
	if left := rows(t, s); strings.Contains(left, "records") || strings.Contains(left, "bodies") {
		t.Errorf("a record whose life was shortened stays: %s", left)
	}
}

// A sweep waits for nobody, and takes more than one batch.
func TestSweepBesideOthers(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	other := connect(t, server)
	exec(t, other, "SET search_path = "+s.schema)
	exec(t, other, `INSERT INTO records SELECT 'k' || n::text::bytea, 1, now(), now() FROM generate_series(1, 1200) n`)
	exec(t, other, `INSERT INTO bodies SELECT key, 'v' FROM records`)
	exec(t, other, "BEGIN")
	exec(t, other, "SELECT FROM records ORDER BY due LIMIT 1 FOR UPDATE")
	must(t, s.sweep(t.Context()))
	exec(t, other, "ROLLBACK")
	if left := rows(t, s); left != "1 records, 1 bodies" {
		t.Errorf("beside a lock on one record there are %s", left)
	}
}

// What counts a user's sessions or moves their seats, and what takes a fence, waits for
// others of the same name. Nothing else does.
func TestWhoWaits(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	of := func(user, id string) store.Entry {
		return store.Entry{ID: id, Tenant: "acme", User: user, Record: "k"}
	}
	for _, e := range []store.Entry{of("alice", "listed"), of("bob", "listed"), of("bob", "removed")} {
		_, err := s.Admit(t.Context(), e, time.Hour, store.Limits{}, "")
		must(t, err)
	}
	_ = everything(t.Context(), s) // so that the statements are known
	other := connect(t, server)
	for _, names := range [][]string{{"user", "acme", "alice"}, {"lease", "held"}} {
		exec(t, other, "SELECT pg_advisory_lock($1)", s.lockID(names...))
	}
	for _, tc := range []struct {
		name  string
		call  func(ctx context.Context) error
		waits bool
	}{
		{"Admit", func(ctx context.Context) error {
			_, err := s.Admit(ctx, of("alice", "new"), time.Hour, store.Limits{}, "")
			return err
		}, true},
		{"Admit of another user", func(ctx context.Context) error {
			_, err := s.Admit(ctx, of("bob", "new"), time.Hour, store.Limits{}, "")
			return err
		}, false},
		{"Remove", func(ctx context.Context) error { return s.Remove(ctx, of("alice", "listed")) }, true},
		{"Remove of another user's", func(ctx context.Context) error { return s.Remove(ctx, of("bob", "removed")) }, false},
		{"Renew", func(ctx context.Context) error { return s.Renew(ctx, of("alice", "listed"), time.Hour) }, false},
		{"Renew of what is lost", func(ctx context.Context) error { return s.Renew(ctx, of("alice", "lost"), time.Hour) }, true},
		{"End", func(ctx context.Context) error {
			_, err := s.End(ctx, of("alice", "listed"), "revoked")
			return err
		}, false},
		{"Acquire", func(ctx context.Context) error {
			_, err := s.Acquire(ctx, "held", time.Hour)
			return err
		}, true},
		{"Acquire of another", func(ctx context.Context) error {
			_, err := s.Acquire(ctx, "free", time.Hour)
			return err
		}, false},
	} {
		patience := 20 * time.Second
		if tc.waits {
			patience = 200 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := tc.call(ctx)
		cancel()
		if tc.waits && !errors.Is(err, context.DeadlineExceeded) || !tc.waits && err != nil {
			t.Errorf("%s: %v, waits: %t", tc.name, err, tc.waits)
		}
	}
}

// Reap waits for nobody: what another one has locked is left to them.
func TestReapBesideOthers(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	for _, id := range []string{"locked", "free"} {
		_, err := s.Admit(t.Context(), store.Entry{ID: id, Tenant: "acme", User: "alice", Record: "k"}, 0, store.Limits{}, "")
		must(t, err)
	}
	time.Sleep(5 * time.Millisecond)
	other := connect(t, server)
	exec(t, other, "BEGIN")
	exec(t, other, "SELECT FROM "+s.schema+".entries WHERE id = 'locked' FOR UPDATE")
	claimed, err := s.Reap(t.Context(), 10)
	if must(t, err); len(claimed) != 1 || claimed[0].ID != "free" {
		t.Errorf("Reap beside a lock: %+v", claimed)
	}
}

// Of two reasons the first one stays, whoever comes in between.
func TestFirstReasonStays(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s, ctx := openAll(t, Options{URL: server.URL()}, 1)[0], t.Context()
	old := store.Entry{ID: "old", Tenant: "acme", User: "alice", Record: "k"}
	_, err := s.Admit(ctx, old, time.Hour, store.Limits{}, "")
	must(t, err)
	conn, err := s.pool.Acquire(ctx)
	must(t, err)
	defer conn.Release()
	e, limits := old, store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
	e.ID = "new"
	ofUser, _, err := s.lockAndList(ctx, conn.Conn(), e, limits, "")
	must(t, err)
	_, err = s.End(ctx, old, "revoked")
	must(t, err)
	victims, err := store.GiveWay(counted(ofUser, e.ID, ""), e.App, limits)
	must(t, err)
	ending, err := admission{e, time.Hour, victims, "", 0, ""}.commit(ctx, conn.Conn())
	if must(t, err); len(victims) != 1 || len(ending) != 1 || ending[0].Ending != "revoked" {
		t.Errorf("Admit chose %v and returned %+v, want the reason of End", victims, ending)
	}
}

// Who is to keep to a total waits for a sign-in that is under way and keeps to none.
func TestTotalBesideNone(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s, ctx := openAll(t, Options{URL: server.URL(), Timeout: 20 * time.Second}, 1)[0], t.Context()
	conn, err := s.pool.Acquire(ctx)
	must(t, err)
	defer conn.Release()
	e := store.Entry{ID: "a", Tenant: "acme", User: "alice", Record: "a"}
	_, _, err = s.lockAndList(ctx, conn.Conn(), e, store.Limits{}, "")
	must(t, err)
	said := make(chan error, 1)
	go func() {
		_, err := s.Admit(ctx, store.Entry{ID: "b", Tenant: "acme", User: "bob", Record: "b"}, time.Hour, store.Limits{Total: 1}, "")
		said <- err
	}()
	eventually(t, "the other sign-in waits", func() error {
		var waits bool
		err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`).Scan(&waits)
		if err == nil && !waits && len(said) == 0 {
			err = errors.New("it does not wait yet")
		}
		return err
	})
	_, err = admission{e, time.Hour, nil, "", 0, ""}.commit(ctx, conn.Conn())
	must(t, err)
	var limit *store.LimitError
	if err := <-said; !errors.As(err, &limit) || limit.Limit != store.LimitTotal {
		t.Errorf("Admit: %v, want that there is no room", err)
	}
}

// A node that is stopped in the midst of an Admit keeps its locks for no longer than one
// call takes.
func TestLocksEndWithTheirNode(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	const timeout = time.Second
	nodes := openAll(t, Options{URL: server.URL(), Timeout: timeout}, 2)
	e := store.Entry{ID: "e", Tenant: "acme", User: "alice", Record: "k"}
	stopped, err := pgx.ConnectConfig(t.Context(), nodes[0].config)
	must(t, err)
	defer nodes[0].hangUp(stopped)
	locked := time.Now()
	_, _, err = nodes[0].lockAndList(t.Context(), stopped, e, store.Limits{Total: 1}, "")
	must(t, err)

	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := nodes[1].Admit(brief, e, time.Hour, store.Limits{}, ""); !errors.Is(err, context.DeadlineExceeded) && time.Since(locked) < timeout {
		t.Errorf("Admit beside another one of the same user: %v", err)
	}
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := nodes[1].Admit(t.Context(), e, time.Hour, store.Limits{Total: 1}, "")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Admit beside a node that was stopped: %v", err)
		}
	}
}
