package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// startLimit bounds how long a node that starts waits to hear which keys the others have.
	startLimit = 2 * time.Second
	// lasts is for how long something must be amiss before the log says so: nodes get a new
	// file one after the other, and hear of each other every ten seconds, more or less.
	lasts = 15 * time.Second
	// remindEvery is how often the log says it again.
	remindEvery = time.Minute
)

// A keyring keeps the key ring of a running node up to date: it reads the file again when
// that changes, or on SIGHUP, and lets a new key seal when its time has come and all live
// nodes have it.
type keyring struct {
	ring    *seal.Ring
	file    string // "" if the ring is from the environment
	now     func() time.Time
	changed func() // is called when the ring has other keys
	logger  *slog.Logger
	// members is nil where there is one node alone.
	members *cluster.Members

	trouble trouble // with the file
	// changing is held while the ring changes, so that the log tells of each change once.
	changing sync.Mutex
	// waiting and lacking belong to told, which is called by start, and then by Run of members.
	waiting, lacking concern
}

// A concern is something that is amiss, perhaps for a moment alone.
type concern struct {
	about string    // which key it is about; empty when nothing is amiss
	since time.Time // when it began
	told  time.Time // when the log said so last; zero if it has not
}

// newKeyring returns what keeps ring up to date, for a node that goes by that clock. changed
// is called when the ring has other keys.
func newKeyring(cfg *config.Config, ring *seal.Ring, kept store.Backend, now func() time.Time, changed func(), logger *slog.Logger) *keyring {
	k := &keyring{ring: ring, now: now, changed: changed, logger: logger}
	if cfg.Keys.Env == "" {
		k.file = cfg.Keys.File
	}
	if !singleNode(cfg) {
		k.members = newMembers(ring, kept, logger)
		k.members.Self = func() cluster.Member {
			return cluster.Member{Node: cfg.Node, Version: version(), Keys: ring.KeyIDs(), Seals: ring.Current()}
		}
		k.members.Told = k.told
	}
	return k
}

// newMembers returns the nodes that share a store and have the same index key: others can't
// read each other's sessions anyway. No session's key looks like that of their list, for no
// cookie's name has a colon (RFC 6265 §4.1.1).
func newMembers(ring *seal.Ring, kept store.Backend, logger *slog.Logger) *cluster.Members {
	name := ring.Index("nodes")
	return cluster.NewMembers(cluster.MembersOptions{
		Store: kept, Clock: kept, Key: "nodes:" + hex.EncodeToString(name[:16]), Logger: logger,
	})
}

// start decides which key seals at first. Without an answer of the store it is the oldest,
// which every node has, until run has heard more.
func (k *keyring) start(ctx context.Context) {
	if k.members == nil {
		k.promote(nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if live, err := k.members.Report(ctx); err == nil {
		k.told(live, k.members.Complete(live))
	}
}

// run keeps the ring up to date until ctx ends.
func (k *keyring) run(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	if k.members != nil {
		tasks.Go(func() { k.members.Run(ctx) })
	}
	if k.file != "" {
		tasks.Go(func() { followFile(ctx, k.file, k.logger, k.load) })
	}
	if k.members != nil { // their reports tell when to look
		return
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			k.promote(nil)
		}
	}
}

// load reads the file again. What can't be used leaves the ring as it is; the log says so
// if somebody has asked for it to be read, or if it is news.
func (k *keyring) load(asked bool) {
	next, err := seal.ReadRing(k.file)
	keys, retired := k.ring.KeyIDs(), k.ring.RetiredKeys()
	if err == nil {
		_, err = k.change(func() error { return k.ring.Replace(next) })
	}
	tell, over := k.trouble.note(err, asked)
	if tell {
		k.logger.Error("the key ring's file can't be used: going on with the keys it had", "file", k.file, "error", explain(err))
	}
	if err != nil {
		return
	}
	if slices.Equal(keys, k.ring.KeyIDs()) && slices.Equal(retired, k.ring.RetiredKeys()) {
		switch {
		case over:
			k.logger.Info("the key ring's file can be used again", "file", k.file, "keys", keys)
		case asked:
			k.logger.Info("the key ring has not changed", "file", k.file, "keys", keys)
		}
		return
	}
	k.logger.Info("the key ring was read again", "file", k.file, "keys", k.ring.KeyIDs(), "seals", k.ring.Current())
	k.changed()
	if k.members != nil {
		k.members.Sooner()
	} else {
		k.promote(nil)
	}
}

// explain adds what an operator can do about an error of Replace.
func explain(err error) error {
	switch {
	case errors.Is(err, seal.ErrOtherIndex):
		return fmt.Errorf("%w than that of the running node: it is the ring of other sessions", err)
	case errors.Is(err, seal.ErrKeyMissing):
		return fmt.Errorf("%w: a key is taken out with coatcheck key retire, when another one seals", err)
	default:
		return err
	}
}

// told lets the newest key seal that all live nodes have.
//
// Where nodes can be missing from the list, at the start and after the store was away, that is
// known only of a key that another node seals with already: it was decided on when none was.
func (k *keyring) told(live []cluster.Member, complete bool) {
	var waits string // the newest key that is due
	var without []string
	k.promote(func(id string) bool {
		var nodes []string
		decided := complete
		for _, m := range live {
			if !slices.Contains(m.Keys, id) {
				nodes = append(nodes, m.Node)
			}
			decided = decided || m.Seals == id
		}
		if len(nodes) > 0 && waits == "" {
			waits, without = id, nodes
		}
		return len(nodes) == 0 && decided
	})
	if k.waiting.remind(waits) {
		k.logger.Warn("a key does not seal yet, though its time has come: not all nodes have it", "key", waits, "nodes_without", without)
	}
	if keys, with := k.lacks(live); k.lacking.remind(strings.Join(keys, " ")) {
		k.logger.Warn("other nodes have keys that this one lacks: give it the same key ring", "keys", keys, "nodes_with", with)
	}
}

// lacks returns the keys that other nodes have and this one lacks, and which nodes have them.
func (k *keyring) lacks(live []cluster.Member) (keys, with []string) {
	ours := k.ring.KeyIDs()
	for _, r := range k.ring.RetiredKeys() {
		ours = append(ours, r.ID)
	}
	for _, m := range live {
		for _, id := range m.Keys {
			if slices.Contains(ours, id) {
				continue
			}
			if !slices.Contains(keys, id) {
				keys = append(keys, id)
			}
			if !slices.Contains(with, m.Node) {
				with = append(with, m.Node)
			}
		}
	}
	return keys, with
}

// promote lets the newest key seal that is due, and that is known.
func (k *keyring) promote(known func(id string) bool) {
	changed, _ := k.change(func() error { k.ring.Promote(k.now(), known); return nil })
	if changed && k.members != nil {
		k.members.Sooner()
	}
}

// change has act change the ring, and tells whether another key seals then, as the log does.
func (k *keyring) change(act func() error) (changed bool, err error) {
	k.changing.Lock()
	defer k.changing.Unlock()
	before := k.ring.Current()
	err = act()
	if changed = k.ring.Current() != before; changed {
		k.logger.Info("another key seals from now on", "key", k.ring.Current(), "before", before)
	}
	return changed, err
}

// remind notes what is amiss, if anything is, and tells whether the log should say so: when it
// has lasted, and not too often.
func (c *concern) remind(about string) bool {
	now := time.Now()
	if about != c.about {
		*c = concern{about: about, since: now}
	}
	if about == "" || now.Sub(c.since) < lasts || !c.told.IsZero() && now.Sub(c.told) < remindEvery {
		return false
	}
	c.told = now
	return true
}
