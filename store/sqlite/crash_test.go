package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// writeFile is the whole life of the process that TestKill kills. It says the number of
// each round whose calls have all returned.
func writeFile(file string) int {
	ctx := context.Background()
	s, err := Open(ctx, Options{File: file})
	for i := 0; err == nil; i++ {
		e := entry(fmt.Sprint("u", i), fmt.Sprint("s", i))
		key := fmt.Sprint("k", i)
		err = s.Create(ctx, key, []byte(key), time.Hour)
		if err == nil {
			_, err = s.Admit(ctx, e, time.Minute, store.Limits{PerUser: 3, Total: 1e9}, "")
		}
		if err == nil {
			err = s.Renew(ctx, e, time.Hour)
		}
		if err == nil {
			_, err = s.Acquire(ctx, fmt.Sprint("l", i), time.Hour)
		}
		switch {
		case err != nil:
		case i%3 == 1:
			_, err = s.End(ctx, e, "revoked")
		case i%3 == 2:
			err = errors.Join(s.Delete(ctx, key), s.Remove(ctx, e))
		}
		if err == nil {
			_, err = os.Stdout.WriteString(strconv.Itoa(i) + "\n")
		}
	}
	os.Stdout.WriteString(err.Error() + "\n")
	return 1
}

// TestKill: what was acknowledged before a kill -9 is there after it, and seats, which a
// transaction changes together with its entry, fit. A-Z7
func TestKill(t *testing.T) {
	file := filepath.Join(t.TempDir(), "coatcheck.db")
	cmd, out := startOther(t, writeFileEnv, file)
	acked := -1
	for out.Scan() {
		i, err := strconv.Atoi(out.Text())
		if err != nil {
			t.Fatalf("the other process: %s", out.Text())
		}
		if acked = i; acked == 100 {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if acked < 100 {
		t.Fatalf("the other process said no more than %d", acked)
	}

	s, ctx := openAt(t, file), t.Context()
	if got := s.query(t, "PRAGMA integrity_check"); fmt.Sprint(got) != "[[ok]]" {
		t.Error(got)
	}
	for i := range acked + 1 {
		r, err := s.Get(ctx, fmt.Sprint("k", i))
		found := string(r.Value)
		if err != nil {
			found = err.Error()
		}
		for e, err := range s.Find(ctx, store.Query{Tenant: "t", ID: fmt.Sprint("s", i)}) {
			found += fmt.Sprintf(" listed %s %v", e.Ending, err)
			if left := time.Until(e.Expires); left < 30*time.Minute {
				t.Errorf("s%d has %s left", i, left)
			}
		}
		want := []string{fmt.Sprintf("k%d listed  <nil>", i), fmt.Sprintf("k%d listed revoked <nil>", i), store.ErrNotFound.Error()}[i%3]
		if found != want {
			t.Errorf("round %d: %q, want %q", i, found, want)
		}
		if _, err := s.Acquire(ctx, fmt.Sprint("l", i), time.Hour); err != store.ErrHeld {
			t.Errorf("round %d: Acquire of the dead process's lease: %v", i, err)
		}
	}
	counted, kept := s.query(t, `SELECT count(*) FROM entries`), s.query(t, `SELECT taken FROM seats`)
	if fmt.Sprint(counted) != fmt.Sprint(kept) {
		t.Errorf("%v entries hold %v seats", counted, kept)
	}
}

// Fences rise from holder to holder: within an instant, from one process to the next, and
// where the clock was set back in between.
func TestFencesRise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "coatcheck.db")
		var last uint64
		for range 2 {
			s, err := Open(t.Context(), Options{File: file})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				l, err := s.Acquire(t.Context(), "l", time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				if l.Fence() <= last {
					t.Errorf("fence %d after %d", l.Fence(), last)
				}
				last = l.Fence()
				if err := l.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Acquire(t.Context(), "l", 0); err != nil {
				t.Fatal(err)
			}
			const ahead = 1e6 * 3600
			s.query(t, `UPDATE leases SET fence = fence + ?`, int64(ahead))
			last += ahead
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
	})
}

// version1 is the schema of files that the first version made.
const version1 = `
CREATE TABLE records (
	key      BLOB PRIMARY KEY,
	revision INTEGER NOT NULL,
	expires  INTEGER NOT NULL,
	value    BLOB NOT NULL
);
CREATE INDEX records_expires ON records (expires);
PRAGMA application_id = 1668243828;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;`

// makeVersion1 makes such a file with a record in it, and runs more statements.
func makeVersion1(t *testing.T, more string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "coatcheck.db")
	c, err := dial(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.exec(version1)
	if err == nil {
		_, err = c.exec(`INSERT INTO records VALUES (?, 7, ?, ?)`,
			[]byte("k"), time.Now().Add(time.Hour).UnixMilli(), []byte("v"))
	}
	if err == nil {
		_, err = c.exec(more)
	}
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMigrate(t *testing.T) {
	file := makeVersion1(t, "SELECT 1")
	for range 2 { // the second time there is nothing to do
		s, err := Open(t.Context(), Options{File: file})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), "k")
		if err != nil || string(r.Value) != "v" || r.Revision != 7 {
			t.Errorf("Get: %+v, %v", r, err)
		}
		if _, err := s.Admit(t.Context(), entry("u", "s"), time.Hour, store.Limits{Total: 1}, ""); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// It is now as a new file is.
	schema := func(s *Store) string { return fmt.Sprint(s.query(t, `SELECT sql FROM sqlite_schema ORDER BY name`)) }
	migrated, fresh := schema(openAt(t, file)), schema(openNew(t))
	strip := func(s string) string { return strings.ReplaceAll(s, " -- Unix time in milliseconds", "") }
	if strip(migrated) != strip(fresh) {
		t.Errorf("migrated:\n%s\nnew:\n%s", migrated, fresh)
	}
}

// A migration that fails changes nothing.
func TestMigrateFails(t *testing.T) {
	file := makeVersion1(t, `CREATE TABLE leases (x)`) // the last table of the step
	_, err := Open(t.Context(), Options{File: file})
	if err == nil || !strings.Contains(err.Error(), "leases already exists") {
		t.Fatalf("error = %v", err)
	}
	c, err := dial(file)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	version, err1 := c.number("PRAGMA user_version")
	tables, err2 := c.number("SELECT count(*) FROM sqlite_schema WHERE type = 'table'")
	if err := errors.Join(err1, err2); err != nil || version != 1 || tables != 2 {
		t.Errorf("version %d, %d tables; %v", version, tables, err)
	}
}
