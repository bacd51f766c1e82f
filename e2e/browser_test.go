package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// front is a TLS server before a node that does not run yet, as a load balancer would be.
type front struct {
	url  string
	port int // of the node
}

// startFront serves https on a free port of loopback for every host name.
func startFront(t *testing.T) front {
	t.Helper()
	f := front{port: testenv.FreePort(t)}
	s := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: testenv.Loopback(f.port)})
		r.Out.Host = r.In.Host
	}})
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

// TestBrowserDev is what everybody does first: `coatcheck dev`, and a look at it.
func TestBrowserDev(t *testing.T) {
	t.Parallel() // it waits, mostly
	addr := testenv.Loopback(testenv.FreePort(t))
	public := "http://" + addr
	testenv.Start(t, testenv.Command{
		Path: program(t), Args: []string{"dev", "--listen", addr},
		Ready: func(context.Context) error {
			if page, err := get(public + "/ready"); err != nil || !strings.Contains(page, `"sign_in":"ok"`) {
				return fmt.Errorf("/ready: %q, %w", page, err)
			}
			return nil
		},
	})

	b := openBrowser(t)
	b.open(public)
	b.awaitPage("Sign in")
	b.legible()
	b.signIn("alice")
	b.awaitPage("Hello, alice")
	b.legible()
	if who := b.text(".who"); !strings.Contains(who, "alice@example.com") || !strings.Contains(who, "admins") || !strings.Contains(who, "staff") {
		t.Errorf("the app shows %q", who)
	}
	for _, header := range []string{"X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username"} {
		if !strings.Contains(b.text("table"), header) {
			t.Errorf("the app did not get %s", header)
		}
	}
	if strings.Contains(b.text("table"), "coatcheck-") {
		t.Error("a cookie of coatcheck reached the app")
	}

	b.await(`document.querySelector("#ws-state").innerText === "open"`)
	b.do(chromedp.SendKeys(chromedp.CSS("#ws-text"), " there and back"))
	b.click("#ws-form button")
	b.await(`document.querySelector("#ws-log li")?.innerText.includes("there and back")`)
	b.await(`Number(document.querySelector("#sse-count").innerText) >= 2`)

	// Our own page for who is signed in already, and back from it.
	b.open(public + "/oauth2/sign_in?rd=/back%3Fx=1")
	b.awaitPage("You are signed in")
	b.legible()
	b.click(".primary")
	b.awaitPage("Hello, alice")
	if got := b.location(); got != public+"/back?x=1" {
		t.Errorf("the page leads to %s", got)
	}

	// The app's own link signs out without a question of ours; the provider asks.
	b.click(`a[href="/oauth2/sign_out"]`)
	b.await(`!location.href.startsWith("` + public + `") && document.querySelector("h1")?.innerText === "Sign out?"`)
	b.legible()
	if left := b.cookies(); len(left) > 0 {
		t.Errorf("before the provider was asked, the browser still has %v", left[0].Name)
	}
	b.click("button")
	b.awaitPage("You are signed out")
	b.legible()
	if left := b.cookies(); len(left) > 0 {
		t.Errorf("after signing out, the browser still has %v", left[0].Name)
	}

	b.open(public + "/oauth2/sign_in")
	b.awaitPage("Sign in")
	b.legible()
	b.open(public)
	b.signIn("bob")
	b.awaitPage("Hello, bob")

	requests, problems := b.seen()
	for _, problem := range problems {
		t.Errorf("on the browser's console: %s", problem)
	}
	for _, request := range requests {
		if u, err := url.Parse(request); err != nil || u.Scheme != "data" && u.Hostname() != "127.0.0.1" {
			t.Errorf("the browser asked for %s", request)
		}
	}
	if len(requests) < 20 {
		t.Errorf("only %d requests were seen", len(requests))
	}
}

// TestBrowserDevProvider looks at the development provider's pages that a sign-in does
// not lead to.
func TestBrowserDevProvider(t *testing.T) {
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	public := "http://" + testenv.Loopback(port)
	provider := startDevProvider(t, public)
	startNode(t, nodeOptions{port: port, upstream: startApp(t, "app"), client: provider}).awaitSignIn()
	b := openBrowser(t)
	b.open(provider.issuer)
	b.awaitPage("An OpenID provider for trying things out")
	b.legible()
	b.open(provider.issuer + "/connect/authorize?client_id=nobody")
	b.awaitPage("This sign-in can’t start")
	b.legible()
	b.open(provider.issuer + "/connect/end_session")
	b.awaitPage("You are signed out")
	b.legible()

	// A wrong password, a name that is filled in, and a change of mind.
	b.open(public)
	b.awaitPage("Sign in")
	b.do(
		chromedp.SendKeys(chromedp.CSS("#username"), "alice"),
		chromedp.SendKeys(chromedp.CSS("#password"), "bob"),
	)
	b.click("button")
	b.await(`document.querySelector("[role=alert]")`)
	b.legible()
	b.click("tbody a")
	b.await(`document.querySelector("#username")?.value === "alice" && !document.querySelector("[role=alert]")`)
	b.click(".actions a")
	b.awaitPage("You were not signed in")
	b.legible()
	b.click(".primary")
	b.signIn("alice")
	b.awaitPage("Hello, alice")
}

// TestBrowserCookies: what a real browser keeps on https, and what is left of it after
// signing out.
func TestBrowserCookies(t *testing.T) { // A-C17
	t.Parallel() // it waits, mostly
	for _, tt := range []struct {
		name, host, domain, cookie, second string
	}{
		{"one host", "127.0.0.1", "", "__Host-coatcheck", ""},
		{"a domain", "a.example.test", "example.test", "__Secure-coatcheck", "b.example.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := startFront(t)
			on := func(host string) string { return strings.Replace(f.url, "127.0.0.1", host, 1) }
			public := on(tt.host)
			app := startApp(t, "app")
			o := nodeOptions{
				port: f.port, public: public, secure: true, upstream: app,
				client: startDevProvider(t, public),
			}
			if tt.domain != "" {
				o.routes = fmt.Sprintf("- {path: /, upstream: %s}\n- {host: %s, path: /, upstream: %s}", app, tt.second, app)
				o.more = "session: {cookie: {domain: " + tt.domain + "}}\n"
			}
			startNode(t, o).awaitSignIn()

			b := openBrowser(t,
				chromedp.IgnoreCertErrors,
				chromedp.Flag("host-resolver-rules", "MAP *.example.test 127.0.0.1"))
			b.open(public)
			b.signIn("alice")
			b.awaitPage("Hello, alice")

			domain := tt.host
			if tt.domain != "" {
				domain = "." + tt.domain // how Chromium writes down a Domain attribute
			}
			kept := b.cookies()
			if len(kept) != 1 {
				t.Fatalf("the browser keeps %d cookies of ours", len(kept))
			}
			if c := kept[0]; c.Name != tt.cookie || c.Domain != domain || c.Path != "/" || !c.Secure || !c.HTTPOnly || c.SameSite != network.CookieSameSiteLax {
				t.Errorf("the browser keeps %+v", c)
			}
			if seen, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.cookie")); err != nil || seen != "" {
				t.Errorf("the page's scripts see %q, %v", seen, err)
			}

			if tt.second != "" {
				b.open(on(tt.second) + "/there")
				b.awaitPage("Hello, alice")
				if got, want := b.location(), on(tt.second)+"/there"; got != want {
					t.Errorf("got %s, want %s: the second host asked for another sign-in", got, want)
				}
			}
			b.click(`a[href="/oauth2/sign_out"]`)
			b.awaitPage("Sign out?")
			b.click("button")
			b.awaitPage("You are signed out")
			for _, c := range b.cookies() {
				t.Errorf("after signing out, the browser still has %s of %s", c.Name, c.Domain)
			}
			b.open(public)
			b.awaitPage("Sign in")
		})
	}
}

// TestBrowserForeignSignOut: a page of another site can ask for a sign-out in every way
// a browser has, and only the person can answer.
func TestBrowserForeignSignOut(t *testing.T) { // A-L2
	t.Parallel() // it waits, mostly
	f := startFront(t)
	provider := startDevProvider(t, f.url)
	startNode(t, nodeOptions{port: f.port, public: f.url, secure: true, upstream: startApp(t, "app"), client: provider}).awaitSignIn()
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<h1>Elsewhere</h1><a href="%[1]s/oauth2/sign_out">out</a>
			<img src="%[1]s/oauth2/sign_out" alt="">
			<form method="post" action="%[1]s/oauth2/sign_out"><button>out</button></form>`, f.url)
	}))
	t.Cleanup(foreign.Close)
	elsewhere := strings.Replace(foreign.URL, "127.0.0.1", "localhost", 1) // another site

	b := openBrowser(t, chromedp.IgnoreCertErrors)
	b.open(f.url)
	b.signIn("alice")
	b.awaitPage("Hello, alice")

	// The image and the form come without our cookie, the link with it.
	for _, element := range []string{"form button", "a"} {
		b.open(elsewhere)
		b.awaitPage("Elsewhere")
		b.click(element)
		b.awaitPage("Sign out?")
		b.legible()
		if text := b.text("main"); !strings.Contains(text, "alice") && !strings.Contains(text, "Alice") {
			t.Errorf("%s: the page does not say who is signed in: %q", element, text)
		}
		b.click(`a[href="/"]`)
		b.awaitPage("Hello, alice")
	}

	// The page's own button signs out, and the browser lets its form go on to the
	// provider.
	b.open(f.url + "/oauth2/sign_out")
	b.awaitPage("Sign out?")
	b.click("button")
	b.await(`location.href.startsWith("` + provider.issuer + `") && document.querySelector("h1")?.innerText === "Sign out?"`)
	b.click("button")
	b.awaitPage("You are signed out")
	if left := b.cookies(); len(left) > 0 {
		t.Errorf("after signing out, the browser still has %s", left[0].Name)
	}
	if _, problems := b.seen(); len(problems) > 0 {
		t.Errorf("on the browser's console: %q", problems)
	}
}

// TestBrowserTabs: sign-ins in two tabs don't disturb each other, and going back
// afterwards explains itself.
func TestBrowserTabs(t *testing.T) { // A-O4
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	public := "http://" + testenv.Loopback(port)
	startNode(t, nodeOptions{port: port, upstream: startApp(t, "app"), client: startDevProvider(t, public)}).awaitSignIn()
	b := openBrowser(t)
	other := b.another()
	for _, order := range [][]*tab{{b, other}, {other, b}} {
		for i, tab := range order {
			tab.open(fmt.Sprintf("%s/page?tab=%d", public, i))
		}
		for i, tab := range order {
			tab.signIn("alice")
			tab.awaitPage("Hello, alice")
			if got, want := tab.location(), fmt.Sprintf("%s/page?tab=%d", public, i); got != want {
				t.Errorf("a tab landed on %s, not on its own %s", got, want)
			}
		}
		if kept := b.cookies(); len(kept) != 1 {
			t.Errorf("the browser keeps %d cookies of ours", len(kept))
		}

		// The provider still knows alice, so its page sends the browser on to a
		// callback that is over.
		b.do(chromedp.NavigateBack())
		b.awaitPage("This sign-in can't be completed")
		b.click(".primary")
		b.awaitPage("Hello, alice")

		b.click(`a[href="/oauth2/sign_out"]`)
		b.awaitPage("Sign out?")
		b.click("button")
		b.awaitPage("You are signed out")
	}
}

// TestBrowserOtherAccount: somebody who signed in with an account that has no access
// finds the way to another one, though the provider would sign the same one in again
// without a word.
func TestBrowserOtherAccount(t *testing.T) {
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	public := "http://" + testenv.Loopback(port)
	for _, tt := range []struct{ name, more, routes string }{
		{name: "to the site", more: "allow: {emails: [alice@example.com]}\n"},
		{name: "to the page", routes: "- {path: /, upstream: %s, allow: {emails: [alice@example.com]}}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app := startApp(t, "app")
			o := nodeOptions{port: port, upstream: app, client: startDevProvider(t, public), more: tt.more}
			if tt.routes != "" {
				o.routes = fmt.Sprintf(tt.routes, app)
			}
			startNode(t, o).awaitSignIn()
			b := openBrowser(t)
			b.open(public)
			b.signIn("bob")
			b.awaitPage("You may not open this")
			b.legible()
			if knows := strings.Contains(b.text("main"), "Bob Baker"); knows != (tt.routes != "") {
				t.Errorf("the page says %q", b.text("main"))
			}
			b.click(`a[href="/oauth2/sign_out"]`)
			b.awaitPage("Sign out?")
			b.click("button")
			b.awaitPage("You are signed out")
			b.click(".primary")
			b.signIn("alice")
			b.awaitPage("Hello, alice")
		})
	}
}

// TestBrowserScripts: a script whose session has ended gets an answer that it can read.
func TestBrowserScripts(t *testing.T) { // A-O15
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	public := "http://" + testenv.Loopback(port)
	startNode(t, nodeOptions{port: port, upstream: startApp(t, "app"), client: startDevProvider(t, public)}).awaitSignIn()
	b := openBrowser(t)
	b.open(public)
	b.signIn("alice")
	b.awaitPage("Hello, alice")
	if f := b.fetch("/whoami", "{}"); f.Status != http.StatusOK || !strings.Contains(f.Body, "alice@example.com") {
		t.Errorf("with a session: %+v", f)
	}

	other := b.another()
	other.open(public)
	other.awaitPage("Hello, alice")
	other.click(`a[href="/oauth2/sign_out"]`)
	other.awaitPage("Sign out?")

	asked, _ := b.seen()
	for _, init := range []string{
		`{}`,
		`{headers: {Accept: "text/html"}}`,
		`{method: "POST", body: "a form"}`,
		`{mode: "same-origin", headers: {"X-Requested-With": "XMLHttpRequest"}}`,
	} {
		f := b.fetch("/whoami", init)
		var answer struct {
			Error string `json:"error"`
		}
		err := json.Unmarshal([]byte(f.Body), &answer)
		if f.Status != http.StatusUnauthorized || f.Redirected || f.Type != "application/json" || err != nil || answer.Error != "sign_in_required" {
			t.Errorf("fetch with %s: %+v, %v", init, f, err)
		}
	}
	requests, _ := b.seen()
	followed := 0
	for _, request := range requests[len(asked):] {
		switch {
		case request == public+"/whoami":
			followed++
		case strings.HasSuffix(request, "/events"), strings.HasSuffix(request, "/ws"): // the page's own, once more
		default:
			t.Errorf("the page asked for %s", request)
		}
	}
	if followed != 4 {
		t.Errorf("%d requests for /whoami were seen, want 4", followed)
	}
}
