package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// streams are the WebSockets and event streams that are open for sessions of this node. A
// stream is served as long as a new request with the same ticket would be: when its
// session's record changes or its end comes, and when the feed has missed something, the
// record is looked at again.
type streams struct {
	mu   sync.Mutex
	open map[string]*watched // by handle
}

// A watched is a session with at least one open stream.
type watched struct {
	live     *Live
	ended    map[int]func(error)
	next     int
	timer    *time.Timer
	read     instant // when a look at the record that found it began
	epoch    uint64  // of the near cache, then
	checking bool
	again    bool // something changed while a check was under way
}

// Watch calls ended once the session can't be used any more, with the error that Load would
// return then: ErrInvalid, or one with CodeUnknown when the store can't tell for longer than
// a request would be served. It is called at most once, by a goroutine of its own. release
// ends the watch and must be called; it may be called at any time.
func (l *Live) Watch(ended func(error)) (release func()) {
	m := l.manager
	s := &m.streams
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[string]*watched)
	}
	w := s.open[l.handle]
	if w == nil {
		w = &watched{
			live: l, ended: make(map[int]func(error)),
			read: instantOf(time.Now().Add(-l.Unverified)), epoch: m.cache.epoch.Load(),
		}
		s.open[l.handle] = w
		// What has changed since the session was loaded was told to nobody.
		w.timer = time.AfterFunc(0, func() { m.check(l.handle) })
	}
	id := w.next
	w.next++
	w.ended[id] = ended
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(w.ended, id)
		if len(w.ended) == 0 && s.open[l.handle] == w {
			w.timer.Stop()
			delete(s.open, l.handle)
		}
	}
}

// changed has a session looked at, if it has open streams.
func (s *streams) changed(m *Manager, handle string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.open[handle]; w != nil {
		w.timer.Stop()
		w.timer = time.AfterFunc(0, func() { m.check(handle) })
	}
}

// handles returns the sessions with open streams that are not confirmed since then.
func (s *streams) handles(c *cache, since instant) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for handle, w := range s.open {
		if c.confirmed(w.read, w.epoch) < since {
			list = append(list, handle)
		}
	}
	return list
}

// check looks whether a session with open streams can still be used.
func (m *Manager) check(handle string) {
	m = m.latest.Load()
	s := &m.streams
	s.mu.Lock()
	w := s.open[handle]
	if w == nil {
		s.mu.Unlock()
		return
	}
	if w.checking {
		w.again = true
		s.mu.Unlock()
		return
	}
	w.checking = true
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), flightLimit)
	defer cancel()
	began, epoch := instantOf(time.Now()), m.cache.epoch.Load()
	rec, err := m.look(ctx, handle)

	s.mu.Lock()
	w.checking = false
	if s.open[handle] != w { // released meanwhile
		s.mu.Unlock()
		return
	}
	var over error
	wait := time.Duration(0)
	switch {
	case errors.Is(err, store.ErrNotFound), !m.Now().Before(w.live.Deadline),
		err == nil && errors.Is(m.Ring.Holds(rec.Value), seal.ErrRetired):
		over = ErrInvalid
	case err == nil:
		w.read, w.epoch = began, epoch
		wait = min(rec.TTL, w.live.Deadline.Sub(m.Now())) + storeResolution
	default:
		since := time.Duration(instantOf(time.Now()) - m.cache.confirmed(w.read, w.epoch))
		if since > max(m.CacheLease, streamLease, m.OutageGrace) {
			over = coatcheck.E(coatcheck.CodeUnknown, "session.watch", err)
		}
		wait = checkAgain
	}
	if w.again {
		w.again, wait = false, 0
	}
	if over == nil {
		w.timer.Stop()
		w.timer = time.AfterFunc(wait, func() { m.check(handle) })
		s.mu.Unlock()
		return
	}
	delete(s.open, handle)
	for _, ended := range w.ended {
		go ended(over)
	}
	clear(w.ended)
	s.mu.Unlock()
}

// look reads a record.
func (m *Manager) look(ctx context.Context, handle string) (rec store.Record, err error) {
	err = m.guarded(ctx, "the session of a stream was read", func() error {
		rec, err = m.Store.Get(ctx, handle)
		return err
	})
	return rec, err
}

// checkAgain is how long after a look at the store that told nothing the next one comes.
const checkAgain = 250 * time.Millisecond
