package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/session"
)

// startLogoutCluster runs three nodes at the certified provider, which sends its back-channel
// logouts to the URI that logoutURI makes of the site's.
func startLogoutCluster(t *testing.T, o clusterOptions, logoutURI func(site string) string) *cluster {
	t.Helper()
	o.port, o.third = testenv.FreePort(t), true
	site := "http://" + testenv.Loopback(o.port)
	provider := testenv.StartProvider(t, testenv.ProviderOptions{
		RedirectURIs:           []string{site + "/oauth2/callback"},
		PostLogoutRedirectURIs: []string{site + "/oauth2/sign_out/done"},
		BackchannelLogoutURI:   logoutURI(site + "/oauth2/backchannel-logout"),
	})
	o.client = client{issuer: provider.Issuer, id: provider.ClientID, secret: provider.ClientSecret}
	c := startCluster(t, o)
	c.provider = provider
	return c
}

func asItIs(uri string) string { return uri }

// leaveProvider signs a person out at the provider, with the browser that signed in there. It
// returns when the provider has told everybody, or has given up.
func (c *cluster) leaveProvider(ctx context.Context, b *testenv.Browser) error {
	page, err := b.Open(ctx, c.provider.Issuer+"/session/end")
	if err == nil {
		page, err = b.Submit(ctx, page, nil)
	}
	if err == nil && (page.Status != http.StatusOK || !strings.Contains(page.Body, "Signed out")) {
		err = fmt.Errorf("the provider's sign-out ends with %d %s", page.Status, firstLine(page.Body))
	}
	return err
}

// denials waits until every node denies a guest, and returns how long that took from since
// on. It fails the test for a node that does not within bound.
func (c *cluster) denials(t *testing.T, s *sender, g guest, reason coatcheck.Reason, since time.Time, bound time.Duration) []time.Duration {
	t.Helper()
	delays := make([]time.Duration, len(c.nodes))
	var nodes sync.WaitGroup
	for i, name := range c.names() {
		nodes.Go(func() {
			for {
				sent := time.Since(since)
				page, err := s.send(c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
				switch {
				case err != nil:
					t.Error(err)
					return
				case page.Status == http.StatusUnauthorized:
					checkReason(t, g, page, reason)
					delays[i] = sent
					return
				case sent > bound:
					t.Errorf("%s is served at %s %v after the session has ended", g.user, name, sent)
					return
				}
			}
		})
	}
	nodes.Wait()
	return delays
}

// quantiles describes durations.
func quantiles(d []time.Duration) string {
	slices.Sort(d)
	n := len(d)
	return fmt.Sprintf("%v in the middle, %v at the 99th percentile, %v at most",
		d[n/2].Round(time.Microsecond), d[n*99/100].Round(time.Microsecond), d[n-1].Round(time.Microsecond))
}

// A-L4, A-L16: two hundred people sign out at the provider, which says so through HAProxy to
// whichever node. They are nobody at all nodes, and everybody else stays.
func TestBackChannelLogout(t *testing.T) {
	const lease = time.Second // the default of cache.lease
	c := startLogoutCluster(t, clusterOptions{}, asItIs)
	s := newSender(t)
	const people = 200
	guests, browsers := make([]guest, people), make([]*testenv.Browser, people)
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range guests {
		browsers[i] = testenv.NewBrowser(t)
		group.Go(func() (err error) {
			guests[i], err = newGuest(t, browsers[i], c.url, fmt.Sprintf("u%d", i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	second := signInGuest(t, c.url, "u0") // on another device, in another session of the provider's
	bob := signInGuest(t, c.url, "bob")

	var logouts, delays []time.Duration
	for i, g := range guests {
		for _, name := range c.names() { // each has it in its near cache
			page := s.mustSend(t, c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
			if err := g.isServed(page); err != nil {
				t.Fatalf("at %s: %v", name, err)
			}
		}
		began := time.Now()
		if err := c.leaveProvider(t.Context(), browsers[i]); err != nil {
			t.Fatal(err)
		}
		told := time.Now()
		logouts = append(logouts, told.Sub(began))
		delays = append(delays, c.denials(t, s, g, coatcheck.ReasonBackChannel, told, lease)...)
	}
	t.Logf("%d logouts, %d nodes: the provider's sign-out with our answer took %s", people, len(c.nodes), quantiles(logouts))
	t.Logf("after that answer a node denied after %s", quantiles(delays))

	checkServed(t, c.url, []guest{second, bob})
	checkEnded(t, s, request{url: c.url + "/whoami"}, guests[0], coatcheck.ReasonBackChannel)
	total := 0
	for name, n := range c.nodes {
		carried := 0
		for _, e := range n.entries() {
			if e["msg"] == "request" && e["path"] == "/oauth2/backchannel-logout" {
				carried++
				if e["status"] != float64(http.StatusOK) {
					t.Errorf("%s answered a logout with %v", name, e["status"])
				}
			}
		}
		if carried == 0 {
			t.Errorf("%s has carried out no logout", name)
		}
		total += carried
	}
	if total != people {
		t.Errorf("the nodes answered %d logouts, want %d", total, people)
	}
}

// A-L4: what is open ends with the provider's session, on every node.
func TestBackChannelLogoutClosesStreams(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLogoutCluster(t, clusterOptions{}, asItIs)
	b := testenv.NewBrowser(t)
	alice, err := newGuest(t, b, c.url, "alice")
	if err != nil {
		t.Fatal(err)
	}
	_, bobs := c.dial(signInGuest(t, c.url, "bob"))
	sockets := map[string]*websocket.Conn{}
	for range c.nodes {
		node, conn := c.dial(alice)
		sockets[node] = conn
	}
	if len(sockets) != len(c.nodes) {
		t.Fatalf("not one WebSocket for each node: %v", sockets)
	}
	if err := c.leaveProvider(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for node, conn := range sockets {
		_, _, err := conn.Read(ctx)
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.StatusPolicyViolation || closed.Reason != "session_ended" {
			t.Errorf("%s: the WebSocket ended with %v", node, err)
		}
	}
	t.Logf("all closed after %v", time.Since(ended).Round(time.Millisecond))
	if err := bobs.Write(ctx, websocket.MessageText, []byte("still here")); err != nil {
		t.Errorf("bob's WebSocket: %v", err)
	}
	if _, got, err := bobs.Read(ctx); err != nil || string(got) != "still here" {
		t.Errorf("bob's WebSocket answers %q, %v", got, err)
	}
}

// A tap stands between the provider and the site, and keeps the logouts that pass.
type tap struct {
	mu     sync.Mutex
	bodies []string
	status []int
}

// startTap returns a tap, and what makes its URI of the one that it leads to.
func startTap(t *testing.T) (p *tap, uri func(string) string) {
	p = new(tap)
	target := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(string(body)))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Content-Type", r.Header.Get("Content-Type"))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		p.mu.Lock()
		p.bodies, p.status = append(p.bodies, string(body)), append(p.status, resp.StatusCode)
		p.mu.Unlock()
		w.WriteHeader(resp.StatusCode)
	}))
	t.Cleanup(server.Close)
	return p, func(uri string) string { target = uri; return server.URL }
}

// last waits for the n-th logout, and returns its body and how it was answered.
func (p *tap) last(t *testing.T, n int) (body string, status int) {
	t.Helper()
	await(t, "the provider's logout", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.bodies) == n
	})
	return p.bodies[n-1], p.status[n-1]
}

// A-L9: what has ended a session can't end the one after it. And no node says "ended" while
// the store can't be reached: the logout works when it comes again, at any node.
func TestBackChannelLogoutAgain(t *testing.T) {
	t.Parallel() // it waits, mostly
	taps, uri := startTap(t)
	c := startLogoutCluster(t, clusterOptions{}, uri)
	s := newSender(t)
	send := func(name, body string) *testenv.Page {
		return s.mustSend(t, c.at(c.nodes[name], request{
			method: http.MethodPost, url: "/oauth2/backchannel-logout", body: body,
			header: []string{"Content-Type", "application/x-www-form-urlencoded"},
		}))
	}
	b := testenv.NewBrowser(t)
	signIn := func() guest {
		g, err := newGuest(t, b, c.url, "alice")
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := signIn()
	if err := c.leaveProvider(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	body, status := taps.last(t, 1)
	if status != http.StatusOK {
		t.Fatalf("the logout was answered %d", status)
	}
	checkEnded(t, s, request{url: c.url + "/whoami"}, first, coatcheck.ReasonBackChannel)
	if page, err := b.Open(t.Context(), c.url+"/whoami"); err != nil || page.Status != http.StatusUnauthorized {
		t.Fatalf("alice is told why with %+v, %v", page, err)
	}
	second := signIn()
	for _, name := range c.names() {
		if page := send(name, body); page.Status != http.StatusBadRequest || page.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("a replay at %s: %d %v", name, page.Status, page.Header)
		}
	}
	checkServed(t, c.url, []guest{second})

	c.redis.Kill()
	if err := c.leaveProvider(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	body, status = taps.last(t, 2)
	if status != http.StatusServiceUnavailable {
		t.Errorf("without a store the logout was answered %d", status)
	}
	for _, name := range c.names() {
		if page := send(name, body); page.Status != http.StatusServiceUnavailable || page.Header.Get("Retry-After") == "" {
			t.Errorf("without a store %s answers %d", name, page.Status)
		}
	}
	c.redis.Restart()
	c.awaitNodes(c.names()...)
	checkServed(t, c.url, []guest{second})
	if page := send("node-b", body); page.Status != http.StatusOK || page.Header.Get("Cache-Control") != "no-store" || page.Body != "" {
		t.Errorf("when the store is back: %d %s", page.Status, page.Body)
	}
	c.denials(t, s, second, coatcheck.ReasonBackChannel, time.Now(), time.Second)
	if page := send("node-c", body); page.Status != http.StatusBadRequest {
		t.Errorf("after that a replay gets %d", page.Status)
	}
}

// A-L5 to A-L13 at a running node: whatever strangers send ends nothing, and the front
// channel ends what it names.
func TestLogoutByStrangers(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLogoutCluster(t, clusterOptions{}, asItIs)
	s := newSender(t)
	alice, bob := signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "bob")
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, r := range []request{
		{method: http.MethodGet, url: "/oauth2/backchannel-logout?logout_token=x"},
		{method: http.MethodPost, url: "/oauth2/backchannel-logout", body: `{"logout_token":"x"}`, header: []string{"Content-Type", "application/json"}},
		{method: http.MethodPost, url: "/oauth2/backchannel-logout", body: "logout_token=x&logout_token=x", header: form},
		{method: http.MethodPost, url: "/oauth2/backchannel-logout", body: "logout_token=eyJhbGciOiJub25lIn0.e30.", header: form},
		{method: http.MethodPost, url: "/oauth2/backchannel-logout", body: "logout_token=" + strings.Repeat("a", 1<<20), header: form},
		{method: http.MethodGet, url: "/oauth2/frontchannel-logout?iss=" + url.QueryEscape(c.provider.Issuer)},
		{method: http.MethodGet, url: "/oauth2/frontchannel-logout?sid=x&iss=https://other.example"},
	} {
		r.url, r.cookie = c.url+r.url, alice.asCookie()
		if page := s.mustSend(t, r); page.Status != http.StatusBadRequest && page.Status != http.StatusMethodNotAllowed || len(page.Header["Set-Cookie"]) > 0 {
			t.Errorf("%s %s: %d %v", r.method, r.url, page.Status, page.Header)
		}
	}
	checkServed(t, c.url, []guest{alice, bob})

	sid := ""
	for e, err := range c.operator().Find(t.Context(), session.Query{Ref: refOfGuest(alice)}) {
		if err != nil {
			t.Fatal(err)
		}
		sid = e.SID
	}
	page := s.mustSend(t, request{url: c.url + "/oauth2/frontchannel-logout?iss=" + url.QueryEscape(c.provider.Issuer) + "&sid=" + url.QueryEscape(sid)})
	if csp := page.Header.Get("Content-Security-Policy"); page.Status != http.StatusOK || page.Header.Get("Cache-Control") != "no-store" ||
		!strings.HasSuffix(csp, "frame-ancestors "+c.provider.Issuer) || page.Header["X-Frame-Options"] != nil {
		t.Errorf("the front channel: %d %v", page.Status, page.Header)
	}
	c.denials(t, s, alice, coatcheck.ReasonFrontChannel, time.Now(), time.Second)
	checkServed(t, c.url, []guest{bob})
}
