package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z7: kill -9 of one of three nodes, while people are busy and others sign in and out.
// The two that are left serve everybody, nobody's place stays taken, and what the dead
// node had begun is finished or gone when its time is over: list and store agree.
func TestKillOneNodeOfThree(t *testing.T) {
	const idle = 20 * time.Second // so long a sign-in that nobody was told of holds its place
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	slow := testenv.StartProxy(t, redis.Addr())
	slow.Latency(40 * time.Millisecond) // whatever node-c does takes long enough to be killed in it
	c := startCluster(t, clusterOptions{
		third: true,
		store: redisStore(t, redis, patient, ""),
		more:  fmt.Sprintf("session: {idle_timeout: %s, limits: {per_user: 1}}\n", idle),
		each: func(name string, o *nodeOptions) {
			if name == "node-c" {
				o.store = proxiedStore(slow, patient)
			}
		},
	})
	victim := c.nodes["node-c"]
	guests := signInGuests(t, c.url, people)
	staying, leaving := guests[workers:], guests[:workers]
	l := startLoad(t, c.url, staying, http.StatusBadGateway)
	l.awaitMore(t, http.StatusOK, len(staying))

	// Newcomers sign in, until some were about to when the node died.
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var newcomers sync.WaitGroup
	var arrived atomic.Int32
	var mu sync.Mutex
	var interrupted []string // users
	for range workers {
		newcomers.Go(func() {
			for ctx.Err() == nil {
				user := fmt.Sprintf("u%d", people+int(arrived.Add(1)))
				page, err := testenv.NewBrowser(t).SignIn(t.Context(), c.url+"/whoami", user)
				switch {
				case err != nil, page.Status == http.StatusBadGateway, page.Status == http.StatusBadRequest:
					// The last one: HAProxy broke the connection off, and the browser asked again.
					mu.Lock()
					interrupted = append(interrupted, user)
					mu.Unlock()
				default:
					if err := (guest{user: user}).isServed(page); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	await(t, "newcomers", func() bool { return arrived.Load() >= 4*workers })
	// From now on what is begun at node-c takes so long that most of them are there.
	slow.Heal()
	slow.Latency(500 * time.Millisecond)
	time.Sleep(2 * time.Second)
	var signOuts sync.WaitGroup
	s := newSender(t)
	for _, g := range leaving {
		signOuts.Go(func() {
			_, _ = s.send(c.at(victim, request{method: http.MethodPost, url: "/oauth2/sign_out", cookie: g.asCookie(), header: asScript}))
		})
	}
	time.Sleep(100 * time.Millisecond) // the entry is marked; what follows is not done
	victim.Kill()
	killed := time.Now()
	signOuts.Wait()
	c.awaitNodes("node-a", "node-b")
	enough()
	newcomers.Wait()
	l.recovered(t, killed)
	t.Logf("of %d newcomers %d were interrupted", arrived.Load(), len(interrupted))
	if len(interrupted) == 0 {
		t.Error("nobody was signing in at the node that was killed")
	}

	// The others use the place they have: they sign out, at any node, and in again.
	for _, g := range staying[:5] {
		checkDenied(t, c.url, g.user)
	}
	l.stop(t, "a node is killed")
	for i, g := range staying[:20] {
		c.signOut(t, s, c.nodes[c.names()[i%2]], g)
		signInGuest(t, c.url, g.user)
	}

	// Whose sign-in or sign-out was interrupted can sign in as soon as its traces are gone.
	for _, g := range leaving {
		interrupted = append(interrupted, g.user)
	}
	for _, user := range interrupted {
		await(t, user+"'s place to be free", func() bool {
			_, err := newGuest(t, testenv.NewBrowser(t), c.url, user)
			return err == nil
		})
	}
	t.Logf("all of them have signed in after %v", time.Since(killed).Round(time.Second))
	said := ""
	await(t, "the audit to find nothing", func() (clean bool) {
		said, clean = auditStore(t, c.nodes["node-a"])
		t.Log(said)
		return clean
	})
	t.Logf("after %v: %s", time.Since(killed).Round(time.Second), said)
}

// checkDenied tries to sign somebody in who has no place left.
func checkDenied(t *testing.T, site, user string) {
	t.Helper()
	b := testenv.NewBrowser(t)
	page, err := b.SignIn(t.Context(), site+"/whoami", user)
	if err != nil {
		t.Fatal(err)
	}
	if page.Status != http.StatusForbidden || cookieOf(b, site, sessionCookie) != "" {
		t.Errorf("%s signs in beyond the limit: %d %s", user, page.Status, firstLine(page.Body))
	}
}
