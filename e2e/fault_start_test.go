package e2e

import (
	"net/http"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A node that starts without its store lives, says at /ready that it is not ready, answers
// 503, and serves as soon as the store is there. (TestStoreDown does it with one Redis.)
func TestStartWithoutStore(t *testing.T) {
	t.Parallel() // it waits, mostly
	for _, kind := range []struct {
		name  string
		start func(t *testing.T) (store string, stop, restart func())
	}{
		{"sentinel", func(t *testing.T) (string, func(), func()) {
			s := testenv.StartSentinel(t, testenv.SentinelOptions{Redis: testenv.RedisOptions{Persist: true}})
			return eachRedis(sentinelStore(s), s.Servers(), s.Sentinels())
		}},
		{"cluster", func(t *testing.T) (string, func(), func()) {
			c := testenv.StartRedisCluster(t, testenv.ClusterOptions{Redis: testenv.RedisOptions{Persist: true}})
			return eachRedis(clusterStore(c), c.Nodes())
		}},
		{"postgres", func(t *testing.T) (string, func(), func()) {
			p := testenv.StartPostgres(t, testenv.PostgresOptions{})
			return postgresStore(p), p.Stop, p.Restart
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			store, stop, restart := kind.start(t)
			port := testenv.FreePort(t)
			o := nodeOptions{
				port:     port,
				client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
				upstream: startApp(t, "app"),
				store:    store,
				keys:     newKeys(t),
			}
			n := newNode(t, o)
			if kind.name == "postgres" {
				migrate(t, o)
			}
			n.start()
			n.awaitSignIn()
			alice := signInGuest(t, n.url, "alice")

			n.Stop()
			stop()
			n.options.notReady = true
			n.start()
			s := newSender(t)
			awaitReady(t, s, n, false)
			for range 3 {
				checkUnknown(t, "a session", s.mustSend(t, request{url: n.url + "/whoami", cookie: alice.asCookie(), header: asScript}))
			}
			if page := s.mustSend(t, request{url: n.url + "/ping"}); page.Status != http.StatusOK {
				t.Errorf("/ping: %d", page.Status)
			}
			restart()
			awaitReady(t, s, n, true)
			await(t, "the breaker to close", func() bool { return n.breaker("read") == "closed" })
			checkServed(t, n.url, []guest{alice})
			signInGuest(t, n.url, "bob")
		})
	}
}

// eachRedis returns a store, and what stops and starts all of its servers.
func eachRedis(store string, lists ...[]*testenv.Redis) (string, func(), func()) {
	each := func(do func(*testenv.Redis)) func() {
		return func() {
			for _, list := range lists {
				for _, r := range list {
					do(r)
				}
			}
		}
	}
	return store, each((*testenv.Redis).Stop), each((*testenv.Redis).Restart)
}
