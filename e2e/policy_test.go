package e2e

import (
	"html"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// Who may sign in at all gets a session, nobody else does; and a route may ask for more.
func TestAllow(t *testing.T) {
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	_, c := startProvider(t, "http://"+testenv.Loopback(port))
	var reached atomic.Int32
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reached.Add(1) }))
	t.Cleanup(admin.Close)
	app := startApp(t, "app")
	o := nodeOptions{
		port:   port,
		client: c,
		routes: "- {path: /, upstream: " + app + "}\n" +
			"- {path: /admin/, upstream: " + admin.URL + ", allow: {groups: [admins]}}\n" +
			"- {path: /bob/, upstream: " + app + ", allow: {emails: [bob@example.com]}}\n",
		more: "allow: {emails: [bob@example.com], groups: [admins]}\n",
	}
	n := startNode(t, o)
	n.awaitSignIn()
	s := newSender(t)
	alice, bob := signInGuest(t, n.url, "alice"), signInGuest(t, n.url, "bob")

	// checkForbidden also finds the page's request id in the log.
	checkForbidden := func(t *testing.T, page *testenv.Page) {
		t.Helper()
		if page.Status != http.StatusForbidden || !strings.Contains(html.UnescapeString(page.Body), "You may not open this") {
			t.Fatalf("%s: %d %s", page.URL, page.Status, firstLine(page.Body))
		}
		for _, e := range n.entries() {
			if e["msg"] == "request refused" && e["code"] == "forbidden" && strings.Contains(page.Body, e["request_id"].(string)) {
				return
			}
		}
		t.Errorf("no line in the log has the request id of %s", page.Body)
	}

	for _, tt := range []struct {
		path   string
		who    guest
		status int
	}{
		{"/admin/", alice, http.StatusOK},
		{"/admin/", bob, http.StatusForbidden},
		{"/bob/", alice, http.StatusForbidden},
		{"/bob/", bob, http.StatusOK},
	} {
		for _, headers := range [][]string{asNavigation, asScript} {
			page := s.mustSend(t, request{url: n.url + tt.path, cookie: tt.who.asCookie(), header: headers})
			if page.Status != tt.status || len(page.Header.Values("Set-Cookie")) > 0 {
				t.Errorf("%s at %s: %d %v, want %d", tt.who.user, tt.path, page.Status, page.Header, tt.status)
			}
			if tt.status == http.StatusForbidden && headers[1] == asNavigation[1] {
				checkForbidden(t, page)
			}
		}
	}
	if reached.Load() != 2 {
		t.Errorf("the admins' app was asked %d times, want twice", reached.Load())
	}

	t.Run("who may not sign in gets no session", func(t *testing.T) {
		carol := testenv.NewBrowser(t)
		page := signIn(t, carol, n.url+"/whoami", "carol")
		checkForbidden(t, page)
		if cookieOf(carol, n.url, sessionCookie) != "" || sets(page, sessionCookie) {
			t.Errorf("carol has a session cookie: %v", page.Header.Values("Set-Cookie"))
		}
	})

	// A rule that comes later holds for sessions that are there already.
	t.Run("a new rule holds at once", func(t *testing.T) {
		n.Stop()
		o.dir, o.more = n.dir, "allow: {groups: [admins]}\n"
		n = startNode(t, o)
		checkServed(t, n.url, []guest{alice})
		checkForbidden(t, s.mustSend(t, request{url: n.url + "/whoami", cookie: bob.asCookie(), header: asNavigation}))
		checkForbidden(t, s.mustSend(t, request{url: n.url + "/bob/", cookie: bob.asCookie(), header: asNavigation}))
		page := s.mustSend(t, request{url: n.url + "/oauth2/userinfo", cookie: bob.asCookie(), header: asScript})
		if page.Status != http.StatusForbidden || strings.Contains(page.Body, "bob@") {
			t.Errorf("userinfo: %d %s", page.Status, page.Body)
		}
	})
}
