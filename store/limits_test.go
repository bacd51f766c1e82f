package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck/store"
)

// live is an entry by its ID, of the app that its first letter names.
func live(id string, started, seen int) store.Entry {
	return store.Entry{ID: id, App: id[:1], Started: time.Unix(int64(started), 0), Seen: time.Unix(int64(seen), 0)}
}

func TestGiveWay(t *testing.T) {
	// By start: b1 a1 a2 b2 a3. By use: a3 a2 b2 b1 a1, where a2 and b2 are told by name.
	five := []store.Entry{live("a3", 5, 10), live("b2", 4, 11), live("a1", 2, 13), live("a2", 3, 11), live("b1", 1, 12)}
	for _, tc := range []struct {
		name    string
		limits  store.Limits
		app     string
		victims []string
		limit   store.LimitKind
	}{
		{name: "no limit", app: "a"},
		{name: "no limit, evicting", limits: store.Limits{OnLimit: store.EvictOldest}, app: "a"},
		{name: "below", limits: store.Limits{PerUser: 6, PerApp: 4, OnLimit: store.EvictOldest}, app: "a"},
		{name: "below, denying", limits: store.Limits{PerUser: 6, PerApp: 4, OnLimit: store.Deny}, app: "a"},
		{name: "the user's", limits: store.Limits{PerUser: 5, OnLimit: store.Deny}, app: "c", limit: store.LimitUser},
		{name: "the app's", limits: store.Limits{PerUser: 6, PerApp: 3, OnLimit: store.Deny}, app: "a", limit: store.LimitApp},
		{name: "both", limits: store.Limits{PerUser: 5, PerApp: 3, OnLimit: store.Deny}, app: "a", limit: store.LimitUser},
		{name: "nothing said", limits: store.Limits{PerUser: 5}, app: "a", limit: store.LimitUser},
		{name: "nonsense said", limits: store.Limits{PerUser: 5, OnLimit: "evict_all"}, app: "a", limit: store.LimitUser},
		{name: "another app", limits: store.Limits{PerApp: 3, OnLimit: store.EvictOldest}, app: "b"},
		{name: "oldest", limits: store.Limits{PerUser: 4, OnLimit: store.EvictOldest}, app: "a", victims: []string{"b1", "a1"}},
		{name: "oldest of the app", limits: store.Limits{PerApp: 2, OnLimit: store.EvictOldest}, app: "a", victims: []string{"a1", "a2"}},
		{name: "idle, and alike", limits: store.Limits{PerUser: 3, OnLimit: store.EvictIdle}, app: "c", victims: []string{"a3", "a2", "b2"}},
		{name: "the app's make room", limits: store.Limits{PerUser: 4, PerApp: 2, OnLimit: store.EvictOldest}, app: "a", victims: []string{"a1", "a2"}},
		{name: "not room enough", limits: store.Limits{PerUser: 3, PerApp: 2, OnLimit: store.EvictOldest}, app: "a", victims: []string{"a1", "a2", "b1"}},
		{name: "total", limits: store.Limits{Total: 1, OnLimit: store.EvictOldest}, app: "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			victims, err := store.GiveWay(slices.Clone(five), tc.app, tc.limits)
			var limit *store.LimitError
			errors.As(err, &limit)
			switch {
			case tc.limit != "" && (limit == nil || limit.Limit != tc.limit || victims != nil):
				t.Errorf("GiveWay = %v, %v, want limit %s", victims, err, tc.limit)
			case tc.limit == "" && (err != nil || !slices.Equal(victims, tc.victims)):
				t.Errorf("GiveWay = %v, %v, want %v", victims, err, tc.victims)
			}
		})
	}
}

// Whoever comes, the limits hold once the victims are gone, and would not if any one of them
// stayed; and each is one who has been there longer than all that stay and could have gone in
// its place.
func TestGiveWayIsExact(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var counted []store.Entry
		for i := range rapid.IntRange(0, 8).Draw(r, "entries") {
			app := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "app")
			at := rapid.IntRange(0, 3)
			counted = append(counted, live(fmt.Sprint(app, i), at.Draw(r, "started"), at.Draw(r, "seen")))
		}
		limits := store.Limits{
			PerUser: rapid.IntRange(0, 5).Draw(r, "per user"), PerApp: rapid.IntRange(0, 5).Draw(r, "per app"),
			OnLimit: rapid.SampledFrom([]store.OnLimit{store.EvictOldest, store.EvictIdle}).Draw(r, "on limit"),
		}
		victims, err := store.GiveWay(slices.Clone(counted), "a", limits)
		if err != nil {
			r.Fatal(err)
		}
		holds := func(gone []string) bool {
			user, app := 1, 1
			for _, e := range counted {
				if !slices.Contains(gone, e.ID) {
					user++
					if e.App == "a" {
						app++
					}
				}
			}
			return (limits.PerUser == 0 || user <= limits.PerUser) && (limits.PerApp == 0 || app <= limits.PerApp)
		}
		if !holds(victims) {
			r.Fatalf("%+v: %v of %v give way, which is too few", limits, victims, counted)
		}
		at := func(e store.Entry) time.Time {
			if limits.OnLimit == store.EvictIdle {
				return e.Seen
			}
			return e.Started
		}
		for i, v := range victims {
			others := slices.Delete(slices.Clone(victims), i, i+1)
			if holds(others) {
				r.Fatalf("%+v: %v of %v give way, and %s need not", limits, victims, counted, v)
			}
			went := counted[slices.IndexFunc(counted, func(e store.Entry) bool { return e.ID == v })]
			for _, e := range counted {
				if !slices.Contains(victims, e.ID) && at(e).Before(at(went)) && holds(append(slices.Clone(others), e.ID)) {
					r.Fatalf("%+v: %s gives way, and %s of %v was before it", limits, v, e.ID, counted)
				}
			}
		}
	})
}
