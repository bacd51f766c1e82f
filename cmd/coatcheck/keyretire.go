package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

type keyRetireCmd struct {
	Key    string `arg:"" help:"The key's ID, as coatcheck key list says it."`
	File   string `arg:"" optional:"" help:"The key ring. With --config it is the one named there."`
	Config string `short:"c" placeholder:"FILE" help:"The configuration, by which the sessions that the key has sealed are counted."`
	Yes    bool   `help:"Retire the key though people would be signed out, or though nobody knows."`
}

// Validate is called by kong.
func (c keyRetireCmd) Validate() error {
	if (c.File == "") == (c.Config == "") {
		return errors.New("give either the key ring's file or --config")
	}
	return nil
}

// Run retires a key, unless it still seals. Nodes may run meanwhile, except with SQLite,
// where one process has the file.
func (c keyRetireCmd) Run(ctx context.Context, con console) error {
	if c.Config == "" {
		ring, err := readRingFile(c.File, con)
		if err != nil {
			return err
		}
		if err := c.check(ring, c.File); err != nil {
			return err
		}
		if !c.Yes {
			return fmt.Errorf("%s was left as it is: how many sessions %s has sealed can't be told without the store.\n"+
				"With --config in place of %s they are counted (with SQLite, while the node does not run); with --yes it is retired all the same", c.File, c.Key, c.File)
		}
		return c.retire(con, ring, c.File, "Whoever has a session that it has sealed is signed out.")
	}

	cfg, err := load(c.Config)
	if err != nil {
		return err
	}
	ring, err := readRing(cfg.Keys)
	if err != nil {
		return err
	}
	where := cfg.Keys.File
	if cfg.Keys.Env != "" {
		where = "the environment variable " + cfg.Keys.Env
	}
	if err := c.check(ring, where); err != nil {
		return err
	}
	sealed, all, err := c.ask(ctx, con, cfg, ring)
	if err != nil {
		return err
	}
	loss := "No session was sealed by it."
	if sealed > 0 {
		loss = fmt.Sprintf("%d of %d sessions were sealed by it: these people are signed out.", sealed, all)
	}
	switch {
	case sealed > 0 && !c.Yes:
		return fmt.Errorf("%s was left as it is: %d of %d sessions are still sealed by %s, and whoever they belong to would be signed out.\n"+
			"Sessions are sealed by the newer key as they are used, so wait and try again; with --yes it is retired all the same", where, sealed, all, c.Key)
	case cfg.Keys.Env != "":
		return fmt.Errorf("%d of %d sessions are sealed by %s. %s can't be changed from here: write its text to a file, "+
			"run coatcheck key retire %s FILE --yes, and start the nodes with what is in it then", sealed, all, c.Key, where, c.Key)
	}
	return c.retire(con, ring, where, loss)
}

// check says why the key can't be retired from the ring, which is kept where where says.
func (c keyRetireCmd) check(ring *seal.Ring, where string) error {
	if slices.ContainsFunc(ring.RetiredKeys(), func(k seal.RetiredKey) bool { return k.ID == c.Key }) {
		return fmt.Errorf("%s is retired already", c.Key)
	}
	if ids := ring.KeyIDs(); !slices.Contains(ids, c.Key) {
		return fmt.Errorf("%s has no key %q; it has %s", where, c.Key, strings.Join(ids, ", "))
	}
	if ring.Promote(time.Now(), nil); ring.Current() == c.Key {
		return fmt.Errorf("%s is the key that seals now: add another one with coatcheck key rotate, and retire this one when that seals", c.Key)
	}
	return nil
}

// ask has the store say how many of all sessions the key has sealed, and fails if a node
// still seals with it.
func (c keyRetireCmd) ask(ctx context.Context, con console, cfg *config.Config, ring *seal.Ring) (sealed, all int, err error) {
	logger := slog.New(slog.NewTextHandler(con.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	kept, err := openStore(ctx, cfg.Store, logger)
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		return 0, 0, fmt.Errorf("the sessions can't be counted while the node runs, as it has the database for itself.\n"+
			"Stop it for that or, if the new key has sealed for as long as session.idle_timeout: coatcheck key retire %s %s --yes", c.Key, cfg.Keys.File)
	case err != nil:
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	if err := kept.Ping(ctx); err != nil {
		return 0, 0, err
	}
	live, err := newMembers(ring, kept, logger).List(ctx)
	if err != nil {
		return 0, 0, err
	}
	var sealing []string
	for _, m := range live {
		if m.Seals == c.Key {
			sealing = append(sealing, m.Node)
		}
	}
	if len(sealing) > 0 {
		return 0, 0, fmt.Errorf("%s still seals on these nodes: %s. They change to a newer key when every node has it; their logs say what they wait for",
			c.Key, strings.Join(sealing, ", "))
	}
	return countSealed(ctx, kept, newJar(cfg).Session()+"-", c.Key)
}

// countSealed returns how many sessions there are, and how many of them key has sealed. It
// counts records, not the list of sessions: one that is not listed can be used too.
func countSealed(ctx context.Context, kept store.Backend, prefix, key string) (sealed, all int, err error) {
	var mu sync.Mutex
	seen := map[string]bool{}
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for record, listErr := range kept.Keys(reading, prefix) {
		if listErr != nil {
			err = listErr
			break
		}
		if seen[record] {
			continue
		}
		seen[record] = true
		group.Go(func() error {
			rec, err := kept.Get(reading, record)
			if errors.Is(err, store.ErrNotFound) {
				return nil // it has ended meanwhile
			}
			if err != nil {
				return err
			}
			if id, ok := seal.KeyID(rec.Value); ok { // else it is a sign-in that was used once, say
				mu.Lock()
				defer mu.Unlock()
				if all++; id == key {
					sealed++
				}
			}
			return nil
		})
	}
	// An error of Get ends the walk too: that one says more.
	if groupErr := group.Wait(); groupErr != nil {
		err = groupErr
	}
	return sealed, all, err
}

// retire writes the ring without the key.
func (c keyRetireCmd) retire(con console, ring *seal.Ring, file, loss string) error {
	next, err := ring.Retired(c.Key, time.Now())
	if err != nil {
		return err
	}
	if err := next.Write(file); err != nil {
		return fmt.Errorf("%s can't be written and is as it was: %w", file, err)
	}
	fmt.Fprintf(con.out, "Retired the key %s in %s. %s Give this file to every node: running ones read it by themselves.\n", c.Key, file, loss)
	return nil
}
