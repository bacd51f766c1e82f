package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(
		m,
		// A client of a cluster that was closed while it looked for the nodes anew finds
		// that out a second later, and ends the connections it replaced after five.
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
	)
}

// patient bounds a call that is to succeed, on a machine that now and then stands still.
const patient = 20 * time.Second

// open is Open, with calls that are patient unless opts say how long they take.
func open(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = patient
	}
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// opener opens the nodes of a harness, with a prefix of their own for each call. Outside
// of outages, of which most is waiting for timeouts, they are patient.
func opener[T any](opts Options) func(testing.TB, int) []T {
	var opened atomic.Int64
	return func(t testing.TB, nodes int) []T {
		opts := opts
		opts.KeyPrefix = fmt.Sprintf("%s %d:", t.Name(), opened.Add(1))
		if !strings.Contains(t.Name(), "Outage/") {
			opts.Timeout = patient
		}
		stores := make([]T, nodes)
		for i := range stores {
			stores[i] = any(open(t, opts)).(T)
		}
		return stores
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	storetest.Run(t, storetest.Harness{
		Open:    opener[store.Store](Options{URL: server.URL(), Timeout: time.Second}),
		Outages: outages(server),
	})
}

func outages(server *testenv.Redis) []storetest.Outage {
	return []storetest.Outage{
		{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
		{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
		{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
	}
}

func BenchmarkGet(b *testing.B) {
	server := testenv.StartRedis(b, testenv.RedisOptions{})
	storetest.BenchmarkGet(b, open(b, Options{URL: server.URL(), KeyPrefix: "bench:"}))
}

// "A node starts with its store down", and gets ready by itself.
func TestServerDownAtOpen(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	server.Stop()
	s := open(t, Options{URL: server.URL(), Timeout: time.Second})
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping succeeded without a server")
	}
	if _, err := s.Get(t.Context(), "k"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get without a server: %v", err)
	}
	server.Restart()
	waitUp(t, s)
}

// waitUp waits until a Store answers.
func waitUp(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "Ping succeeds", func() bool { return s.Ping(t.Context()) == nil })
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A Store that never reaches its server has nothing under way once it is closed.
func TestCloseUnreached(t *testing.T) {
	for _, opts := range unreachable(t) {
		s, err := Open(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Ping: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := s.Watch(ctx, time.Second, store.Feed{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Watch: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Close waits for an attempt to connect that is under way, and nothing is left of it.
func TestCloseWhileConnecting(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	server.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s, err := Open(ctx, Options{URL: server.URL(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
		t.Error("Close did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	server.Resume()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func unreachable(t *testing.T) []Options {
	nobody := []string{testenv.Loopback(testenv.FreePort(t))}
	return []Options{
		{URL: "redis://" + nobody[0]},
		{Sentinel: &Sentinel{Addresses: nobody, Master: "main"}},
		{Cluster: &Cluster{Addresses: nobody}},
	}
}

// A server that answers and takes no writes still serves who is signed in, so Ping says
// yes; a Create that it refuses has no outcome that a caller could take for one (A-Z14).
func TestServerRefusesWrites(t *testing.T) {
	for _, config := range []string{"min-replicas-to-write 1", "maxmemory 1"} {
		server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{config}})
		s := open(t, Options{URL: server.URL()})
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("%s: Ping: %v", config, err)
		}
		if err := s.Create(t.Context(), "k", nil, time.Hour); err == nil || errors.Is(err, store.ErrExists) {
			t.Errorf("%s: Create: %v", config, err)
		}
		if _, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: Get: %v", config, err)
		}
	}
}

// A server repeats the arguments of a command it does not know.
func TestErrorsNameNoData(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{`rename-command EVALSHA ""`, `rename-command SET ""`}})
	s := open(t, Options{URL: server.URL()})
	for op, err := range map[string]error{
		"create":  s.Create(t.Context(), "the-key", []byte("the-value"), time.Hour),
		"replace": s.Replace(t.Context(), "the-key", 1, []byte("the-value"), time.Hour),
		"touch":   s.Touch(t.Context(), "the-key", time.Hour),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "store/redis: "+op+": unknown command") || strings.Contains(err.Error(), "the-") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// More calls than the connection's queue holds come back from a server that hangs,
// and the store recovers.
func TestManyCallsOnAHungServer(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), Timeout: 200 * time.Millisecond})
	server.Pause()
	var wg sync.WaitGroup
	for range 3000 {
		wg.Go(func() {
			if _, err := s.Get(context.Background(), "k"); err == nil || errors.Is(err, store.ErrNotFound) {
				t.Errorf("Get on a hung server: %v", err)
			}
		})
	}
	wg.Wait()
	server.Resume()
	eventually(t, "Get tells that there is nothing", func() bool {
		_, err := s.Get(t.Context(), "k")
		return errors.Is(err, store.ErrNotFound)
	})
}

// A cutter stands between a client and a server. Armed, it ends the connection
// instead of passing on the server's next answer. What edits say is said otherwise.
type cutter struct {
	net.Listener
	armed atomic.Bool
	edits atomic.Pointer[strings.Replacer]
}

func startCutter(t *testing.T, server string, edits ...string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l}
	c.edits.Store(strings.NewReplacer(edits...))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", server)
			if err != nil {
				front.Close()
				continue
			}
			wg.Go(func() { defer back.Close(); c.pass(back, front, new(atomic.Bool)) })
			wg.Go(func() { defer front.Close(); c.pass(front, back, &c.armed) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return c
}

func (c *cutter) pass(to io.Writer, from io.Reader, armed *atomic.Bool) {
	said := make([]byte, 4096)
	for {
		n, err := from.Read(said)
		if err != nil || armed.CompareAndSwap(true, false) {
			return
		}
		if _, err := c.edits.Load().WriteString(to, string(said[:n])); err != nil {
			return
		}
	}
}

// When the connection ends under a call, a read is sent again and a write is not: a
// Create would find its own record and say that it exists.
func TestConnectionEndsUnderACall(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	c := startCutter(t, server.Addr())
	s, ctx := open(t, Options{URL: "redis://" + c.Addr().String(), Timeout: 20 * time.Second}), t.Context()

	// The scripts are known to the server, and the connection stands, when it is cut.
	if err := s.Replace(ctx, "absent", 1, nil, time.Hour); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "other", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	cutNextAnswer := func() {
		t.Helper()
		if err := s.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		c.armed.Store(true)
	}

	cutNextAnswer()
	if err := s.Create(ctx, "k", []byte("v"), time.Hour); err == nil || errors.Is(err, store.ErrExists) {
		t.Errorf("Create: %v, want an error that leaves the outcome open", err)
	}
	cutNextAnswer()
	r, err := s.Get(ctx, "k")
	if err != nil || string(r.Value) != "v" || c.armed.Load() {
		t.Fatalf("Get: %q, %v", r.Value, err)
	}
	cutNextAnswer()
	if err := s.Replace(ctx, "k", r.Revision, []byte("w"), time.Hour); err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("Replace: %v, want an error that leaves the outcome open", err)
	}
	if r, err := s.Get(ctx, "k"); err != nil || string(r.Value) != "w" {
		t.Errorf("Get after a Replace whose answer was lost: %q, %v", r.Value, err)
	}
}

// Each call has a deadline of its own, whatever the connection's and the caller's.
func TestCallsTimeOut(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), Timeout: 20 * time.Second})
	s.timeout = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	server.Pause()
	defer server.Resume()
	var wg sync.WaitGroup
	for op, call := range map[string]func() error{
		"get":     func() error { _, err := s.Get(ctx, "k"); return err },
		"create":  func() error { return s.Create(ctx, "k", nil, time.Hour) },
		"replace": func() error { return s.Replace(ctx, "k", 1, nil, time.Hour) },
		"touch":   func() error { return s.Touch(ctx, "k", time.Hour) },
		"delete":  func() error { return s.Delete(ctx, "k") },
		"ping":    func() error { return s.Ping(ctx) },
	} {
		wg.Go(func() {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || !strings.HasPrefix(err.Error(), "store/redis: "+op+": ") {
				t.Errorf("%s: %v, want its deadline", op, err)
			}
		})
	}
	wg.Wait()
}
