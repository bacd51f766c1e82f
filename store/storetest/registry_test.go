package storetest

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// An outage is one that the suite's own test makes.
type outage struct {
	gone atomic.Bool
	says error
	back func() // called when it ends

	mu    sync.Mutex
	heard []func() // called when it ends, too
}

func (o *outage) outages() []Outage {
	return []Outage{{Name: "away", Begin: func(testing.TB) func() {
		o.gone.Store(true)
		return func() {
			if o.back != nil {
				o.back()
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			for _, heard := range o.heard {
				heard()
			}
			o.gone.Store(false)
		}
	}}}
}

var errRefused = errors.New("connection refused")

// bubbled runs test where waiting takes no time. What waits for others there wakes in the
// order of its instants, so that a race which a defect allows for does happen.
func bubbled(t *testing.T, test func(t *testing.T)) {
	t.Parallel()
	synctest.Test(t, test)
}

// openMemory is closed when the test ends.
func openMemory(t testing.TB) *memory.Store {
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// wantRejected checks that the section which has to notices, and that a driver without a
// defect passes them all.
func wantRejected(t *testing.T, by string, failed map[string][]string) {
	t.Helper()
	if by == "" && len(failed) > 0 {
		t.Errorf("it was rejected: %v", failed)
	}
	if by != "" && failed[by] == nil {
		t.Errorf("section %s passed; failed were %v", by, failed)
	}
}

func registryHarness(r store.Registry) RegistryHarness {
	return RegistryHarness{Open: func(_ testing.TB, nodes int) []store.Registry {
		return slices.Repeat([]store.Registry{r}, nodes)
	}}
}

// patienceSection is all of beginPatience as one section.
var patienceSection = section[RegistryHarness]{"Patience", func(t testing.TB, h RegistryHarness) {
	beginPatience(t, h)(t, true)
}}

func TestSuiteRejectsBrokenRegistries(t *testing.T) {
	changing := func(change func(e *store.Entry, l *store.Limits, replaces *string)) func(store.Registry) store.Registry {
		return func(r store.Registry) store.Registry { return admitChanges{r, change} }
	}
	for _, tc := range []struct {
		name    string
		broken  func(store.Registry) store.Registry
		section string // the one that must notice
	}{
		{"sound", func(r store.Registry) store.Registry { return r }, ""},
		{"Admit in two steps", func(r store.Registry) store.Registry { return admitInTwoSteps{r} }, "LimitsRace"},
		{"Admit in two steps, as a history", func(r store.Registry) store.Registry { return admitInTwoSteps{r} }, "LimitHistories"},
		{"Admit marks no victims", func(r store.Registry) store.Registry { return admitWithoutMarks{r} }, "EvictOldest"},
		{"Admit counts ending entries", func(r store.Registry) store.Registry { return admitCountsEnding{r} }, "Deny"},
		{"Admit inserts what it denies", func(r store.Registry) store.Registry { return denyInserts{r} }, "Deny"},
		{"Admit tells of its own victims only", func(r store.Registry) store.Registry { return admitTellsItsOwn{r} }, "Ending"},
		{"Admit replaces anybody's", func(r store.Registry) store.Registry { return replacesAnybody{r} }, "Replaces"},
		{"Admit counts who is replaced", func(r store.Registry) store.Registry { return replacesAfterwards{r} }, "Replaces"},
		{"who is replaced keeps the seat", func(r store.Registry) store.Registry { return replacesAfterwards{r} }, "TotalInherited"},
		{"Admit ignores the app", changing(func(_ *store.Entry, l *store.Limits, _ *string) { l.PerApp = 0 }), "PerApp"},
		{"Admit takes all apps for one", changing(func(e *store.Entry, _ *store.Limits, _ *string) { e.App = "any" }), "PerApp"},
		{"Admit evicts the oldest always", changing(func(_ *store.Entry, l *store.Limits, _ *string) {
			if l.OnLimit == store.EvictIdle {
				l.OnLimit = store.EvictOldest
			}
		}), "EvictIdle"},
		{"Admit evicts the idle always", changing(func(_ *store.Entry, l *store.Limits, _ *string) {
			if l.OnLimit == store.EvictOldest {
				l.OnLimit = store.EvictIdle
			}
		}), "EvictOldest"},
		{"Admit allows one more", changing(func(_ *store.Entry, l *store.Limits, _ *string) {
			if l.PerUser > 0 {
				l.PerUser++
			}
		}), "LimitsRace"},
		{"Total in two steps", func(r store.Registry) store.Registry { return totalInTwoSteps{r} }, "TotalRace"},
		{"Total is not looked at", changing(func(_ *store.Entry, l *store.Limits, _ *string) { l.Total = 0 }), "Total"},
		{"Remove keeps the seat", func(r store.Registry) store.Registry {
			return &miscounts{soundRegistry: r, onRemove: func(r store.Registry, e store.Entry) int {
				if _, ok := listedAs(r, e); ok {
					return 1
				}
				return 0
			}}
		}, "Total"},
		{"Remove of nothing gives a seat back", func(r store.Registry) store.Registry {
			return &miscounts{soundRegistry: r, onRemove: func(r store.Registry, e store.Entry) int {
				if _, ok := listedAs(r, e); !ok {
					return -1
				}
				return 0
			}}
		}, "Total"},
		{"Remove of what expired gives a seat back", func(r store.Registry) store.Registry {
			return &miscounts{soundRegistry: r, onRemove: func(r store.Registry, e store.Entry) int {
				if _, ok := listedAs(r, e); !ok {
					return -1
				}
				return 0
			}}
		}, "TotalExpiry"},
		{"Remove of who was replaced gives a seat back", func(r store.Registry) store.Registry {
			return &miscounts{soundRegistry: r, onRemove: func(r store.Registry, e store.Entry) int {
				if ending, _ := listedAs(r, e); ending == store.ReasonReplaced {
					return -1
				}
				return 0
			}}
		}, "TotalInherited"},
		{"nobody has the seat of who was replaced", func(r store.Registry) store.Registry {
			return &miscounts{soundRegistry: r, onRemove: func(r store.Registry, e store.Entry) int {
				if ending, _ := listedAs(r, e); ending == store.ReasonReplaced {
					return 1
				}
				return 0
			}}
		}, "TotalOverwritten"},
		{"End gives the seat back", func(r store.Registry) store.Registry { return &miscounts{soundRegistry: r, onEnd: -1} }, "Total"},
		{"who is denied takes a seat", func(r store.Registry) store.Registry { return &miscounts{soundRegistry: r, onDenied: 1} }, "Total"},
		{"Renew revives", func(r store.Registry) store.Registry { return renewRevives{r} }, "End"},
		{"Renew revives the evicted", func(r store.Registry) store.Registry { return renewRevives{r} }, "EvictOldest"},
		{"Renew describes", func(r store.Registry) store.Registry { return &renewDescribes{soundRegistry: r} }, "Renew"},
		{"Renew shortens", func(r store.Registry) store.Registry { return renewShortens{r} }, "Renew"},
		{"Renew lists nothing", func(r store.Registry) store.Registry { return renewListsNothing{r} }, "RenewRelists"},
		{"the last reason stays", func(r store.Registry) store.Registry {
			return &lastReasonStays{soundRegistry: r, last: map[string]string{}}
		}, "End"},
		{"End takes the ID alone", func(r store.Registry) store.Registry { return endsAnybody{r} }, "End"},
		{"Remove of what is absent fails", func(r store.Registry) store.Registry { return removeOfAbsentFails{r} }, "Remove"},
		{"Reap hands out twice", func(r store.Registry) store.Registry {
			return &reapRepeats{soundRegistry: r, claims: map[string]store.Entry{}}
		}, "Reap"},
		{"Reap takes handing out for acknowledgement", func(r store.Registry) store.Registry { return reapRemoves{r} }, "Reap"},
		{"Reap forgets what nobody acknowledged", func(r store.Registry) store.Registry {
			return &reapForgets{soundRegistry: r, claims: map[string]bool{}}
		}, "Patience"},
		{"Reap forgets ending entries", func(r store.Registry) store.Registry {
			return reapFilters{r, func(e store.Entry) bool { return e.Ending == store.ReasonExpired }}
		}, "Patience"},
		{"Reap takes ending entries at once", func(r store.Registry) store.Registry { return reapHurries{r} }, "Patience"},
		{"Reap has no bound", func(r store.Registry) store.Registry { return reapUnbounded{r} }, "ReapRace"},
		{"Find leaks other tenants", func(r store.Registry) store.Registry { return finds{r, findsOtherTenants} }, "Find"},
		{"Find stops after a page", func(r store.Registry) store.Registry { return finds{r, findsOnePage} }, "FindPages"},
		{"Find leaves out ending entries", func(r store.Registry) store.Registry { return finds{r, findsLiveOnly} }, "End"},
		{"Find takes a failure for the end", func(r store.Registry) store.Registry { return finds{r, findsSilently} }, "RegistryCancelled"},
		{"names are the backend's", func(r store.Registry) store.Registry { return sendsBadNames{r} }, "BadNames"},
		{"keeps its input", func(r store.Registry) store.Registry {
			return &keepsData{soundRegistry: r, kept: map[string][]byte{}}
		}, "EntryAliasing"},
		{"data ends at NUL", func(r store.Registry) store.Registry { return cutsData{r} }, "LiteralData"},
		{"takes a cancelled call for an answer", func(r store.Registry) store.Registry { return takesCancelForUnlisted{r} }, "RegistryCancelled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				// A memory of its own for each section, as harnesses give.
				h := RegistryHarness{Open: func(t testing.TB, nodes int) []store.Registry {
					return registryHarness(tc.broken(openMemory(t))).Open(t, nodes)
				}}
				run := append(registrySections(), patienceSection)
				wantRejected(t, tc.section, failures(t, h, only(run, tc.section)))
			})
		})
	}
}

func TestRegistryOutageSection(t *testing.T) {
	for _, tc := range []struct {
		name    string
		out     *outage
		section string
	}{
		{"sound", &outage{says: errRefused}, ""},
		{"takes an outage for absence", &outage{says: store.ErrNotFound}, "Outage"},
		{"takes an outage for a limit", &outage{says: &store.LimitError{Limit: store.LimitUser}}, "Outage"},
		{"takes an outage for success", &outage{}, "Outage"},
		{"loses entries", &outage{says: errRefused}, "Outage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				m := openMemory(t)
				if tc.name == "loses entries" {
					tc.out.back = func() { _ = m.Remove(t.Context(), session("a")) }
				}
				h := registryHarness(awayRegistry{m, tc.out})
				failed := failures(t, h, outageSections(tc.out.outages(), testRegistryOutage))
				wantRejected(t, tc.section, failed)
			})
		})
	}
}

// TestSessionHistories checks the verdict on histories that are told here: each step is
// an operation on a session, its outcome, and the instants at which it began and ended.
func TestSessionHistories(t *testing.T) {
	type step struct {
		op      SessionOp
		id      string
		outcome Outcome
		from    int64
		to      int64
	}
	deny, evict := store.Limits{PerUser: 1}, store.Limits{PerUser: 1, OnLimit: store.EvictOldest}
	for _, tc := range []struct {
		name   string
		limits store.Limits
		steps  []step
		ok     bool
	}{
		{"signed in and used", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {Use, "a", Done, 2, 3}}, true},
		{"used before it began", store.Limits{}, []step{{Use, "a", Done, 0, 1}, {SignIn, "a", Done, 2, 3}}, false},
		{"lost without a reason", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {Use, "a", Refused, 2, 3}}, false},
		{"used after the end", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {SignOut, "a", Done, 2, 3}, {Use, "a", Done, 4, 5}}, false},
		{"used beside the end", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {SignOut, "a", Done, 2, 5}, {Use, "a", Done, 3, 4}}, true},
		{"back from the dead", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {SignOut, "a", Unknown, 2, 3}, {Use, "a", Refused, 4, 5}, {Use, "a", Done, 6, 7}}, false},
		{"an end that came late", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {SignOut, "a", Unknown, 2, 3}, {Use, "a", Done, 4, 5}, {Use, "a", Refused, 6, 7}}, true},
		{"a start that came late", store.Limits{}, []step{{SignIn, "a", Unknown, 0, 1}, {Use, "a", Refused, 2, 3}, {Use, "a", Done, 4, 5}}, true},
		{"a limit where there is none", store.Limits{}, []step{{SignIn, "a", Refused, 0, 1}}, false},
		{"sessions don't touch each other", store.Limits{}, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 3}, {Use, "a", Done, 4, 5}, {Use, "b", Done, 4, 5}}, true},

		{"denied at the limit", deny, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Refused, 2, 3}, {Use, "a", Done, 4, 5}}, true},
		{"denied below it", deny, []step{{SignIn, "a", Refused, 0, 1}}, false},
		{"denied beside one that fails", deny, []step{{SignIn, "a", Unknown, 0, 1}, {SignIn, "b", Refused, 2, 3}}, true},
		{"let in after one that failed", deny, []step{{SignIn, "a", Unknown, 0, 1}, {SignIn, "b", Refused, 2, 3}, {SignIn, "c", Done, 4, 5}}, true},
		{"one too many let in", deny, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 3}}, false},
		{"evicted where nobody is", deny, []step{{SignIn, "a", Done, 0, 1}, {Use, "a", Refused, 2, 3}, {SignIn, "b", Done, 4, 5}}, false},
		{"let in after an end", deny, []step{{SignIn, "a", Done, 0, 1}, {SignOut, "a", Done, 2, 3}, {SignIn, "b", Done, 4, 5}}, true},

		{"evicted", evict, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 3}, {Use, "a", Refused, 4, 5}, {Use, "b", Done, 4, 5}}, true},
		{"nobody evicted", evict, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 3}, {Use, "a", Done, 4, 5}, {Use, "b", Done, 4, 5}}, false},
		{"both used, but beside the sign-in", evict, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 7}, {Use, "a", Done, 3, 4}, {Use, "b", Done, 5, 6}}, true},
		{"both used beside the sign-in, in turns", evict, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Done, 2, 9}, {Use, "b", Done, 3, 4}, {Use, "a", Done, 5, 6}}, false},
		{"denied where somebody gives way", evict, []step{{SignIn, "a", Done, 0, 1}, {SignIn, "b", Refused, 2, 3}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewSessionHistory(tc.limits)
			for _, s := range tc.steps {
				h.ops = append(h.ops, sessionCall{s.op, s.id, s.outcome, s.from, s.to})
			}
			r := &recorder{TB: t}
			h.Check(r)
			if r.Failed() == tc.ok {
				t.Errorf("explained = %t, want %t", !tc.ok, tc.ok)
			}
		})
	}
}
