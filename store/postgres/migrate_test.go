package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// connect opens a connection of the test's own, as the server's superuser.
func connect(t testing.TB, server *testenv.Postgres) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t testing.TB, conn *pgx.Conn, statement string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func wantPing(t testing.TB, s *Store, want string) {
	t.Helper()
	err := s.Ping(t.Context())
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("Ping: %v, want %q", err, want)
	}
}

func migrate(t testing.TB, s *Store) {
	t.Helper()
	_, _, err := s.Migrate(t.Context())
	must(t, err)
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	admin := connect(t, server)

	t.Run("Nothing", func(t *testing.T) {
		s := open(t, Options{URL: inSchema(server.URL())})
		wantPing(t, s, "there is no schema "+s.schema+", or it lacks our tables: run \"coatcheck store migrate --config FILE\"")
		for _, want := range [][2]int64{{0, schemaVersion}, {schemaVersion, schemaVersion}} {
			if from, to, err := s.Migrate(t.Context()); err != nil || from != want[0] || to != want[1] {
				t.Fatalf("Migrate: from %d to %d, %v, want %d", from, to, err, want)
			}
			wantPing(t, s, "")
		}
	})

	// A node that serves says it by itself, once; so do its calls.
	t.Run("Log", func(t *testing.T) {
		var log logged
		s := open(t, Options{URL: inSchema(server.URL()), Logger: log.logger()})
		log.wait(t, "level=WARN", 1)
		for step, err := range everything(t.Context(), s) {
			if err == nil || !strings.Contains(err.Error(), howTo) || strings.Contains(err.Error(), codeNoTable) {
				t.Errorf("%s: %v, want what to do", step, err)
			}
		}
		migrate(t, s)
		for range 2 {
			wantPing(t, s, "")
		}
		log.wait(t, "level=INFO", 1)
		exec(t, admin, fmt.Sprintf("UPDATE %s.%s SET version_id = 0", s.schema, versions))
		for range 2 {
			wantPing(t, s, howTo)
		}
		log.wait(t, "level=WARN", 2)
		log.wait(t, "coatcheck store migrate --config FILE", 2)
		log.wait(t, "\n", 3)
	})

	t.Run("AtOnce", func(t *testing.T) {
		url := inSchema(server.URL())
		errs := make(chan error)
		var made atomic.Int64
		for range 5 {
			s := open(t, Options{URL: url})
			go func() {
				from, _, err := s.Migrate(context.Background())
				if from == 0 {
					made.Add(1)
				}
				errs <- err
			}()
		}
		for range 5 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if made.Load() != 1 {
			t.Errorf("%d of five say that they made the tables", made.Load())
		}
		wantPing(t, open(t, Options{URL: url}), "")
	})

	// A migration waits longer than any call.
	t.Run("Waits", func(t *testing.T) {
		s := open(t, Options{URL: inSchema(server.URL()), Timeout: time.Second})
		exec(t, admin, "SELECT pg_advisory_lock($1)", s.lockID("migrate"))
		done := make(chan error, 1)
		go func() {
			_, _, err := s.Migrate(context.Background())
			done <- err
		}()
		select {
		case err := <-done:
			t.Fatalf("Migrate beside another one: %v", err)
		case <-time.After(2 * time.Second):
		}
		exec(t, admin, "SELECT pg_advisory_unlock($1)", s.lockID("migrate"))
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("Migrate goes on waiting")
		}
	})

	t.Run("Versions", func(t *testing.T) {
		s := openAll(t, Options{URL: server.URL()}, 1)[0]
		for _, tc := range []struct {
			version int
			want    string
		}{
			{schemaVersion + 1, ""}, // of the same generation
			{schemaVersion - 1, fmt.Sprintf(`the schema has version %d and this program needs %d: run "coatcheck store migrate --config FILE"`, schemaVersion-1, schemaVersion)},
			{0, "the schema has version 0"},
			{schemaVersion + 100, "which this program is too old for"},
			{schemaVersion, ""},
		} {
			exec(t, admin, fmt.Sprintf("UPDATE %s.%s SET version_id = $1 WHERE id = (SELECT max(id) FROM %[1]s.%[2]s)", s.schema, versions), tc.version)
			wantPing(t, s, tc.want)
		}
		// What a newer program has migrated stays as it is.
		for _, tc := range []struct {
			version int64
			want    string
		}{{schemaVersion + 1, "<nil>"}, {schemaVersion + 100, "which this program is too old for"}} {
			exec(t, admin, fmt.Sprintf("INSERT INTO %s.%s (version_id, is_applied) VALUES ($1, true)", s.schema, versions), tc.version)
			from, to, err := s.Migrate(t.Context())
			if from != tc.version || to != tc.version || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("Migrate at version %d: from %d to %d, %v, want %s", tc.version, from, to, err, tc.want)
			}
		}
		newest := 0
		files, err := migrations.ReadDir("migrations")
		for _, f := range files {
			n := 0
			if _, err := fmt.Sscanf(f.Name(), "%d_", &n); err != nil {
				t.Errorf("%s: %v", f.Name(), err)
			}
			newest = max(newest, n)
		}
		if err != nil || newest != schemaVersion {
			t.Errorf("the newest migration is %d and schemaVersion is %d; %v", newest, schemaVersion, err)
		}
	})

	// The user who serves needs no right to change the schema, and gets no further without
	// those that it needs.
	t.Run("Rights", func(t *testing.T) {
		owner := openAll(t, Options{URL: server.URL()}, 1)[0]
		exec(t, admin, "CREATE USER serving")
		url := strings.Replace(server.URL(), testenv.PostgresUser, "serving", 1)
		fresh := open(t, Options{URL: inSchema(url)})
		if _, _, err := fresh.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "user serving must have the right to create schema "+fresh.schema) {
			t.Errorf("Migrate: %v", err)
		}
		exec(t, admin, "CREATE SCHEMA "+fresh.schema)
		exec(t, admin, "GRANT USAGE ON SCHEMA "+fresh.schema+" TO serving")
		if _, _, err := fresh.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "user serving must have the right to create in schema "+fresh.schema) {
			t.Errorf("Migrate: %v", err)
		}
		exec(t, admin, "GRANT CREATE ON SCHEMA "+fresh.schema+" TO serving")
		if _, _, err := fresh.Migrate(t.Context()); err != nil {
			t.Errorf("Migrate: %v", err)
		}
		wantPing(t, fresh, "")

		s := open(t, Options{URL: url + "&search_path=" + owner.schema})
		exec(t, admin, "GRANT USAGE ON SCHEMA "+owner.schema+" TO serving")
		wantPing(t, s, "user serving lacks rights on the tables of schema "+owner.schema)
		exec(t, admin, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "+owner.schema+" TO serving")
		exec(t, admin, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA "+owner.schema+" TO serving")
		wantPing(t, s, "")
		for step, err := range everything(t.Context(), s) {
			if err != nil {
				t.Errorf("%s: %v", step, err)
			}
		}
	})
}

// everything makes each call once and says what became of it.
func everything(ctx context.Context, s *Store) map[string]error {
	e := store.Entry{ID: "e", Tenant: "acme", User: "alice", SID: "sid", Record: "key"}
	errs := map[string]error{"create": s.Create(ctx, "key", []byte("the-value"), time.Hour)}
	r, err := s.Get(ctx, "key")
	errs["get"] = err
	errs["replace"] = s.Replace(ctx, "key", r.Revision, []byte("the-value"), time.Hour)
	errs["touch"] = s.Touch(ctx, "key", time.Hour)
	for _, err := range s.Keys(ctx, "") {
		errs["keys"] = err
	}
	errs["delete"] = s.Delete(ctx, "key")
	_, errs["admit"] = s.Admit(ctx, e, time.Hour, store.Limits{PerUser: 1, Total: 1}, "")
	errs["renew"] = s.Renew(ctx, e, time.Hour)
	for _, err := range s.Find(ctx, store.Query{Tenant: "acme"}) {
		errs["find"] = err
	}
	_, errs["end"] = s.End(ctx, e, "revoked")
	_, errs["reap"] = s.Reap(ctx, 1)
	errs["remove"] = s.Remove(ctx, e)
	l, err := s.Acquire(ctx, "lease", time.Hour)
	if errs["acquire"] = err; err != nil {
		l = &lease{s: s, name: []byte("lease")}
	}
	errs["renew lease"] = l.Renew(ctx, time.Hour)
	errs["release lease"] = l.Release(ctx)
	errs["append"] = s.Append(ctx, []byte("the-event"))
	errs["sweep"] = s.sweep(ctx)
	errs["ping"] = s.Ping(ctx)
	return errs
}
