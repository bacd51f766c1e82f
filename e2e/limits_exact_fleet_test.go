package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/guard"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

// fleetNodes is how many nodes a fleet has.
const fleetNodes = 3

// An engine is a kind of store that sessions are kept in.
type engine struct {
	name string
	// start starts its servers, and returns what a node has of it, for each node. via says
	// at which address a node reaches a server; it is asked by those engines alone whose
	// clients stay with the address that they are given.
	start func(t *testing.T, via func(addr string) string) []store.Backend
}

func engines() []engine {
	return []engine{
		{"sqlite", startSQLite},
		{"redis", startRedisStandalone},
		{"sentinel", startRedisSentinel},
		{"cluster", startRedisCluster},
		{"postgres", startPostgres},
	}
}

// direct is a via that leads to the server itself.
func direct(addr string) string { return addr }

// startSQLite returns one store as each of the nodes: one process owns the file.
func startSQLite(t *testing.T, _ func(string) string) []store.Backend {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{File: t.TempDir() + "/coatcheck.db"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return slices.Repeat([]store.Backend{s}, fleetNodes)
}

func startRedisStandalone(t *testing.T, via func(string) string) []store.Backend {
	t.Helper()
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	return openEach(t, func(ctx context.Context) (store.Backend, error) {
		return redis.Open(ctx, redis.Options{URL: "redis://" + via(server.Addr()) + "/0", Timeout: patient})
	})
}

func startRedisSentinel(t *testing.T, _ func(string) string) []store.Backend {
	t.Helper()
	env := testenv.StartSentinel(t, testenv.SentinelOptions{})
	return openEach(t, func(ctx context.Context) (store.Backend, error) {
		where := &redis.Sentinel{Addresses: env.Addresses(), Master: testenv.SentinelMaster}
		return redis.Open(ctx, redis.Options{Sentinel: where, Timeout: patient})
	})
}

func startRedisCluster(t *testing.T, _ func(string) string) []store.Backend {
	t.Helper()
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{})
	return openEach(t, func(ctx context.Context) (store.Backend, error) {
		return redis.Open(ctx, redis.Options{Cluster: &redis.Cluster{Addresses: env.Addresses()}, Timeout: patient})
	})
}

func startPostgres(t *testing.T, via func(string) string) []store.Backend {
	t.Helper()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	all := openEach(t, func(ctx context.Context) (store.Backend, error) {
		url := fmt.Sprintf("postgres://%s@%s/postgres?sslmode=disable", testenv.PostgresUser, via(server.Addr()))
		return postgres.Open(ctx, postgres.Options{URL: url, Timeout: patient})
	})
	if err := all[0].(*postgres.Store).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return all
}

// openEach opens a store with connections of its own for each node.
func openEach(t *testing.T, open func(context.Context) (store.Backend, error)) []store.Backend {
	t.Helper()
	var all []store.Backend
	for range fleetNodes {
		s, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		all = append(all, s)
	}
	return all
}

// A fleet is some nodes as cmd/coatcheck wires them, without what stands before the
// sessions, in this process. It shares nothing with other fleets on the same store.
type fleet struct {
	testing.TB
	nodes  []*session.Manager
	limits store.Limits
	ledger ledger
}

// fleets tells them apart.
var fleets atomic.Int64

// fleetOptions say how a fleet differs from the usual one.
type fleetOptions struct {
	limits store.Limits
	// judges reach the store when nodes don't. Nil: as the nodes do.
	judges []store.Backend
	// cacheSize is that of the near cache, which may serve what has just ended elsewhere.
	cacheSize int
}

// newFleet starts a fleet whose nodes use one backend each, until the test ends.
func newFleet(t testing.TB, backends []store.Backend, o fleetOptions) *fleet {
	t.Helper()
	name := fmt.Sprintf("fleet%d", fleets.Add(1))
	ring := seal.NewRing()
	manager := func(kept store.Backend, node int, events session.Recorder) *session.Manager {
		return session.New(session.Options{
			Store: kept, Registry: kept, Feed: kept, Events: events,
			Ring: ring, Jar: cookie.New(name, "", true), Tenant: name, Node: fmt.Sprint("node-", node),
			Idle: 30 * time.Minute, Absolute: 12 * time.Hour, Limits: o.limits, Tombstones: 10 * time.Minute,
			CacheSize: o.cacheSize, Lease: time.Second,
		})
	}
	s := &fleet{TB: t, limits: o.limits}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	if o.judges == nil {
		o.judges = backends
	}
	for i, b := range backends {
		quiet := slog.New(slog.DiscardHandler)
		kept := guard.New(b, guard.Options{Timeout: 2 * patient, Logger: quiet})
		node := manager(kept, i, audit.New(audit.Options{Journal: kept, Logger: quiet, Node: fmt.Sprint("node-", i)}))
		running.Go(func() { node.Run(ctx) })
		s.nodes = append(s.nodes, node)
		s.ledger.judges = append(s.ledger.judges, &judge{sessions: manager(o.judges[i], i, nil), records: o.judges[i]})
	}
	s.ledger.limits = o.limits
	s.ledger.gone = make(map[string]bool)
	return s
}

// A sitting is what somebody holds who has signed in: a cookie of the fleet.
type sitting struct{ user, app, cookie string }

// signIn signs a person in at a node, with the cookie that the browser has. It returns the
// new one, and writes it down as acknowledged.
func (f *fleet) signIn(ctx context.Context, node int, user, app, carried string) (sitting, error) {
	who := &coatcheck.Session{
		Provider: "test", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{Issuer: "https://idp.example", Subject: user},
		Origin:   coatcheck.Origin{App: app},
	}
	answer := http.Header{}
	m := f.nodes[node%len(f.nodes)]
	if _, err := m.Begin(ctx, answer, f.request(carried), who); err != nil {
		if len(answer) > 0 {
			f.Errorf("a sign-in failed, and set a cookie: %v", err)
		}
		return sitting{}, err
	}
	c, err := http.ParseSetCookie(answer.Get("Set-Cookie"))
	if err != nil {
		return sitting{}, fmt.Errorf("Set-Cookie: %w", err)
	}
	held := sitting{user, app, c.Value}
	f.ledger.acknowledged(held)
	return held, nil
}

// request returns the header of a request with a session cookie.
func (f *fleet) request(value string) http.Header {
	h := http.Header{}
	if value != "" {
		h.Set("Cookie", f.nodes[0].Jar.Session()+"="+value)
	}
	return h
}

// signOut ends a session at a node.
func (f *fleet) signOut(ctx context.Context, node int, held sitting) error {
	m := f.nodes[node%len(f.nodes)]
	l, err := m.Load(ctx, f.request(held.cookie))
	if errors.Is(err, session.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.End(ctx, http.Header{}, l, coatcheck.ReasonSignedOut)
}

// limited tells whether err says that a limit is reached.
func limited(err error) bool { return err != nil && coatcheck.CodeOf(err) == coatcheck.CodeLimit }

// atOnce runs do in n goroutines that start together.
func atOnce(n int, do func(i int)) {
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-start
			do(i)
		})
	}
	close(start)
	all.Wait()
}

// within polls until there is no complaint, and reports the last one after that time.
func within(t testing.TB, patience time.Duration, complaint func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := complaint()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %s: %v", patience, err)
			return
		}
	}
}
