package main

import (
	"context"
	"fmt"
	"log/slog"
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
	driver, err := newDriver(cfg.Store, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	did, err := driver.migrate(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", driver.setting, err)
	}
	fmt.Fprintln(con.out, did)
	return nil
}
