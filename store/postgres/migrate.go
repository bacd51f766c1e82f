package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// The migrations' numbers are the schema's versions. The hundreds are its generation: a
// program works with every version of its own generation that is not older than it knows,
// so a migration within a generation only adds what programs before it don't miss. One
// that takes something away begins a new generation.
//
//go:embed migrations/*.sql
var migrations embed.FS

const (
	// schemaVersion is the newest migration's number.
	schemaVersion = 101
	// versions is the table in which the versions are noted.
	versions = "schema_migrations"
)

// howTo says what ends a lack of schema.
const howTo = `run "coatcheck store migrate --config FILE"`

// Ping implements store.Store. It says so when the schema is missing, older than this
// program needs, or of a newer generation.
func (s *Store) Ping(ctx context.Context) error {
	err := s.read(ctx, "ping", func(ctx context.Context, conn *pgx.Conn) error {
		var version int64
		var found bool
		err := conn.QueryRow(ctx, `
			SELECT coalesce(max(version_id), 0), EXISTS (SELECT FROM records WHERE key = '') FROM `+versions).
			Scan(&version, &found)
		if err != nil {
			return err
		}
		return compatible(version)
	})
	if err == nil && s.unfit.Swap(false) {
		s.log.Info("store/postgres: the schema is as it must be", "schema", s.schema)
	}
	return err
}

// An unfitError says what is wrong with the schema, and what to do.
type unfitError struct{ error }

func (e unfitError) Unwrap() error { return e.error }

// fitness says of an error that comes of the schema what is wrong with that. The log is
// told of the first one, and by Ping when it is over.
func (s *Store) fitness(err error) error {
	switch {
	case hasCode(err, codeNoTable, codeNoSchema):
		err = unfitError{fmt.Errorf("there is no schema %s, or it lacks our tables: %s", s.schema, howTo)}
	case hasCode(err, codeNoRight):
		err = unfitError{fmt.Errorf("user %s lacks rights on the tables of schema %s: %w", s.config.User, s.schema, err)}
	}
	if errors.As(err, new(unfitError)) && !s.unfit.Swap(true) {
		s.log.Warn("store/postgres: the schema is not as it must be", "error", err)
	}
	return err
}

func compatible(version int64) error {
	if version < schemaVersion {
		return unfitError{fmt.Errorf("the schema has version %d and this program needs %d: %s", version, schemaVersion, howTo)}
	}
	return tooNew(version)
}

// tooNew returns an error if a version is of a newer generation.
func tooNew(version int64) error {
	const generation = 100
	if version/generation > schemaVersion/generation {
		return unfitError{fmt.Errorf("the schema has version %d, which this program is too old for", version)}
	}
	return nil
}

// Migrate brings the schema to this program's version, and makes it first where there is
// none. It returns the version that it found, or 0 where there was none, and the one that
// there is now. It is not bounded by Options.Timeout. Of several at once, each waits for the
// one before it. The user needs the right to create in the schema and, where that is missing,
// in the database.
func (s *Store) Migrate(ctx context.Context) (from, to int64, err error) {
	from, to, err = s.migrate(ctx)
	return from, to, wrap("migrate", err)
}

func (s *Store) migrate(ctx context.Context) (from, to int64, err error) {
	config := s.config.Copy()
	config.AfterConnect = arrive(s.schema, 0)
	conn, err := s.connect(ctx, config)
	if err != nil {
		return 0, 0, err
	}
	// The lock ends with the connection.
	defer s.hangUp(conn)
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, s.lockID("migrate")); err != nil {
		return 0, 0, err
	}
	if err := s.createSchema(ctx, conn); err != nil {
		return 0, 0, err
	}
	from, to, err = applyAll(ctx, config)
	if hasCode(err, codeNoRight) {
		err = fmt.Errorf("user %s must have the right to create in schema %s: %w", s.config.User, s.schema, err)
	}
	return from, to, err
}

// applyAll applies the migrations that the schema lacks.
func applyAll(ctx context.Context, config *pgx.ConnConfig) (from, to int64, err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return 0, 0, err
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versions), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return 0, 0, err
	}
	if from, err = provider.GetDBVersion(ctx); err != nil {
		return 0, 0, err
	}
	if err := tooNew(from); err != nil {
		return from, from, err
	}
	if _, err = provider.Up(ctx); err != nil {
		return from, from, err
	}
	to, err = provider.GetDBVersion(ctx)
	return from, to, err
}

// createSchema makes the schema where it is missing. CREATE SCHEMA IF NOT EXISTS would
// ask for the right to do so even where it is there.
func (s *Store) createSchema(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, s.schema).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, `CREATE SCHEMA `+pgx.Identifier{s.schema}.Sanitize())
	if hasCode(err, codeNoRight) {
		return fmt.Errorf("user %s must have the right to create schema %s, or somebody else create it for them: %w", s.config.User, s.schema, err)
	}
	return err
}
