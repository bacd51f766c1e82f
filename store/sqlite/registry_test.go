package sqlite

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck/store"
)

func entry(user, id string) store.Entry {
	return store.Entry{ID: id, Tenant: "t", User: user, App: "a", SID: "sid-" + id, Record: "record of " + id, Data: []byte("d")}
}

// query runs a statement of the test's own on the writer.
func (s *Store) query(t testing.TB, query string, args ...driver.Value) (rows [][]driver.Value) {
	t.Helper()
	w := <-s.writer
	defer func() { s.writer <- w }()
	err := w.each(func(row []driver.Value) error {
		rows = append(rows, append([]driver.Value(nil), row...))
		return nil
	}, query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return rows
}

// leftovers returns the tables of the file that are not empty.
func (s *Store) leftovers(t testing.TB) (all []string) {
	t.Helper()
	for _, table := range s.query(t, `SELECT name FROM sqlite_schema WHERE type = 'table'`) {
		if n := s.query(t, fmt.Sprintf(`SELECT count(*) FROM %s`, table[0]))[0][0]; n != int64(0) {
			all = append(all, fmt.Sprintf("%v: %v", table[0], n))
		}
	}
	return all
}

// exercise calls every method once, so that every statement is prepared.
func exercise(t testing.TB, s *Store) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Create(ctx, "k", []byte("v"), time.Hour))
	r, err := s.Get(ctx, "k")
	must(err)
	must(s.Replace(ctx, "k", r.Revision, nil, time.Hour))
	if err := s.Replace(ctx, "k", r.Revision, nil, time.Hour); err != store.ErrConflict {
		t.Fatal(err)
	}
	must(s.Touch(ctx, "k", time.Hour))
	for i, limits := range []store.Limits{
		{PerUser: 1, PerApp: 1, Total: 2, OnLimit: store.EvictOldest},
		{PerUser: 1, PerApp: 1, Total: 2, OnLimit: store.EvictIdle},
		{PerUser: 1, Total: 2, OnLimit: store.EvictOldest},
	} {
		e := entry("u", fmt.Sprint("s", i))
		_, err := s.Admit(ctx, e, time.Hour, limits, fmt.Sprint("s", i-1)[:2])
		must(err)
		must(s.Renew(ctx, e, time.Hour))
		must(s.Renew(ctx, entry("u", fmt.Sprint("lost", i)), time.Hour))
	}
	_, err = s.End(ctx, entry("u", "s2"), "revoked")
	must(err)
	if err := s.Renew(ctx, entry("u", "s2"), time.Hour); err != store.ErrEnding {
		t.Fatal(err)
	}
	for _, q := range []store.Query{
		{Tenant: "t"}, {Tenant: "t", User: "u"}, {Tenant: "t", SID: "sid-s1"}, {Tenant: "t", ID: "s1"},
	} {
		n := 0
		for _, err := range s.Find(ctx, q) {
			must(err)
			n++
		}
		if n == 0 {
			t.Fatalf("Find %+v yielded nothing", q)
		}
	}
	for _, err := range s.Keys(ctx, "k") {
		must(err)
	}
	_, err = s.Reap(ctx, 10)
	must(err)
	l, err := s.Acquire(ctx, "l", time.Hour)
	must(err)
	must(l.Renew(ctx, time.Hour))
	must(l.Release(ctx))
	must(s.Delete(ctx, "k"))
	must(s.Remove(ctx, entry("u", "s1")))
	_, err = s.reapSome()
	must(err)
}

// No statement's time grows with the number of sessions of other users: each one searches
// by an index, and none sorts more than what one user has.
func TestStatementsSearchByIndex(t *testing.T) {
	s := openNew(t)
	// The statements of this start, which read what a dead process has left, are not meant.
	w := <-s.writer
	for query, stmt := range w.stmts {
		_ = stmt.Close()
		delete(w.stmts, query)
	}
	s.writer <- w
	exercise(t, s)

	var queries []string
	w = <-s.writer
	for query := range w.stmts {
		queries = append(queries, query)
	}
	s.writer <- w
	for range cap(s.readers) {
		r := <-s.readers
		for query := range r.stmts {
			queries = append(queries, query)
		}
		defer func() { s.readers <- r }()
	}
	if len(queries) < 25 {
		t.Errorf("%d statements, so some were not prepared", len(queries))
	}
	// What a part of a statement asks for has an index of its own.
	indexes := map[string]string{
		`user = ?2`: "entries_user", `sid = ?2`: "entries_sid", `ending <> ''`: "entries_ending",
		`due <= `: "entries_due", `seated = 1 AND expires <=`: "entries_seated",
	}
	asked := make(map[string]bool)
	args := make([]driver.Value, 16) // more than any of them takes
	for _, query := range queries {
		var plan []string
		for _, step := range s.query(t, "EXPLAIN QUERY PLAN "+query, args...) {
			plan = append(plan, step[3].(string))
		}
		all := strings.Join(plan, "\n")
		scans := strings.Contains(strings.ReplaceAll(all, "SCAN CONSTANT ROW", ""), "SCAN")
		sorts := strings.Contains(all, "TEMP B-TREE") && !strings.Contains(query, "AND user = ?")
		if scans || sorts {
			t.Errorf("%s\nneeds:\n%s", query, all)
		}
		for part, index := range indexes {
			if strings.Contains(query, part) {
				asked[part] = true
				if !strings.Contains(all, index+" ") {
					t.Errorf("%s\ndoes not use %s:\n%s", query, index, all)
				}
			}
		}
	}
	if len(asked) < len(indexes) {
		t.Errorf("statements ask for no more than %v", asked)
	}
}

// The number of seats is that of the entries that hold one, whatever was done.
func TestSeatsAreCounted(t *testing.T) {
	s := openNew(t)
	ctx := t.Context()
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	users := rapid.SampledFrom([]string{"u", "v"})
	rapid.Check(t, func(r *rapid.T) {
		for range rapid.IntRange(1, 25).Draw(r, "calls") {
			e := entry(users.Draw(r, "user"), names.Draw(r, "id"))
			ttl := rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(r, "ttl")
			limits := store.Limits{
				PerUser: rapid.IntRange(0, 2).Draw(r, "per user"),
				PerApp:  rapid.IntRange(0, 2).Draw(r, "per app"),
				Total:   rapid.IntRange(0, 4).Draw(r, "total"),
				OnLimit: rapid.SampledFrom([]store.OnLimit{store.Deny, store.EvictOldest, store.EvictIdle}).Draw(r, "on limit"),
			}
			var err error
			switch rapid.IntRange(0, 5).Draw(r, "call") {
			case 0, 1:
				replaces := rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "replaces")
				_, err = s.Admit(ctx, e, ttl, limits, replaces)
				var limit *store.LimitError
				if errors.As(err, &limit) {
					err = nil
				}
			case 2:
				if err = s.Renew(ctx, e, ttl); err == store.ErrEnding {
					err = nil
				}
			case 3:
				if _, err = s.End(ctx, e, "revoked"); err == store.ErrNotFound {
					err = nil
				}
			case 4:
				err = s.Remove(ctx, e)
			case 5:
				_, err = s.Reap(ctx, 2)
			}
			if err != nil {
				r.Fatal(err)
			}
			counted := s.query(t, `SELECT tenant, count(*) FROM entries WHERE seated = 1 GROUP BY tenant`)
			kept := s.query(t, `SELECT tenant, taken FROM seats`)
			if fmt.Sprint(counted) != fmt.Sprint(kept) {
				r.Fatalf("seats: %v, want %v", kept, counted)
			}
		}
	})
}

// A seat that is inherited, expired or given back is free for the next
// one, and only then. A-S3
func TestTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := openNew(t), t.Context()
		admit := func(user, id, replaces string) string {
			t.Helper()
			_, err := s.Admit(ctx, entry(user, id), time.Minute, store.Limits{PerUser: 1, Total: 2, OnLimit: store.EvictOldest}, replaces)
			var limit *store.LimitError
			if errors.As(err, &limit) {
				return string(limit.Limit)
			}
			if err != nil {
				t.Fatal(err)
			}
			return "admitted"
		}
		want := func(step, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %s, want %s", step, got, want)
			}
		}
		want("first", admit("u", "u1", ""), "admitted")
		want("second", admit("v", "v1", ""), "admitted")
		want("third", admit("w", "w1", ""), "total")
		want("evicting somebody needs a seat too", admit("u", "u2", ""), "total")
		want("replacing inherits one", admit("u", "u2", "u1"), "admitted")
		want("a seat is inherited once", admit("u", "u3", "u1"), "total")
		if err := s.Remove(ctx, entry("u", "u1")); err != nil {
			t.Fatal(err)
		}
		want("a removed entry without a seat gives none back", admit("w", "w1", ""), "total")
		if _, err := s.End(ctx, entry("v", "v1"), "revoked"); err != nil {
			t.Fatal(err)
		}
		want("an ending entry holds its seat", admit("w", "w1", ""), "total")
		if err := s.Remove(ctx, entry("v", "v1")); err != nil {
			t.Fatal(err)
		}
		want("a removed entry gives its seat back", admit("w", "w1", ""), "admitted")
		time.Sleep(time.Minute)
		want("an expired entry holds none", admit("x", "x1", ""), "admitted")
		if err := s.Renew(ctx, entry("w", "w1"), time.Minute); err != nil {
			t.Fatal(err)
		}
		want("one that a late renewal brought back does", admit("y", "y1", ""), "total")
	})
}

// A disk that is full refuses what it can't hold as a whole, and no more than that. A-Z14
func TestFullDisk(t *testing.T) {
	s, ctx := openNew(t), t.Context()
	limit := func(pages int64) { s.query(t, fmt.Sprint("PRAGMA max_page_count = ", pages)) }
	full := s.query(t, "PRAGMA page_count")[0][0].(int64) + 20
	limit(full)
	admitted := 0
	big := entry("u", "big")
	big.Data = make([]byte, store.MaxEntryData)
	var err error
	for err == nil && admitted < 100 {
		big.ID = fmt.Sprint("s", admitted)
		if _, err = s.Admit(ctx, big, time.Hour, store.Limits{}, "s0"); err == nil {
			admitted++
		}
	}
	if err == nil || admitted == 0 || !strings.Contains(err.Error(), "full") {
		t.Fatalf("after %d: %v", admitted, err)
	}
	listed := 0
	for _, err := range s.Find(ctx, store.Query{Tenant: "t"}) {
		if err != nil {
			t.Fatal(err)
		}
		listed++
	}
	counted := s.query(t, `SELECT count(*) FROM entries WHERE seated = 1`)
	kept := s.query(t, `SELECT taken FROM seats`)
	if listed != admitted || fmt.Sprint(counted) != fmt.Sprint(kept) {
		t.Errorf("%d listed and %d admitted; %v hold %v seats", listed, admitted, counted, kept)
	}
	if err := s.Remove(ctx, entry("u", "s0")); err != nil {
		t.Errorf("Remove on a full disk: %v", err)
	}
	limit(2 * full)
	if _, err := s.Admit(ctx, big, time.Hour, store.Limits{}, ""); err != nil {
		t.Errorf("Admit with space again: %v", err)
	}
}

// Find holds nothing while its caller has an entry in hand.
func TestFindKeepsNobodyWaiting(t *testing.T) {
	s, ctx := openNew(t), t.Context()
	const n = 2*findPage + 1
	for i := range n {
		if err := s.Renew(ctx, entry("u", fmt.Sprintf("s%04d", i)), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	var nest func(deep int) int
	nest = func(deep int) (found int) {
		for e, err := range s.Find(ctx, store.Query{Tenant: "t", User: "u"}) {
			if err != nil {
				t.Fatal(err)
			}
			found++
			if found == 1 && deep > 0 {
				nest(deep - 1) // more of them than there are readers
				if err := s.Renew(ctx, e, 2*time.Hour); err != nil {
					t.Fatal(err)
				}
			}
		}
		return found
	}
	if found := nest(2 * cap(s.readers)); found != n {
		t.Errorf("%d entries, want %d", found, n)
	}
}

// TestNothingIsLeft covers invariant 5: once all has expired and was reaped, no table has
// a row of ours. The file serves on.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := openNew(t), t.Context()
		for round := range 2 {
			exercise(t, s)
			for i := range 2*reapBatch + 1 {
				user := fmt.Sprint("u", i%7)
				if err := s.Create(ctx, fmt.Sprint("k", i), nil, time.Hour); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Admit(ctx, entry(user, fmt.Sprint("e", i)), time.Hour, store.Limits{Total: 5000}, ""); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Acquire(ctx, fmt.Sprint("l", i), time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.leftovers(t); len(got) != 4 {
				t.Fatalf("round %d: before: %v", round, got)
			}
			time.Sleep(3*time.Hour + reapEvery)
			if claimed, err := s.Reap(ctx, -1); len(claimed) > 0 || err != nil {
				t.Errorf("Reap of less than nothing: %d entries, %v", len(claimed), err)
			}
			for {
				claimed, err := s.Reap(ctx, 100)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range claimed {
					if err := s.Remove(ctx, e); err != nil {
						t.Fatal(err)
					}
				}
				if len(claimed) == 0 {
					break
				}
			}
			synctest.Wait()
			if got := s.leftovers(t); len(got) > 0 {
				t.Errorf("round %d: left over: %v", round, got)
			}
		}
	})
}

func BenchmarkRegistry(b *testing.B) {
	for _, others := range []int{1_000, 100_000} {
		s, ctx := openNew(b), b.Context()
		w := <-s.writer
		err := w.transaction(func() error {
			for i := range others {
				e := entry(fmt.Sprint("other", i), fmt.Sprint("o", i))
				if err := put(w, e, time.Now().UnixMicro(), time.Hour); err != nil {
					return err
				}
			}
			return nil
		})
		s.writer <- w
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint("Admit/", others), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				ending, err := s.Admit(ctx, entry("u", fmt.Sprint("s", i)), time.Hour,
					store.Limits{PerUser: 3, Total: 1 << 30, OnLimit: store.EvictOldest}, "")
				if err != nil {
					b.Fatal(err)
				}
				for _, e := range ending {
					if err := s.Remove(ctx, e); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		b.Run(fmt.Sprint("Renew/", others), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				n := i * 389 % others
				if err := s.Renew(ctx, entry(fmt.Sprint("other", n), fmt.Sprint("o", n)), time.Hour); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprint("Find/", others), func(b *testing.B) {
			for b.Loop() {
				for _, err := range s.Find(ctx, store.Query{Tenant: "t", User: "other7"}) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
