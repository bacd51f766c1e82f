package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z13: an app hangs, and takes a thousand requests with it. Who comes then is told so at
// once, on every route that leads there; other apps serve as before; and when the app is
// back, all of it is, and nothing is left behind.
func TestOneAppHangs(t *testing.T) {
	const places = 1000 // the default of limits.upstream_requests
	var hangs atomic.Bool
	var waiting atomic.Int32
	healed := make(chan struct{})
	app := sampleapp.New(sampleapp.Options{Name: "app"})
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			waiting.Add(1)
			select {
			case <-healed:
			case <-r.Context().Done():
			}
			waiting.Add(-1)
		}
		app.ServeHTTP(w, r)
	}))
	t.Cleanup(hanging.Close)
	port := testenv.FreePort(t)
	n := startNode(t, nodeOptions{
		port:   port,
		client: startDevProvider(t, "http://"+testenv.Loopback(port)),
		routes: fmt.Sprintf("- {path: /, upstream: %[1]s}\n- {path: /too/, strip_prefix: true, upstream: %[1]s}\n"+
			"- {path: /other/, strip_prefix: true, upstream: %[2]s}\n", hanging.URL, startApp(t, "other")),
	})
	n.awaitSignIn()
	alice := signInGuest(t, n.url, "alice")
	s := newSender(t)
	s.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 2 * places
	s.client.Timeout = 5 * time.Minute // they wait
	at := func(path string, header []string) *testenv.Page {
		t.Helper()
		return s.mustSend(t, request{url: n.url + path, cookie: alice.asCookie(), header: header})
	}
	served := func(path string) {
		t.Helper()
		if err := alice.isServed(at(path, asScript)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	served("/other/whoami")
	before := n.goroutines()

	hangs.Store(true)
	var visitors errgroup.Group
	for range places {
		visitors.Go(func() error {
			page, err := s.send(request{url: n.url + "/whoami", cookie: alice.asCookie(), header: asScript})
			if err != nil {
				return err
			}
			return alice.isServed(page)
		})
	}
	await(t, "a thousand requests to hang", func() bool { return waiting.Load() == places })

	for _, path := range []string{"/whoami", "/too/whoami"} {
		start := time.Now()
		page := at(path, asScript)
		checkUnknown(t, path, page) // 503, and to be tried again
		if !strings.Contains(page.Body, `"error":"upstream_busy"`) {
			t.Errorf("%s: %s", path, page.Body)
		}
		if page = at(path, asNavigation); page.Status != http.StatusServiceUnavailable || !strings.Contains(page.Body, "<h1>The application is busy</h1>") {
			t.Errorf("%s: %d %s", path, page.Status, page.Body)
		}
		t.Logf("%s is refused twice in %v", path, time.Since(start).Round(time.Millisecond))
	}
	for range 20 {
		served("/other/whoami")
	}
	if page := at("/oauth2/userinfo", asScript); page.Status != http.StatusOK {
		t.Errorf("userinfo: %d", page.Status)
	}
	bob := signInGuestAt(t, n.url, "/other/whoami", "bob") // somebody signs in meanwhile
	if page := s.mustSend(t, request{url: n.url + "/other/whoami", cookie: bob.asCookie(), header: asScript}); bob.isServed(page) != nil {
		t.Error(bob.isServed(page))
	}
	if got := n.metric(fmt.Sprintf("coatcheck_upstream_requests{upstream=%q}", hanging.URL)); got != places {
		t.Errorf("%v requests are under way", got)
	}
	if got := n.metric(fmt.Sprintf("coatcheck_upstream_refused_total{upstream=%q}", hanging.URL)); got != 4 {
		t.Errorf("%v requests were refused, want 4", got)
	}

	hangs.Store(false)
	close(healed)
	if err := visitors.Wait(); err != nil {
		t.Errorf("one who waited: %v", err)
	}
	served("/whoami")
	served("/too/whoami")
	s.client.CloseIdleConnections()
	if got := n.metric(fmt.Sprintf("coatcheck_upstream_requests{upstream=%q}", hanging.URL)); got != 0 {
		t.Errorf("%v requests are under way", got)
	}
	hanging.CloseClientConnections() // those that the node keeps for later
	await(t, fmt.Sprintf("the node's %v goroutines to be all", before), func() bool { return n.goroutines() <= before+5 })
}

// goroutines returns how many a node has.
func (n *node) goroutines() float64 { return n.metric("go_goroutines") }

// metric returns the value of a metric, by its name and labels.
func (n *node) metric(name string) float64 {
	n.t.Helper()
	text, err := get(n.admin + "/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	_, rest, found := strings.Cut(text, "\n"+name+" ")
	value, err := strconv.ParseFloat(firstLine(rest), 64)
	if !found || err != nil {
		n.t.Fatalf("the metrics have no %s", name)
	}
	return value
}

// signInGuestAt signs a person in with a browser of their own, who wants to go to a path.
func signInGuestAt(t *testing.T, site, path, user string) guest {
	t.Helper()
	b := testenv.NewBrowser(t)
	page, err := b.SignIn(context.Background(), site+path, user)
	if err != nil {
		t.Fatal(err)
	}
	g := guest{user, cookieOf(b, site, sessionCookie)}
	if err := g.isServed(page); err != nil {
		t.Fatal(err)
	}
	return g
}
