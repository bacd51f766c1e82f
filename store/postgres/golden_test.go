package postgres

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// What an earlier version left in a schema of its own is migrated, read and carried on.
func TestGolden(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	for version, name := range map[int64]string{101: "schema-101.sql"} {
		s := open(t, Options{URL: inSchema(server.URL())})
		migrateTo(t, s, version)
		_, err := s.pool.Exec(t.Context(), string(golden.Read(t, name)))
		must(t, err)
		migrate(t, s)
		wantPing(t, s, "")
		storetest.CheckGolden(t, s)
		if t.Failed() {
			t.Logf("%s: %s", name, golden.Advice)
		}
	}
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	storetest.WriteGolden(t, s)
	storetest.CheckGolden(t, s)
}

// migrateTo makes a schema as an earlier version of this program knew it.
func migrateTo(t *testing.T, s *Store, version int64) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), s.config)
	must(t, err)
	defer s.hangUp(conn)
	must(t, s.createSchema(t.Context(), conn))
	files, err := fs.Sub(migrations, "migrations")
	must(t, err)
	db := stdlib.OpenDB(*s.config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versions), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	must(t, err)
	_, err = provider.UpTo(t.Context(), version)
	must(t, err)
}
