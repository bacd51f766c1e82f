package store

import (
	"cmp"
	"fmt"
	"slices"
)

// A LimitError says that Admit refused because a limit is reached. Nothing was changed.
type LimitError struct{ Limit LimitKind }

func (e *LimitError) Error() string { return fmt.Sprintf("store: limit %s reached", e.Limit) }

// A LimitKind names one of the Limits.
type LimitKind string

// The limits, as they stand in events and logs.
const (
	LimitUser  LimitKind = "per_user"
	LimitApp   LimitKind = "per_app"
	LimitTotal LimitKind = "total"
)

// Limits bound how many sessions are usable at once. Zero means no limit.
type Limits struct {
	PerUser int // of one user
	PerApp  int // of one user that began at the same app
	Total   int // of the tenant
	// OnLimit says what Admit does at PerUser and PerApp. At Total it always denies:
	// somebody else would have to pay.
	OnLimit OnLimit
}

// OnLimit says who gives way at a limit.
type OnLimit string

// Who gives way. All other values deny as well, the empty one among them.
const (
	Deny        OnLimit = "deny"         // the one who comes
	EvictOldest OnLimit = "evict_oldest" // the session that started first
	EvictIdle   OnLimit = "evict_idle"   // the session that was seen last the longest ago
)

// Denies tells whether nobody has to go for the one who comes.
func (o OnLimit) Denies() bool { return o != EvictOldest && o != EvictIdle }

// GiveWay returns the IDs of those entries that Admit has to mark as evicted before one more
// of app may begin, and no more of them than that takes; or a *LimitError. counted are the
// entries of one user that count, in any order, with their ID, App, Started and Seen; it
// sorts them. Total is not looked at.
func GiveWay(counted []Entry, app string, limits Limits) ([]string, error) {
	ofApp := 0
	for _, e := range counted {
		if e.App == app {
			ofApp++
		}
	}
	overUser, overApp := over(len(counted), limits.PerUser), over(ofApp, limits.PerApp)
	if limits.OnLimit.Denies() {
		switch {
		case overUser > 0:
			return nil, &LimitError{LimitUser}
		case overApp > 0:
			return nil, &LimitError{LimitApp}
		}
		return nil, nil
	}
	slices.SortFunc(counted, func(a, b Entry) int {
		x, y := a.Started, b.Started
		if limits.OnLimit == EvictIdle {
			x, y = a.Seen, b.Seen
		}
		return cmp.Or(x.Compare(y), cmp.Compare(a.ID, b.ID))
	})
	// Whoever goes for the app's sake also makes room for the user.
	var victims []string
	for _, e := range counted {
		if len(victims) < overApp && e.App == app {
			victims = append(victims, e.ID)
		}
	}
	chosen := len(victims)
	for _, e := range counted {
		switch {
		case chosen > 0 && e.App == app:
			chosen-- // above
		case len(victims) < overUser:
			victims = append(victims, e.ID)
		}
	}
	return victims, nil
}

// over returns how many of n are in the way of one more. No limit is over nothing.
func over(n, limit int) int {
	if limit <= 0 {
		return 0
	}
	return max(n+1-limit, 0)
}
