package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

const (
	// changeLimit is how long nodes may take to seal with a newer key once all of them have
	// it, until one that died is not waited for any more, and until it is certain which live.
	changeLimit = 45 * time.Second
	// changeLook is how often it is looked whether they do.
	changeLook = 500 * time.Millisecond
	// maxPasses bounds how often sessions are looked for that the key seals, until none is
	// found.
	maxPasses = 5
)

type keyRetireCmd struct {
	Key    string `arg:"" help:"The key's ID, as coatcheck key list says it."`
	File   string `arg:"" optional:"" help:"The key ring. With --config it is the one named there."`
	Config string `short:"c" placeholder:"FILE" help:"The configuration, by which the sessions that the key has sealed are counted, and with --yes ended."`
	Yes    bool   `help:"Retire the key though people are signed out, or though nobody knows. With --config it waits up to 45 seconds for nodes that still seal with the key, and retires nothing if they go on."`
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
	if c.Config != "" {
		return c.withStore(ctx, con)
	}
	ring, err := readRingFile(c.File, con)
	if err != nil {
		return err
	}
	ring.Promote(time.Now(), nil)
	if err := c.check(ring, c.File); err != nil {
		return err
	}
	if !c.Yes {
		return fmt.Errorf("%s was left as it is: how many sessions %s has sealed can't be told without the store.\n"+
			"With --config in place of %s they are counted (with SQLite, while the node does not run); with --yes it is retired all the same", c.File, c.Key, c.File)
	}
	if err := c.retire(con, c.File, "Whoever has a session that it has sealed is signed out."); err != nil {
		return err
	}
	fmt.Fprintf(con.out, "Such sessions keep their places until they are used or idle, or until: coatcheck key retire %s --config FILE --yes\n", c.Key)
	return nil
}

// withStore retires a key with the store at hand. The sessions that it has sealed are ended
// first, so that somebody who is interrupted finds the key where it was, and goes on.
//
// A key that is retired already, in a file that was changed without the store, may have left
// sessions, which are ended likewise.
func (c keyRetireCmd) withStore(ctx context.Context, con console) (err error) {
	cfg, err := loadWithKeys(c.Config)
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
	ring.Promote(time.Now(), nil)
	retired := c.isRetired(ring)
	if !retired {
		if err := c.check(ring, where); err != nil {
			return err
		}
	}
	if c.Yes && !retired && cfg.Keys.Env == "" { // nobody is signed out for nothing
		if err := ring.TryWrite(where); err != nil {
			return unwritten(where, err)
		}
	}
	o, err := operate(ctx, c.Config)
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		return c.inUse(cfg, retired)
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	n, err := c.sealed(ctx, con, o, where)
	switch {
	case err != nil:
		return err
	case n.Sealed > 0 && !c.Yes && retired:
		return fmt.Errorf("%s is retired already in %s, and %d of %d sessions that it has sealed still have their places. With --yes they are ended", c.Key, where, n.Sealed, n.All)
	case n.Sealed > 0 && !c.Yes:
		return fmt.Errorf("%s was left as it is: %d of %d sessions are still sealed by %s, and whoever they belong to would be signed out.\n"+
			"Sessions are sealed by the newer key as they are used, so wait and try again; with --yes they are ended and the key is retired all the same", where, n.Sealed, n.All, c.Key)
	case n.Unread > 0 && !c.Yes && !retired:
		return fmt.Errorf("%s was left as it is. %s\nUse the version that has sealed them; with --yes the key is retired all the same", where, lost(n))
	}
	loss := lost(n)
	switch {
	case retired:
		fmt.Fprintf(con.out, "The key %s is retired already in %s. %s\n", c.Key, where, loss)
		return nil
	case cfg.Keys.Env != "":
		return fmt.Errorf("%s can't be changed from here. %s Now write its text to a file, "+
			"run coatcheck key retire %s FILE --yes, and start the nodes with what is in it then", where, loss, c.Key)
	}
	err = c.retire(con, where, loss)
	if err != nil && n.Sealed > 0 {
		err = fmt.Errorf("%w\n%s The key still opens: run the same command again", err, loss)
	}
	return err
}

// lost says which sessions the key has sealed that is retired.
func lost(n session.SealedCount) string {
	var said []string
	if n.Sealed > 0 {
		said = append(said, fmt.Sprintf("%d of %d sessions were sealed by it and have ended: these people are signed out.", n.Sealed, n.All))
	}
	if n.Unread > 0 {
		said = append(said, fmt.Sprintf("%d of %d sessions were sealed by another version of coatcheck, perhaps by this key: this version can't tell.", n.Unread, n.All))
	}
	return cmp.Or(strings.Join(said, " "), "No session was sealed by it.")
}

// sealed counts the sessions that the key has sealed, and ends them with --yes. Without an
// error no node seals with the key.
func (c keyRetireCmd) sealed(ctx context.Context, con console, o *operator, where string) (session.SealedCount, error) {
	o.ring.Promote(time.Now(), nil)
	members := newMembers(o.ring, o.store, slog.New(slog.DiscardHandler))
	began := time.Now()
	await := func() error {
		if singleNode(o.cfg) {
			return nil // the store is ours alone
		}
		return c.awaitNodes(ctx, con, members, began, o.ring.Current(), where)
	}
	return c.passes(where, await, func() (session.SealedCount, error) {
		return c.walk(ctx, con, o.sessions(operatorNode(o.cfg.Node), nil), o.store)
	})
}

// walk counts the sessions once, or ends them.
func (c keyRetireCmd) walk(ctx context.Context, con console, sessions *session.Manager, records store.Lister) (session.SealedCount, error) {
	if !c.Yes {
		return sessions.SealedBy(ctx, records, c.Key)
	}
	n, err := sessions.EndSealedBy(ctx, records, c.Key)
	if left := sessions.FinishLeft(ctx); left > 0 {
		fmt.Fprintf(con.err, "note: %d sessions have ended, but the store still lists them: they keep their places until they would have ended by themselves, or until coatcheck session end ends them\n", left)
	}
	return n, err
}

// passes looks at the nodes and then at the sessions, with --yes until there are none to end:
// a node that starts meanwhile may have sealed more for a moment.
func (c keyRetireCmd) passes(where string, await func() error, walk func() (session.SealedCount, error)) (session.SealedCount, error) {
	ended := 0
	for range maxPasses {
		if err := await(); err != nil {
			if ended > 0 {
				err = fmt.Errorf("%w\n%d sessions that it had sealed have ended already", err, ended)
			}
			return session.SealedCount{}, err
		}
		n, err := walk()
		last := n.Sealed == 0 || !c.Yes
		n.Sealed += ended
		n.All += ended
		switch {
		case err != nil && c.Yes:
			return n, fmt.Errorf("%s was left as it is, and %d of the sessions that %s had sealed have ended. Some of the others may be answered with 503 until the same command is run again, which ends them: %w", where, n.Sealed, c.Key, err)
		case err != nil || last:
			return n, err
		}
		ended = n.Sealed
	}
	return session.SealedCount{}, fmt.Errorf("%s was left as it is: %d sessions that %s had sealed have ended, and there are ever more of them. Look for a node that seals with it and is not listed, and try again", where, ended, c.Key)
}

// inUse says what to do while a node has the store for itself.
func (c keyRetireCmd) inUse(cfg *config.Config, retired bool) error {
	const why = "the sessions can't be counted while the node runs, as it has the database for itself.\n"
	if retired {
		return fmt.Errorf("%s is retired already; %sStop it to end those that the key has sealed and that nobody has used since", c.Key, why)
	}
	return fmt.Errorf("%sStop it for that or, if the new key has sealed for as long as session.idle_timeout: coatcheck key retire %s %s --yes", why, c.Key, cmp.Or(cfg.Keys.File, "FILE"))
}

func (c keyRetireCmd) isRetired(ring *seal.Ring) bool {
	return slices.ContainsFunc(ring.RetiredKeys(), func(k seal.RetiredKey) bool { return k.ID == c.Key })
}

// check says why the key can't be retired from the ring, which is kept where where says. The
// ring's current key is the one that is due to seal then.
func (c keyRetireCmd) check(ring *seal.Ring, where string) error {
	if c.isRetired(ring) {
		return fmt.Errorf("%s is retired already", c.Key)
	}
	if ids := ring.KeyIDs(); !slices.Contains(ids, c.Key) {
		return fmt.Errorf("%s has no key %q; it has %s", where, c.Key, strings.Join(ids, ", "))
	}
	if ring.Current() == c.Key {
		return fmt.Errorf("%s is the key that seals now, or is due to: add another one with coatcheck key rotate, and retire this one when that seals", c.Key)
	}
	return nil
}

// awaitNodes fails if live nodes seal with the key: nobody could open what they seal from then
// on. With --yes it waits for them to change to a newer key. It waits also while nodes may be
// missing from the list, since one that starts seals with its oldest key at first; where none
// is listed, until Settles after the command began to look.
func (c keyRetireCmd) awaitNodes(ctx context.Context, con console, members *cluster.Members, began time.Time, newer, where string) error {
	said := map[string]bool{}
	for waits := time.Now(); ; {
		live, err := members.List(ctx)
		if err != nil {
			return err
		}
		var sealing, without []string
		for _, m := range live {
			if m.Seals == c.Key {
				sealing = append(sealing, m.Node)
			}
			if !slices.Contains(m.Keys, newer) {
				without = append(without, m.Node)
			}
		}
		known := cluster.Settled(live) || len(live) == 0 && time.Since(began) >= cluster.Settles
		over := time.Since(waits) >= changeLimit
		what := "until it is certain which nodes live"
		if len(sealing) > 0 {
			what = fmt.Sprintf("for these nodes to seal with %s: %s", newer, strings.Join(sealing, ", "))
		}
		switch {
		case len(sealing) == 0 && known:
			return nil
		case len(sealing) > 0 && (!c.Yes || over):
			return fmt.Errorf("%s was left as it is: %s still seals on these nodes: %s.\n%s", where, c.Key, strings.Join(sealing, ", "), c.advice(newer, without))
		case over:
			return fmt.Errorf("%s was left as it is: a node may still seal with %s, for those that are listed have just started, or the store has lost their list. Try again in a minute", where, c.Key)
		case !said[what]:
			said[what] = true
			fmt.Fprintf(con.err, "Waiting up to %v %s\n", changeLimit, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(changeLook):
		}
	}
}

// advice says what has nodes change to the newer key, which some may lack.
func (c keyRetireCmd) advice(newer string, without []string) string {
	switch {
	case len(without) > 0:
		return fmt.Sprintf("They change to %s when every node has it. These have not: %s. Give them the key ring, or stop them, and try again", newer, strings.Join(without, ", "))
	case c.Yes:
		return fmt.Sprintf("They have %s as well; their logs say what they wait for", newer)
	default:
		return fmt.Sprintf("They change to %s within half a minute, as every node has it: try again then, or with --yes, which waits for them", newer)
	}
}

// retire takes the key out of the ring that the file holds by now: others may have changed it
// while nodes were waited for and sessions ended.
func (c keyRetireCmd) retire(con console, file, loss string) error {
	ring, err := seal.ReadRing(file)
	if err != nil {
		return err
	}
	ring.Promote(time.Now(), nil)
	if err := c.check(ring, file); err != nil {
		return err
	}
	next, err := ring.Retired(c.Key, time.Now())
	if err != nil {
		return err
	}
	if err := next.Write(file); err != nil {
		return unwritten(file, err)
	}
	fmt.Fprintf(con.out, "Retired the key %s in %s. %s Give this file to every node: running ones read it by themselves.\n", c.Key, file, loss)
	return nil
}

func unwritten(file string, err error) error {
	return fmt.Errorf("%s can't be written and is as it was: %w", file, err)
}
