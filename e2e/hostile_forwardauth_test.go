package e2e

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// hostileForwardAuth is what of class F needs no trusted proxy.
func hostileForwardAuth(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	t.Run("A-F1", func(t *testing.T) {
		for _, lines := range [][]string{nil, {browserPage, "Sec-Fetch-Mode: navigate"}, {"Authorization: Bearer junk"}} {
			if a := s.get(t, "/oauth2/auth", lines...); a.StatusCode != http.StatusUnauthorized || a.location() != "" {
				t.Errorf("%q: %s", lines, a.Status)
			}
		}
	})
	t.Run("A-F2", func(t *testing.T) {
		for _, value := range []string{"x", "", s.cookie + "-" + strings.Repeat("0", 32) + "." + strings.Repeat("A", 22)} {
			a := s.get(t, "/oauth2/auth", "Cookie: "+s.cookie+"="+value)
			if a.StatusCode != http.StatusUnauthorized || a.Header["Set-Cookie"] != nil {
				t.Errorf("the cookie %q: %s, cookies %q", value, a.Status, a.Header["Set-Cookie"])
			}
		}
		for _, cookie := range []string{"Cookie: " + s.cookie + ".99=x", strings.TrimSuffix("Cookie: "+strings.Repeat("a=;", 999), ";")} {
			if a := s.get(t, "/oauth2/auth", cookie); a.StatusCode < 400 || a.StatusCode > 499 {
				t.Errorf("%.40s: %s", cookie, a.Status)
			}
		}
	})
	t.Run("A-F4: a stranger's word", func(t *testing.T) {
		for _, lines := range [][]string{
			{"X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET"},
			{"X-Original-URL: /public/x"},
			{"X-Original-Uri: /health", "X-Original-Method: GET"},
			{"X-Forwarded-Host: evil.com"},
		} {
			s.denied(t, s.get(t, "/oauth2/auth", lines...), false)
		}
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
			if a := s.send(t, s.request(method, "/oauth2/auth", alice)); a.StatusCode != http.StatusAccepted {
				t.Errorf("%s: %s", method, a.Status)
			}
		}
	})
	t.Run("A-F6", func(t *testing.T) {
		// The body never comes, and the connection may be kept alive.
		for _, line := range []string{"Content-Length: 1073741824", "Content-Length: 100", "Transfer-Encoding: chunked"} {
			request := strings.Replace(s.request("POST", "/oauth2/auth", alice, line), "Connection: close\r\n", "", 1)
			if head := s.head(t, request); !strings.HasPrefix(head, "HTTP/1.1 202 ") || !strings.Contains(head, "\r\nConnection: close\r\n") {
				t.Errorf("%s: %q", line, head)
			}
		}
	})
	t.Run("A-F7", func(t *testing.T) {
		// The first use of a session ends the cookie that counts sign-ins; whichever
		// request that is, its answer carries it.
		c := new(cookies)
		s.signInTo(t, c, "bob", "")
		a := s.get(t, "/oauth2/auth", c.line())
		if a.StatusCode != http.StatusAccepted || len(a.Header["Set-Cookie"]) != 1 {
			t.Errorf("%s, cookies %q", a.Status, a.Header["Set-Cookie"])
		}
		if c.keep(a); len(c.pairs) != 1 {
			t.Errorf("left are %v", c.pairs)
		}
	})
}

// head sends bytes that are no whole request, and returns the head of the answer.
func (s *site) head(t *testing.T, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	var head strings.Builder
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String()
		}
	}
}

// TestHostileHosts is a site of several hosts below one domain, behind a trusted proxy.
func TestHostileHosts(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	s := startSite(t, "https://auth.sso.test", "__Secure-coatcheck", rec, nodeOptions{
		routes: strings.ReplaceAll(`
- {path: /, upstream: REC}
- {path: /public/, require: anonymous, upstream: REC}
- {path: /health, exact: true, methods: [GET], require: anonymous, upstream: REC}
- {path: /public/api, require: anonymous, upstream: REC}
- {path: /public/api, methods: [POST, DELETE], upstream: REC}
- {host: a.sso.test, path: /, allow: {groups: [admins]}, upstream: REC}
- {host: b.sso.test, path: /, upstream: REC}
- {host: b.sso.test, path: /public/, require: anonymous, upstream: REC}
- {host: c.sso.test, path: /, require: anonymous, upstream: REC}
- {host: c.sso.test, path: /admin, allow: {groups: [admins]}, upstream: REC}
`, "REC", rec.URL),
		more: "session: {cookie: {domain: sso.test}}\ntrusted_proxies: [127.0.0.0/8, 10.0.0.0/8]\n",
	})
	s.origins = []string{"https://auth.sso.test", "https://a.sso.test", "https://b.sso.test"}
	alice, bob := s.signIn(t, "alice").line(), s.signIn(t, "bob").line()

	t.Run("A-R: other hosts of the site", func(t *testing.T) {
		for _, rd := range []string{"https://evil.sso.test/", "https://sso.test/", "https://a.sso.test:8443/", "https://xa.sso.test/", "https://a.sso.test.evil.com/", "https://a.sso.test@evil.com/", "//a.sso.test/"} {
			if a := s.get(t, "/oauth2/start?rd="+rd); a.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s", rd, a.Status)
			}
		}
		for _, tt := range []struct{ host, target, want string }{
			{"auth.sso.test", "/oauth2/start?rd=https://a.sso.test/x?y=%2526", "https://a.sso.test/x?y=%26"},
			{"auth.sso.test", "/oauth2/start?rd=/x", "/x"},
			{"b.sso.test", "/oauth2/start?rd=/x", "https://b.sso.test/x"}, // a path is one of the host that was asked
			{"b.sso.test", "/oauth2/start", "https://b.sso.test/"},
			{"b.sso.test", "/oauth2/start?rd=https://auth.sso.test/", "https://auth.sso.test/"},
			{"b.sso.test", "/page?x=//evil.com", "https://b.sso.test/page?x=//evil.com"},
		} {
			c := new(cookies)
			a := s.get(t, tt.target, "Host: "+tt.host)
			c.keep(a)
			a = s.get(t, s.provider.authorize(t, a.location(), "alice"), c.line())
			if a.location() != tt.want {
				t.Errorf("%s%s leads to %q, want %q", tt.host, tt.target, a.location(), tt.want)
			}
			s.leadsHome(t, tt.target, a)
		}
	})
	t.Run("A-R12: other hosts of the site", func(t *testing.T) {
		for rd, want := range map[string]string{"": "", "?rd=/bye": "https://b.sso.test/bye", "?rd=https://a.sso.test/": "https://a.sso.test/"} {
			out := s.get(t, "/oauth2/sign_out"+rd, "Host: b.sso.test", "Sec-Fetch-Site: same-origin", s.signIn(t, "bob").line())
			if a := s.afterProviderSignOut(t, out.location()); a.location() != want {
				t.Errorf("sign_out%s leads to %q, want %q", rd, a.location(), want)
			}
		}
	})
	t.Run("A-F3", func(t *testing.T) {
		for cookie, want := range map[string][4]string{
			alice:                        {"alice", "alice@example.com", "admins,staff", "alice"},
			s.signIn(t, "nobody").line(): {"nobody", "", "", "nobody"},
		} {
			a := s.get(t, "/oauth2/auth", cookie)
			if a.StatusCode != http.StatusAccepted {
				t.Errorf("%s", a.Status)
			}
			for i, name := range []string{"User", "Email", "Groups", "Preferred-Username"} {
				if got := a.Header["X-Auth-Request-"+name]; !slices.Equal(got, []string{want[i]}) {
					t.Errorf("X-Auth-Request-%s: %q, want %q", name, got, want[i])
				}
			}
		}
		// Nobody, on a free path: every header is there and empty.
		a := s.get(t, "/oauth2/auth", "X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET")
		if a.StatusCode != http.StatusAccepted || !slices.Equal(a.Header["X-Auth-Request-User"], []string{""}) {
			t.Errorf("%s, X-Auth-Request-User: %q", a.Status, a.Header["X-Auth-Request-User"])
		}
	})
	t.Run("A-F4", func(t *testing.T) {
		for _, tt := range []struct {
			lines  []string
			status int
		}{
			{[]string{"X-Forwarded-Uri: /health", "X-Forwarded-Method: GET"}, 202},
			{[]string{"X-Original-Uri: /health", "X-Original-Method: GET"}, 202},
			{[]string{"X-Original-URL: https://auth.sso.test/health", "X-Original-Method: GET"}, 202},
			{[]string{"X-Forwarded-Uri: /health"}, 401}, // a missing method matches no rule for methods
			{[]string{"X-Forwarded-Uri: /health", "X-Forwarded-Method: POST"}, 401},
			{[]string{"X-Forwarded-Uri: /public/api", "X-Forwarded-Method: GET"}, 202},
			{[]string{"X-Forwarded-Uri: /public/api", "X-Forwarded-Method: POST"}, 401},
			{[]string{"X-Forwarded-Uri: /public/api", "X-Forwarded-Method: post"}, 403},
			{[]string{"X-Forwarded-Uri: /public/api"}, 401}, // and may be one that a rule guards
			{[]string{"X-Forwarded-Method: GET"}, 401},
			{nil, 401},
			{[]string{"X-Forwarded-Uri: /admin", "X-Forwarded-Method: GET"}, 401},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Host: b.sso.test"}, 202},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Host: a.sso.test"}, 401},
			{[]string{"X-Forwarded-Uri: /", "X-Forwarded-Host: c.sso.test"}, 202},
			{[]string{"X-Forwarded-Host: c.sso.test"}, 401}, // which path is not said: all that the host demands
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Host: evil.com"}, 403},
			{[]string{"X-Forwarded-Uri: /public/../admin"}, 403},
			{[]string{"X-Forwarded-Uri: /public/..%2fadmin"}, 403},
			{[]string{"X-Forwarded-Uri: //public/x"}, 403},
			{[]string{"X-Forwarded-Uri: public/x"}, 403},
			{[]string{"X-Forwarded-Uri: https://evil.com/public/x"}, 403},
			{[]string{"X-Original-URL: https://b.sso.test/public/x", "X-Forwarded-Host: a.sso.test"}, 403},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Uri: /admin"}, 403},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Original-URL: /admin"}, 403},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Host: b.sso.test", "X-Original-Host: a.sso.test"}, 403},
			{[]string{"X-Forwarded-Uri: /public/x", "X-Forwarded-Method: G ET"}, 403},
		} {
			a := s.get(t, "/oauth2/auth", tt.lines...)
			if a.StatusCode != tt.status || a.location() != "" {
				t.Errorf("%q: %s, want %d", tt.lines, a.Status, tt.status)
			}
		}
	})
	t.Run("A-F5", func(t *testing.T) {
		for _, tt := range []struct {
			cookie, host string
			status       int
		}{
			{alice, "a.sso.test", 202}, {alice, "b.sso.test", 202}, {bob, "a.sso.test", 403}, {bob, "b.sso.test", 202},
		} {
			if a := s.get(t, "/oauth2/auth", tt.cookie, "X-Forwarded-Host: "+tt.host, "X-Forwarded-Uri: /x", "X-Forwarded-Method: GET"); a.StatusCode != tt.status {
				t.Errorf("%s: %s, want %d", tt.host, a.Status, tt.status)
			}
			if a := s.get(t, "/oauth2/auth", tt.cookie, "Host: "+tt.host); a.StatusCode != tt.status {
				t.Errorf("Host: %s: %s, want %d", tt.host, a.Status, tt.status)
			}
		}
		s.served(t, s.get(t, "/x", bob, "Host: b.sso.test"), "bob")
		s.denied(t, s.get(t, "/x", bob, "Host: a.sso.test"), false)
	})
	t.Run("A-H8", func(t *testing.T) {
		for forwarded, want := range map[string]string{
			"6.6.6.6, 10.0.0.9":                               "6.6.6.6",
			"6.6.6.6, 192.0.2.9":                              "192.0.2.9",
			"6.6.6.6, junk, 10.0.0.9":                         "10.0.0.9",
			"10.0.0.7, 10.0.0.8":                              "10.0.0.7",
			"6.6.6.6\r\nX-Forwarded-For: 192.0.2.8, 10.0.0.1": "192.0.2.8",
		} {
			a := s.get(t, "/public/x", "X-Forwarded-For: "+forwarded, "X-Request-Id: given-by-the-proxy-1")
			s.served(t, a, "")
			if got := a.field("X-Forwarded-For"); !slices.Equal(got, []string{want}) {
				t.Errorf("of %q the app got %q, want %q", forwarded, got, want)
			}
			if got := a.field("X-Request-Id"); !slices.Equal(got, []string{"given-by-the-proxy-1"}) {
				t.Errorf("the app got the request id %q", got)
			}
		}
	})
	t.Run("a trusted proxy does not choose the site", func(t *testing.T) {
		// What is https and which host is ours is in the configuration alone.
		a := s.get(t, "/x", "X-Forwarded-Host: evil.com", "X-Forwarded-Proto: http", "X-Forwarded-Port: 80")
		s.denied(t, a, true)
		if !strings.Contains(a.location(), "redirect_uri=https%3A%2F%2Fauth.sso.test%2Foauth2%2Fcallback") {
			t.Errorf("redirected to %s", a.location())
		}
	})
}
