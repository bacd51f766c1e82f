package e2e

import (
	"net/http"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z14: Redis has no memory left and refuses writes. Nobody can sign in, nobody gets a
// cookie for a session that was not stored, and whoever is signed in is served.
func TestFullRedis(t *testing.T) {
	c := startCluster(t, clusterOptions{more: uses, each: everyRequestReads})
	guests := signInGuests(t, c.url, people)
	newcomers := make([]*testenv.Browser, 3*workers)
	for i := range newcomers {
		newcomers[i] = testenv.NewBrowser(t)
		signIn(t, newcomers[i], c.url+"/whoami", "alice")
	}
	said, clean := auditStore(t, c.nodes["node-a"])
	if !clean {
		t.Fatal(said)
	}

	l := startLoad(t, c.url, guests)
	l.awaitMore(t, http.StatusOK, len(guests))
	c.redis.Must("CONFIG", "SET", "maxmemory", "1")
	callbacks := make([]string, len(newcomers))
	var all errgroup.Group
	all.SetLimit(workers)
	for i, b := range newcomers {
		callbacks[i] = pendingCallback(t, b, c.url)
		held := cookieOf(b, c.url, sessionCookie)
		all.Go(func() error {
			page, err := b.Open(t.Context(), callbacks[i])
			if err != nil {
				return err
			}
			checkUnknown(t, "a callback", page)
			if cookieOf(b, c.url, sessionCookie) != held {
				t.Error("the session cookie changed")
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	// Long enough that uses have to be written down, which Redis refuses.
	l.awaitMore(t, http.StatusOK, 6*len(guests))
	for _, n := range c.nodes {
		awaitReady(t, l.sender, n, true)
	}
	c.redis.Must("CONFIG", "SET", "maxmemory", "0")
	for i, b := range newcomers {
		await(t, "the callback to be taken", func() bool {
			page, err := b.Open(t.Context(), callbacks[i])
			return err == nil && (guest{user: "alice"}).isServed(page) == nil
		})
	}
	l.awaitMore(t, http.StatusOK, len(guests))
	l.stop(t, "Redis is full")
	checkServed(t, c.url, guests)
	await(t, "the audit to find nothing", func() (clean bool) {
		said, clean = auditStore(t, c.nodes["node-a"])
		return clean
	})
	t.Log(said)
}
