package postgres

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open is Open, with calls that are patient unless opts say how long they take: the machine
// now and then stands still.
func open(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = 20 * time.Second
	}
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// logged is what a Store wrote to its log.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// wait waits until the log has a text so many times, and no more.
func (l *logged) wait(t testing.TB, text string, times int) {
	t.Helper()
	eventually(t, "the log", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := strings.Count(l.b.String(), text)
		if n > times {
			t.Fatalf("%q is logged %d times, want %d:\n%s", text, n, times, l.b.String())
		}
		if n < times {
			return fmt.Errorf("%q is there %d times, want %d:\n%s", text, n, times, l.b.String())
		}
		return nil
	})
}

// schemas tells the tests' schemas apart.
var schemas atomic.Int64

// inSchema returns the URL of a schema that no earlier call named.
func inSchema(url string) string {
	return fmt.Sprintf("%s&search_path=test%d", url, schemas.Add(1))
}

// stopReaper leaves a Store to the test, which may then change it.
func stopReaper(s *Store) {
	s.stop()
	s.reaper.Wait()
}

// openAll opens a Store per node in a schema of their own, which is migrated.
func openAll(t testing.TB, opts Options, nodes int) []*Store {
	t.Helper()
	opts.URL = inSchema(opts.URL)
	patient := opts
	patient.Timeout = 0
	made := open(t, patient)
	migrate(t, made)
	must(t, made.Close())
	all := make([]*Store, nodes)
	for i := range all {
		all[i] = open(t, opts)
	}
	return all
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	storetest.RunBackend(t, storetest.BackendHarness{
		Open: func(t testing.TB, nodes int) []store.Backend {
			opts := Options{URL: server.URL(), MaxConns: 8}
			if strings.Contains(t.Name(), "Outage/") { // of which most is waiting for timeouts
				opts.Timeout = time.Second
			}
			var all []store.Backend
			for _, s := range openAll(t, opts, nodes) {
				all = append(all, s)
			}
			return all
		},
		Outages: []storetest.Outage{
			{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
			{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
			{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
		},
	})
}
