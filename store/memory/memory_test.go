package memory

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB) *Store {
	s := New()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	storetest.RunBackend(t, storetest.BackendHarness{
		Open: func(t testing.TB, nodes int) []store.Backend {
			return slices.Repeat([]store.Backend{open(t)}, nodes)
		},
	})
}

func BenchmarkGet(b *testing.B) { storetest.BenchmarkGet(b, open(b)) }

func TestExpiredRecordsAreTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := open(t), t.Context()
		for _, key := range []string{"replaced", "touched", "left"} {
			if err := s.Create(ctx, key, nil, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Replace(ctx, "replaced", s.records["replaced"].revision, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := s.Touch(ctx, "touched", time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{time.Minute, 2}, {59 * time.Minute, 0}} {
			time.Sleep(step.wait)
			synctest.Wait()
			s.mu.Lock()
			got := len(s.records)
			s.mu.Unlock()
			if got != step.want {
				t.Errorf("after %s more: %d records held, want %d", step.wait, got, step.want)
			}
		}
	})
}

// kept counts all that s holds.
func (s *Store) kept() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records) + len(s.users) + len(s.leases) + len(s.feeds) + len(s.followers)
}

// TestNothingIsLeft covers invariant 5: after everything has expired and was reaped,
// nothing is kept, whoever died without tidying up.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := open(t), t.Context()
		entry := func(i int) store.Entry {
			return store.Entry{
				ID: fmt.Sprint("s", i), Tenant: "acme", User: fmt.Sprint("u", i%10),
				SID: "sid", Record: fmt.Sprint("k", i), Data: []byte("data"),
			}
		}
		limits := store.Limits{PerUser: 5, Total: 1000, OnLimit: store.EvictOldest}
		for i := range 100 {
			e := entry(i)
			if err := s.Create(ctx, e.Record, []byte("v"), time.Minute); err != nil {
				t.Fatal(err)
			}
			// Who evicts dies before it removes.
			if _, err := s.Admit(ctx, e, time.Minute, limits, ""); err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 {
				if _, err := s.Acquire(ctx, e.Record, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Append(ctx, []byte("event")); err != nil {
				t.Fatal(err)
			}
		}
		watching, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		go func() {
			_ = s.Watch(watching, time.Second, store.Feed{Reset: func() {}, Current: func(time.Time) {}})
		}()
		go func() { _ = s.Follow(watching, func() {}, func([]byte) {}) }()
		synctest.Wait()
		if s.kept() == 0 {
			t.Error("nothing is kept of what lives")
		}

		time.Sleep(time.Minute + store.EndingPatience)
		reaped := 0
		for {
			claimed, err := s.Reap(ctx, 7)
			if err != nil {
				t.Fatal(err)
			}
			if len(claimed) == 0 {
				break
			}
			reaped += len(claimed)
			for _, e := range claimed {
				if err := s.Remove(ctx, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := s.kept(); reaped != 100 || n != 0 {
			t.Errorf("%d entries were reaped, want 100; %d things are kept, want none", reaped, n)
		}
	})
}
