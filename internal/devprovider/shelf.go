package devprovider

import (
	"container/list"
	"time"
)

// A shelf keeps a bounded number of values, each for the same time. What expires goes
// when the shelf is next used; where there is no room, the oldest value goes.
// It is not safe for concurrent use.
type shelf[V any] struct {
	max     int
	ttl     time.Duration
	slots   map[string]*list.Element
	byStart *list.List // of *slot[V], oldest first; with one ttl also the order of expiry
}

type slot[V any] struct {
	key     string
	value   V
	expires time.Time
}

func newShelf[V any](maxValues int, ttl time.Duration) *shelf[V] {
	return &shelf[V]{max: maxValues, ttl: ttl, slots: map[string]*list.Element{}, byStart: list.New()}
}

func (s *shelf[V]) put(key string, v V) {
	s.trim()
	if s.byStart.Len() >= s.max {
		s.remove(s.byStart.Front())
	}
	s.slots[key] = s.byStart.PushBack(&slot[V]{key, v, time.Now().Add(s.ttl)})
}

// get returns the zero value where there is nothing under the key.
func (s *shelf[V]) get(key string) (V, bool) {
	s.trim()
	e, ok := s.slots[key]
	if !ok {
		var zero V
		return zero, false
	}
	return e.Value.(*slot[V]).value, true
}

func (s *shelf[V]) drop(key string) {
	if e, ok := s.slots[key]; ok {
		s.remove(e)
	}
}

func (s *shelf[V]) trim() {
	now := time.Now()
	for e := s.byStart.Front(); e != nil && !now.Before(e.Value.(*slot[V]).expires); e = s.byStart.Front() {
		s.remove(e)
	}
}

func (s *shelf[V]) remove(e *list.Element) {
	delete(s.slots, e.Value.(*slot[V]).key)
	s.byStart.Remove(e)
}
