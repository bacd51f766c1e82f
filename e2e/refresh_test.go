package e2e

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// requests is how many come at once.
const requests = 100

// A-S5, A-S6: whatever comes at once over three nodes when an access token has ended waits
// for one refresh, and is served.
func TestRefreshOnce(t *testing.T) {
	t.Parallel() // it waits, most of the time
	c := startRefreshing(t, refreshOptions{life: 15 * time.Second})
	alice := signInGuest(t, c.url, "alice")
	checkOne := func(t *testing.T, before testenv.PassedRefreshes) {
		t.Helper()
		if n := c.refreshed(before); n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
		c.checkOnce(t)
	}

	t.Run("ahead of the end nobody waits", func(t *testing.T) {
		before := c.proxy.Passed()
		c.proxy.Fault(testenv.RefreshFaults{After: time.Hour})
		s := newSender(t)
		await(t, "a refresh", func() bool {
			page := s.mustSend(t, c.whoamiAt("node-a", alice))
			if err := alice.isServed(page); err != nil {
				t.Fatal(err)
			}
			return c.proxy.Waiting() == 1
		})
		c.crowd(t, alice, 30)
		if c.proxy.Waiting() != 1 {
			t.Error("nothing was under way meanwhile")
		}
		c.proxy.Fault(testenv.RefreshFaults{})
		await(t, "the new tokens", func() bool { return c.provider.Refreshes().Total == 1 && c.proxy.Waiting() == 0 })
		checkOne(t, before)
	})

	t.Run("at the end", func(t *testing.T) {
		c.expire()
		before := c.proxy.Passed()
		c.crowd(t, alice, requests)
		checkOne(t, before)
	})

	t.Run("the token endpoint takes 10 s", func(t *testing.T) {
		const delay = 10 * time.Second
		c.expire()
		before, began := c.proxy.Passed(), time.Now()
		c.proxy.Fault(testenv.RefreshFaults{Before: delay})
		c.crowd(t, alice, requests)
		if took := time.Since(began); took < delay {
			t.Errorf("served after %v", took)
		}
		c.proxy.Fault(testenv.RefreshFaults{})
		checkOne(t, before)
	})

	// Among those who hang up is the one whose request began the refresh.
	t.Run("clients hang up", func(t *testing.T) {
		c.expire()
		before := c.proxy.Passed()
		c.proxy.Fault(testenv.RefreshFaults{Before: time.Hour})
		ctx, hangUp := context.WithCancel(t.Context())
		var gone sync.WaitGroup
		for range requests {
			gone.Go(func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/whoami", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Cookie", alice.asCookie())
				if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
					t.Errorf("answered with %s before there were tokens", resp.Status)
					_ = resp.Body.Close()
				}
			})
		}
		await(t, "the refresh", func() bool { return c.proxy.Waiting() == 1 })
		hangUp()
		gone.Wait()
		time.AfterFunc(500*time.Millisecond, func() { c.proxy.Fault(testenv.RefreshFaults{}) })
		c.crowd(t, alice, requests)
		checkOne(t, before)
	})
	checkServed(t, c.url, []guest{alice})
}

// A-S6: the node that has the lease is stopped before it has sent anything. Another one
// refreshes when the lease is over; the first one, when it goes on, finds that out.
func TestRefreshHolderIsStopped(t *testing.T) {
	t.Parallel()
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	slow := testenv.StartProxy(t, redis.Addr())
	c := startRefreshing(t, refreshOptions{
		life:  20 * time.Second,
		redis: redis,
		each: func(name string, o *nodeOptions) {
			if name == "node-c" {
				o.store = proxiedStore(slow, 30*time.Second) // it believes what it is told late
			}
		},
	})
	alice := signInGuest(t, c.url, "alice")
	s := newSender(t)
	s.client.Timeout = 2 * time.Minute // node-c takes its time
	c.expire()
	slow.Latency(5 * time.Second) // for each answer, the one to its request for the lease too
	var all sync.WaitGroup
	ask := func(name string) {
		all.Go(func() {
			page, err := s.send(c.whoamiAt(name, alice))
			if err == nil {
				err = alice.isServed(page)
			}
			if err != nil {
				t.Errorf("at %s: %v", name, err)
			}
		})
	}
	ask("node-c")
	c.awaitLease(t)
	holder := c.nodes["node-c"]
	holder.Signal(syscall.SIGSTOP)
	stopped := time.Now()
	if passed := c.proxy.Passed(); passed.Total != 0 {
		t.Fatalf("%d refreshes before the holder was stopped", passed.Total)
	}
	for range 20 {
		ask("node-a")
		ask("node-b")
	}
	await(t, "another node to refresh", func() bool { return c.provider.Refreshes().Total == 1 })
	t.Logf("refreshed %v after the holder was stopped", time.Since(stopped).Round(100*time.Millisecond))
	holder.Signal(syscall.SIGCONT)
	all.Wait()
	slow.Heal()
	holder.Stop() // when it has ended what it was about
	c.awaitNodes("node-a", "node-b")
	if n := c.proxy.Passed().Total; n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
	c.checkOnce(t)
	checkServed(t, c.url, []guest{alice})
}

// The node that has sent a refresh token is killed before it has heard the answer. Nobody
// sends the token again: that person signs in once more, when the access token has ended,
// and is told why; nobody else does.
func TestRefreshHolderIsKilled(t *testing.T) {
	t.Parallel()
	const life = 15 * time.Second
	c := startRefreshing(t, refreshOptions{life: life})
	holder, s := "node-c", newSender(t)
	others := []guest{signInGuest(t, c.url, "bob"), signInGuest(t, c.url, "carol")}
	began := time.Now()
	b := testenv.NewBrowser(t)
	alice, err := newGuest(t, b, c.url, "alice")
	if err != nil {
		t.Fatal(err)
	}
	c.proxy.Fault(testenv.RefreshFaults{After: time.Hour})
	await(t, "the refresh", func() bool {
		if err := alice.isServed(s.mustSend(t, c.whoamiAt(holder, alice))); err != nil {
			t.Fatal(err)
		}
		return c.proxy.Waiting() == 1
	})
	c.nodes[holder].Kill()
	c.proxy.Fault(testenv.RefreshFaults{})
	if n := c.provider.Refreshes().Total; n != 1 {
		t.Fatalf("the provider has seen %d refreshes", n)
	}

	served := 0
	await(t, "the end of the session", func() bool {
		for _, name := range []string{"node-a", "node-b"} {
			page := s.mustSend(t, c.whoamiAt(name, alice))
			if page.Status == http.StatusUnauthorized {
				checkReason(t, alice, page, coatcheck.ReasonRefreshLost)
				return true
			}
			if err := alice.isServed(page); err != nil {
				t.Error(err)
			}
			served++
		}
		return false
	})
	if age := time.Since(began); age < life || served == 0 {
		t.Errorf("the session ended at the age of %v, after %d requests; the access token lives for %v", age, served, life)
	}
	for _, name := range []string{"node-a", "node-b"} {
		checkEnded(t, s, c.at(c.nodes[name], request{url: "/whoami"}), alice, coatcheck.ReasonRefreshLost)
		page := s.mustSend(t, c.at(c.nodes[name], request{url: "/whoami", cookie: alice.asCookie(), header: asNavigation}))
		if !strings.Contains(page.Body, "a server of this site failed") {
			t.Errorf("the page does not say why: %s", page.Body)
		}
	}
	before := c.provider.Counts()
	c.awaitNodes("node-a", "node-b")
	signInAgain(t, b, c.url, "alice")
	if n := c.provider.Counts().Authorize - before.Authorize; n != 1 {
		t.Errorf("%d sign-ins, want 1", n)
	}
	for _, g := range others {
		c.crowd(t, g, requests/4)
	}
	c.checkOnce(t)
	if n := c.provider.Refreshes().Refused; n != 0 {
		t.Errorf("the provider has refused %d refreshes", n)
	}
}

// A-Z12: while the provider can't be reached, whoever is signed in is served, also when the
// access token has ended. All of it is as before once the provider is back.
func TestRefreshWithoutAProvider(t *testing.T) {
	t.Parallel()
	c := startRefreshing(t, refreshOptions{life: 3 * time.Second})
	guests := signInGuests(t, c.url, 10)
	late := testenv.NewBrowser(t)
	signIn(t, late, c.url+"/whoami", "carol")
	callback := pendingCallback(t, late, c.url)

	c.proxy.Cut()
	before := c.proxy.Passed()
	l := startLoad(t, c.url, guests)
	time.Sleep(3 * c.life)
	page, err := late.Open(t.Context(), callback)
	if err != nil || page.Status != http.StatusBadGateway {
		t.Errorf("a callback: %+v, %v", page, err)
	}
	if n := c.refreshed(before); n != 0 {
		t.Errorf("%d refreshes have reached the provider", n)
	}
	c.proxy.Restore()
	await(t, "new tokens for everybody", func() bool { return c.refreshed(before) >= len(guests) })
	l.awaitMore(t, http.StatusOK, 5*len(guests))
	l.stop(t, "the provider could not be reached")
	signInGuest(t, c.url, "alice")
	c.checkOnce(t)
}

// What the provider says of a person holds from the next refresh on (A-S9), also that it is
// over (A-S7); and what ends meanwhile stays ended (A-L15).
func TestRefreshSaysWhoIsThere(t *testing.T) {
	t.Parallel()
	app := startApp(t, "app")
	c := startRefreshing(t, refreshOptions{
		life:   3 * time.Second,
		routes: "- {path: /, upstream: " + app + "}\n- {path: /admin/, strip_prefix: true, upstream: " + app + ", allow: {groups: [admins]}}\n",
	})
	s := newSender(t)

	t.Run("groups", func(t *testing.T) {
		alice := signInGuest(t, c.url, "alice")
		admin := func(name string) request {
			return c.at(c.nodes[name], request{url: "/admin/whoami", cookie: alice.asCookie(), header: asScript})
		}
		for _, name := range c.names() {
			if err := alice.isServed(s.mustSend(t, admin(name))); err != nil {
				t.Error(err)
			}
		}
		before := c.proxy.Passed()
		c.provider.SetGroups("alice", "guests")
		for _, name := range c.names() {
			await(t, "alice to be no admin at "+name, func() bool { return s.mustSend(t, admin(name)).Status == http.StatusForbidden })
			w := whoami(t, s.mustSend(t, c.whoamiAt(name, alice)), nil)
			if len(w.Groups) != 1 || w.Groups[0] != "guests" {
				t.Errorf("at %s alice is in %v", name, w.Groups)
			}
		}
		if c.refreshed(before) < 1 {
			t.Error("without a refresh")
		}
		c.provider.SetGroups("alice", "admins")
		await(t, "alice to be an admin", func() bool { return s.mustSend(t, admin("node-a")).Status == http.StatusOK })
	})

	t.Run("the account is disabled", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		bob, err := newGuest(t, b, c.url, "bob")
		if err != nil {
			t.Fatal(err)
		}
		c.provider.Disable("bob")
		c.awaitEnded(t, s, []guest{bob})
		for _, name := range c.names() {
			checkEnded(t, s, c.at(c.nodes[name], request{url: "/whoami"}), bob, coatcheck.ReasonRefreshRefused)
		}
		page, err := b.SignIn(t.Context(), c.url+"/oauth2/start?rd=/whoami", "bob")
		if err != nil || page.Status != http.StatusUnauthorized || !strings.HasPrefix(page.URL.String(), c.provider.Issuer) {
			t.Errorf("the next sign-in: %+v, %v", page, err)
		}
	})

	// A wrong secret is the operator's fault.
	t.Run("the client is refused", func(t *testing.T) {
		carol := signInGuest(t, c.url, "carol")
		n := c.nodes["node-b"]
		n.Stop()
		before := c.provider.Refreshes()
		writeFile(t, n.dir+"/client-secret", "not the client's secret")
		n.start()
		n.awaitSignIn()
		c.expire()
		for range 20 {
			if err := carol.isServed(s.mustSend(t, c.whoamiAt("node-b", carol))); err != nil {
				t.Error(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if after := c.provider.Refreshes(); after != before {
			t.Errorf("refreshes were %+v, are %+v", before, after)
		}
		if !strings.Contains(n.logged(), `"outcome":"misconfigured"`) {
			t.Error("the log does not say whose fault it is")
		}
		n.Stop()
		writeFile(t, n.dir+"/client-secret", c.provider.ClientSecret)
		n.start()
		n.awaitSignIn()
		c.awaitNodes(c.names()...)
		checkServed(t, c.url, []guest{carol})
	})

	t.Run("the session ends meanwhile", func(t *testing.T) {
		operator := c.operator()
		for name, tt := range map[string]struct {
			reason coatcheck.Reason
			end    func(guest)
		}{
			"signed out": {coatcheck.ReasonSignedOut, func(g guest) { c.signOut(t, s, c.nodes["node-b"], g) }},
			"revoked": {coatcheck.ReasonRevoked, func(g guest) {
				if err := revoke(t.Context(), operator, g); err != nil {
					t.Error(err)
				}
			}},
		} {
			t.Run(name, func(t *testing.T) {
				g := signInGuest(t, c.url, "u1")
				before := c.proxy.Passed()
				c.proxy.Fault(testenv.RefreshFaults{After: time.Hour})
				await(t, "the refresh", func() bool {
					if err := g.isServed(s.mustSend(t, c.whoamiAt("node-a", g))); err != nil {
						t.Fatal(err)
					}
					return c.proxy.Waiting() == 1
				})
				tt.end(g)
				c.proxy.Fault(testenv.RefreshFaults{})
				await(t, "the fresh token to be revoked", func() bool { return c.proxy.Passed().Revoked == before.Revoked+1 })
				for _, name := range c.names() {
					checkEnded(t, s, c.at(c.nodes[name], request{url: "/whoami"}), g, tt.reason)
				}
			})
		}
	})

	// It knows nobody's tokens any more, and nobody's session.
	t.Run("the provider has forgotten everything", func(t *testing.T) {
		c.checkOnce(t)
		b := testenv.NewBrowser(t)
		g, err := newGuest(t, b, c.url, "u2")
		if err != nil {
			t.Fatal(err)
		}
		c.provider.Restart()
		c.awaitEnded(t, s, []guest{g})
		checkEnded(t, s, request{url: c.url + "/whoami"}, g, coatcheck.ReasonRefreshRefused)
		signInAgain(t, b, c.url, "u2")
		if n := c.provider.Refreshes().Refused; n != 1 {
			t.Errorf("the provider has refused %d refreshes, want 1", n)
		}
	})
}

// signInAgain signs somebody in as the page does that says why a session has ended.
func signInAgain(t *testing.T, b *testenv.Browser, site, user string) {
	t.Helper()
	page, err := b.SignIn(t.Context(), site+"/oauth2/start?"+url.Values{"rd": {"/whoami"}}.Encode(), user)
	if err != nil {
		t.Fatal(err)
	}
	if err := (guest{user: user}).isServed(page); err != nil {
		t.Errorf("the next sign-in: %v", err)
	}
}
