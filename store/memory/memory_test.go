package memory

import (
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
