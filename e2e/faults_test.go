package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// pendingCallback begins another sign-in in a browser that the provider knows, and
// returns the address that the provider sends it back to. The browser does not go there.
func pendingCallback(t *testing.T, b *testenv.Browser, site string) string {
	t.Helper()
	next := site + "/oauth2/start?rd=/whoami"
	for range 10 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, next, nil)
		if err != nil {
			t.Fatal(err)
		}
		page, err := b.Fetch(req)
		if err != nil {
			t.Fatal(err)
		}
		location, err := page.URL.Parse(page.Header.Get("Location"))
		if err != nil || page.Header.Get("Location") == "" {
			t.Fatalf("%s answers %d and leads nowhere: %v", page.URL, page.Status, err)
		}
		if next = location.String(); strings.HasPrefix(next, site+"/oauth2/callback?") {
			return next
		}
	}
	t.Fatalf("ten redirects, the last to %s", next)
	return ""
}

// tellRedis sends commands, none of which may be answered with an error.
func tellRedis(t *testing.T, r *testenv.Redis, commands ...string) {
	t.Helper()
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for _, command := range commands {
		if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
			t.Fatal(err)
		}
		if answer, err := answers.ReadString('\n'); err != nil || answer[0] == '-' {
			t.Fatalf("Redis answers %q to %q, %v", answer, command, err)
		}
	}
}

// checkUnknown holds an answer to what is said when nobody can tell who is there: try
// again, and nothing of the browser's is touched (invariant 1).
func checkUnknown(t *testing.T, what string, page *testenv.Page) {
	t.Helper()
	if page.Status != http.StatusServiceUnavailable {
		t.Errorf("%s: %d %s", what, page.Status, firstLine(page.Body))
	}
	if seconds, err := strconv.Atoi(page.Header.Get("Retry-After")); err != nil || seconds < 1 {
		t.Errorf("%s: Retry-After %q", what, page.Header.Get("Retry-After"))
	}
	if page.Header.Get("Location") != "" || len(page.Header.Values("Set-Cookie")) > 0 {
		t.Errorf("%s: the answer has %v", what, page.Header)
	}
	if cache := page.Header.Get("Cache-Control"); cache != "no-store" {
		t.Errorf("%s: Cache-Control %q", what, cache)
	}
}

// awaitReady waits until /ready says that the store answers, or that it does not.
func awaitReady(t *testing.T, s *sender, n *node, ready bool) {
	t.Helper()
	status, store := http.StatusServiceUnavailable, "unavailable"
	if ready {
		status, store = http.StatusOK, "ok"
	}
	await(t, fmt.Sprintf("/ready to answer %d", status), func() bool {
		page, err := s.send(request{url: n.url + "/ready"})
		return err == nil && page.Status == status && strings.Contains(page.Body, fmt.Sprintf(`"store":%q`, store))
	})
}

// awaitUnknown waits until nobody can tell any more whether a session lives. Until then it is
// served from the near cache, for as long as cache.lease.
func awaitUnknown(t *testing.T, s *sender, n *node, g guest) {
	t.Helper()
	await(t, "the near cache's lease to end", func() bool {
		page := s.mustSend(t, request{url: n.url + "/whoami", cookie: g.asCookie(), header: asScript})
		if page.Status == http.StatusServiceUnavailable {
			return true
		}
		if err := g.isServed(page); err != nil {
			t.Fatal(err)
		}
		return false
	})
}

// While the store can't answer nobody is signed in, and nobody is signed out either.
// A-F2: forward-auth says no.
func TestStoreDown(t *testing.T) {
	t.Parallel() // it waits, mostly
	redis := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	port := testenv.FreePort(t)
	n := startNode(t, nodeOptions{
		port:     port,
		client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
		upstream: startApp(t, "app"),
		store:    redisStore(t, redis, 2*time.Second, ""),
		keys:     newKeys(t),
	})
	n.awaitSignIn()
	s := newSender(t)
	alice := signInGuest(t, n.url, "alice")
	bob := testenv.NewBrowser(t)
	signIn(t, bob, n.url+"/whoami", "bob")

	for _, fault := range []struct {
		name        string
		begin, over func()
	}{
		{"it answers nothing", redis.Pause, redis.Resume},
		{"it is gone", redis.Stop, redis.Restart},
		{"it was killed", redis.Kill, redis.Restart},
	} {
		t.Run(fault.name, func(t *testing.T) {
			callback := pendingCallback(t, bob, n.url)
			before := cookiesOf(bob, n.url)
			fault.begin()
			awaitUnknown(t, s, n, alice)
			for _, r := range []request{
				{url: "/whoami", header: asScript},
				{url: "/oauth2/auth", header: asScript},
				{url: "/oauth2/userinfo", header: asScript},
				{url: "/oauth2/sign_out", method: http.MethodPost, header: asScript},
			} {
				r.url, r.cookie = n.url+r.url, alice.asCookie()
				page := s.mustSend(t, r)
				checkUnknown(t, r.url, page)
				if !strings.Contains(page.Body, `"error":"session_unknown"`) {
					t.Errorf("%s: %s", r.url, page.Body)
				}
			}
			page := s.mustSend(t, request{url: n.url + "/whoami", cookie: alice.asCookie(), header: asNavigation})
			checkUnknown(t, "a navigation", page)
			if !strings.Contains(page.Body, "<html") || !strings.Contains(page.Body, "not been signed out") {
				t.Errorf("a navigation: %s", page.Body)
			}
			page, err := bob.Open(t.Context(), callback)
			if err != nil {
				t.Fatal(err)
			}
			checkUnknown(t, "a callback", page)
			if after := cookiesOf(bob, n.url); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the callback changed the cookies from %v to %v", before, after)
			}
			if page := s.mustSend(t, request{url: n.url + "/ping"}); page.Status != http.StatusOK {
				t.Errorf("/ping: %d", page.Status)
			}
			awaitReady(t, s, n, false)

			fault.over()
			awaitReady(t, s, n, true)
			checkServed(t, n.url, []guest{alice})
			// Nothing was used up: the same callback completes the sign-in.
			page, err = bob.Open(t.Context(), callback)
			if w := whoami(t, page, err); w.User != "bob" {
				t.Errorf("the callback led to %+v", w)
			}
		})
	}

	// A-Z14: who is signed in is served, and nobody gets a cookie for a session that was
	// not stored.
	t.Run("it is full", func(t *testing.T) {
		callback := pendingCallback(t, bob, n.url)
		held := cookieOf(bob, n.url, sessionCookie)
		tellRedis(t, redis, "CONFIG SET maxmemory 1")
		checkServed(t, n.url, []guest{alice})
		page, err := bob.Open(t.Context(), callback)
		if err != nil {
			t.Fatal(err)
		}
		checkUnknown(t, "a callback", page)
		if now := cookieOf(bob, n.url, sessionCookie); now != held {
			t.Error("the session cookie changed")
		}
		tellRedis(t, redis, "CONFIG SET maxmemory 0")
		page, err = bob.Open(t.Context(), callback)
		if w := whoami(t, page, err); w.User != "bob" {
			t.Errorf("the callback led to %+v", w)
		}
	})

	t.Run("it is not there at the start", func(t *testing.T) {
		n.Stop()
		redis.Stop()
		n.options.notReady = true
		n.start()
		if page := s.mustSend(t, request{url: n.url + "/ping"}); page.Status != http.StatusOK {
			t.Errorf("/ping: %d", page.Status)
		}
		awaitReady(t, s, n, false)
		checkUnknown(t, "a session", s.mustSend(t, request{url: n.url + "/whoami", cookie: alice.asCookie(), header: asNavigation}))
		redis.Restart()
		awaitReady(t, s, n, true)
		checkServed(t, n.url, []guest{alice})
	})
}

// A-Z12, A-L14: without the provider nobody can sign in, everybody else is served, and
// signing out here works.
func TestProviderDown(t *testing.T) {
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	provider, c := startProvider(t, "http://"+testenv.Loopback(port))
	provider.Stop()
	n := startNode(t, nodeOptions{port: port, client: c, upstream: startApp(t, "app")}) // waits for /ready
	s := newSender(t)
	if body, err := get(n.url + "/ready"); err != nil || !strings.Contains(body, `"sign_in":"unavailable"`) {
		t.Errorf("/ready: %s, %v", body, err)
	}
	for _, path := range []string{"/whoami", "/oauth2/start"} {
		page := s.mustSend(t, request{url: n.url + path, header: asNavigation})
		checkUnknown(t, path, page)
		if !strings.Contains(page.Body, "<html") || !strings.Contains(page.Body, "Sign-in is not possible right now") {
			t.Errorf("%s: %s", path, page.Body)
		}
	}
	if page := s.mustSend(t, request{url: n.url + "/whoami", header: asScript}); page.Status != http.StatusUnauthorized {
		t.Errorf("a script: %d", page.Status)
	}

	provider.Restart()
	n.awaitSignIn()
	alice, bob := signInGuest(t, n.url, "alice"), signInGuest(t, n.url, "bob")
	late := testenv.NewBrowser(t)
	signIn(t, late, n.url+"/whoami", "carol")
	callback := pendingCallback(t, late, n.url)

	provider.Stop()
	checkServed(t, n.url, []guest{alice, bob})
	page, err := late.Open(t.Context(), callback)
	if err != nil || page.Status != http.StatusBadGateway || !strings.Contains(page.Body, "<html") {
		t.Errorf("a callback: %+v, %v", page, err)
	}

	// The provider's address is known, so the browser is sent there after the local part.
	signOut := func(g guest) *testenv.Page {
		t.Helper()
		page := s.mustSend(t, request{
			method: http.MethodPost, url: n.url + "/oauth2/sign_out", cookie: g.asCookie(),
			header: []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate"},
		})
		cleared := page.Header.Values("Set-Cookie")
		if page.Status != http.StatusSeeOther || len(cleared) != 1 ||
			!strings.HasPrefix(cleared[0], sessionCookie+"=;") || !strings.Contains(cleared[0], "Max-Age=0") {
			t.Errorf("sign-out: %d, %q", page.Status, cleared)
		}
		checkEnded(t, s, request{url: n.url + "/whoami"}, g, coatcheck.ReasonSignedOut)
		return page
	}
	if page := signOut(alice); !strings.HasPrefix(page.Header.Get("Location"), provider.Issuer+"/") {
		t.Errorf("sign-out leads to %s", page.Header.Get("Location"))
	}
	checkServed(t, n.url, []guest{bob})

	// A node that has never seen the provider does not know where to send anybody.
	n.Stop()
	n.start()
	checkServed(t, n.url, []guest{bob})
	page = signOut(bob)
	page = s.mustSend(t, request{url: n.url + page.Header.Get("Location"), header: asNavigation})
	if page.Status != http.StatusOK || !strings.Contains(page.Body, "provider was not told") {
		t.Errorf("after the sign-out: %d %s", page.Status, page.Body)
	}

	// Back, with new signing keys.
	provider.Restart()
	n.awaitSignIn()
	signInGuest(t, n.url, "alice")
}

// One node serves from a SQLite file. Another is told so, until the first is gone,
// however it went; what it kept is there.
func TestSQLiteServesOneNode(t *testing.T) {
	port := testenv.FreePort(t)
	file := filepath.Join(t.TempDir(), "coatcheck.db")
	o := nodeOptions{
		port:     port,
		client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
		upstream: startApp(t, "app"),
		store:    fmt.Sprintf("{driver: sqlite, sqlite: {file: %s}}", file),
	}
	first := startNode(t, o)
	first.awaitSignIn()
	alice := signInGuest(t, first.url, "alice")

	o.port, o.public = 0, first.url
	second := newNode(t, o)
	p := testenv.Start(t, testenv.Command{Path: program(t), Args: []string{"serve", "--config", second.config}})
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatal("two nodes serve from one SQLite file")
	}
	if code := p.ExitCode(); code != 1 {
		t.Errorf("exit code = %d", code)
	}
	said := lastLine(p.Output())
	for _, want := range []string{`"msg":"the node can't serve","error":"store.sqlite.file: `, file, fmt.Sprintf("pid %d", first.PID()), "SQLite serves one node", "Redis"} {
		if !strings.Contains(said, want) {
			t.Errorf("says %q, without %q", said, want)
		}
	}
	checkServed(t, first.url, []guest{alice})

	first.Kill()
	second.start()
	page := newSender(t).mustSend(t, request{url: second.url + "/whoami", host: first.addr, cookie: alice.asCookie(), header: asNavigation})
	if err := alice.isServed(page); err != nil {
		t.Errorf("on the second node: %v", err)
	}
	second.Kill()
	first.start()
	checkServed(t, first.url, []guest{alice})
}

func lastLine(s string) string {
	s = strings.TrimSuffix(s, "\n")
	return s[strings.LastIndexByte(s, '\n')+1:]
}
