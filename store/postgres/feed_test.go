package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// A feed is what a Watch has told.
type feed struct {
	t       testing.TB
	ended   chan error
	resets  atomic.Int64
	mu      sync.Mutex
	changed map[string]bool
	asOf    time.Time
}

func watch(ctx context.Context, t testing.TB, s *Store) *feed {
	f := &feed{t: t, ended: make(chan error, 1), changed: make(map[string]bool)}
	go func() {
		f.ended <- s.Watch(ctx, 20*time.Millisecond, store.Feed{
			Changed: func(key string) { f.mu.Lock(); f.changed[key] = true; f.mu.Unlock() },
			Reset:   func() { f.resets.Add(1) },
			Current: func(asOf time.Time) { f.mu.Lock(); f.asOf = asOf; f.mu.Unlock() },
		})
	}()
	return f
}

// waitCurrent waits until all that happened before now was told.
func (f *feed) waitCurrent() {
	f.t.Helper()
	now := time.Now()
	eventually(f.t, "the feed", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.asOf.After(now) {
			return errors.New("is not current")
		}
		return nil
	})
}

func (f *feed) waitChanged(key string) {
	f.t.Helper()
	eventually(f.t, "the feed", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.changed[key] {
			return fmt.Errorf("tells nothing of %q", key)
		}
		return nil
	})
}

// done waits until Watch has returned its context's error.
func (f *feed) done() {
	f.t.Helper()
	if err := <-f.ended; !errors.Is(err, context.Canceled) {
		f.t.Errorf("Watch: %v", err)
	}
}

// A database has one set of channels. Those who share it hear nothing of each other, and
// what others notify of on ours tells nothing.
func TestChannelsOfOthers(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s, other := openAll(t, Options{URL: server.URL()}, 1)[0], openAll(t, Options{URL: server.URL()}, 1)[0]
	ctx, cancel := context.WithCancel(t.Context())
	f := watch(ctx, t, s)
	f.waitCurrent()
	conn := connect(t, server)
	for _, payload := range []string{"", "%%%", "é", strings.Repeat("A", 7000)} {
		exec(t, conn, "SELECT pg_notify($1, $2)", s.channel(changes), payload)
	}
	must(t, other.Create(ctx, "k", nil, time.Hour))
	must(t, other.Delete(ctx, "k"))
	must(t, s.Create(ctx, "own", nil, time.Hour))
	must(t, s.Delete(ctx, "own"))
	f.waitChanged("own")
	f.waitCurrent()
	f.mu.Lock()
	if f.changed["k"] || f.resets.Load() != 1 {
		t.Errorf("told of another schema's change: %t; %d resets", f.changed["k"], f.resets.Load())
	}
	f.mu.Unlock()
	cancel()
	f.done()
}

// A server that no longer answers is noticed by the feed itself; what changed meanwhile
// may have been missed, and the feed says so before it is current again.
func TestFeedBreaks(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	proxy := testenv.StartProxy(t, server.Addr())
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	cut := open(t, Options{URL: strings.Replace(server.URL(), server.Addr(), proxy.Addr(), 1) + "&search_path=" + s.schema, Timeout: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	f := watch(ctx, t, cut)
	f.waitCurrent()
	for _, trouble := range []struct {
		name       string
		begin, end func()
	}{
		{"swallow", proxy.Swallow, proxy.Heal},
		{"cut", proxy.Cut, proxy.Restore},
	} {
		must(t, s.Create(ctx, "k", nil, time.Hour))
		resets := f.resets.Load()
		trouble.begin()
		time.Sleep(20 * time.Millisecond) // what was on its way has come
		f.mu.Lock()
		before := f.asOf
		f.mu.Unlock()
		deleted := time.Now()
		must(t, s.Delete(ctx, "k"))
		time.Sleep(500 * time.Millisecond)
		f.mu.Lock()
		if f.asOf.After(deleted) {
			t.Errorf("%s: the feed was current as of %s after it broke", trouble.name, f.asOf.Sub(before))
		}
		f.mu.Unlock()
		trouble.end()
		f.waitCurrent()
		if f.resets.Load() == resets {
			t.Errorf("%s: no Reset before Current", trouble.name)
		}
	}
	cancel()
	f.done()
}

// The log is told once that the server is gone, however many listen and however often they
// try, and once that it is back.
// Where nothing arrives of what other connections send, as behind a pooler of transactions,
// the feed never takes itself for current, though what it sends itself comes back. Here what
// they send goes to another database, since no pooler can be counted on.
func TestFeedHearsOnlyItself(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	var log logged
	s := openAll(t, Options{URL: server.URL(), Logger: log.logger(), Timeout: 200 * time.Millisecond}, 1)[0]
	elsewhere, err := pgxpool.New(t.Context(), strings.Replace(server.URL(), "/postgres?", "/template1?", 1))
	if err != nil {
		t.Fatal(err)
	}
	stopReaper(s)
	own := s.pool
	s.pool = elsewhere
	ctx, cancel := context.WithCancel(t.Context())
	f := watch(ctx, t, s)
	log.wait(t, "must pool sessions", 1)
	time.Sleep(time.Second)
	cancel()
	<-f.ended
	s.pool = own
	elsewhere.Close()
	if f.mu.Lock(); !f.asOf.IsZero() {
		t.Errorf("it was current as of %s", f.asOf)
	}
	f.mu.Unlock()
}

func TestFeedLog(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	proxy := testenv.StartProxy(t, server.Addr())
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	var log logged
	cut := open(t, Options{
		URL:    strings.Replace(server.URL(), server.Addr(), proxy.Addr(), 1) + "&search_path=" + s.schema,
		Logger: log.logger(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	f := watch(ctx, t, cut)
	ready, ended := make(chan struct{}), make(chan error)
	go func() { ended <- cut.Follow(ctx, func() { close(ready) }, func([]byte) {}) }()
	f.waitCurrent()
	<-ready
	for n := 1; n <= 2; n++ {
		proxy.Cut()
		eventually(t, "both notice", func() error {
			if n := cut.deaf.Load(); n != 2 {
				return fmt.Errorf("%d do", n)
			}
			return nil
		})
		time.Sleep(2 * longestPause) // and try again
		proxy.Restore()
		log.wait(t, "level=INFO msg=\"the feed of changes is back\"", n)
		log.wait(t, "level=WARN msg=\"the feed of changes is interrupted\"", n)
		log.wait(t, "\n", 2*n)
	}
	proxy.Cut()
	log.wait(t, "level=WARN", 3)
	cancel()
	f.done()
	<-ended
	if n := cut.deaf.Load(); n != 0 {
		t.Errorf("%d are deaf of none", n)
	}
}

// A follower who was cut off hears later what it has missed: also what was written before
// the cut and committed after it, and more than a page of it.
func TestFollowCatchesUp(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	proxy := testenv.StartProxy(t, server.Addr())
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	cut := open(t, Options{URL: strings.Replace(server.URL(), server.Addr(), proxy.Addr(), 1) + "&search_path=" + s.schema})
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	told := map[string]int{}
	wait := func(event string) {
		t.Helper()
		eventually(t, "the journal", func() error {
			mu.Lock()
			defer mu.Unlock()
			if told[event] == 0 {
				return fmt.Errorf("does not tell %s", event)
			}
			return nil
		})
	}
	must(t, s.Append(ctx, []byte("too early")))
	ready, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- cut.Follow(ctx, func() { close(ready) }, func(data []byte) { mu.Lock(); told[string(data)]++; mu.Unlock() })
	}()
	<-ready
	must(t, s.Append(ctx, []byte("first")))
	wait("first")

	// A commit that takes its time.
	slow := connect(t, server)
	exec(t, slow, "BEGIN")
	exec(t, slow, "INSERT INTO "+s.schema+".events (data) VALUES ('slow')")
	time.Sleep(3 * followBeat)
	must(t, s.Append(ctx, []byte("second")))
	wait("second")
	proxy.Cut()
	exec(t, slow, "COMMIT")
	var missed []string
	for i := range catchUpPage + 10 {
		missed = append(missed, fmt.Sprint("missed ", i))
	}
	for chunk := range slices.Chunk(missed, 100) {
		var wg sync.WaitGroup
		for _, event := range chunk {
			wg.Go(func() {
				if err := s.Append(ctx, []byte(event)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	proxy.Restore()
	for _, event := range append(missed, "slow") {
		wait(event)
	}
	must(t, s.Append(ctx, []byte("last")))
	wait("last")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow: %v", err)
	}
}
