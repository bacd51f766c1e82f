package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// logged returns what a node has logged since it was started. A node that runs writes its
// lines a little later than its answers, in order: one more request, which the log can be
// searched for, shows that those of all answers so far are there.
func (n *node) logged() string {
	n.t.Helper()
	select {
	case <-n.Done():
		return n.Output()
	default:
	}
	mark := fmt.Sprintf("mark-%d", rand.Uint64())
	newSender(n.t).mustSend(n.t, request{url: n.url + "/oauth2/userinfo", header: []string{"User-Agent", mark}})
	await(n.t, "the log of a node", func() bool { return strings.Contains(n.Output(), mark) })
	return n.Output()
}

// entries returns the lines that a node has logged since it was started. Each must be
// one JSON object.
func (n *node) entries() []map[string]any {
	n.t.Helper()
	var entries []map[string]any
	for line := range strings.Lines(n.logged()) {
		var e map[string]any
		if !strings.HasSuffix(line, "\n") {
			continue // is being written
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			n.t.Errorf("this line of the log is not one JSON object: %q", line)
			continue
		}
		entries = append(entries, e)
	}
	return entries
}

// A-D2: nobody writes lines of their own into the log, or on an operator's terminal.
func TestLogLines(t *testing.T) {
	port := testenv.FreePort(t)
	n := startNode(t, nodeOptions{
		port:     port,
		client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
		upstream: startApp(t, "app"),
		logLevel: "debug",
	})
	n.awaitSignIn()
	b := testenv.NewBrowser(t)
	signIn(t, b, n.url+"/", "alice")
	cookie := asHeader(cookiesOf(b, n.url))

	const forged = `{"time":"2001-01-01T00:00:00Z","level":"INFO","msg":"forged"}`
	escaped := url.PathEscape(forged)
	hostile := []string{"\r\n" + forged + "\r\n", "\n" + forged, "\x1b[2J\x1b[31m" + forged, "\x00" + forged, "\xff\xfe" + forged, "\u2028" + forged, "\x7f", `"}` + "\n", "\t" + forged}
	for _, text := range hostile {
		path := "/" + url.PathEscape(text)
		for _, lines := range []string{
			"GET " + path + " HTTP/1.1\r\nHost: " + n.addr + "\r\n",
			"GET /?x=" + path + " HTTP/1.1\r\nHost: " + n.addr + "\r\n",
			"GET /" + text + " HTTP/1.1\r\nHost: " + n.addr + "\r\n",
			"GET / HTTP/1.1\r\nHost: " + n.addr + "\r\nUser-Agent: " + text + "\r\n",
			"GET / HTTP/1.1\r\nHost: " + text + "\r\n",
			"GET / HTTP/1.1\r\nHost: " + n.addr + "\r\nX-Request-Id: " + text + "\r\nX-Forwarded-For: " + text + "\r\n",
			"GET /ws HTTP/1.1\r\nHost: " + n.addr + "\r\nUpgrade: websocket\r\nOrigin: " + text + "\r\n",
			text + " / HTTP/1.1\r\nHost: " + n.addr + "\r\n",
		} {
			testenv.Send(t, n.addr, lines+"Cookie: "+cookie+"\r\nConnection: close\r\n\r\n")
		}
		// What the provider says of an error is logged.
		u, err := url.Parse(pendingCallback(t, b, n.url))
		if err != nil {
			t.Fatal(err)
		}
		query := url.Values{"state": u.Query()["state"], "iss": u.Query()["iss"], "error": {text}, "error_description": {text}}
		if page, err := b.Open(t.Context(), n.url+u.Path+"?"+query.Encode()); err != nil || page.Status != http.StatusForbidden {
			t.Errorf("an error of the provider: %+v, %v", page, err)
		}
	}
	testenv.Send(t, n.addr, "GET /last HTTP/1.1\r\nHost: "+n.addr+"\r\nUser-Agent: a \"b\" \\ "+escaped+"\r\nConnection: close\r\n\r\n")
	n.Signal(syscall.SIGTERM)
	if code := n.ExitCode(); code != 0 {
		t.Errorf("exit code = %d", code)
	}

	paths, last := map[any]bool{}, ""
	for _, e := range n.entries() {
		if e["msg"] == "forged" {
			t.Errorf("a forged line: %v", e)
		}
		if e["msg"] == "request" {
			paths[e["path"]] = true
			if e["path"] == "/last" {
				last, _ = e["user_agent"].(string)
			}
		}
	}
	if want := `a "b" \ ` + escaped; last != want {
		t.Errorf("the user agent is logged as %q, not %q", last, want)
	}
	if !paths["/\r\n"+forged+"\r\n"] {
		t.Error("a path with line breaks is not in the log")
	}
	for i, c := range []byte(n.logged()) {
		if c < ' ' && c != '\n' {
			t.Fatalf("the log has the control character %q: %q", c, n.Output()[max(0, i-100):i+1])
		}
	}
}

// A-M6: the metrics are on the admin listener, and nothing of it is on the public one.
func TestMetrics(t *testing.T) {
	port := testenv.FreePort(t)
	n := startNode(t, nodeOptions{
		port:     port,
		client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
		upstream: startApp(t, "app"),
	})
	n.awaitSignIn()
	s := newSender(t)
	alice := signInGuest(t, n.url, "alice")
	const used = 3
	for range used {
		s.mustSend(t, request{url: n.url + "/whoami", cookie: alice.asCookie(), header: asScript})
	}
	s.mustSend(t, request{url: n.url + "/whoami", header: asScript})
	s.mustSend(t, request{url: n.url + "/whoami", cookie: sessionCookie + "=nonsense", header: asScript})
	s.mustSend(t, request{url: n.url + "/oauth2/callback?state=x&code=x", header: asScript})

	metrics, err := get(n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf(`coatcheck_requests_total{code="200",route="/"} %d`, used+1),
		`coatcheck_requests_total{code="303",route="/"} 1`,
		`coatcheck_requests_total{code="401",route="/"} 2`,
		`coatcheck_requests_total{code="303",route="callback"} 1`,
		fmt.Sprintf(`coatcheck_session_loads_total{result="valid"} %d`, used+1),
		`coatcheck_session_loads_total{result="none"} 2`,
		`coatcheck_session_loads_total{result="invalid"} 1`,
		`coatcheck_sign_ins_total{result="ok"} 1`,
		`coatcheck_sign_ins_total{result="bad_callback"} 1`,
		`coatcheck_session_cache_requests_total{result="miss"} 1`,
		`coatcheck_session_events_total{type="session.started"} 1`,
		`coatcheck_store_operation_duration_seconds_count{op="admit",result="ok"} 1`,
		`coatcheck_store_operation_duration_seconds_count{op="create",result="ok"} 2`, // the session, and that the sign-in is used up
		`coatcheck_streams_open 0`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("the metrics have no %s", want)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "coatcheck_") && !strings.Contains(line, "_bucket") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}

	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap"} {
		if page := s.mustSend(t, request{url: n.url + path, header: asScript}); page.Status != http.StatusUnauthorized {
			t.Errorf("%s for nobody: %d", path, page.Status)
		}
		page := s.mustSend(t, request{url: n.url + path, cookie: alice.asCookie(), header: asNavigation})
		if page.Status != http.StatusOK || strings.Contains(page.Body, "coatcheck_requests_total") || !strings.Contains(page.Body, "<html") {
			t.Errorf("%s for alice is not the app's: %d %s", path, page.Status, firstLine(page.Body))
		}
	}
	for _, path := range []string{"/", "/whoami", "/oauth2/userinfo"} {
		if page := s.mustSend(t, request{url: n.admin + path, cookie: alice.asCookie()}); page.Status != http.StatusNotFound {
			t.Errorf("%s on the admin listener: %d", path, page.Status)
		}
	}
}
