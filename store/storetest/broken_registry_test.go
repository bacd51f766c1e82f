package storetest

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// soundRegistry is a registry without a defect; each broken one overrides a method of it.
type soundRegistry = store.Registry

// liveOf returns a user's live entries, oldest first.
func liveOf(ctx context.Context, r store.Registry, e store.Entry) []store.Entry {
	var live []store.Entry
	for other, err := range r.Find(ctx, store.Query{Tenant: e.Tenant, User: e.User}) {
		if err == nil && other.Ending == "" && other.ID != e.ID {
			live = append(live, other)
		}
	}
	slices.SortFunc(live, func(a, b store.Entry) int { return a.Started.Compare(b.Started) })
	return live
}

// admitInTwoSteps counts first and inserts afterwards.
type admitInTwoSteps struct{ soundRegistry }

func (r admitInTwoSteps) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if l.PerUser == 0 || store.CheckEntry(e) != nil || ctx.Err() != nil {
		return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	}
	live := slices.DeleteFunc(liveOf(ctx, r, e), func(o store.Entry) bool { return o.ID == replaces })
	over := len(live) + 1 - l.PerUser
	time.Sleep(time.Millisecond)
	if over > 0 && l.OnLimit.Denies() {
		return nil, &store.LimitError{Limit: store.LimitUser}
	}
	for i := range max(over, 0) {
		_, _ = r.End(ctx, live[i], store.ReasonEvicted)
	}
	l.PerUser = 0
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// admitWithoutMarks returns victims that it did not mark.
type admitWithoutMarks struct{ soundRegistry }

func (r admitWithoutMarks) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if l.PerUser == 0 || l.OnLimit.Denies() {
		return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	}
	live := liveOf(ctx, r, e)
	n := max(len(live)+1-l.PerUser, 0)
	ending, err := r.soundRegistry.Admit(ctx, e, ttl, store.Limits{}, replaces)
	return append(ending, live[:min(n, len(live))]...), err
}

// admitCountsEnding counts who is about to leave.
type admitCountsEnding struct{ soundRegistry }

func (r admitCountsEnding) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	n := 0
	for other := range r.Find(ctx, store.Query{Tenant: e.Tenant, User: e.User}) {
		if other.ID != e.ID && other.ID != replaces {
			n++
		}
	}
	if l.OnLimit.Denies() && l.PerUser > 0 && n >= l.PerUser {
		return nil, &store.LimitError{Limit: store.LimitUser}
	}
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// admitChanges is a registry whose Admit is asked for something else.
type admitChanges struct {
	soundRegistry
	change func(e *store.Entry, l *store.Limits, replaces *string)
}

func (r admitChanges) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if store.CheckEntry(e) == nil {
		r.change(&e, &l, &replaces)
	}
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// denyInserts says no and lists the entry.
type denyInserts struct{ soundRegistry }

func (r denyInserts) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	ending, err := r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	var limit *store.LimitError
	if errors.As(err, &limit) {
		_ = r.Renew(ctx, e, ttl)
	}
	return ending, err
}

// admitTellsItsOwn leaves out who was ending before.
type admitTellsItsOwn struct{ soundRegistry }

func (r admitTellsItsOwn) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	live := liveOf(ctx, r, e)
	ending, err := r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	return slices.DeleteFunc(ending, func(o store.Entry) bool {
		return !slices.ContainsFunc(live, func(l store.Entry) bool { return l.ID == o.ID })
	}), err
}

// replacesAnybody ends the session called replaces, whoever's it is.
type replacesAnybody struct{ soundRegistry }

func (r replacesAnybody) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if replaces != "" {
		for other, err := range r.Find(ctx, store.Query{Tenant: e.Tenant, ID: replaces}) {
			if err == nil && other.User != e.User {
				_, _ = r.End(ctx, other, store.ReasonReplaced)
			}
		}
	}
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// replacesAfterwards counts who is about to be replaced.
type replacesAfterwards struct{ soundRegistry }

func (r replacesAfterwards) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if store.CheckQuery(store.Query{Tenant: e.Tenant, ID: replaces}) != nil {
		return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	}
	ending, err := r.soundRegistry.Admit(ctx, e, ttl, l, "")
	if err == nil {
		old := e
		old.ID = replaces
		if old, err := r.End(ctx, old, store.ReasonReplaced); err == nil {
			ending = append(ending, old)
		}
	}
	return ending, err
}

// totalInTwoSteps counts the tenant's sessions first and inserts afterwards.
type totalInTwoSteps struct{ soundRegistry }

func (r totalInTwoSteps) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	n := 0
	for other := range r.Find(ctx, store.Query{Tenant: e.Tenant}) {
		if other.ID != e.ID && other.ID != replaces {
			n++
		}
	}
	time.Sleep(time.Millisecond)
	if l.Total > 0 && n >= l.Total {
		return nil, &store.LimitError{Limit: store.LimitTotal}
	}
	l.Total = 0
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// miscounts is wrong about the number of a tenant's seats by what its methods add.
type miscounts struct {
	soundRegistry
	mu       sync.Mutex
	taken    map[string]int
	onRemove func(r store.Registry, e store.Entry) int
	onEnd    int
	onDenied int
}

func (r *miscounts) add(tenant string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken == nil {
		r.taken = make(map[string]int)
	}
	r.taken[tenant] += n
}

func (r *miscounts) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	r.mu.Lock()
	if l.Total > 0 {
		l.Total = max(l.Total-r.taken[e.Tenant], 1)
	}
	r.mu.Unlock()
	ending, err := r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
	var limit *store.LimitError
	if errors.As(err, &limit) && limit.Limit == store.LimitUser {
		r.add(e.Tenant, r.onDenied)
	}
	return ending, err
}

func (r *miscounts) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	got, err := r.soundRegistry.End(ctx, e, reason)
	if err == nil {
		r.add(e.Tenant, r.onEnd)
	}
	return got, err
}

func (r *miscounts) Remove(ctx context.Context, e store.Entry) error {
	if r.onRemove != nil {
		r.add(e.Tenant, r.onRemove(r.soundRegistry, e))
	}
	return r.soundRegistry.Remove(ctx, e)
}

// listedAs says how an entry is listed: not at all, or why it is ending.
func listedAs(r store.Registry, e store.Entry) (ending string, ok bool) {
	for got, err := range r.Find(context.Background(), store.Query{Tenant: e.Tenant, ID: e.ID}) {
		return got.Ending, err == nil && got.User == e.User
	}
	return "", false
}

// renewRevives lists an ending entry anew.
type renewRevives struct{ soundRegistry }

func (r renewRevives) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	err := r.soundRegistry.Renew(ctx, e, ttl)
	if errors.Is(err, store.ErrEnding) {
		_ = r.Remove(ctx, e)
		err = r.soundRegistry.Renew(ctx, e, ttl)
	}
	return err
}

type renewShortens struct{ soundRegistry }

func (r renewShortens) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if _, ok := listedAs(r, e); ok {
		ends, err := r.soundRegistry.Admit(ctx, e, ttl, store.Limits{}, "")
		_ = ends
		return err
	}
	return r.soundRegistry.Renew(ctx, e, ttl)
}

// renewDescribes takes what it says of an entry from whoever renews it last.
type renewDescribes struct {
	soundRegistry
	mu   sync.Mutex
	last map[string][]byte
}

func (r *renewDescribes) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[string][]byte)
	}
	r.last[e.ID] = e.Data
	return r.soundRegistry.Renew(ctx, e, ttl)
}

func (r *renewDescribes) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range r.soundRegistry.Find(ctx, q) {
			r.mu.Lock()
			if data, ok := r.last[e.ID]; ok {
				e.Data = data
			}
			r.mu.Unlock()
			if !yield(e, err) {
				return
			}
		}
	}
}

// renewListsNothing leaves what was lost lost.
type renewListsNothing struct{ soundRegistry }

func (r renewListsNothing) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if store.CheckEntry(e) == nil && ctx.Err() == nil {
		if _, ok := listedAs(r, e); !ok {
			return nil
		}
	}
	return r.soundRegistry.Renew(ctx, e, ttl)
}

// lastReasonStays keeps the last of several reasons.
type lastReasonStays struct {
	soundRegistry
	mu   sync.Mutex
	last map[string]string
}

func (r *lastReasonStays) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	got, err := r.soundRegistry.End(ctx, e, reason)
	if err == nil {
		r.mu.Lock()
		r.last[e.ID] = reason
		r.mu.Unlock()
		got.Ending = reason
	}
	return got, err
}

// endsAnybody finds the entry by its ID alone.
type endsAnybody struct{ soundRegistry }

func (r endsAnybody) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	for other, err := range r.Find(ctx, store.Query{Tenant: e.Tenant, ID: e.ID}) {
		if err == nil {
			e.User = other.User
		}
	}
	return r.soundRegistry.End(ctx, e, reason)
}

type removeOfAbsentFails struct{ soundRegistry }

func (r removeOfAbsentFails) Remove(ctx context.Context, e store.Entry) error {
	if _, err := r.End(ctx, e, "removed"); err != nil {
		return err
	}
	return r.soundRegistry.Remove(ctx, e)
}

// reapRepeats hands out what nobody has acknowledged each time.
type reapRepeats struct {
	soundRegistry
	mu     sync.Mutex
	claims map[string]store.Entry
}

func (r *reapRepeats) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	got, err := r.soundRegistry.Reap(ctx, most)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range got {
		r.claims[e.ID] = e
	}
	return slices.Collect(maps.Values(r.claims)), err
}

func (r *reapRepeats) Remove(ctx context.Context, e store.Entry) error {
	r.mu.Lock()
	delete(r.claims, e.ID)
	r.mu.Unlock()
	return r.soundRegistry.Remove(ctx, e)
}

// reapRemoves takes handing out for acknowledgement.
type reapRemoves struct{ soundRegistry }

func (r reapRemoves) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	got, err := r.soundRegistry.Reap(ctx, most)
	for _, e := range got {
		_ = r.Remove(ctx, e)
	}
	return got, err
}

// reapForgets hands out everything once, and never again.
type reapForgets struct {
	soundRegistry
	mu     sync.Mutex
	claims map[string]bool
}

func (r *reapForgets) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	got, err := r.soundRegistry.Reap(ctx, most)
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(got, func(e store.Entry) bool {
		known := r.claims[e.ID]
		r.claims[e.ID] = true
		return known
	}), err
}

// reapFilters hands out only some.
type reapFilters struct {
	soundRegistry
	keep func(store.Entry) bool
}

func (r reapFilters) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	got, err := r.soundRegistry.Reap(ctx, most)
	return slices.DeleteFunc(got, func(e store.Entry) bool { return !r.keep(e) }), err
}

// reapHurries takes ending entries from who is at work on them.
type reapHurries struct{ soundRegistry }

func (r reapHurries) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	got, err := r.soundRegistry.Reap(ctx, most)
	for e, err := range r.Find(ctx, store.Query{Tenant: "acme"}) {
		if err == nil && e.Ending != "" && len(got) < most {
			got = append(got, e)
		}
	}
	return got, err
}

// reapUnbounded takes all there is.
type reapUnbounded struct{ soundRegistry }

func (r reapUnbounded) Reap(ctx context.Context, _ int) ([]store.Entry, error) {
	return r.soundRegistry.Reap(ctx, 1<<20)
}

// finds is a registry that answers another query, or changes the answer.
type finds struct {
	soundRegistry
	find func(r store.Registry, ctx context.Context, q store.Query) iter.Seq2[store.Entry, error]
}

func (r finds) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return r.find(r.soundRegistry, ctx, q)
}

// findsOtherTenants looks a sid up without its tenant.
func findsOtherTenants(r store.Registry, ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		tenants := []string{q.Tenant}
		if q.SID != "" {
			tenants = []string{"acme", "other"}
		}
		for _, tenant := range tenants {
			q.Tenant = tenant
			for e, err := range r.Find(ctx, q) {
				if !yield(e, err) {
					return
				}
			}
		}
	}
}

// findsOnePage stops after a thousand.
func findsOnePage(r store.Registry, ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		n := 0
		for e, err := range r.Find(ctx, q) {
			if n++; n > 1000 || !yield(e, err) {
				return
			}
		}
	}
}

// findsLiveOnly leaves ending entries out.
func findsLiveOnly(r store.Registry, ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range r.Find(ctx, q) {
			if e.Ending == "" && !yield(e, err) {
				return
			}
		}
	}
}

// findsSilently takes a failure for the end.
func findsSilently(r store.Registry, ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range r.Find(ctx, q) {
			if err != nil && !errors.Is(err, store.ErrBadEntry) || !yield(e, err) {
				return
			}
		}
	}
}

// sendsBadNames checks names where the backend would: after the context.
type sendsBadNames struct{ soundRegistry }

func (r sendsBadNames) Remove(ctx context.Context, e store.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.soundRegistry.Remove(ctx, e)
}

// keepsData returns the slice it was given.
type keepsData struct {
	soundRegistry
	mu   sync.Mutex
	kept map[string][]byte
}

func (r *keepsData) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	r.mu.Lock()
	r.kept[e.ID] = e.Data
	r.mu.Unlock()
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

func (r *keepsData) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range r.soundRegistry.Find(ctx, q) {
			r.mu.Lock()
			if kept, ok := r.kept[e.ID]; ok {
				e.Data = kept
			}
			r.mu.Unlock()
			if !yield(e, err) {
				return
			}
		}
	}
}

// cutsData takes data for a C string.
type cutsData struct{ soundRegistry }

func (r cutsData) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if i := slices.Index(e.Data, 0); i >= 0 && len(e.Data) <= store.MaxEntryData {
		e.Data = e.Data[:i]
	}
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

// takesCancelForUnlisted says not found when it was told to stop.
type takesCancelForUnlisted struct{ soundRegistry }

func (r takesCancelForUnlisted) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	got, err := r.soundRegistry.End(ctx, e, reason)
	if errors.Is(err, context.Canceled) {
		err = store.ErrNotFound
	}
	return got, err
}

// awayRegistry's backend can be taken away. While it is, calls return says.
type awayRegistry struct {
	soundRegistry
	out *outage
}

func (r awayRegistry) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	if r.out.gone.Load() {
		return nil, r.out.says
	}
	return r.soundRegistry.Admit(ctx, e, ttl, l, replaces)
}

func (r awayRegistry) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if r.out.gone.Load() {
		return r.out.says
	}
	return r.soundRegistry.Renew(ctx, e, ttl)
}

func (r awayRegistry) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	if r.out.gone.Load() {
		return store.Entry{}, r.out.says
	}
	return r.soundRegistry.End(ctx, e, reason)
}

func (r awayRegistry) Remove(ctx context.Context, e store.Entry) error {
	if r.out.gone.Load() {
		return r.out.says
	}
	return r.soundRegistry.Remove(ctx, e)
}

func (r awayRegistry) Reap(ctx context.Context, most int) ([]store.Entry, error) {
	if r.out.gone.Load() {
		return nil, r.out.says
	}
	return r.soundRegistry.Reap(ctx, most)
}

func (r awayRegistry) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if r.out.gone.Load() {
			if r.out.says != nil {
				yield(store.Entry{}, r.out.says)
			}
			return
		}
		r.soundRegistry.Find(ctx, q)(yield)
	}
}
