package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

// TestStoreMigrate: a new database can be used afterwards, and once more does no harm.
func TestStoreMigrate(t *testing.T) {
	const password = "of-the-test"
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Password: password})
	t.Setenv("TEST_PASSWORD", password)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"secret":    "a secret of the tests",
		"keys.json": string(seal.NewRing().Marshal()),
		"coatcheck.yaml": `
public_url: https://app.example.com
keys: {file: keys.json}
store: {driver: postgres, postgres: {url: "` + server.URL() + `", password_env: TEST_PASSWORD, timeout: 10s}}
providers: [{name: corp, issuer: "https://idp.example.com", client_id: web, client_secret_file: secret}]
routes: [{path: /}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "coatcheck.yaml")
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := openStore(t.Context(), cfg.Store, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	if err := kept.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "coatcheck store migrate --config FILE") {
		t.Errorf("a database without tables: %v", err)
	}
	var said bytes.Buffer
	if code := run(t.Context(), []string{"session", "list", "--config", file}, console{io.Discard, &said}); code != exitFailed ||
		!strings.HasPrefix(said.String(), "coatcheck: store.postgres.url: ") || !strings.Contains(said.String(), "coatcheck store migrate --config FILE") {
		t.Errorf("a database without tables: exit code %d, says %q", code, &said)
	}

	migrate := func() (code int, out, err string) {
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), []string{"store", "migrate", "--config", file}, console{&stdout, &stderr})
		return code, stdout.String(), stderr.String()
	}
	for _, want := range []string{
		"Made the tables in PostgreSQL, version 101.\n",
		"Nothing to do: the tables in PostgreSQL have version 101 already.\n",
	} {
		if code, out, err := migrate(); code != exitOK || out != want || err != "" {
			t.Fatalf("exit code %d, says %q and %q, want %q", code, out, err, want)
		}
	}
	if err := kept.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := kept.Create(t.Context(), "key", []byte("value"), time.Minute); err != nil {
		t.Error(err)
	}

	// The password is wrong, and is not repeated.
	t.Setenv("TEST_PASSWORD", "hunter2")
	code, out, stderr := migrate()
	if code != exitFailed || out != "" || !strings.Contains(stderr, "password authentication failed") || strings.Contains(stderr, "hunter2") {
		t.Errorf("exit code %d, says %q and %q", code, out, stderr)
	}
}

// TestPostgresRights: what docs/stores.md has an operator run is enough, for migrating and
// for serving, and for the tables of a later version.
func TestPostgresRights(t *testing.T) {
	docs, err := os.ReadFile("../../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(docs), -1)
	if len(blocks) != 2 {
		t.Fatalf("docs/stores.md has %d blocks of SQL, want 2", len(blocks))
	}
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	as := func(role, database string) string {
		u, err := url.Parse(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User, u.Path = url.User(role), "/"+database
		return u.String()
	}
	do := func(role, database, statements string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), as(role, database))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		for statement := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(statements), ";"), ";") {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
	serve := func(role string) {
		t.Helper()
		cfg := config.Store{Driver: config.DriverPostgres, Postgres: config.Postgres{URL: as(role, "coatcheck"), Timeout: 10 * time.Second}}
		kept, err := openStore(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = kept.Close() }()
		tryStore(t, kept)
	}
	// The superuser of the tests has the name that the documents give to the role.
	do(testenv.PostgresUser, "postgres", "CREATE ROLE test SUPERUSER LOGIN")
	do("test", "postgres", "ALTER ROLE "+testenv.PostgresUser+" RENAME TO postgres")

	do("postgres", "postgres", blocks[0][1])
	if _, err := migratePostgres(t.Context(), postgres.Options{URL: as("coatcheck", "coatcheck")}); err != nil {
		t.Fatal(err)
	}
	serve("coatcheck")
	do("postgres", "coatcheck", blocks[1][1])
	serve("coatcheck_node")
	do("coatcheck", "coatcheck", "CREATE TABLE coatcheck.later (n bigserial)")
	do("coatcheck_node", "coatcheck", "INSERT INTO coatcheck.later DEFAULT VALUES; UPDATE coatcheck.later SET n = 1; DELETE FROM coatcheck.later")
}

// TestNewDriver: a call of the driver has the time that the configuration gives it, and what
// is no driver is none.
func TestNewDriver(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for name, want := range map[string]time.Duration{config.DriverSQLite: 0, config.DriverRedis: time.Second, config.DriverPostgres: time.Minute} {
		cfg := config.Store{Driver: name, Redis: config.Redis{Timeout: time.Second}, Postgres: config.Postgres{Timeout: time.Minute}}
		if d, err := newDriver(cfg, logger); err != nil || d.timeout != want {
			t.Errorf("%s: timeout %s, %v, want %s", name, d.timeout, err, want)
		}
	}
	if _, err := newDriver(config.Store{Driver: "memory"}, logger); err == nil {
		t.Error("memory is a driver")
	}
}

// TestSQLiteOptions: every setting arrives.
func TestSQLiteOptions(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	got, want := sqliteOptions(config.SQLite{File: "f"}, logger), sqlite.Options{File: "f", Logger: logger}
	if got != want {
		t.Errorf("sqliteOptions = %+v, want %+v", got, want)
	}
}

// TestPostgresOptions: every setting arrives.
func TestPostgresOptions(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	got := postgresOptions(config.Postgres{URL: "u", Password: "p", MaxConnections: 3, Timeout: time.Minute}, logger)
	want := postgres.Options{URL: "u", Password: "p", MaxConns: 3, Timeout: time.Minute, Logger: logger}
	if got != want {
		t.Errorf("postgresOptions = %+v, want %+v", got, want)
	}
}
