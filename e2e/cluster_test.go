package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// clusterOptions say how a cluster differs from the usual one: two nodes, the certified
// provider, a Redis that survives its own death, and the sample app behind every route.
type clusterOptions struct {
	port     int    // where HAProxy listens; 0: a free port
	client   client // zero: the certified provider is started
	third    bool   // there is a node-c
	store    string // YAML value of store; "": a Redis is started
	password string // of that Redis
	upstream string // "": the sample app
	routes   string // as in nodeOptions
	more     string
	logLevel string
	// each may change the options of one node; nil: all are alike.
	each func(name string, o *nodeOptions)
}

// A cluster is the example haproxy-redis: nodes that share a Redis, or another store, and
// a key ring, behind HAProxy, which hands out requests in turn.
type cluster struct {
	t        *testing.T
	url      string // of HAProxy, where browsers go
	host     string
	nodes    map[string]*node  // by the names that haproxy.cfg has for them
	redis    *testenv.Redis    // nil if the store was not started here
	provider *testenv.Provider // nil if it was not started here
}

func startCluster(t *testing.T, o clusterOptions) *cluster {
	t.Helper()
	testenv.RequireTool(t, "haproxy")
	o.port = cmp.Or(o.port, testenv.FreePort(t))
	c := &cluster{t: t, host: testenv.Loopback(o.port), nodes: map[string]*node{}}
	c.url = "http://" + c.host
	if o.store == "" {
		c.redis = testenv.StartRedis(t, testenv.RedisOptions{Persist: true, Password: o.password})
		o.store = redisStore(t, c.redis, patient, o.password)
	}
	if o.client == (client{}) {
		c.provider, o.client = startProvider(t, c.url)
	}
	node := nodeOptions{
		public:   c.url,
		client:   o.client,
		upstream: o.upstream,
		store:    o.store,
		keys:     newKeys(t),
		routes:   o.routes,
		more:     o.more,
		logLevel: o.logLevel,
	}
	if node.upstream == "" {
		node.upstream = startApp(t, "app")
	}
	config, err := os.ReadFile("../examples/haproxy-redis/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"node-a", "node-b"}
	if o.third {
		names = append(names, "node-c")
		config = append(config, "\tserver node-c \"${NODE_C}\"\n\tserver node-c-unready \"${NODE_C}\" no-check backup\n"...)
	}
	env := []string{"LISTEN=" + c.host}
	for _, name := range names {
		node := node
		if o.each != nil {
			o.each(name, &node)
		}
		c.nodes[name] = startNode(t, node)
		env = append(env, "NODE_"+strings.ToUpper(strings.TrimPrefix(name, "node-"))+"="+c.nodes[name].addr)
	}
	for _, n := range c.nodes {
		n.awaitSignIn()
	}
	testenv.StartHAProxy(t, c.host, string(config), env...)
	c.awaitNodes(names...)
	return c
}

// patient is a timeout of Redis that a busy machine does not reach.
const patient = 5 * time.Second

// redisStore returns a node's store in the YAML of a configuration. timeout is how long
// Redis may take to answer.
func redisStore(t *testing.T, r *testenv.Redis, timeout time.Duration, password string) string {
	t.Helper()
	passwordFile := ""
	if password != "" {
		file := filepath.Join(t.TempDir(), "redis-password")
		writeFile(t, file, password)
		passwordFile = ", password_file: " + file
	}
	return fmt.Sprintf("{driver: redis, redis: {url: %s, timeout: %s%s}}", r.URL(), timeout, passwordFile)
}

// servedBy says which node HAProxy had an answer from, "" if it answered itself.
func servedBy(page *testenv.Page) string { return page.Header.Get("X-Served-By") }

// awaitNodes waits until HAProxy gives requests to exactly these nodes.
func (c *cluster) awaitNodes(names ...string) {
	c.t.Helper()
	s := newSender(c.t)
	await(c.t, "HAProxy to use "+strings.Join(names, " and "), func() bool {
		var seen []string
		for range 2 * len(c.nodes) {
			page, err := s.send(request{url: c.url + "/ping"})
			if err != nil || page.Status != http.StatusOK {
				return false
			}
			seen = append(seen, servedBy(page))
		}
		slices.Sort(seen)
		return slices.Equal(slices.Compact(seen), names)
	})
}

// at asks one node, past HAProxy.
func (c *cluster) at(n *node, r request) request {
	r.url, r.host = n.url+r.url, c.host
	return r
}

// One sign-in, and every node serves. The sign-in itself begins on one node and is
// completed by the other.
func TestClusterSignIn(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	s := newSender(t)
	for _, user := range []string{"alice", "bob"} {
		g := signInGuest(t, c.url, user)
		served := map[string]int{}
		const requests = 20
		for range requests {
			page := s.mustSend(t, request{url: c.url + "/whoami", cookie: g.asCookie(), header: asScript})
			if err := g.isServed(page); err != nil {
				t.Error(err)
			}
			served[servedBy(page)]++
		}
		if served["node-a"] != requests/2 || served["node-b"] != requests/2 {
			t.Errorf("%s was served by %v, want both in turn", user, served)
		}
		// That was an odd number of requests: the next sign-in begins on the other node.
	}

	// Who did what is in the nodes' logs: the redirect to the provider, and the callback.
	began, completed := map[string]int{}, map[string]int{}
	for name, n := range c.nodes {
		for _, e := range n.entries() {
			switch {
			case e["msg"] != "request" || e["status"] != float64(http.StatusSeeOther):
			case e["path"] == "/oauth2/callback":
				completed[name]++
			case e["path"] == "/whoami":
				began[name]++
			}
		}
	}
	for _, counts := range []map[string]int{began, completed} {
		if counts["node-a"] != 1 || counts["node-b"] != 1 {
			t.Errorf("sign-ins begun: %v, completed: %v; want each node to do both once", began, completed)
		}
	}
}

// A-Z7, and the same with Redis: two hundred people are signed in and busy when
// something dies. Nobody loses the session, nobody becomes somebody else (G8), and
// nobody is sent to the provider.
func TestTwoHundredPeople(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	guests := signInGuests(t, c.url, 200)
	checkServed(t, c.url, guests)

	t.Run("kill -9 of a node", func(t *testing.T) {
		l := startLoad(t, c.url, guests, http.StatusBadGateway, http.StatusServiceUnavailable)
		l.awaitMore(t, http.StatusOK, len(guests))
		victim := c.nodes["node-a"]
		victim.Kill()
		l.awaitMore(t, http.StatusOK, 2*len(guests))
		c.awaitNodes("node-b")
		l.stop(t, "a node is killed")
		checkServed(t, c.url, guests)

		l = startLoad(t, c.url, guests, http.StatusBadGateway, http.StatusServiceUnavailable)
		victim.start()
		c.awaitNodes("node-a", "node-b")
		l.awaitMore(t, http.StatusOK, len(guests))
		l.stop(t, "the node is back")
	})

	t.Run("kill -9 of Redis", func(t *testing.T) {
		l := startLoad(t, c.url, guests, http.StatusBadGateway, http.StatusServiceUnavailable)
		l.awaitMore(t, http.StatusOK, len(guests))
		c.redis.Kill()
		l.awaitMore(t, http.StatusServiceUnavailable, len(guests))
		c.redis.Restart()
		c.awaitNodes("node-a", "node-b")
		l.awaitMore(t, http.StatusOK, 2*len(guests))
		l.stop(t, "Redis is killed and started again")
		checkServed(t, c.url, guests)
	})
}
