package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A recorder takes the place of a *testing.T and notes whether it failed.
type recorder struct {
	testing.TB
	mu    sync.Mutex
	notes []string
}

func (r *recorder) Helper()         {}
func (r *recorder) Error(a ...any)  { r.note(fmt.Sprint(a...)) }
func (r *recorder) Fatal(a ...any)  { r.note(fmt.Sprint(a...)); runtime.Goexit() }
func (r *recorder) Log(...any)      {}
func (r *recorder) note(msg string) { r.mu.Lock(); r.notes = append(r.notes, msg); r.mu.Unlock() }

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.notes) > 0
}

func (r *recorder) Errorf(format string, a ...any) { r.note(fmt.Sprintf(format, a...)) }

func (r *recorder) Fatalf(format string, a ...any) {
	r.note(fmt.Sprintf(format, a...))
	runtime.Goexit()
}

// outageSections makes sections of outages.
func outageSections[H any](outages []Outage, test func(testing.TB, H, Outage)) []section[H] {
	var all []section[H]
	for _, o := range outages {
		all = append(all, section[H]{"Outage", func(t testing.TB, h H) { test(t, h, o) }})
	}
	return all
}

// failures runs sections on h and returns those that failed, with what they said.
func failures[H any](t testing.TB, h H, sections []section[H]) map[string][]string {
	failed := map[string][]string{}
	for _, s := range sections {
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.run(r, h)
		}()
		<-done
		if r.Failed() {
			failed[s.name] = r.notes
		}
	}
	return failed
}

func TestSuiteRejectsBrokenStores(t *testing.T) {
	for _, tc := range []struct {
		name    string
		broken  func(store.Store) store.Store
		section string // the one that must notice
	}{
		{"Replace creates", func(s store.Store) store.Store { return replaceCreates{s} }, "NoResurrection"},
		{"Replace ignores the revision", func(s store.Store) store.Store { return replaceIgnoresRevision{s} }, "Revisions"},
		{"Replace in two steps", func(s store.Store) store.Store { return replaceInTwoSteps{s} }, "Concurrency"},
		{"Touch shortens", func(s store.Store) store.Store { return touchShortens{s} }, "TouchExtends"},
		{"Touch creates", func(s store.Store) store.Store { return touchCreates{s} }, "NoResurrection"},
		{"Touch does nothing", func(s store.Store) store.Store { return touchDoesNothing{s} }, "TouchExtends"},
		{"Create overwrites", func(s store.Store) store.Store { return createOverwrites{s} }, "Contract"},
		{"Create in two steps", func(s store.Store) store.Store { return createInTwoSteps{s} }, "Concurrency"},
		{"Get returns expired records", func(s store.Store) store.Store {
			return &ghosts{sound: s, seen: map[string]store.Record{}}
		}, "Expiry"},
		{"no lifetime means for ever", func(s store.Store) store.Store { return keepsForEver{s} }, "MinTTL"},
		{"Delete of an absent record fails", func(s store.Store) store.Store { return deleteOfAbsentFails{s} }, "Contract"},
		{"Delete takes patterns", func(s store.Store) store.Store {
			return &deletesPattern{ghosts{sound: s, seen: map[string]store.Record{}}}
		}, "LiteralBytes"},
		{"keys end at NUL", func(s store.Store) store.Store { return cutsAtNUL{s} }, "LiteralBytes"},
		{"bounds are the backend's", func(s store.Store) store.Store { return sendsTooLarge{s} }, "Sizes"},
		{"keeps its input", func(s store.Store) store.Store {
			return &keepsInput{sound: s, kept: map[string][]byte{}}
		}, "Aliasing"},
		{"shares its output", func(s store.Store) store.Store {
			return &sharesOutput{sound: s, shared: map[uint64][]byte{}}
		}, "Aliasing"},
		{"takes a cancelled call for an answer", func(s store.Store) store.Store { return takesCancelForAbsent{s} }, "Cancelled"},
		{"swaps answers", func(s store.Store) store.Store { return &swapsAnswers{sound: s} }, "CancelledMidway"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // they mostly wait for records to expire
			failed := failures(t, Harness{Open: func(t testing.TB, nodes int) []store.Store {
				s := memory.New()
				t.Cleanup(func() { _ = s.Close() })
				return Same(tc.broken(s), nodes)
			}}, sections())
			if failed[tc.section] == nil {
				t.Errorf("section %s passed; failed were %v", tc.section, failed)
			}
		})
	}
}

// TestSuiteRejectsHistories gives the section that judges histories its own defects, which
// take several nodes.
func TestSuiteRejectsHistories(t *testing.T) {
	for name, node := range map[string]func(s store.Store) store.Store{
		"stale reads": func(s store.Store) store.Store {
			return staleReads{s, new(sync.Mutex), map[string]store.Record{}}
		},
		"Replace in two steps": func(s store.Store) store.Store { return replaceInTwoSteps{s} },
		"Create in two steps":  func(s store.Store) store.Store { return createInTwoSteps{s} },
		"Touch creates":        func(s store.Store) store.Store { return touchCreates{s} },
	} {
		t.Run(name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				h := Harness{Open: func(t testing.TB, nodes int) []store.Store {
					m := openMemory(t)
					var all []store.Store
					for range nodes {
						all = append(all, node(m))
					}
					return all
				}}
				wantRejected(t, "RecordHistories", failures(t, h, only(sections(), "RecordHistories")))
			})
		})
	}
}

// An away store's backend can be taken away. While it is, calls return says.
type away struct {
	sound
	gone  *atomic.Bool
	says  error
	loses bool
}

func (s away) Get(ctx context.Context, key string) (store.Record, error) {
	if s.gone.Load() && store.CheckKey(key) == nil {
		return store.Record{}, s.says
	}
	return s.sound.Get(ctx, key)
}

func (s away) do(call func() error) error {
	if s.gone.Load() {
		return s.says
	}
	return call()
}

func (s away) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return s.do(func() error { return s.sound.Create(ctx, key, value, ttl) })
}

func (s away) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	return s.do(func() error { return s.sound.Replace(ctx, key, revision, value, ttl) })
}

func (s away) Touch(ctx context.Context, key string, ttl time.Duration) error {
	return s.do(func() error { return s.sound.Touch(ctx, key, ttl) })
}

func (s away) Delete(ctx context.Context, key string) error {
	return s.do(func() error { return s.sound.Delete(ctx, key) })
}

func (s away) Ping(ctx context.Context) error {
	return s.do(func() error { return s.sound.Ping(ctx) })
}

func TestOutageSection(t *testing.T) {
	refused := errors.New("connection refused")
	for _, tc := range []struct {
		name string
		away away
		ok   bool
	}{
		{"sound", away{says: refused}, true},
		{"takes an outage for absence", away{says: store.ErrNotFound}, false},
		{"takes an outage for success", away{says: nil}, false},
		{"loses acknowledged records", away{says: refused, loses: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.away
			s.gone = new(atomic.Bool)
			h := Harness{
				Open: func(_ testing.TB, nodes int) []store.Store {
					s.sound = memory.New()
					t.Cleanup(func() { _ = s.sound.Close() })
					return Same(s, nodes)
				},
				Outages: []Outage{{Name: "away", Begin: func(testing.TB) func() {
					s.gone.Store(true)
					return func() {
						if s.loses {
							_ = s.sound.Delete(context.Background(), "k1")
						}
						s.gone.Store(false)
					}
				}}},
			}
			failed := failures(t, h, append(sections(), outageSections(h.Outages, testOutage)...))
			if notes := failed["Outage"]; (notes == nil) != tc.ok || len(failed) > 1 {
				t.Errorf("accepted = %t, want %t: %v", notes == nil, tc.ok, failed)
			}
		})
	}
}
