package audit

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// However ids come and time goes: none is first twice within its life unless limit/2
// others came between, and the bound holds.
func TestRecent(t *testing.T) {
	const limit, life = 20, time.Minute
	rapid.Check(t, func(t *rapid.T) {
		m := newRecent(limit, life)
		now := time.Unix(1e9, 0)
		type sight struct {
			at     time.Time
			others int // different ids that were first since
		}
		seen := map[string]*sight{}
		t.Repeat(map[string]func(*rapid.T){
			"sees": func(t *rapid.T) {
				id := fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "id"))
				first, s := m.first(id, now), seen[id]
				switch {
				case !first && s == nil:
					t.Fatalf("%s was never seen, and is not new", id)
				case first && s != nil && now.Sub(s.at) < life && s.others < limit/2:
					t.Fatalf("%s is forgotten %s and %d others after it came", id, now.Sub(s.at), s.others)
				case first:
					for _, other := range seen {
						other.others++
					}
					seen[id] = &sight{at: now}
				case now.Sub(s.at) > 3*life:
					t.Fatalf("%s is remembered after %s", id, now.Sub(s.at))
				}
			},
			"waits": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			},
			"": func(t *rapid.T) {
				if n := len(m.young) + len(m.old); n > limit {
					t.Fatalf("%d ids are kept", n)
				}
			},
		})
	})
}

func TestRecentIsBounded(t *testing.T) {
	m := newRecent(20, time.Minute)
	now := time.Unix(1e9, 0)
	for i := range 1000 {
		if !m.first(fmt.Sprint(i), now) {
			t.Fatalf("%d is not new", i)
		}
		if n := len(m.young) + len(m.old); n > 20 {
			t.Fatalf("%d ids are kept", n)
		}
	}
}
