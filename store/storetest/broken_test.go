package storetest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// sound is a store without a defect; each broken one overrides a method of it.
type sound = store.Store

// ghosts goes on serving records whose time is over.
type ghosts struct {
	sound
	mu   sync.Mutex
	seen map[string]store.Record
}

func (g *ghosts) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	err := g.sound.Create(ctx, key, value, ttl)
	if r, e := g.sound.Get(ctx, key); e == nil {
		g.mu.Lock()
		g.seen[key] = r
		g.mu.Unlock()
	}
	return err
}

func (g *ghosts) Delete(ctx context.Context, key string) error {
	g.mu.Lock()
	delete(g.seen, key)
	g.mu.Unlock()
	return g.sound.Delete(ctx, key)
}

func (g *ghosts) Get(ctx context.Context, key string) (store.Record, error) {
	r, err := g.sound.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if old, ok := g.seen[key]; ok {
			return old, nil
		}
	}
	return r, err
}

type replaceCreates struct{ sound }

func (s replaceCreates) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	err := s.sound.Replace(ctx, key, revision, value, ttl)
	if errors.Is(err, store.ErrNotFound) {
		return s.Create(ctx, key, value, ttl)
	}
	return err
}

type replaceIgnoresRevision struct{ sound }

func (s replaceIgnoresRevision) Replace(ctx context.Context, key string, _ uint64, value []byte, ttl time.Duration) error {
	r, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	return s.sound.Replace(ctx, key, r.Revision, value, ttl)
}

// replaceInTwoSteps checks the revision first and writes afterwards.
type replaceInTwoSteps struct{ sound }

func (s replaceInTwoSteps) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if store.CheckWrite(key, value) == nil {
		r, err := s.Get(ctx, key)
		if err != nil {
			return err
		}
		if r.Revision != revision {
			return store.ErrConflict
		}
		time.Sleep(time.Millisecond)
		return replaceIgnoresRevision(s).Replace(ctx, key, revision, value, ttl)
	}
	return s.sound.Replace(ctx, key, revision, value, ttl)
}

type touchShortens struct{ sound }

func (s touchShortens) Touch(ctx context.Context, key string, ttl time.Duration) error {
	r, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	return s.Replace(ctx, key, r.Revision, r.Value, ttl)
}

type touchCreates struct{ sound }

func (s touchCreates) Touch(ctx context.Context, key string, ttl time.Duration) error {
	err := s.sound.Touch(ctx, key, ttl)
	if errors.Is(err, store.ErrNotFound) {
		return s.Create(ctx, key, nil, ttl)
	}
	return err
}

type touchDoesNothing struct{ sound }

func (s touchDoesNothing) Touch(ctx context.Context, key string, _ time.Duration) error {
	_, err := s.Get(ctx, key)
	return err
}

type createOverwrites struct{ sound }

func (s createOverwrites) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if store.CheckWrite(key, value) == nil && ctx.Err() == nil {
		_ = s.Delete(ctx, key)
	}
	return s.sound.Create(ctx, key, value, ttl)
}

// createInTwoSteps looks first and writes afterwards.
type createInTwoSteps struct{ sound }

func (s createInTwoSteps) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if _, err := s.Get(ctx, key); err == nil {
		return store.ErrExists
	}
	time.Sleep(time.Millisecond)
	return createOverwrites(s).Create(ctx, key, value, ttl)
}

type keepsForEver struct{ sound }

func (s keepsForEver) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl <= 0 {
		ttl = long
	}
	return s.sound.Create(ctx, key, value, ttl)
}

type deleteOfAbsentFails struct{ sound }

func (s deleteOfAbsentFails) Delete(ctx context.Context, key string) error {
	if _, err := s.Get(ctx, key); err != nil {
		return err
	}
	return s.sound.Delete(ctx, key)
}

// deletesPattern takes the key for a pattern, as KEYS or LIKE would.
type deletesPattern struct{ ghosts }

func (s *deletesPattern) Delete(ctx context.Context, key string) error {
	if key == "*" {
		for k := range s.seen {
			_ = s.sound.Delete(ctx, k)
		}
	}
	return s.sound.Delete(ctx, key)
}

func (s *deletesPattern) Get(ctx context.Context, key string) (store.Record, error) {
	return s.sound.Get(ctx, key)
}

// cutsAtNUL takes keys for C strings.
type cutsAtNUL struct{ sound }

func (s cutsAtNUL) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	for i := range key {
		if key[i] == 0 {
			key = key[:i]
			break
		}
	}
	return s.sound.Create(ctx, key, value, ttl)
}

// sendsTooLarge checks the bounds where the backend would: after the context.
type sendsTooLarge struct{ sound }

func (s sendsTooLarge) Get(ctx context.Context, key string) (store.Record, error) {
	if err := ctx.Err(); err != nil {
		return store.Record{}, err
	}
	return s.sound.Get(ctx, key)
}

// keepsInput returns the slice it was given.
type keepsInput struct {
	sound
	mu   sync.Mutex
	kept map[string][]byte
}

func (s *keepsInput) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	s.mu.Lock()
	s.kept[key] = value
	s.mu.Unlock()
	return s.sound.Create(ctx, key, value, ttl)
}

func (s *keepsInput) Get(ctx context.Context, key string) (store.Record, error) {
	r, err := s.sound.Get(ctx, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if kept, ok := s.kept[key]; ok && err == nil && r.Revision == 1 {
		r.Value = kept
	}
	return r, err
}

// sharesOutput returns one slice to everybody who asks for "k", the one key of the
// sections that don't race.
type sharesOutput struct {
	sound
	mu     sync.Mutex
	shared map[uint64][]byte
}

func (s *sharesOutput) Get(ctx context.Context, key string) (store.Record, error) {
	r, err := s.sound.Get(ctx, key)
	if err != nil || key != "k" {
		return r, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared[r.Revision] == nil {
		s.shared[r.Revision] = r.Value
	}
	r.Value = s.shared[r.Revision]
	return r, nil
}

// takesCancelForAbsent says not found when it was told to stop.
type takesCancelForAbsent struct{ sound }

func (s takesCancelForAbsent) Get(ctx context.Context, key string) (store.Record, error) {
	r, err := s.sound.Get(ctx, key)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = store.ErrNotFound
	}
	return r, err
}

// swapsAnswers gives a caller the answer of one that left.
type swapsAnswers struct {
	sound
	mu   sync.Mutex
	left string
}

func (s *swapsAnswers) Get(ctx context.Context, key string) (store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ask := key
	if s.left != "" && s.left != key {
		ask, s.left = s.left, ""
	}
	r, err := s.sound.Get(ctx, ask)
	if errors.Is(err, context.DeadlineExceeded) {
		s.left = key
	}
	return r, err
}

// staleReads has a cache on each node, which only that node's writes invalidate.
type staleReads struct {
	sound
	mu    *sync.Mutex
	cache map[string]store.Record
}

func (s staleReads) Get(ctx context.Context, key string) (store.Record, error) {
	s.mu.Lock()
	r, ok := s.cache[key]
	s.mu.Unlock()
	if ok {
		return r, nil
	}
	r, err := s.sound.Get(ctx, key)
	if err == nil {
		s.mu.Lock()
		s.cache[key] = r
		s.mu.Unlock()
	}
	return r, err
}

func (s staleReads) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cache, key)
}

func (s staleReads) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	defer s.forget(key)
	return s.sound.Replace(ctx, key, revision, value, ttl)
}

func (s staleReads) Delete(ctx context.Context, key string) error {
	defer s.forget(key)
	return s.sound.Delete(ctx, key)
}
