package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store/postgres"
)

// TestStoreMigrate: a new database can be used afterwards, and once more does no harm.
func TestStoreMigrate(t *testing.T) {
	const password = "of-the-test"
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Password: password})
	t.Setenv("TEST_PASSWORD", password)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"secret": "a secret of the tests",
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

	migrate := func() (code int, out, err string) {
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), []string{"store", "migrate", "--config", file}, console{&stdout, &stderr})
		return code, stdout.String(), stderr.String()
	}
	for range 2 {
		if code, out, err := migrate(); code != exitOK || out != "PostgreSQL has the tables that this version needs.\n" || err != "" {
			t.Fatalf("exit code %d, says %q and %q", code, out, err)
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

// TestPostgresOptions: every setting arrives.
func TestPostgresOptions(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	got := postgresOptions(config.Postgres{URL: "u", Password: "p", MaxConnections: 3, Timeout: time.Minute}, logger)
	want := postgres.Options{URL: "u", Password: "p", MaxConns: 3, Timeout: time.Minute, Logger: logger}
	if got != want {
		t.Errorf("postgresOptions = %+v, want %+v", got, want)
	}
}
