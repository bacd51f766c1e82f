package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
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
	// start starts its servers.
	start func(t *testing.T) opener
}

// An opener returns what each node of a fleet has of a store: connections of its own, on the
// same data. timeout is that of the driver. via says at which address a node reaches the
// server, where that is one; nil: its own.
type opener func(t *testing.T, timeout time.Duration, via func(addr string) string) []store.Backend

func engines() []engine {
	return []engine{
		{"sqlite", startSQLite},
		{"redis", startRedisStandalone},
		{"sentinel", startRedisSentinel},
		{"cluster", startRedisCluster},
		{"postgres", startPostgres},
	}
}

// proxiable returns those engines whose nodes can be made to go through a proxy. Clients of
// the others find the servers by themselves.
func proxiable() []engine {
	return slices.DeleteFunc(engines(), func(e engine) bool { return e.name != "redis" && e.name != "postgres" })
}

// startProxied starts an engine whose nodes have a proxy each before it, and whose judges
// have none.
func startProxied(t *testing.T, e engine) (nodes, judges []store.Backend, proxies []*testenv.Proxy) {
	t.Helper()
	open := e.start(t)
	nodes = open(t, time.Second, func(addr string) string {
		p := testenv.StartProxy(t, addr)
		proxies = append(proxies, p)
		return p.Addr()
	})
	return nodes, open(t, patient, nil), proxies
}

// startSQLite opens one store for all nodes: one process owns the file.
func startSQLite(t *testing.T) opener {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{File: filepath.Join(t.TempDir(), "coatcheck.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return func(*testing.T, time.Duration, func(string) string) []store.Backend {
		return slices.Repeat([]store.Backend{s}, fleetNodes)
	}
}

func startRedisStandalone(t *testing.T) opener {
	t.Helper()
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	return opens(func(ctx context.Context, timeout time.Duration, via func(string) string) (store.Backend, error) {
		return redis.Open(ctx, redis.Options{URL: "redis://" + via(server.Addr()) + "/0", Timeout: timeout})
	})
}

func startRedisSentinel(t *testing.T) opener {
	t.Helper()
	env := testenv.StartSentinel(t, testenv.SentinelOptions{})
	return opens(func(ctx context.Context, timeout time.Duration, _ func(string) string) (store.Backend, error) {
		where := &redis.Sentinel{Addresses: env.Addresses(), Master: testenv.SentinelMaster}
		return redis.Open(ctx, redis.Options{Sentinel: where, Timeout: timeout})
	})
}

func startRedisCluster(t *testing.T) opener {
	t.Helper()
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{})
	return opens(func(ctx context.Context, timeout time.Duration, _ func(string) string) (store.Backend, error) {
		return redis.Open(ctx, redis.Options{Cluster: &redis.Cluster{Addresses: env.Addresses()}, Timeout: timeout})
	})
}

func startPostgres(t *testing.T) opener {
	t.Helper()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	first, err := postgres.Open(t.Context(), postgres.Options{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, _, err := first.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return opens(func(ctx context.Context, timeout time.Duration, via func(string) string) (store.Backend, error) {
		url := strings.Replace(server.URL(), server.Addr(), via(server.Addr()), 1)
		return postgres.Open(ctx, postgres.Options{URL: url, Timeout: timeout})
	})
}

// opens returns an opener that opens a store for each node.
func opens(open func(context.Context, time.Duration, func(string) string) (store.Backend, error)) opener {
	return func(t *testing.T, timeout time.Duration, via func(string) string) []store.Backend {
		t.Helper()
		if via == nil {
			via = func(addr string) string { return addr }
		}
		var all []store.Backend
		for range fleetNodes {
			s, err := open(t.Context(), timeout, via)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			all = append(all, s)
		}
		return all
	}
}

// A fleet is some nodes as cmd/coatcheck wires them, without what stands before the
// sessions, in this process. It shares nothing with other fleets on the same store.
type fleet struct {
	testing.TB
	nodes  []*session.Manager
	judge  *session.Manager
	store  store.Backend // the judge's
	ledger ledger
}

// fleets tells them apart.
var fleets atomic.Int64

// fleetOptions say how a fleet differs from the usual one.
type fleetOptions struct {
	limits store.Limits
	// uncached turns off the near cache, which may serve for a moment what has just ended
	// elsewhere.
	uncached bool
	// judges are how what can be used is found out when nodes don't reach the store. Nil: as
	// the nodes do.
	judges []store.Backend
}

// newFleet starts a fleet whose nodes use one backend each, until the test ends.
func newFleet(t testing.TB, backends []store.Backend, o fleetOptions) *fleet {
	t.Helper()
	name := fmt.Sprintf("fleet%d", fleets.Add(1))
	base := session.Options{
		Ring: seal.NewRing(), Jar: cookie.New(name, "", true), Tenant: name,
		Idle: 30 * time.Minute, Absolute: 12 * time.Hour, Limits: o.limits, Tombstones: 10 * time.Minute,
	}
	f := &fleet{TB: t, ledger: ledger{limits: o.limits}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for i, b := range backends {
		quiet := slog.New(slog.DiscardHandler)
		// A crowd waits for its turn, on a busy machine for a while.
		kept := guard.New(b, guard.Options{Timeout: 2 * time.Minute, Logger: quiet})
		node := base
		node.Node = fmt.Sprint("node-", i)
		node.Store, node.Registry, node.Feed = kept, kept, kept
		node.Events = audit.New(audit.Options{Journal: kept, Logger: quiet, Node: node.Node})
		if !o.uncached {
			node.CacheSize, node.CacheLease = 1<<20, time.Second
		}
		m := session.New(node)
		running.Go(func() { m.Run(ctx) })
		f.nodes = append(f.nodes, m)
	}
	if o.judges == nil {
		o.judges = backends
	}
	for _, b := range o.judges {
		// Neither cache, breaker nor deadline is a part of the verdict.
		own := base
		own.Store, own.Registry = b, b
		m := session.New(own)
		f.judge, f.store = m, b
		f.ledger.judges = append(f.ledger.judges, &judge{usable: func(s sitting) (bool, error) {
			return served(m.Load(t.Context(), f.request(s.cookie)))
		}})
	}
	return f
}

// A sitting is what somebody holds who has signed in.
type sitting struct{ user, app, cookie string }

// handle returns the key of the session's record.
func (s sitting) handle() string {
	handle, _, _ := strings.Cut(s.cookie, ".")
	return handle
}

// ref returns the name of the session in lists.
func (s sitting) ref() coatcheck.Ref { return coatcheck.MakeRef(s.handle()) }

// served tells whether a request is served, from what Load returns.
func served(_ *session.Live, err error) (bool, error) {
	if errors.Is(err, session.ErrInvalid) {
		return false, nil
	}
	return err == nil, err
}

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
	if _, err := m.Begin(ctx, answer, f.request(carried), who, m.Now()); err != nil {
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

// use sends a request to a node, and tells whether it is served.
func (f *fleet) use(ctx context.Context, node int, held sitting) (bool, error) {
	return served(f.nodes[node%len(f.nodes)].Load(ctx, f.request(held.cookie)))
}

// signOut ends a session at a node, as its holder does.
func (f *fleet) signOut(ctx context.Context, node int, held sitting) error {
	m := f.nodes[node%len(f.nodes)]
	l, err := m.Load(ctx, f.request(held.cookie))
	if errors.Is(err, session.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.End(ctx, http.Header{}, nil, l, coatcheck.ReasonSignedOut)
}

// revoke ends a session at a node, as those do who run the site.
func (f *fleet) revoke(ctx context.Context, node int, held sitting) error {
	m := f.nodes[node%len(f.nodes)]
	for e, err := range m.Find(ctx, session.Query{Ref: held.ref()}) {
		if err != nil {
			return err
		}
		return m.Revoke(ctx, e, coatcheck.ReasonRevoked)
	}
	return nil // it has ended
}

// agreed looks at every cookie there ever was, and compares what can be used with what is
// listed. It is for when nothing is under way, and returns an error where that may become
// true yet.
func (f *fleet) agreed() (usable []sitting, err error) {
	f.Helper()
	usable, err = f.ledger.review(f)
	if err != nil {
		return nil, err
	}
	listed := map[coatcheck.Ref]bool{}
	for e, err := range f.judge.Find(f.Context(), session.Query{}) {
		if err != nil {
			return nil, err
		}
		if e.Ending != "" {
			return nil, fmt.Errorf("a session is still listed, ending as %s", e.Ending)
		}
		listed[e.Ref] = true
	}
	for _, s := range usable {
		if !listed[s.ref()] {
			f.Errorf("a session of %s can be used and is not listed", s.user)
		}
	}
	return usable, nil
}

// settled is agreed where nothing has failed: what can be used is all that is listed and
// stored, and that is as many as want.
func (f *fleet) settled(want int) []sitting {
	f.Helper()
	usable, err := f.agreed()
	if err != nil {
		f.Error(err)
	}
	a, err := f.judge.Audit(f.Context(), f.store, session.AuditPause)
	if err != nil {
		f.Error(err)
	}
	if len(usable) != want || a.Listed != want || a.Records != want || len(a.Findings) > 0 {
		f.Errorf("%d can be used, %d are listed and %d stored; want %d; %d findings", len(usable), a.Listed, a.Records, want, len(a.Findings))
	}
	return usable
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
