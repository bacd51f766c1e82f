package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/redis"
)

// Invariant 6, A-Z7, with the program itself: one person signs in with two hundred browsers
// at three nodes, one of which is killed meanwhile. Of those browsers that got a cookie, no
// more can use it at any time than the limit allows.
func TestExactLimitsWhenANodeIsKilled(t *testing.T) {
	const signIns, limit = 200, 3
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	slow := testenv.StartProxy(t, server.Addr())
	slow.Latency(10 * time.Millisecond) // node-c is in the midst of something when it is killed
	port := testenv.FreePort(t)
	c := startCluster(t, clusterOptions{
		port:   port,
		client: startDevProvider(t, "http://"+testenv.Loopback(port)),
		third:  true,
		store:  redisStore(t, server, patient, ""),
		more:   fmt.Sprintf("session: {limits: {per_user: %d, on_limit: evict_oldest}}\n", limit),
		each: func(name string, o *nodeOptions) {
			if name == "node-c" {
				o.store = proxiedStore(slow, patient)
			}
		},
	})

	// What can be used is found out past the nodes: whoever holds a ticket is served as long
	// as its record is there.
	direct, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = direct.Close() })
	l := &ledger{limits: store.Limits{PerUser: limit}, judges: []*judge{{usable: func(s sitting) (bool, error) {
		_, err := direct.Get(t.Context(), s.handle())
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}}}}

	var group errgroup.Group
	group.SetLimit(workers)
	failed := make(chan string, signIns)
	for i := range signIns {
		b := testenv.NewBrowser(t)
		group.Go(func() error {
			if i == signIns/2 {
				c.nodes["node-c"].Kill()
			}
			page, err := b.SignIn(t.Context(), c.url+"/whoami", "alice")
			if cookie := cookieOf(b, c.url, sessionCookie); cookie != "" {
				l.acknowledged(sitting{user: "alice", cookie: cookie})
				l.look(t)
			} else if err != nil {
				failed <- err.Error()
			} else {
				failed <- fmt.Sprintf("%d at %s", page.Status, page.URL.Path)
			}
			return nil
		})
	}
	_ = group.Wait()
	close(failed)
	t.Logf("of %d sign-ins %d failed; %s", signIns, len(failed), l.report())
	for why := range failed {
		t.Logf("for instance: %s", why)
		break
	}
	if len(l.held) < signIns*3/4 || l.most < limit {
		t.Error("there was less to see than there should have been")
	}

	s := newSender(t)
	served := 0
	for _, held := range l.held {
		page := s.mustSend(t, request{url: c.url + "/whoami", cookie: sessionCookie + "=" + held.cookie, header: asScript})
		switch page.Status {
		case http.StatusOK:
			served++
		case http.StatusUnauthorized:
		default:
			t.Errorf("%d: %s", page.Status, firstLine(page.Body))
		}
	}
	if served > limit || served == 0 {
		t.Errorf("%d sessions are served, the limit is %d", served, limit)
	}
}
