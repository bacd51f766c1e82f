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

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	var opened atomic.Int64
	storetest.Run(t, storetest.Harness{
		Open: func(t testing.TB, nodes int) []store.Store {
			prefix := fmt.Sprintf("test%d:", opened.Add(1))
			stores := make([]store.Store, nodes)
			for i := range stores {
				stores[i] = open(t, Options{URL: server.URL(), KeyPrefix: prefix, Timeout: 300 * time.Millisecond})
			}
			return stores
		},
		Outages: []storetest.Outage{
			{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
			{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
			{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
		},
	})
}

func BenchmarkGet(b *testing.B) {
	server := testenv.StartRedis(b, testenv.RedisOptions{})
	storetest.BenchmarkGet(b, open(b, Options{URL: server.URL(), KeyPrefix: "bench:"}))
}

// "A node starts with its store down", and gets ready by itself.
func TestServerDownAtOpen(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	server.Stop()
	s := open(t, Options{URL: server.URL()})
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping succeeded without a server")
	}
	if _, err := s.Get(t.Context(), "k"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get without a server: %v", err)
	}
	server.Restart()
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping after the server came: %v", err)
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

// What others wrote under our keys is neither a record nor the lack of one.
func TestForeignValues(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), KeyPrefix: "p:"})
	b := s.redis().B()
	for _, cmd := range []struct {
		key     string
		foreign error
	}{
		{"short", s.redis().Do(t.Context(), b.Set().Key("p:short").Value("v").PxMilliseconds(1e9).Build()).Error()},
		{"for ever", s.redis().Do(t.Context(), b.Set().Key("p:for ever").Value("long enough").Build()).Error()},
		{"list", s.redis().Do(t.Context(), b.Rpush().Key("p:list").Element("v").Build()).Error()},
	} {
		if cmd.foreign != nil {
			t.Fatal(cmd.foreign)
		}
		if _, err := s.Get(t.Context(), cmd.key); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a foreign value (%s): %v", cmd.key, err)
		}
	}
}

// Invariant 5: whatever is done, each key of ours carries its end.
func TestEveryKeyExpires(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL(), KeyPrefix: "p:"}), t.Context()
	for _, key := range []string{"created", "touched", "replaced"} {
		if err := s.Create(ctx, key, []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Get(ctx, "replaced")
	if err = errors.Join(err, s.Replace(ctx, "replaced", r.Revision, nil, time.Hour), s.Touch(ctx, "touched", 2*time.Hour), s.Ping(ctx)); err != nil {
		t.Fatal(err)
	}
	keys, err := s.redis().Do(ctx, s.redis().B().Keys().Pattern("*").Build()).AsStrSlice()
	if err != nil || len(keys) < 3 {
		t.Fatal(keys, err)
	}
	for _, key := range keys {
		if ttl, err := s.redis().Do(ctx, s.redis().B().Pttl().Key(key).Build()).AsInt64(); ttl == pttlForEver || err != nil {
			t.Errorf("%q has no end; %v", key, err)
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
	for s.Ping(t.Context()) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get afterwards: %v", err)
	}
}

// A cutter stands between a client and a server. Armed, it ends the connection
// instead of passing on the server's next answer.
type cutter struct {
	net.Listener
	armed atomic.Bool
}

func startCutter(t *testing.T, server string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l}
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
			wg.Go(func() { defer back.Close(); _, _ = io.Copy(back, front) })
			wg.Go(func() { defer front.Close(); c.pass(front, back) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return c
}

func (c *cutter) pass(front io.Writer, back io.Reader) {
	answer := make([]byte, 4096)
	for {
		n, err := back.Read(answer)
		if err != nil || c.armed.CompareAndSwap(true, false) {
			return
		}
		if _, err := front.Write(answer[:n]); err != nil {
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
