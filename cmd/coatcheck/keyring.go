package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// startLimit bounds how long a node that starts waits to hear which keys the others have.
	startLimit = 2 * time.Second
	// remindEvery is how often the log says what keeps a key from sealing.
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

	failed   atomic.Bool // the file could not be used when it was read last
	mu       sync.Mutex
	lastFail string // the error of that
	reminded map[string]time.Time
}

// newKeyring returns what keeps ring up to date, for a node that goes by that clock. changed
// is called when the ring has other keys.
func newKeyring(cfg *config.Config, ring *seal.Ring, kept store.Backend, now func() time.Time, changed func(), logger *slog.Logger) *keyring {
	k := &keyring{ring: ring, now: now, changed: changed, logger: logger, reminded: map[string]time.Time{}}
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
		k.told(live)
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
		err = k.ring.Replace(next)
	}
	failed := k.failed.Swap(err != nil)
	if err != nil {
		if text := err.Error(); asked || text != k.lastFail {
			k.lastFail = text
			k.logger.Error("the key ring's file can't be used: going on with the keys it had", "file", k.file, "error", explain(err))
		}
		return
	}
	k.lastFail = ""
	if slices.Equal(keys, k.ring.KeyIDs()) && slices.Equal(retired, k.ring.RetiredKeys()) {
		switch {
		case failed:
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
func (k *keyring) told(live []cluster.Member) {
	k.promote(func(id string) bool {
		var without []string
		for _, m := range live {
			if !slices.Contains(m.Keys, id) {
				without = append(without, m.Node)
			}
		}
		if len(without) == 0 {
			return true
		}
		k.remind("a key does not seal yet, though its time has come: not all nodes have it", "key", id, "nodes_without", without)
		return false
	})
	ours := k.ring.KeyIDs()
	for _, r := range k.ring.RetiredKeys() {
		ours = append(ours, r.ID)
	}
	var lacking, with []string
	for _, m := range live {
		for _, id := range m.Keys {
			if slices.Contains(ours, id) {
				continue
			}
			if !slices.Contains(lacking, id) {
				lacking = append(lacking, id)
			}
			if !slices.Contains(with, m.Node) {
				with = append(with, m.Node)
			}
		}
	}
	if len(lacking) > 0 {
		k.remind("other nodes have keys that this one lacks: give it the same key ring", "keys", lacking, "nodes_with", with)
	}
}

func (k *keyring) promote(known func(id string) bool) {
	before := k.ring.Current()
	if !k.ring.Promote(k.now(), known) {
		return
	}
	k.logger.Info("another key seals from now on", "key", k.ring.Current(), "before", before)
	if k.members != nil {
		k.members.Sooner()
	}
}

// remind warns, of each thing not too often.
func (k *keyring) remind(msg string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if last, ok := k.reminded[msg]; ok && time.Since(last) < remindEvery {
		return
	}
	k.reminded[msg] = time.Now()
	k.logger.Warn(msg, args...)
}
