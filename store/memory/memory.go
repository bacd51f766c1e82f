// Package memory keeps everything in maps, under one lock. It is the double that tests
// put where a backend belongs: it passes the same conformance suites as the real ones,
// but shares nothing with other processes and forgets everything when its own ends.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Backend = (*Store)(nil)

// A Store is a store.Backend in memory. Its clock is this process's monotonic one. Where
// a test has several nodes, they share one Store.
type Store struct {
	mu        sync.Mutex
	records   map[string]*record
	revision  uint64 // of the last write; one counter serves all keys, so none is reused
	users     map[user]map[string]*entry
	leases    map[string]held
	fence     uint64 // of the last lease
	feeds     map[*store.Feed]struct{}
	followers map[*follower]struct{}
}

type record struct {
	value    []byte
	revision uint64
	expires  time.Time
	// trim removes the record once it has expired. Touch moves expires only; a
	// timer that finds the record alive sets itself anew.
	trim *time.Timer
}

// New returns an empty Store.
func New() *Store {
	return &Store{
		records:   make(map[string]*record),
		users:     make(map[user]map[string]*entry),
		leases:    make(map[string]held),
		feeds:     make(map[*store.Feed]struct{}),
		followers: make(map[*follower]struct{}),
	}
}

// live returns the record under key unless there is none or its time is over. s.mu
// is held.
func (s *Store) live(key string) *record {
	if r := s.records[key]; r != nil && time.Until(r.expires) > 0 {
		return r
	}
	return nil
}

// put writes a record, and drops what was under the key. s.mu is held.
func (s *Store) put(key string, value []byte, ttl time.Duration) {
	s.drop(key)
	s.revision++
	ttl = max(ttl, store.MinTTL)
	r := &record{value: bytes.Clone(value), revision: s.revision, expires: time.Now().Add(ttl)}
	r.trim = time.AfterFunc(ttl, func() { s.trim(key, r) })
	s.records[key] = r
}

// drop forgets the record under key. s.mu is held.
func (s *Store) drop(key string) {
	if r := s.records[key]; r != nil {
		r.trim.Stop()
		delete(s.records, key)
	}
}

// trim drops r if it is still the record under key and its time is over.
func (s *Store) trim(key string, r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[key] != r {
		return
	}
	if left := time.Until(r.expires); left > 0 {
		r.trim.Reset(left)
		return
	}
	delete(s.records, key)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := admit(ctx, "get", store.CheckKey(key)); err != nil {
		return store.Record{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.live(key)
	if r == nil {
		return store.Record{}, store.ErrNotFound
	}
	return store.Record{
		Value:    bytes.Clone(r.value),
		Revision: r.revision,
		TTL:      max(time.Until(r.expires), store.MinTTL),
	}, nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := admit(ctx, "create", store.CheckWrite(key, value)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live(key) != nil {
		return store.ErrExists
	}
	s.put(key, value, ttl)
	return nil
}

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := admit(ctx, "replace", store.CheckWrite(key, value)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.live(key)
	if r == nil {
		return store.ErrNotFound
	}
	if r.revision != revision {
		return store.ErrConflict
	}
	s.put(key, value, ttl)
	s.changed(key)
	return nil
}

// Touch implements store.Store.
func (s *Store) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := admit(ctx, "touch", store.CheckKey(key)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.live(key)
	if r == nil {
		return store.ErrNotFound
	}
	if expires := time.Now().Add(ttl); expires.After(r.expires) {
		r.expires = expires
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := admit(ctx, "delete", store.CheckKey(key)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(key)
	s.changed(key)
	return nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error { return admit(ctx, "ping", nil) }

// Close implements store.Store. It forgets everything.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.records {
		s.drop(key)
	}
	clear(s.users)
	clear(s.leases)
	return nil
}

// admit returns the refusal of a key or value, or the end of the context, as the
// error of op.
func admit(ctx context.Context, op string, refused error) error {
	if refused == nil {
		refused = ctx.Err()
	}
	if refused != nil {
		return fmt.Errorf("store/memory: %s: %w", op, refused)
	}
	return nil
}

// Entries implements store.Lister.
func (s *Store) Entries(ctx context.Context, tenant string) iter.Seq2[store.Entry, error] {
	return s.Find(ctx, store.Query{Tenant: tenant})
}

// Keys implements store.Lister.
func (s *Store) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := admit(ctx, "keys", nil); err != nil {
			yield("", err)
			return
		}
		s.mu.Lock()
		var keys []string
		for key := range s.records {
			if strings.HasPrefix(key, prefix) && s.live(key) != nil {
				keys = append(keys, key)
			}
		}
		s.mu.Unlock()
		for _, key := range keys {
			if !yield(key, nil) {
				return
			}
		}
	}
}
