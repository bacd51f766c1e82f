package memory

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A user is one tenant's. An Entry is named by its user and its ID.
type user struct{ tenant, name string }

func userOf(e store.Entry) user { return user{e.Tenant, e.User} }

// An entry is an Entry in the registry's own hands.
type entry struct {
	store.Entry
	// seat is set unless the entry was replaced and its seat taken over.
	seat bool
	// left is until when an ending entry is left to whoever marked or claimed it.
	left time.Time
}

func (e *entry) expired(now time.Time) bool { return !now.Before(e.Expires) }

func (e *entry) mark(reason string, now time.Time) {
	if e.Ending == "" {
		e.Ending, e.left = reason, now.Add(store.EndingPatience)
	}
}

// show returns what the caller may keep.
func (e *entry) show() store.Entry {
	out := e.Entry
	out.Data = bytes.Clone(e.Data)
	return out
}

// list inserts e as live from now on. s.mu is held.
func (s *Store) list(e store.Entry, ttl time.Duration, now time.Time) {
	e.Data = bytes.Clone(e.Data)
	e.Started, e.Seen, e.Expires, e.Ending = now, now, now.Add(ttl), ""
	u := userOf(e)
	if s.users[u] == nil {
		s.users[u] = make(map[string]*entry)
	}
	s.users[u][e.ID] = &entry{Entry: e, seat: true}
}

// entries yields every entry of every user. s.mu is held.
func (s *Store) entries() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, ofUser := range s.users {
			for _, e := range ofUser {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// seats counts a tenant's seats. Unlike a real registry it looks at all entries.
// s.mu is held.
func (s *Store) seats(tenant string, now time.Time) int {
	n := 0
	for e := range s.entries() {
		if e.Tenant == tenant && e.seat && !e.expired(now) {
			n++
		}
	}
	return n
}

// Admit implements store.Registry.
func (s *Store) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	if err := admit(ctx, "admit", store.CheckAdmit(e, replaces)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now, ofUser := time.Now(), s.users[userOf(e)]
	var counted []store.Entry
	for id, other := range ofUser {
		if id != e.ID && id != replaces && other.Ending == "" && !other.expired(now) {
			counted = append(counted, other.Entry)
		}
	}
	victims, err := store.GiveWay(counted, e.App, limits)
	if err != nil {
		return nil, err
	}
	replaced := ofUser[replaces]
	// Where e takes over a seat, the number of seats stays.
	inherits := false
	for _, old := range []*entry{ofUser[e.ID], replaced} {
		inherits = inherits || old != nil && old.seat && !old.expired(now)
	}
	if limits.Total > 0 && !inherits && s.seats(e.Tenant, now) >= limits.Total {
		return nil, &store.LimitError{Limit: store.LimitTotal}
	}

	for _, id := range victims {
		ofUser[id].mark(store.ReasonEvicted, now)
	}
	if replaced != nil {
		replaced.mark(store.ReasonReplaced, now)
		replaced.seat = false
	}
	s.list(e, ttl, now)
	var ending []store.Entry
	for _, other := range s.users[userOf(e)] {
		if other.Ending != "" {
			ending = append(ending, other.show())
		}
	}
	return ending, nil
}

// Renew implements store.Registry.
func (s *Store) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if err := admit(ctx, "renew", store.CheckEntry(e)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	listed := s.users[userOf(e)][e.ID]
	if listed == nil {
		s.list(e, ttl, now)
		return nil
	}
	if listed.Ending != "" {
		return store.ErrEnding
	}
	listed.Seen = now
	if end := now.Add(ttl); end.After(listed.Expires) {
		listed.Expires = end
	}
	return nil
}

// End implements store.Registry.
func (s *Store) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	refused := store.CheckNamed(e)
	if refused == nil {
		refused = store.CheckReason(reason)
	}
	if err := admit(ctx, "end", refused); err != nil {
		return store.Entry{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := s.users[userOf(e)][e.ID]
	if listed == nil {
		return store.Entry{}, store.ErrNotFound
	}
	listed.mark(reason, time.Now())
	return listed.show(), nil
}

// Remove implements store.Registry.
func (s *Store) Remove(ctx context.Context, e store.Entry) error {
	if err := admit(ctx, "remove", store.CheckNamed(e)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := userOf(e)
	delete(s.users[u], e.ID)
	if len(s.users[u]) == 0 {
		delete(s.users, u)
	}
	return nil
}

// Find implements store.Registry. It yields what was listed when it began.
func (s *Store) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if err := admit(ctx, "find", store.CheckQuery(q)); err != nil {
			yield(store.Entry{}, err)
			return
		}
		for _, e := range s.matches(q) {
			if err := ctx.Err(); err != nil {
				yield(store.Entry{}, fmt.Errorf("store/memory: find: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (s *Store) matches(q store.Query) []store.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var found []store.Entry
	for e := range s.entries() {
		if e.Tenant == q.Tenant && !e.expired(now) &&
			(q.User == "" || e.User == q.User) &&
			(q.SID == "" || e.SID == q.SID) &&
			(q.ID == "" || e.ID == q.ID) {
			found = append(found, e.show())
		}
	}
	return found
}

// Reap implements store.Registry. Unlike a real registry it looks at all entries.
func (s *Store) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	if err := admit(ctx, "reap", nil); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.trimLeases(now)
	var claimed []store.Entry
	for e := range s.entries() {
		if len(claimed) >= limit {
			break
		}
		if e.Ending == "" && e.expired(now) || e.Ending != "" && !now.Before(e.left) {
			e.mark(store.ReasonExpired, now)
			e.left = now.Add(store.ClaimLife)
			claimed = append(claimed, e.show())
		}
	}
	return claimed, nil
}
