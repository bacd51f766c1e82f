package session

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// upkeepEvery is how often a node looks for what is to be done, more or less: nodes
	// that started together must not go on together.
	upkeepEvery = time.Second
	// reapBatch is how many entries a node claims at a time.
	reapBatch = 200
	// atOnce is how many sessions a node looks at or finishes at once, beside requests.
	atOnce = 8
	// reassertFor is how far back deletions are made again after a gap in the feed, which
	// may mean that the store has failed over and lost what it had acknowledged last.
	reassertFor = time.Minute
	// maxDeleted and maxLeft bound what a node remembers to do. What is dropped of the
	// first is as good as the store's own promise; what is dropped of the second expires.
	maxDeleted = 100_000
	maxLeft    = 10_000
	// leftFailures is after how many of those that are left the store is taken for down.
	leftFailures = 8
	// leavePatience is how long a node that stops waits for what it has begun to ask a
	// provider.
	leavePatience = 35 * time.Second
	// streamLease is how often the sessions of open streams are read where nobody tells of
	// changes.
	streamLease = time.Second
)

// upkeep is what a node has to do beside requests.
type upkeep struct {
	mu        sync.Mutex
	left      []leftover // the one that waits longest first
	deletions []deletion // oldest first
	reassert  time.Time  // deletions since then are due to be made again; zero for none
	gap       time.Time  // when the feed's last gap was noted
	deaf      bool       // the store did not answer when it was asked last
}

// A leftover is a session that nobody was handed, or whose end could not be completed.
type leftover struct {
	listing store.Entry
	reason  coatcheck.Reason
}

type deletion struct {
	handle string
	at     time.Time
}

// leave notes a session that is to be ended as soon as the store allows.
func (u *upkeep) leave(listing store.Entry, reason coatcheck.Reason) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.left) < maxLeft {
		u.left = append(u.left, leftover{listing, reason})
	}
}

// take returns the leftover that has waited longest, which is noted no more.
func (u *upkeep) take() (l leftover, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.left) == 0 {
		return leftover{}, false
	}
	l, u.left[0] = u.left[0], leftover{}
	if u.left = u.left[1:]; len(u.left) == 0 {
		u.left = nil
	}
	return l, true
}

// waiting returns the number of leftovers.
func (u *upkeep) waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.left)
}

// deleted notes a record that was deleted.
func (u *upkeep) deleted(handle string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.trim()
	u.deletions = append(u.deletions, deletion{handle, time.Now()})
}

// trim forgets deletions that are too old to matter, or too many.
func (u *upkeep) trim() {
	old := max(0, len(u.deletions)-maxDeleted+1)
	for old < len(u.deletions) && u.reassert.IsZero() && time.Since(u.deletions[old].at) > reassertFor {
		old++
	}
	if u.deletions = u.deletions[old:]; len(u.deletions) == 0 {
		u.deletions = nil
	}
}

// missed notes a gap in the feed.
func (u *upkeep) missed() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gap = time.Now()
	if u.reassert.IsZero() {
		u.reassert = u.gap.Add(-reassertFor)
	}
}

// Run does, until ctx ends, what has to be done beside requests: it listens to the store's
// feed, reaps what has expired or was left unfinished by any node, ends the streams of
// sessions that have ended, revokes their tokens at the provider, and forgets what nobody can
// use any more. It returns when all of that has stopped.
func (m *Manager) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	tasks.Go(func() { m.listen(ctx) })
	tasks.Go(func() { m.watchStreams(ctx) })
	revoking, stopRevoking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRevoking()
	if m.Provider != nil {
		tasks.Go(func() { m.revokeGrants(revoking) })
	}
	for ctx.Err() == nil {
		m := m.latest.Load()
		m.reassertDeletions(ctx)
		m.finishLeft(ctx)
		more := m.reap(ctx)
		m.cache.trim(instantOf(time.Now()))
		m.renewal.trim(instantOf(time.Now()))
		pause := upkeepEvery/2 + rand.N(upkeepEvery)
		if more {
			pause /= 100
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), leavePatience)
	defer cancel()
	if err := m.renewal.close(ending); err != nil {
		m.Logger.WarnContext(ctx, "sessions were still being renewed: some people may have to sign in again")
	}
	stopRevoking() // only now: a renewal may have brought what is to be revoked
	tasks.Wait()
}

// listen keeps the near cache true.
func (m *Manager) listen(ctx context.Context) {
	if m.Feed == nil || m.CacheSize <= 0 {
		return
	}
	feed := store.Feed{
		Changed: m.forget,
		Reset: func() {
			m.cache.reset()
			m.upkeep.missed()
			m.renewal.missed()
		},
		Current: m.cache.heard,
	}
	for ctx.Err() == nil {
		err := m.Feed.Watch(ctx, m.CacheLease/3, feed)
		switch {
		case errors.Is(err, store.ErrNoFeed):
			m.Logger.WarnContext(ctx, "the store does not tell of changes: every request reads it", "error", err)
			return
		case ctx.Err() == nil:
			m.Logger.WarnContext(ctx, "the store's feed of changes has ended, listening again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(upkeepEvery):
			}
		}
	}
}

// watchStreams looks at the sessions with open streams while the feed can't vouch for them.
func (m *Manager) watchStreams(ctx context.Context) {
	lease := m.CacheLease
	if lease <= 0 {
		lease = streamLease
	}
	tick := time.NewTicker(lease / 2)
	defer tick.Stop()
	epoch := m.cache.epoch.Load()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		since := instantOf(time.Now())
		if e := m.cache.epoch.Load(); e != epoch {
			epoch = e // a gap: all of them
		} else if since -= int64(lease); m.cache.current.Load() >= since {
			continue
		}
		var group errgroup.Group
		group.SetLimit(atOnce)
		for _, handle := range m.streams.handles(m.cache, since) {
			group.Go(func() error { m.check(handle); return nil })
		}
		_ = group.Wait()
	}
}

// finishLeft ends what was begun and handed to nobody, and finishes ends that could not be
// marked. What the store refuses goes to the end, since it may take the others: a part of it
// may be out. After leftFailures the rest waits for the next time.
func (m *Manager) finishLeft(ctx context.Context) {
	failures := 0
	for range m.upkeep.waiting() {
		l, ok := m.upkeep.take()
		if !ok {
			return
		}
		err := m.guarded(ctx, "a session was ended", func() error {
			marked, err := m.mark(ctx, l.listing, l.reason)
			if err != nil {
				return err
			}
			return m.finish(ctx, marked, nil)
		})
		if err == nil {
			continue
		}
		m.upkeep.leave(l.listing, l.reason)
		if failures++; failures == leftFailures {
			return
		}
	}
}

// reassertDeletions deletes again what was deleted in the minute before a gap in the feed.
func (m *Manager) reassertDeletions(ctx context.Context) {
	u := &m.upkeep
	u.mu.Lock()
	u.trim()
	since, gap := u.reassert, u.gap
	var due []deletion
	if !since.IsZero() {
		for _, d := range u.deletions {
			if d.at.After(since) {
				due = append(due, d)
			}
		}
	}
	u.mu.Unlock()
	if since.IsZero() {
		return
	}
	group, deleting := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, d := range due {
		group.Go(func() error {
			err := m.guarded(ctx, "a session was ended again", func() error {
				if err := m.Store.Delete(deleting, d.handle); err != nil {
					return err
				}
				m.forget(d.handle)
				return nil
			})
			if err == errPanicked { // the same would come of it the next time, and all others wait
				err = nil
			}
			return err
		})
	}
	if group.Wait() != nil {
		return // again at the next occasion
	}
	u.mu.Lock()
	u.reassert = time.Time{}
	if !u.gap.Equal(gap) { // what was just made again may be lost again
		u.reassert = u.gap.Add(-reassertFor)
	}
	u.mu.Unlock()
	if len(due) > 0 {
		m.Logger.InfoContext(ctx, "ended sessions again that had ended shortly before the store was lost", "sessions", len(due))
	}
}

// reap claims what has expired or was left ending, on whichever node, and finishes it. It
// tells whether there is more.
func (m *Manager) reap(ctx context.Context) (more bool) {
	claimed, err := m.Registry.Reap(ctx, reapBatch)
	switch {
	case err != nil && ctx.Err() == nil:
		m.upkeep.deaf = true
		m.Logger.DebugContext(ctx, "reaping failed", "error", err)
	case err == nil && m.upkeep.deaf: // a store without a feed has failed over, perhaps
		m.upkeep.deaf = false
		m.upkeep.missed()
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, e := range claimed {
		group.Go(func() error { // what fails is handed out again
			return m.guarded(ctx, "a session was reaped", func() error {
				if e.Ending == store.ReasonExpired {
					if relisted, err := m.relist(ctx, e); relisted || err != nil {
						return err
					}
				}
				return m.finish(ctx, e, nil)
			})
		})
	}
	_ = group.Wait()
	return len(claimed) == reapBatch
}

// relist lists a session again whose entry has expired and whose record has not: the
// registry has lost a Renew. It is overwritten in one step, so that it is listed all along.
func (m *Manager) relist(ctx context.Context, e store.Entry) (bool, error) {
	rec, err := m.Store.Get(ctx, e.Record)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = m.Registry.Admit(ctx, e, rec.TTL+listedLonger, store.Limits{}, "")
	return true, err
}
