package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// people is how many are signed in when something breaks.
const people = 200

// uses makes sessions in use write to the store every few seconds, and not every half minute.
const uses = "session: {idle_timeout: 1m}\n"

// sentinelStore returns a store that sentinels watch over, in YAML.
func sentinelStore(s *testenv.Sentinel) string {
	return fmt.Sprintf("{driver: redis, redis: {sentinel: {addresses: %s, master: %s}, timeout: %s}}", flow(s.Addresses()), testenv.SentinelMaster, patient)
}

// clusterStore returns a Redis Cluster, in YAML.
func clusterStore(c *testenv.RedisCluster) string {
	return fmt.Sprintf("{driver: redis, redis: {cluster: {addresses: %s}, timeout: %s}}", flow(c.Addresses()), patient)
}

// postgresStore returns one or several PostgreSQL servers, in YAML.
func postgresStore(servers ...*testenv.Postgres) string {
	var hosts []string
	for _, s := range servers {
		hosts = append(hosts, s.Addr())
	}
	return fmt.Sprintf("{driver: postgres, postgres: {url: \"postgres://%s@%s/postgres?sslmode=disable\", timeout: %s}}",
		testenv.PostgresUser, strings.Join(hosts, ","), patient)
}

// flow writes a list of addresses in YAML.
func flow(list []string) string { return `["` + strings.Join(list, `", "`) + `"]` }

// proxiedStore returns a Redis behind a proxy, in YAML.
func proxiedStore(p *testenv.Proxy, timeout time.Duration) string {
	return fmt.Sprintf("{driver: redis, redis: {url: redis://%s/0, timeout: %s}}", p.Addr(), timeout)
}

// breaker returns the name of the state that a node's breaker of those calls is in.
func (n *node) breaker(calls string) string {
	n.t.Helper()
	return [...]string{"closed", "half-open", "open"}[int(n.metric(fmt.Sprintf("coatcheck_store_breaker_state{calls=%q}", calls)))]
}

// A goroutineCount is how many goroutines of each node are in the code of sessions and of
// the store.
type goroutineCount map[*node]int

func countGoroutines(c *cluster) goroutineCount {
	c.t.Helper()
	counts := goroutineCount{}
	for _, n := range c.nodes {
		counts[n] = n.atStore()
	}
	return counts
}

func (n *node) atStore() (count int) {
	n.t.Helper()
	all, err := get(n.admin + "/debug/pprof/goroutine?debug=2")
	if err != nil {
		n.t.Fatal(err)
	}
	for stack := range strings.SplitSeq(all, "\n\n") {
		if strings.Contains(stack, "coatcheck/session.") || strings.Contains(stack, "coatcheck/store/") {
			count++
		}
	}
	return count
}

// awaitBack waits until no node does more than what it always does beside requests.
func (before goroutineCount) awaitBack(t *testing.T) {
	t.Helper()
	const spare = 5
	for n, count := range before {
		await(t, "a node's goroutines to end", func() bool { return n.atStore() <= count+spare })
	}
}

// names returns the nodes' names, in order.
func (c *cluster) names() []string { return slices.Sorted(maps.Keys(c.nodes)) }

// signOut ends a session at one node, as a script does it.
func (c *cluster) signOut(t *testing.T, s *sender, n *node, g guest) {
	t.Helper()
	page := s.mustSend(t, c.at(n, request{method: http.MethodPost, url: "/oauth2/sign_out", cookie: g.asCookie(), header: asScript}))
	if cleared := page.Header.Get("Set-Cookie"); !strings.HasPrefix(cleared, sessionCookie+"=;") {
		t.Fatalf("%s signs out: %d, Set-Cookie %q: %s", g.user, page.Status, cleared, firstLine(page.Body))
	}
}

// awaitEnded waits until no node serves somebody any more.
func (c *cluster) awaitEnded(t *testing.T, s *sender, gone []guest) {
	t.Helper()
	for _, g := range gone {
		for _, name := range c.names() {
			r := c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript})
			await(t, g.user+" to be nobody at "+name, func() bool { return s.mustSend(t, r).Status == http.StatusUnauthorized })
		}
	}
}

// checkLogs fails where a node has logged a text.
func (c *cluster) checkLogs(t *testing.T, never ...string) {
	t.Helper()
	for name, n := range c.nodes {
		for line := range strings.Lines(n.Output()) {
			for _, text := range never {
				if strings.Contains(line, text) {
					t.Errorf("%s logs %s", name, firstLine(line))
				}
			}
		}
	}
}

// auditStore runs coatcheck store audit, and returns what it says and whether it found
// nothing.
func auditStore(t *testing.T, n *node) (said string, clean bool) {
	t.Helper()
	out, err := exec.Command(program(t), "store", "audit", "--config", n.config).CombinedOutput()
	return string(out), err == nil
}

// awaitReplicated waits until a replica has all that a primary has acknowledged until now.
// Redis promises nothing about what it acknowledges after that, if the primary dies.
func awaitReplicated(t *testing.T, primary *testenv.Redis) {
	t.Helper()
	number := func(key string) int64 {
		message := primary.Must("INFO", "replication")
		text, err := message.ToString()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(text, key)
		n, err := strconv.ParseInt(rest[:max(strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }), 0)], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	acknowledged := number("master_repl_offset:")
	await(t, "the replica to have it all", func() bool { return acknowledged >= 0 && number(",offset=") >= acknowledged })
}
