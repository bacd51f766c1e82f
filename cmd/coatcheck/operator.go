package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

// An operator is a command that sees the sessions of the nodes, and ends some, without being
// one of them. Nodes may run meanwhile, except with SQLite, where one process has the file.
//
// Nothing of it logs: what is wrong is the command's own error.
type operator struct {
	cfg   *config.Config
	ring  *seal.Ring
	store store.Backend
	clock *cluster.Clock
}

// operate opens the store that the configuration in a file names, and asks it whether it
// answers.
func operate(ctx context.Context, file string) (*operator, error) {
	cfg, err := loadWithKeys(file)
	if err != nil {
		return nil, err
	}
	const none = "there are no sessions yet: no node has run, for its first start makes the %s %s"
	ring, err := readRing(cfg.Keys)
	switch {
	case errors.Is(err, seal.ErrNoFile) && singleNode(cfg):
		return nil, fmt.Errorf(none, "key ring", cfg.Keys.File)
	case err != nil:
		return nil, err
	}
	// A database that was made here might be one that the node may not open.
	if _, err := os.Stat(cfg.Store.SQLite.File); singleNode(cfg) && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf(none, "database", cfg.Store.SQLite.File)
	}
	driver, err := newDriver(cfg.Store, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	kept, err := driver.open(ctx)
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		return nil, fmt.Errorf("the node has %s for itself: stop it for this, and start it again afterwards, which signs nobody out: %w", cfg.Store.SQLite.File, err)
	case err != nil:
		return nil, err
	}
	o := &operator{cfg: cfg, ring: ring, store: kept, clock: cluster.NewClock(kept, slog.New(slog.DiscardHandler))}
	if err = kept.Ping(ctx); err == nil {
		err = o.clock.Measure(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", driver.setting, err), kept.Close())
	}
	return o, nil
}

// sessions returns what lists and ends the sessions, and tells of it as the node called by
// that name. provider may be nil: then no token is revoked.
func (o *operator) sessions(node string, provider session.Provider) *session.Manager {
	logger := slog.New(slog.DiscardHandler)
	return newSessions(o.cfg, o.store, session.Options{
		Provider: provider,
		Events:   audit.New(audit.Options{Journal: o.store, Logger: logger, Node: node}),
		Ring:     o.ring, Jar: newJar(o.cfg), Now: o.clock.Now, Logger: logger,
	})
}

// provider returns the configured provider, which is discovered first.
func (o *operator) provider(ctx context.Context) (*oidc.RelyingParty, error) {
	party := oidc.New(relyingParty(o.cfg, oidc.Config{
		Ring: o.ring, Jar: newJar(o.cfg), Once: o.store, Logger: slog.New(slog.DiscardHandler), Now: o.clock.Now,
	}))
	ctx, cancel := context.WithTimeout(ctx, discoverLimit)
	defer cancel()
	return party, party.Discover(ctx)
}

func (o *operator) Close() error { return o.store.Close() }
