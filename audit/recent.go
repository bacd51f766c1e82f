package audit

import (
	"hash/maphash"
	"sync"
	"time"
)

// A recent knows which ids it has seen lately. It keeps them in two halves and forgets the
// older half as a whole, so an id is remembered for life at least, or until limit/2 others
// have come, and there are never more than limit.
type recent struct {
	limit int
	life  time.Duration
	seed  maphash.Seed

	mu         sync.Mutex
	young, old map[uint64]struct{} // hashes of ids: 64 bits tell a few hundred thousand apart
	began      time.Time           // when young did
}

func newRecent(limit int, life time.Duration) *recent {
	return &recent{limit: limit, life: life, seed: maphash.MakeSeed(), young: map[uint64]struct{}{}}
}

// first tells whether id is not remembered, and remembers it.
func (m *recent) first(id string, now time.Time) bool {
	h := maphash.String(m.seed, id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if age := now.Sub(m.began); age >= m.life || len(m.young) >= m.limit/2 {
		m.old, m.young, m.began = m.young, map[uint64]struct{}{}, now
		if age >= 2*m.life {
			m.old = nil
		}
	}
	if _, ok := m.young[h]; ok {
		return false
	}
	if _, ok := m.old[h]; ok {
		return false
	}
	m.young[h] = struct{}{}
	return true
}
