package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// refreshOptions say how a cluster for refreshes differs from the usual one.
type refreshOptions struct {
	life   time.Duration // of access tokens, in whole seconds
	routes string        // as in nodeOptions
	// each may change the options of one node; nil: all are alike.
	each func(name string, o *nodeOptions)
	// redis is the store, where the test started it.
	redis *testenv.Redis
}

// A refreshingCluster is three nodes at the certified provider, whose token endpoint is
// behind a proxy that makes trouble.
type refreshingCluster struct {
	*cluster
	proxy *testenv.ProviderProxy
	life  time.Duration
}

func startRefreshing(t *testing.T, o refreshOptions) *refreshingCluster {
	t.Helper()
	port := testenv.FreePort(t)
	site := "http://" + testenv.Loopback(port)
	provider := testenv.StartProvider(t, testenv.ProviderOptions{
		RedirectURIs:        []string{site + "/oauth2/callback"},
		AccessTokenLifetime: o.life,
		Faults:              true,
	})
	if o.redis == nil {
		o.redis = testenv.StartRedis(t, testenv.RedisOptions{})
	}
	c := startCluster(t, clusterOptions{
		port:   port,
		client: client{issuer: provider.Issuer, id: provider.ClientID, secret: provider.ClientSecret},
		third:  true,
		store:  redisStore(t, o.redis, patient, ""),
		routes: o.routes,
		each: func(name string, n *nodeOptions) {
			n.env = []string{"SSL_CERT_FILE=" + provider.Proxy.CAFile}
			if o.each != nil {
				o.each(name, n)
			}
		},
	})
	c.provider, c.redis = provider, o.redis
	return &refreshingCluster{cluster: c, proxy: provider.Proxy, life: o.life}
}

// expire waits until the access tokens that are live now have ended. Nobody may be busy.
func (c *refreshingCluster) expire() { time.Sleep(c.life + 100*time.Millisecond) }

// refreshed returns how many refreshes the provider was given since the count began.
func (c *refreshingCluster) refreshed(since testenv.PassedRefreshes) int {
	return c.proxy.Passed().Total - since.Total
}

// checkOnce fails where any refresh token has reached the provider twice.
func (c *refreshingCluster) checkOnce(t *testing.T) {
	t.Helper()
	passed, seen := c.proxy.Passed(), c.provider.Refreshes()
	if passed.Most > 1 || seen.Most > 1 {
		t.Errorf("a refresh token was sent twice: %+v, the provider says %+v", passed, seen)
	}
}

// whoamiAt returns a guest's request to a node, past HAProxy.
func (c *refreshingCluster) whoamiAt(name string, g guest) request {
	return c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript})
}

// crowd sends count requests of a guest at once, in turn to all nodes, and returns once all
// are answered with 200.
func (c *refreshingCluster) crowd(t *testing.T, g guest, count int) {
	t.Helper()
	s := newSender(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	served := map[string]int{}
	for range count {
		all.Go(func() {
			page, err := s.send(request{url: c.url + "/whoami", cookie: g.asCookie(), header: asScript})
			if err == nil {
				err = g.isServed(page)
			}
			if err == nil && len(page.Header.Values("Set-Cookie")) > 0 {
				err = fmt.Errorf("the answer sets %q", page.Header.Values("Set-Cookie"))
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			served[servedBy(page)]++
			mu.Unlock()
		})
	}
	all.Wait()
	if len(served) < 2 {
		t.Errorf("served by %v alone", served)
	}
}

// awaitLease waits until some node has a lease to refresh a session.
func (c *refreshingCluster) awaitLease(t *testing.T) {
	t.Helper()
	await(t, "a lease", func() bool {
		leases, err := c.redis.Do("KEYS", "*l:refresh-*").AsStrSlice()
		return err == nil && len(leases) > 0
	})
}
