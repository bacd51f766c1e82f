package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

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
