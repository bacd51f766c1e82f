package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/store/postgres"
)

type storeCmd struct {
	Migrate storeMigrateCmd `cmd:"" help:"Make PostgreSQL's tables, or bring them up to date."`
	Audit   storeAuditCmd   `cmd:"" help:"Compare the list of sessions with what the store keeps."`
}

type storeMigrateCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
}

// Run brings the tables of the configured store to what this version needs. It may be
// run again at any time, by several at once, and while nodes serve.
func (c storeMigrateCmd) Run(ctx context.Context, con console) error {
	cfg, err := load(c.Config)
	if err != nil {
		return err
	}
	switch cfg.Store.Driver {
	case config.DriverSQLite:
		fmt.Fprintln(con.out, "SQLite needs no migration: a node sees to its tables when it starts.")
		return nil
	case config.DriverRedis:
		fmt.Fprintln(con.out, "Redis needs no migration: it has no tables.")
		return nil
	}
	if err := migratePostgres(ctx, cfg.Store.Postgres); err != nil {
		return err
	}
	fmt.Fprintln(con.out, "PostgreSQL has the tables that this version needs.")
	return nil
}

func migratePostgres(ctx context.Context, cfg config.Postgres) (err error) {
	kept, err := postgres.Open(ctx, postgresOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	return kept.Migrate(ctx)
}

func postgresOptions(cfg config.Postgres, logger *slog.Logger) postgres.Options {
	return postgres.Options{
		URL:      cfg.URL,
		Password: cfg.Password,
		Timeout:  cfg.Timeout,
		MaxConns: cfg.MaxConnections,
		Logger:   logger,
	}
}
