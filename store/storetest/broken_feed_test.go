package storetest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// soundLeaser is a leaser without a defect.
type soundLeaser = store.Leaser

// leases is a leaser whose leases are changed before they are handed out.
type leases struct {
	soundLeaser
	change func(name string, l store.Lease) store.Lease
}

func (l leases) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	lease, err := l.soundLeaser.Acquire(ctx, name, ttl)
	if err != nil {
		return nil, err
	}
	return l.change(name, lease), nil
}

type unfenced struct{ store.Lease }

func (unfenced) Fence() uint64 { return 1 }

// neverLost takes a lease for held that is not.
type neverLost struct{ store.Lease }

func (l neverLost) Renew(ctx context.Context, ttl time.Duration) error {
	if err := l.Lease.Renew(ctx, ttl); !errors.Is(err, store.ErrLost) {
		return err
	}
	return nil
}

// renewsNothing only looks whether the lease is held.
type renewsNothing struct {
	store.Lease
	ends time.Time
}

func (l renewsNothing) Renew(ctx context.Context, _ time.Duration) error {
	return l.Lease.Renew(ctx, time.Until(l.ends))
}

// releasesAny ends whatever lease of the name is held.
type releasesAny struct {
	store.Lease
	mu   *sync.Mutex
	held map[string]store.Lease
	name string
}

func (l releasesAny) Release(ctx context.Context) error {
	l.mu.Lock()
	held := l.held[l.name]
	l.mu.Unlock()
	return held.Release(ctx)
}

// leasesInTwoSteps looks whether anybody holds the lease and takes it afterwards.
type leasesInTwoSteps struct {
	soundLeaser
	mu   sync.Mutex
	held map[string]bool
}

func (l *leasesInTwoSteps) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	l.mu.Lock()
	held := l.held[name]
	l.mu.Unlock()
	if held {
		return nil, store.ErrHeld
	}
	time.Sleep(time.Millisecond)
	l.mu.Lock()
	l.held[name] = true
	l.mu.Unlock()
	return &loose{l: l, name: name}, nil
}

type loose struct {
	l    *leasesInTwoSteps
	name string
}

func (*loose) Fence() uint64                              { return uint64(time.Now().UnixNano()) }
func (*loose) Renew(context.Context, time.Duration) error { return nil }

func (l *loose) Release(context.Context) error {
	l.l.mu.Lock()
	defer l.l.mu.Unlock()
	delete(l.l.held, l.name)
	return nil
}

// waitsForLease waits where it should say that the lease is held.
type waitsForLease struct{ soundLeaser }

func (l waitsForLease) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	for {
		lease, err := l.soundLeaser.Acquire(ctx, name, ttl)
		if !errors.Is(err, store.ErrHeld) {
			return lease, err
		}
		time.Sleep(time.Millisecond)
	}
}

// takesCancelForHeld says that somebody has the lease when it was told to stop.
type takesCancelForHeld struct{ soundLeaser }

func (l takesCancelForHeld) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	lease, err := l.soundLeaser.Acquire(ctx, name, ttl)
	if errors.Is(err, context.Canceled) {
		err = store.ErrHeld
	}
	return lease, err
}

// awayLeaser's backend can be taken away. While it is, calls return says.
type awayLeaser struct {
	soundLeaser
	out *outage
}

func (l awayLeaser) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	if l.out.gone.Load() {
		return nil, l.out.says
	}
	lease, err := l.soundLeaser.Acquire(ctx, name, ttl)
	if err != nil {
		return nil, err
	}
	return awayLease{lease, l.out}, nil
}

type awayLease struct {
	store.Lease
	out *outage
}

func (l awayLease) Renew(ctx context.Context, ttl time.Duration) error {
	if l.out.gone.Load() {
		return l.out.says
	}
	return l.Lease.Renew(ctx, ttl)
}

func (l awayLease) Release(ctx context.Context) error {
	if l.out.gone.Load() {
		return l.out.says
	}
	return l.Lease.Release(ctx)
}

// soundFeed is a watched store without a defect.
type soundFeed = WatchedStore

// feeds is a watched store whose feed tells something else.
type feeds struct {
	soundFeed
	change func(store.Feed) store.Feed
}

func (f feeds) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	return f.soundFeed.Watch(ctx, beat, f.change(feed))
}

// untold is a watched store that does not tell what is done through it.
type untold struct {
	soundFeed
	shared   *untoldKeys
	replaces bool // also of Replace
}

type untoldKeys struct {
	mu   sync.Mutex
	keys map[string]bool
}

func (u *untoldKeys) set(key string, on bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.keys[key] = on
}

func (u *untoldKeys) has(key string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.keys[key]
}

func (u untold) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	changed := feed.Changed
	feed.Changed = func(key string) {
		if !u.shared.has(key) {
			changed(key)
		}
	}
	return u.soundFeed.Watch(ctx, beat, feed)
}

func (u untold) Delete(ctx context.Context, key string) error {
	u.shared.set(key, !u.replaces)
	defer u.shared.set(key, false)
	return u.soundFeed.Delete(ctx, key)
}

func (u untold) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	u.shared.set(key, u.replaces)
	defer u.shared.set(key, false)
	return u.soundFeed.Replace(ctx, key, revision, value, ttl)
}

// ownFeed tells a node only of what it does itself.
type ownFeed struct {
	soundFeed
	last *sync.Map // key to node
	node int
}

func (o ownFeed) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	changed := feed.Changed
	feed.Changed = func(key string) {
		if node, _ := o.last.Load(key); node == o.node {
			changed(key)
		}
	}
	return o.soundFeed.Watch(ctx, beat, feed)
}

func (o ownFeed) Delete(ctx context.Context, key string) error {
	o.last.Store(key, o.node)
	return o.soundFeed.Delete(ctx, key)
}

func (o ownFeed) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	o.last.Store(key, o.node)
	return o.soundFeed.Replace(ctx, key, revision, value, ttl)
}

// tellsTouches takes a touch for a change.
type tellsTouches struct{ soundFeed }

func (s tellsTouches) Touch(ctx context.Context, key string, ttl time.Duration) error {
	err := s.soundFeed.Touch(ctx, key, ttl)
	if r, e := s.Get(ctx, key); e == nil {
		_ = s.Replace(ctx, key, r.Revision, r.Value, ttl)
	}
	return err
}

// lingers goes on telling when its Watch has returned.
type lingers struct {
	soundFeed
	end context.Context
}

func (l lingers) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	go func() { _ = l.soundFeed.Watch(l.end, beat, feed) }()
	<-ctx.Done()
	return ctx.Err()
}

// forgivesEnd returns nil when its context ends.
type forgivesEnd struct{ soundFeed }

func (f forgivesEnd) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	_ = f.soundFeed.Watch(ctx, beat, feed)
	return nil
}

// awayFeed's backend can be taken away.
type awayFeed struct {
	soundFeed
	out *outage
	// noReset: it goes on after an outage as if it had heard everything.
	// blind: it says that it is current without asking.
	noReset, blind bool
}

func (a awayFeed) Ping(ctx context.Context) error {
	if a.out.gone.Load() {
		return a.out.says
	}
	return a.soundFeed.Ping(ctx)
}

func (a awayFeed) Delete(ctx context.Context, key string) error {
	if a.out.gone.Load() {
		return a.out.says
	}
	return a.soundFeed.Delete(ctx, key)
}

func (a awayFeed) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	current, away := feed.Current, false
	feed.Current = func(asOf time.Time) {
		if away = away || a.out.gone.Load(); away && !a.out.gone.Load() {
			away = false
			if !a.noReset {
				feed.Reset()
			}
		}
		if !away || a.blind {
			current(asOf)
		}
	}
	return a.soundFeed.Watch(ctx, beat, feed)
}

// soundJournal is a journal without a defect.
type soundJournal = store.Journal

// journals is a journal whose readers are told something else, or later.
type journals struct {
	soundJournal
	append func(data []byte) []byte
	told   func(told func([]byte)) func([]byte)
}

func (j journals) Append(ctx context.Context, data []byte) error {
	if j.append != nil && len(data) <= store.MaxEvent {
		data = j.append(data)
	}
	return j.soundJournal.Append(ctx, data)
}

func (j journals) Follow(ctx context.Context, ready func(), told func([]byte)) error {
	if j.told != nil {
		told = j.told(told)
	}
	return j.soundJournal.Follow(ctx, ready, told)
}

// ownJournal tells a node only of what it has appended itself, or only of what it has not.
type ownJournal struct {
	soundJournal
	mine   *sync.Map // events to nodes
	node   int
	others bool
}

func (o ownJournal) Append(ctx context.Context, data []byte) error {
	o.mine.Store(string(data), o.node)
	return o.soundJournal.Append(ctx, data)
}

func (o ownJournal) Follow(ctx context.Context, ready func(), told func([]byte)) error {
	return o.soundJournal.Follow(ctx, ready, func(data []byte) {
		if node, _ := o.mine.Load(string(data)); (node == o.node) != o.others {
			told(data)
		}
	})
}

// keepsEvents tells the very slices that were appended.
type keepsEvents struct {
	soundJournal
	kept *sync.Map // events to slices
}

func (k keepsEvents) Append(ctx context.Context, data []byte) error {
	k.kept.Store(string(data), data)
	return k.soundJournal.Append(ctx, data)
}

func (k keepsEvents) Follow(ctx context.Context, ready func(), told func([]byte)) error {
	return k.soundJournal.Follow(ctx, ready, func(data []byte) {
		kept, _ := k.kept.Load(string(data))
		told(kept.([]byte))
	})
}

// sharesEvents tells all readers the same slices.
func sharesEvents() func(told func([]byte)) func([]byte) {
	var mu sync.Mutex
	shared := map[string][]byte{}
	return func(told func([]byte)) func([]byte) {
		return func(data []byte) {
			mu.Lock()
			key := string(data)
			if shared[key] == nil {
				shared[key] = bytes.Clone(data)
			}
			data = shared[key]
			mu.Unlock()
			told(data)
		}
	}
}

// hurriesReady says that it follows before it does.
type hurriesReady struct{ soundJournal }

func (h hurriesReady) Follow(ctx context.Context, ready func(), told func([]byte)) error {
	ready()
	time.Sleep(5 * time.Millisecond)
	return h.soundJournal.Follow(ctx, func() {}, told)
}

// sendsLargeEvents checks the bound where the backend would: after the context.
type sendsLargeEvents struct{ soundJournal }

func (s sendsLargeEvents) Append(ctx context.Context, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.soundJournal.Append(ctx, data)
}

// takesCancelForAppended is silent about what it was told to stop.
type takesCancelForAppended struct{ soundJournal }

func (s takesCancelForAppended) Append(ctx context.Context, data []byte) error {
	if err := s.soundJournal.Append(ctx, data); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// awayJournal's backend can be taken away.
type awayJournal struct {
	soundJournal
	out *outage
	// deaf: what is appended before a reader has come back is lost to it.
	deaf bool
}

func (a awayJournal) Append(ctx context.Context, data []byte) error {
	if a.out.gone.Load() {
		return a.out.says
	}
	return a.soundJournal.Append(ctx, data)
}

func (a awayJournal) Follow(ctx context.Context, ready func(), told func([]byte)) error {
	var back time.Time
	var mu sync.Mutex
	a.out.mu.Lock()
	a.out.heard = append(a.out.heard, func() {
		mu.Lock()
		defer mu.Unlock()
		back = time.Now().Add(5 * time.Millisecond)
	})
	a.out.mu.Unlock()
	return a.soundJournal.Follow(ctx, ready, func(data []byte) {
		mu.Lock()
		lost := a.deaf && time.Now().Before(back)
		mu.Unlock()
		if !lost {
			told(data)
		}
	})
}
