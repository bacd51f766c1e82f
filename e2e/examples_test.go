package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// An example is a running examples/*/run.sh.
type example struct {
	*testenv.Process
	url   string
	ports []int
	tmp   string // where it keeps its state
}

// startExample runs an example with ports of its own; the first variable names the port
// that browsers use.
func startExample(t *testing.T, name string, ports []string, env ...string) *example {
	t.Helper()
	bash := testenv.RequireTool(t, "bash")
	x := &example{tmp: t.TempDir()}
	env = append(env, "COATCHECK="+program(t), "TMPDIR="+x.tmp)
	for _, variable := range ports {
		port := testenv.FreePort(t)
		x.ports = append(x.ports, port)
		env = append(env, fmt.Sprintf("%s=%d", variable, port))
	}
	x.url = "http://" + testenv.Loopback(x.ports[0])
	x.Process = testenv.Start(t, testenv.Command{
		Path: bash,
		Args: []string{filepath.Join("..", "examples", name, "run.sh")},
		Env:  env,
		// The last thing that it starts.
		Ready:  testenv.Listening(testenv.Loopback(x.ports[0])),
		Within: 3 * time.Minute,
	})
	x.awaitOutput(t, "Ctrl-C stops everything.")
	return x
}

func (x *example) awaitOutput(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(x.Output(), text) {
		if time.Now().After(deadline) {
			t.Fatalf("the example does not print %q but:\n%s", text, x.Output())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

var started = regexp.MustCompile(`(?m)^  (\S+) +pid (\d+) `)

// pids returns the process ids that the example says it started, by name.
func (x *example) pids(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for _, m := range started.FindAllStringSubmatch(x.Output(), -1) {
		pid, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		pids[m[1]] = pid
	}
	return pids
}

// end sends the signal and checks that nothing is left of the example.
func (x *example) end(t *testing.T, sig os.Signal, want int) {
	t.Helper()
	pids := x.pids(t)
	if len(pids) == 0 {
		t.Errorf("the example names no process:\n%s", x.Output())
	}
	x.Signal(sig)
	select {
	case <-x.Done():
	case <-time.After(time.Minute):
		t.Fatalf("still there a minute after %v", sig)
	}
	if code := x.ExitCode(); code != want {
		t.Errorf("exit code = %d after %v, want %d", code, sig, want)
	}
	for name, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s (pid %d) is still there: %v", name, pid, err)
		}
	}
	for _, port := range x.ports {
		if testenv.Listening(testenv.Loopback(port))(t.Context()) == nil {
			t.Errorf("something still listens on port %d", port)
		}
	}
	left, err := filepath.Glob(filepath.Join(x.tmp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// who is the sample app's answer at /whoami.
type who struct {
	User    string          `json:"user"`
	Email   string          `json:"email"`
	Groups  []string        `json:"groups"`
	Node    string          `json:"node"`
	Headers json.RawMessage `json:"headers"`
}

func whoami(t *testing.T, page *testenv.Page, err error) who {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var w who
	if err := json.Unmarshal([]byte(page.Body), &w); err != nil || page.Status != http.StatusOK {
		t.Fatalf("%s answered %d, not with who we are: %v\n%s", page.URL, page.Status, err, page.Body)
	}
	return w
}

func signIn(t *testing.T, b *testenv.Browser, url, user string) *testenv.Page {
	t.Helper()
	page, err := b.SignIn(t.Context(), url, user)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

var haproxyPorts = []string{
	"PORT", "NODE_A_PORT", "NODE_B_PORT", "ADMIN_A_PORT", "ADMIN_B_PORT",
	"REDIS_PORT", "PROVIDER_PORT", "APP_1_PORT", "APP_2_PORT",
}

// One sign-in, and both nodes serve; one dies, and the other goes on.
func TestHAProxyExample(t *testing.T) {
	testenv.RequireTool(t, "haproxy")
	testenv.RequireTool(t, "redis-server")
	x := startExample(t, "haproxy-redis", haproxyPorts)
	b := testenv.NewBrowser(t)
	ctx := t.Context()

	if page := signIn(t, b, x.url+"/", "alice"); page.Status != http.StatusOK || page.URL.String() != x.url+"/" {
		t.Fatalf("sign-in ended with %d at %s:\n%s", page.Status, page.URL, page.Body)
	}

	served := map[string]int{}
	const requests = 20
	for i := range requests {
		path, node := "/whoami", "app-1"
		if i%4 >= 2 { // each app by each node
			path, node = "/two/whoami", "app-2"
		}
		page, err := b.Open(ctx, x.url+path)
		if w := whoami(t, page, err); w.User == "" || w.Email != "alice@example.com" || w.Node != node {
			t.Errorf("%s: %+v", path, w)
		}
		if len(page.Redirects) > 0 {
			t.Errorf("%s went through %v", path, page.Redirects)
		}
		served[page.Header.Get("X-Served-By")]++
	}
	if served["node-a"] != requests/2 || served["node-b"] != requests/2 {
		t.Errorf("served by %v, want both in turn", served)
	}

	node := x.pids(t)["node-a"]
	if err := syscall.Kill(node, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range requests {
		page, err := b.Open(ctx, x.url+"/whoami")
		if w := whoami(t, page, err); w.Email != "alice@example.com" || page.Header.Get("X-Served-By") != "node-b" {
			t.Errorf("after node-a died: %+v by %s", w, page.Header.Get("X-Served-By"))
		}
	}
	x.awaitOutput(t, fmt.Sprintf("node-a (pid %d) has ended", node))

	x.end(t, os.Interrupt, 130)
}

// What goes wrong on purpose says what is wrong.
func TestHAProxyExampleWithMistakes(t *testing.T) {
	t.Parallel() // it waits, mostly
	testenv.RequireTool(t, "haproxy")
	tests := []struct{ share, says, fix string }{
		{"off", "The servers of this site don't share their keys", "keys.file"},
		{"keys", "The servers of this site don't share their sessions", "store"},
	}
	for _, tt := range tests {
		t.Run(tt.share, func(t *testing.T) {
			x := startExample(t, "haproxy-redis", haproxyPorts, "SHARE="+tt.share)
			if !strings.Contains(x.Output(), tt.says) {
				t.Errorf("does not say that %q is to be expected:\n%s", tt.says, x.Output())
			}
			page := signIn(t, testenv.NewBrowser(t), x.url+"/", "alice")
			body := html.UnescapeString(page.Body)
			if page.Status != http.StatusBadRequest || !strings.Contains(body, tt.says) || !strings.Contains(body, tt.fix) {
				t.Errorf("sign-in ended with %d at %s after %v:\n%s", page.Status, page.URL, page.Redirects, body)
			}
			x.end(t, syscall.SIGTERM, 143)
		})
	}
}

// An example refuses to start where it would get in somebody's way, and says why.
func TestExampleSaysThatAPortIsTaken(t *testing.T) {
	testenv.RequireTool(t, "haproxy")
	taken := testenv.FreePort(t)
	server := http.Server{Addr: testenv.Loopback(taken)}
	go func() { _ = server.ListenAndServe() }()
	t.Cleanup(func() { _ = server.Close() })
	await := testenv.Listening(server.Addr)
	for await(t.Context()) != nil {
		time.Sleep(time.Millisecond)
	}
	p := testenv.Start(t, testenv.Command{
		Path: testenv.RequireTool(t, "bash"),
		Args: []string{"../examples/haproxy-redis/run.sh"},
		Env:  []string{"COATCHECK=" + program(t), "SHARE=off", fmt.Sprintf("PORT=%d", taken), "TMPDIR=" + t.TempDir()},
	})
	if code := p.ExitCode(); code != 1 {
		t.Errorf("exit code = %d", code)
	}
	if want := fmt.Sprintf("port %d is taken; choose another one: PORT=", taken); !strings.Contains(p.Output(), want) {
		t.Errorf("says %q, not %q", p.Output(), want)
	}
}

// A-F1, A-F3, A-F4, A-F5, A-H2, A-H12, A-O15, A-P9: nginx asks, and its app is told.
func TestNginxExample(t *testing.T) {
	t.Parallel() // it waits, mostly
	testenv.RequireTool(t, "nginx")
	x := startExample(t, "nginx", []string{"PORT", "NODE_PORT", "ADMIN_PORT", "PROVIDER_PORT", "APP_PORT"})
	ctx := t.Context()

	// fetch sends what a script would, with headers of the client's choice.
	fetch := func(t *testing.T, b *testenv.Browser, method, path string, headers ...string) *testenv.Page {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, x.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		page, err := b.Fetch(req)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}

	t.Run("nobody", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		if page := fetch(t, b, http.MethodGet, "/public/whoami"); page.Status != http.StatusOK {
			t.Errorf("/public/whoami: %d", page.Status)
		}
		for _, headers := range [][]string{
			{},
			{"X-Forwarded-Uri", "/public/"},
			{"X-Original-URI", "/public/"},
			{"X-Original-URL", "/public/"},
			{"X-Forwarded-Host", "example.com"},
			{"X-Forwarded-User", "alice", "X-Auth-Request-User", "alice"},
			{"Cookie", "coatcheck=garbage"},
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				page := fetch(t, b, method, "/whoami", append(headers, "Accept", "application/json")...)
				if page.Status != http.StatusUnauthorized || page.Header.Get("Location") != "" ||
					!strings.HasPrefix(page.Header.Get("Content-Type"), "application/json") {
					t.Errorf("%s with %q: %d %v", method, headers, page.Status, page.Header)
				}
			}
		}
		if page := fetch(t, b, http.MethodGet, "/oauth2/auth"); page.Status != http.StatusNotFound {
			t.Errorf("the question can be asked from outside: %d", page.Status)
		}
	})

	t.Run("somebody", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		const query = "a=1&b=%2F&c=%26&d"
		page := signIn(t, b, x.url+"/whoami?"+query, "bob")
		if w := whoami(t, page, nil); w.Email != "bob@example.com" || w.Node != "app" {
			t.Errorf("%+v", w)
		}
		if page.URL.RawQuery != query {
			t.Errorf("came back with %q, not %q", page.URL.RawQuery, query)
		}
		page = fetch(t, b, http.MethodGet, "/whoami",
			"X-Forwarded-User", "mallory", "X-Forwarded-Email", "mallory", "X-Forwarded-Groups", "mallory",
			"X-Forwarded-Preferred-Username", "mallory", "X-Auth-Request-User", "mallory",
			"X_Forwarded_User", "mallory",
			"X-Forwarded-Uri", "/mallory", "X-Original-URI", "/mallory", "X-Original-URL", "/mallory",
			"X-Forwarded-Host", "mallory", "X-Original-Host", "mallory",
			"X-Forwarded-Method", "MALLORY", "X-Original-Method", "MALLORY",
			"Forwarded", "for=mallory", "X-Rewrite-Url", "/mallory", "X-Http-Method-Override", "MALLORY",
			"X-Auth-Request-Email", "mallory", "X-Auth-Request-Groups", "mallory",
			"X-Auth-Request-Preferred-Username", "mallory", "X-Forwarded-For", "mallory", "X-Forwarded-Proto", "mallory",
			"Cookie", "a=1; coatcheck=garbage; b=2")
		w := whoami(t, page, nil)
		if w.Email != "bob@example.com" {
			t.Errorf("with forged headers: %+v", w)
		}
		headers := string(w.Headers)
		if strings.Contains(strings.ToLower(headers), "mallory") {
			t.Errorf("forged headers reach the app: %s", headers)
		}
		if !strings.Contains(headers, `"Cookie":["a=1; b=2"]`) {
			t.Errorf("the app does not get its own cookies alone: %s", headers)
		}
		page, err := b.Open(ctx, x.url+"/admin/")
		if err != nil || page.Status != http.StatusForbidden || !strings.Contains(page.Body, "You may not open this") {
			t.Errorf("/admin/ as bob: %+v, %v", page, err)
		}
	})

	// Each served request ends the count of sign-ins that nothing came of, by a cookie in
	// the answer to nginx. Were it lost, this would look like nodes that share no store.
	t.Run("somebody who comes and goes", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		for range 4 {
			page := signIn(t, b, x.url+"/whoami", "carol")
			if w := whoami(t, page, nil); w.Email != "carol@example.com" {
				t.Errorf("%+v", w)
			}
			fetch(t, b, http.MethodPost, "/oauth2/sign_out", "Sec-Fetch-Site", "same-origin")
		}
	})

	t.Run("an admin", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		page := signIn(t, b, x.url+"/admin/", "alice")
		if page.Status != http.StatusOK {
			t.Errorf("/admin/ as alice: %d at %s", page.Status, page.URL)
		}

		// Whether she is signed in can't be told now: no access, and no sign-out.
		node := x.pids(t)["coatcheck"]
		if err := syscall.Kill(node, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		x.awaitOutput(t, fmt.Sprintf("coatcheck (pid %d) has ended", node))
		page = fetch(t, b, http.MethodGet, "/whoami")
		if page.Status != http.StatusBadGateway || len(page.Header.Values("Set-Cookie")) > 0 {
			t.Errorf("without coatcheck: %d %v", page.Status, page.Header)
		}
	})

	x.end(t, syscall.SIGTERM, 143)
}
