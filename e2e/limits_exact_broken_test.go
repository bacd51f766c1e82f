package e2e

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A verdict takes the place of a *testing.T and notes what a check says.
type verdict struct {
	testing.TB
	mu    sync.Mutex
	notes []string
}

func (v *verdict) note(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.notes = append(v.notes, s)
}

func (v *verdict) Helper()                        {}
func (v *verdict) Log(...any)                     {}
func (v *verdict) Logf(string, ...any)            {}
func (v *verdict) Error(a ...any)                 { v.note(fmt.Sprint(a...)) }
func (v *verdict) Errorf(format string, a ...any) { v.note(fmt.Sprintf(format, a...)) }
func (v *verdict) Fatal(a ...any)                 { v.Error(a...); runtime.Goexit() }
func (v *verdict) Fatalf(format string, a ...any) { v.Errorf(format, a...); runtime.Goexit() }

// said tells whether the check failed for such a reason.
func (v *verdict) said(reason string) bool {
	return slices.ContainsFunc(v.notes, func(note string) bool { return strings.Contains(note, reason) })
}

// Stores without atomicity are rejected by the very checks that the real ones pass. They
// are in memory, in a bubble where waiting takes no time, so that what can overlap does.
func TestBrokenStoresAreRejected(t *testing.T) {
	crowd := func(on store.OnLimit) func(testing.TB, []store.Backend) {
		// Here all nodes keep step, so that together they would fill a limit as high as their
		// number and stop.
		limits := store.Limits{PerUser: fleetNodes - 1, OnLimit: on}
		return func(t testing.TB, b []store.Backend) { testCrowd(t, b, limits, 50) }
	}
	checks := []struct {
		name string
		run  func(testing.TB, []store.Backend)
	}{
		{"deny", crowd(store.Deny)},
		{"evict_oldest", crowd(store.EvictOldest)},
		{"evict_idle", crowd(store.EvictIdle)},
		{"per app", func(t testing.TB, b []store.Backend) { testApps(t, b, 50) }},
		{"total", func(t testing.TB, b []store.Backend) { testTotal(t, b, 50, 5) }},
		{"again", func(t testing.TB, b []store.Backend) { testAgain(t, b, 10, 5) }},
		{"histories", testHistories},
	}
	for _, tc := range []struct {
		name    string
		broken  func(store.Backend) store.Backend
		rejects map[string]string // which checks must fail, and what they say
	}{
		{"sound", func(b store.Backend) store.Backend { return b }, nil},
		{"Admit in two steps", func(b store.Backend) store.Backend { return admitInTwoSteps{b} }, map[string]string{
			"deny":         "alice can use",
			"evict_oldest": "alice can use",
			"evict_idle":   "alice can use",
			"histories":    "no order explains",
		}},
		{"seats in two steps", func(b store.Backend) store.Backend { return seatsInTwoSteps{b} }, map[string]string{
			"total": "sessions can be used, the limit is",
		}},
		{"End deletes first and marks later", func(b store.Backend) store.Backend { return endsInTwoSteps{b} }, map[string]string{
			"histories": "can use",
		}},
		{"End deletes first and marks later, as a history", func(b store.Backend) store.Backend { return endsInTwoSteps{b} }, map[string]string{
			"histories": "no order explains",
		}},
		{"Admit tells nobody who has to go", func(b store.Backend) store.Backend { return admitsSilently{b} }, map[string]string{
			"evict_oldest": "alice can use",
			"histories":    "no order explains",
		}},
		{"Admit counts who is replaced", func(b store.Backend) store.Backend { return admitForgetsReplaced{b} }, map[string]string{
			"again": "limit per_user reached",
		}},
	} {
		for _, check := range checks {
			reason, rejected := tc.rejects[check.name]
			if tc.rejects != nil && !rejected {
				continue
			}
			t.Run(tc.name+"/"+check.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := memory.New()
					defer m.Close()
					v := &verdict{TB: t}
					done := make(chan struct{})
					go func() {
						defer close(done)
						check.run(v, slices.Repeat([]store.Backend{tc.broken(paced{m})}, fleetNodes))
					}()
					<-done
					switch {
					case rejected && !v.said(reason):
						t.Errorf("nothing said %q; what was said: %q", reason, v.notes)
					case !rejected && len(v.notes) > 0:
						t.Errorf("it was rejected: %q", v.notes)
					}
				})
			})
		}
	}
}

// paced is a backend whose calls take a while, as those of a server do; an answer to a read
// is also on its way for a while.
type paced struct{ store.Backend }

const pace = time.Millisecond

func (p paced) Get(ctx context.Context, key string) (store.Record, error) {
	time.Sleep(pace)
	defer time.Sleep(pace)
	return p.Backend.Get(ctx, key)
}

func (p paced) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	time.Sleep(pace)
	return p.Backend.Create(ctx, key, value, ttl)
}

func (p paced) Delete(ctx context.Context, key string) error {
	time.Sleep(pace)
	return p.Backend.Delete(ctx, key)
}

func (p paced) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	time.Sleep(pace)
	return p.Backend.Admit(ctx, e, ttl, l, replaces)
}

func (p paced) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	time.Sleep(pace)
	return p.Backend.End(ctx, e, reason)
}

func (p paced) Remove(ctx context.Context, e store.Entry) error {
	time.Sleep(pace)
	return p.Backend.Remove(ctx, e)
}

// listed returns a query's entries.
func listed(ctx context.Context, b store.Backend, q store.Query) (all []store.Entry) {
	for e, err := range b.Find(ctx, q) {
		if err == nil {
			all = append(all, e)
		}
	}
	return all
}

// admitInTwoSteps counts first and inserts afterwards.
type admitInTwoSteps struct{ store.Backend }

func (b admitInTwoSteps) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	live := listed(ctx, b.Backend, store.Query{Tenant: e.Tenant, User: e.User})
	live = slices.DeleteFunc(live, func(o store.Entry) bool { return o.Ending != "" || o.ID == replaces })
	slices.SortFunc(live, func(x, y store.Entry) int { return x.Started.Compare(y.Started) })
	over := 0
	if l.PerUser > 0 {
		over = max(len(live)+1-l.PerUser, 0)
	}
	if over > 0 && l.OnLimit.Denies() {
		return nil, &store.LimitError{Limit: store.LimitUser}
	}
	for _, o := range live[:over] {
		_, _ = b.End(ctx, o, "evicted")
	}
	l.PerUser = 0
	return b.Backend.Admit(ctx, e, ttl, l, replaces)
}

// seatsInTwoSteps counts the tenant's sessions first and inserts afterwards.
type seatsInTwoSteps struct{ store.Backend }

func (b seatsInTwoSteps) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if n := len(listed(ctx, b.Backend, store.Query{Tenant: e.Tenant})); l.Total > 0 && n >= l.Total {
		return nil, &store.LimitError{Limit: store.LimitTotal}
	}
	l.Total = 0
	return b.Backend.Admit(ctx, e, ttl, l, replaces)
}

// endsInTwoSteps takes an entry off the list, and lists it as ending afterwards.
type endsInTwoSteps struct{ store.Backend }

func (b endsInTwoSteps) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	live := listed(ctx, b.Backend, store.Query{Tenant: e.Tenant, ID: e.ID})
	if len(live) == 0 {
		return store.Entry{}, store.ErrNotFound
	}
	if err := b.Remove(ctx, live[0]); err != nil {
		return store.Entry{}, err
	}
	time.Sleep(20 * pace)
	if err := b.Renew(ctx, live[0], time.Until(live[0].Expires)); err != nil {
		return store.Entry{}, err
	}
	return b.Backend.End(ctx, e, reason)
}

// admitsSilently marks who has to give way, and does not say so.
type admitsSilently struct{ store.Backend }

func (b admitsSilently) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	_, err := b.Backend.Admit(ctx, e, ttl, l, replaces)
	return nil, err
}

// admitForgetsReplaced counts the session that is replaced.
type admitForgetsReplaced struct{ store.Backend }

func (b admitForgetsReplaced) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, _ string) ([]store.Entry, error) {
	return b.Backend.Admit(ctx, e, ttl, l, "")
}
