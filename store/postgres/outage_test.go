package postgres

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

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// eventually waits until done returns nil. It says that something never happened, not that
// it was slow.
func eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// "A node starts with its store down", and gets ready by itself.
func TestServerDownAtOpen(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	opts := Options{URL: server.URL() + "&search_path=test"}
	migrate(t, open(t, opts))
	server.Stop()
	opts.Timeout = time.Second
	s := open(t, opts)
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping succeeded without a server")
	}
	if _, err := s.Get(t.Context(), "k"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get without a server: %v", err)
	}
	server.Restart()
	eventually(t, "Ping after the server came", func() error { return s.Ping(t.Context()) })
}

// A server is tried with TLS and without. What comes to the same is said once, in a line.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	var log logged
	s := open(t, Options{URL: "postgres://user@127.0.0.1:1/db?sslmode=prefer", Logger: log.logger()})
	ctx, cancel := context.WithCancel(t.Context())
	f := watch(ctx, t, s)
	log.wait(t, "connection refused", 1)
	cancel()
	f.done()
	_, _, migrated := s.Migrate(t.Context())
	for op, err := range map[string]error{"ping": s.Ping(t.Context()), "migrate": migrated} {
		var cause *net.OpError
		if n := strings.Count(fmt.Sprint(err), "connection refused"); n != 1 || strings.Contains(err.Error(), "\n") || !errors.As(err, &cause) {
			t.Errorf("%s: %v", op, err)
		}
	}
	a := attempts{errors.New("failed:\n\ta: refused\n\ta: refused\n\tb: timeout")}
	if a.Error() != "failed: a: refused; b: timeout" {
		t.Error(a)
	}
}

// Each call has a deadline of its own, whatever the caller's, and an error that names it
// and no data.
func TestCallsTimeOut(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Password: password})
	s := openAll(t, Options{URL: server.URL(), Password: password, Timeout: time.Second}, 1)[0]
	stopReaper(s)
	s.timeout = 50 * time.Millisecond                                  // of calls; that of connections stays
	eventually(t, "Ping", func() error { return s.Ping(t.Context()) }) // so that there is a connection
	server.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	errs := everything(ctx, s)
	if ctx.Err() != nil {
		t.Error("the calls waited for their caller's deadline")
	}
	// Neither do they keep their places in the pool as long as pgx is used to, which is 15 s.
	for end := time.Now().Add(12 * time.Second); s.pool.Stat().TotalConns() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections to a server that hangs are kept", s.pool.Stat().TotalConns())
		}
	}
	server.Resume()
	for op, err := range errs {
		if op == "sweep" {
			op = "reap"
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "store/postgres: "+op+": ") || strings.Contains(err.Error(), "the-") {
			t.Errorf("%s: %v, want its deadline", op, err)
		}
	}
}

// What a server says repeats neither keys nor values.
func TestErrorsNameNoData(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL()}, 1)[0]
	exec(t, connect(t, server), "ALTER TABLE "+s.schema+".bodies ADD CHECK (value <> 'the-value')")
	err := s.Create(t.Context(), "the-key", []byte("the-value"), time.Hour)
	if err == nil || strings.Contains(err.Error(), "the-") || !strings.HasPrefix(err.Error(), "store/postgres: create: ") {
		t.Errorf("Create of what a constraint refuses: %v", err)
	}
}

// A caller that leaves costs no connection.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := openAll(t, Options{URL: server.URL(), MaxConns: 4}, 1)[0]
	must(t, s.Ping(t.Context()))
	made := s.pool.Stat().NewConnsCount()
	ctx, cancel := context.WithCancel(t.Context())
	must(t, s.write(ctx, "sleep", func(ctx context.Context, conn *pgx.Conn) error {
		left := make(chan struct{})
		time.AfterFunc(50*time.Millisecond, func() { cancel(); close(left) })
		_, err := conn.Exec(ctx, "SELECT pg_sleep(0.3)")
		<-left
		return err
	}))
	if ctx.Err() == nil {
		t.Error("the caller did not leave")
	}
	if err := s.Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Ping of a caller who has left: %v", err)
	}
	must(t, s.Ping(t.Context()))
	if n := s.pool.Stat().NewConnsCount() - made; n > 0 {
		t.Errorf("a caller who left cost %d connections", n)
	}
}

// A cutter stands between a client and a server. Set to n, it ends the connection instead
// of passing on the server's n-th answer from then on.
type cutter struct {
	net.Listener
	answers atomic.Int64
}

func startCutter(t *testing.T, server string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
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
		if err != nil || c.answers.Load() > 0 && c.answers.Add(-1) == 0 {
			return
		}
		if _, err := front.Write(answer[:n]); err != nil {
			return
		}
	}
}

// When the connection ends under a call, a read is sent again and a write is not: a Create
// would find its own record and say that it exists.
func TestConnectionEndsUnderACall(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	c := startCutter(t, server.Addr())
	url := strings.Replace(server.URL(), server.Addr(), c.Addr().String(), 1)
	s, ctx := openAll(t, Options{URL: url, Timeout: 20 * time.Second, MaxConns: 1}, 1)[0], t.Context()
	held, err := s.Acquire(ctx, "held", time.Hour)
	must(t, err)

	cut := func(answer int64, do func() error) error {
		t.Helper()
		for step, err := range everything(ctx, s) { // so that the connection knows the statements
			if err != nil {
				t.Fatalf("%s: %v", step, err)
			}
		}
		c.answers.Store(answer)
		err := do()
		if c.answers.Load() > 0 {
			t.Fatal("nothing was cut")
		}
		return err
	}
	wantOpen := func(step string, err error) {
		t.Helper()
		for _, outcome := range []error{nil, store.ErrExists, store.ErrConflict, store.ErrNotFound, store.ErrLost, store.ErrHeld} {
			if errors.Is(err, outcome) {
				t.Errorf("%s: %v, want an error that leaves the outcome open", step, err)
			}
		}
	}
	wantOpen("Create", cut(1, func() error { return s.Create(ctx, "k", []byte("v"), time.Hour) }))
	var r store.Record
	must(t, cut(1, func() (err error) { r, err = s.Get(ctx, "k"); return err }))
	if string(r.Value) != "v" {
		t.Errorf("Get after a Create whose answer was lost: %q", r.Value)
	}
	wantOpen("Replace", cut(1, func() error { return s.Replace(ctx, "k", r.Revision, []byte("w"), time.Hour) }))
	if r, err := s.Get(ctx, "k"); err != nil || string(r.Value) != "w" {
		t.Errorf("Get after a Replace whose answer was lost: %q, %v", r.Value, err)
	}
	wantOpen("Delete", cut(1, func() error { return s.Delete(ctx, "k") }))
	wantOpen("Touch", cut(1, func() error { return s.Touch(ctx, "k", time.Hour) }))
	wantOpen("Release", cut(1, func() error { return held.Release(ctx) }))

	// A transaction is done or not done.
	listed := 0
	for answer := range int64(2) { // to what is read, and to what is written and the COMMIT
		e := store.Entry{ID: fmt.Sprint("e", answer), Tenant: "other", User: "alice", Record: "k"}
		wantOpen("Admit", cut(answer+1, func() error { _, err := s.Admit(ctx, e, time.Hour, store.Limits{Total: 9}, ""); return err }))
		listed += one[int](t, s, "SELECT count(*) FROM entries WHERE id = $1", e.ID)
	}
	if seats := one[int](t, s, "SELECT sum(taken)::bigint FROM seats"); seats != listed || listed != 1 {
		t.Errorf("%d sessions are listed, with %d seats, where one was committed", listed, seats)
	}
	must(t, cut(1, func() error { return s.Ping(ctx) }))
}

// A-Z3: the primary is lost and its standby promoted. Nothing that was acknowledged is
// missing, and no record seems absent meanwhile.
func TestFailover(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name string
		lose func(*testenv.Postgres)
	}{
		{"killed", (*testenv.Postgres).Kill},
		{"hung", (*testenv.Postgres).Pause}, // whose connections end by our patience alone
	} {
		t.Run(fault.name, func(t *testing.T) {
			primary, standby := testenv.StartPostgresPair(t, testenv.PostgresOptions{})
			both := "postgres://" + testenv.PostgresUser + "@" + primary.Addr() + "," + standby.Addr() + "/postgres?sslmode=disable"
			nodes := openAll(t, Options{URL: both, Timeout: 300 * time.Millisecond, MaxConns: 3}, 2)
			feeding, stop := context.WithCancel(t.Context())
			f := watch(feeding, t, nodes[1])
			f.waitCurrent()

			ctx := t.Context()
			var acked sync.Map // keys by their last acknowledged value
			busy, idle := context.WithCancel(ctx)
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					for n := 0; busy.Err() == nil; n++ {
						key := fmt.Sprint("k", i, "-", n)
						if nodes[i%2].Create(ctx, key, []byte(key), time.Hour) == nil {
							acked.Store(key, true)
						}
						if _, err := nodes[i%2].Get(ctx, key); errors.Is(err, store.ErrNotFound) {
							if _, ok := acked.Load(key); ok {
								t.Errorf("%s is acknowledged and absent", key)
							}
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
			eventually(t, "Create", func() error { // which may have been done, though it was not heard
				err := nodes[0].Create(ctx, "watched", nil, time.Hour)
				if errors.Is(err, store.ErrExists) {
					return nil
				}
				return err
			})
			before := f.resets.Load()
			fault.lose(primary)
			eventually(t, "the outage", func() error {
				if nodes[0].Ping(ctx) == nil {
					return errors.New("was not noticed")
				}
				return nil
			})
			standby.Promote()
			for _, s := range nodes {
				eventually(t, "Create after the failover", func() error {
					return s.Create(ctx, fmt.Sprint("after ", time.Now().UnixNano()), nil, time.Hour)
				})
			}
			idle()
			wg.Wait()
			n := 0
			acked.Range(func(key, _ any) bool {
				n++
				eventually(t, "Get after the failover", func() error {
					_, err := nodes[n%2].Get(ctx, key.(string))
					if errors.Is(err, store.ErrNotFound) {
						t.Fatalf("%s is lost", key)
					}
					return err
				})
				return true
			})
			eventually(t, "the feed", func() error {
				if f.resets.Load() == before {
					return errors.New("was not reset")
				}
				return nil
			})
			f.waitCurrent()
			eventually(t, "Delete", func() error { return nodes[0].Delete(ctx, "watched") })
			f.waitChanged("watched")
			t.Logf("%d records acknowledged", n)
			stop()
			f.done()
		})
	}
}

// A standby serves reads, and to a write it says neither yes nor no. The first write after
// its promotion may find a connection from before.
func TestStandby(t *testing.T) {
	t.Parallel()
	primary, standby := testenv.StartPostgresPair(t, testenv.PostgresOptions{})
	url := inSchema(primary.URL())
	onPrimary := open(t, Options{URL: url})
	migrate(t, onPrimary)
	must(t, onPrimary.Create(t.Context(), "k", []byte("v"), time.Hour))
	s := open(t, Options{URL: strings.Replace(url, primary.Addr(), standby.Addr(), 1)})
	must(t, s.Ping(t.Context()))
	if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != "v" {
		t.Errorf("Get: %q, %v", r.Value, err)
	}
	for op, err := range everything(t.Context(), s) {
		switch op {
		case "get", "keys", "find", "ping":
		default:
			if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrHeld) || errors.Is(err, store.ErrLost) {
				t.Errorf("%s on a standby: %v", op, err)
			}
		}
	}
	made := s.pool.Stat().NewConnsCount()
	_ = s.Create(t.Context(), "new", nil, time.Hour)
	_ = s.Ping(t.Context())
	if s.pool.Stat().NewConnsCount() == made {
		t.Error("a connection that takes no writes is kept")
	}
	primary.Kill()
	standby.Promote()
	eventually(t, "Create after the promotion", func() error {
		return s.Create(t.Context(), fmt.Sprint(time.Now().UnixNano()), nil, time.Hour)
	})
}
