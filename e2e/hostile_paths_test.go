package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// hostileRoutes frees /public/ and GET of exactly /health. Everything else needs a
// sign-in, but for apps that are broken on purpose.
func hostileRoutes(t *testing.T, rec *testenv.Recorder) nodeOptions {
	return nodeOptions{routes: strings.NewReplacer("REC", rec.URL, "DOWN", "http://"+testenv.Loopback(testenv.FreePort(t))).Replace(`
- {path: /public/, require: anonymous, upstream: REC}
- {path: /public/api, require: anonymous, upstream: REC}
- {path: /public/api/, methods: [POST, DELETE], upstream: REC}
- {path: /health, exact: true, methods: [GET], require: anonymous, upstream: REC}
- {path: /slow, require: anonymous, upstream: REC, timeout: 1s}
- {path: /broken, require: anonymous, upstream: REC}
- {path: /down, require: anonymous, upstream: DOWN}
- {path: /, upstream: REC}
`)}
}

const browserPage = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"

// hostilePaths is class P: nothing gets a protected page by way of a free one.
func hostilePaths(t *testing.T, s *site) {
	t.Run("positive", func(t *testing.T) {
		for _, target := range []string{"/public/", "/public", "/public/a/b?x=/admin", "/health", "/health?x"} {
			a := s.get(t, target)
			s.served(t, a, "")
			if a.target() != target {
				t.Errorf("%s was forwarded as %s", target, a.target())
			}
		}
	})
	for _, tt := range []struct {
		id      string
		targets []string
	}{
		{"A-P1", []string{"/public/../admin", "/public/..", "/public/./../admin", "/public/x/../../admin"}},
		{"A-P2", []string{"/public/%2e%2e/admin", "/public/%2E./admin", "/public/.%2e/admin", "/public/%252e%252e/admin", "/public/%c0%ae%c0%ae/admin"}},
		{"A-P3", []string{"/public/..%2fadmin", "/public/%2e%2e%2fadmin", "/public/..%5cadmin", `/public/..\admin`, "/public/..%252fadmin"}},
		{"A-P4", []string{"/public/..;/admin", "/public/..;x=y/admin", "/public/%2e%2e;/admin", "/public/..%3b/admin", "/public;/../admin", "/;/public/../admin"}},
		{"A-P5", []string{"//admin", "/public//../admin", "/public//admin", "//public/x", "/public///"}},
		{"A-P6", []string{"/public%2f..%2fadmin", "/admin%2f", "/public%2fx", "/%2fpublic/x", "%2fpublic/x"}},
		{"A-P7", []string{"/admin?x=/public/", "/admin?/public/", "/?/public/x", "/admin?/../public/x"}},
		{"A-P8", []string{"/admin%23/public/", "/admin#/public/", "/public/#/../admin", "/admin%3f/public/", "/public#", "/admin%00/public/"}},
		{"A-P13", []string{"/ADMIN", "/Admin/", "/PUBLIC/x", "/Public/x", "/Health", "/HEALTH", "/publi%C7%B0/x", "/publıc/x"}},
		{"A-P14", []string{"http://app.t1.test/admin", "https://app.t1.test/admin", "http://app.t1.test/public/../admin", "http://app.t1.test", "http://app.t1.test?/public/"}},
		{"neighbours of what is free", []string{"/publicx", "/public.", "/health/", "/health/x", "/healthx", "/health;x", "/public;x", "/public;/x", "/", "/oauth2x"}},
	} {
		t.Run(tt.id, func(t *testing.T) {
			for _, target := range tt.targets {
				t.Run(target, func(t *testing.T) { s.refused(t, s.get(t, target, browserPage)) })
			}
		})
	}
	t.Run("A-P9", func(t *testing.T) {
		s.denied(t, s.get(t, "/admin", "X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET", "X-Forwarded-Prefix: /public"), true)
		s.denied(t, s.get(t, "/oauth2/auth", "X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET"), false)
	})
	t.Run("A-P10", func(t *testing.T) {
		for _, name := range []string{"X-Original-URL", "X-Rewrite-Url", "X-Original-Uri", "X-Envoy-Original-Path", "X_Original_URL"} {
			s.denied(t, s.get(t, "/admin", name+": /public/x"), true)
			a := s.get(t, "/public/x", name+": /admin")
			s.served(t, a, "")
			if got := a.field(name); got != nil {
				t.Errorf("the app got %s: %q", name, got)
			}
		}
	})
	t.Run("A-P11", func(t *testing.T) {
		s.denied(t, s.send(t, s.request("POST", "/health", "Content-Length: 0")), false)
		for _, method := range []string{"HEAD", "OPTIONS", "TRACE", "DELETE", "get", "GETX", "PROPFIND"} {
			s.denied(t, s.send(t, s.request(method, "/health")), false)
		}
		for _, name := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "x_http_method_override"} {
			a := s.get(t, "/health", name+": DELETE")
			s.served(t, a, "")
			if got := a.field(name); got != nil {
				t.Errorf("the app got %s: %q", name, got)
			}
			// A free route for the methods that no other one guards: neither lends its.
			for _, target := range []string{"/public/api/x", "/public/x"} {
				a := s.send(t, s.request("PUT", target, "Content-Length: 0", name+": DELETE"))
				s.served(t, a, "")
				if got := a.field(name); got != nil {
					t.Errorf("%s: the app got %s: %q", target, name, got)
				}
			}
		}
		for _, method := range []string{"POST", "post", "Delete"} {
			s.denied(t, s.send(t, s.request(method, "/public/api/x", "Content-Length: 0")), false)
		}
	})
	t.Run("A-P12", func(t *testing.T) {
		for _, agent := range []string{"GoogleHC/1.0", "kube-probe/1.30", "ELB-HealthChecker/2.0", ""} {
			s.denied(t, s.get(t, "/admin", "User-Agent: "+agent), true)
		}
	})
	t.Run("health checks are two exact targets", func(t *testing.T) {
		for _, target := range []string{"/ping", "/ready"} {
			if a := s.get(t, target, "Host: anything"); a.StatusCode != http.StatusOK || len(a.reached) > 0 {
				t.Errorf("%s: %s", target, a.Status)
			}
		}
		for _, target := range []string{"/ping?", "/ping/", "/ready?x", "/ping/../admin", "/ping%2f", "/PING", "http://app.t1.test/ping", "//ping", "/ping;x"} {
			s.refused(t, s.get(t, target, browserPage))
		}
		s.denied(t, s.send(t, s.request("POST", "/ping", "Content-Length: 0")), false)
	})
	t.Run("A-P15", func(t *testing.T) { s.generatedPaths(t) })
}

// refused checks that a request without a session reached nothing: it was denied, or
// its path has no meaning here.
func (s *site) refused(t *testing.T, a *answer) {
	t.Helper()
	if a.StatusCode == http.StatusNotFound && len(a.reached) == 0 {
		return // the path in other letters belongs to a free route, and is not freed
	}
	s.denied(t, a, true)
}

// generatedPaths sends paths made of what servers trip over. Without a session, only
// what everybody would read as a free path may arrive; what arrives, with a session or
// without, has the very bytes that were sent.
func (s *site) generatedPaths(t *testing.T) {
	pieces := []string{
		"/", "/", "/", "/", "public", "public", "admin", "health", "PUBLIC", "oauth2", "a", "..", ".", ";", "%", "//", `\`,
		"%2e", "%2E%2e", "%2f", "%2F", "%5c", "%00", "%09", "%20", "%23", "%3f", "%3b", "%25", "%252e", "%252f", "%61", "%c3%a9", "%ff",
		"?", "?/public/", "&", "=", "@", ":", "|", "^", "~", "+", "'", "\"", "<", ",",
	}
	line := s.signIn(t, "alice").line()
	const seed = 20260101
	random := rand.New(rand.NewPCG(seed, seed))
	free, signedIn := 0, 0
	const n = 200
	for range n {
		target := "/"
		if random.IntN(2) == 0 {
			target = "/public/"
		}
		for range 1 + random.IntN(7) {
			target += pieces[random.IntN(len(pieces))]
		}
		for _, cookie := range []string{"", line} {
			a := s.get(t, target, cookie)
			if len(a.reached) == 0 {
				if a.StatusCode < 300 || a.StatusCode > 499 {
					t.Errorf("%s: %s, and nothing reached the app", target, a.Status)
				}
				continue
			}
			if a.target() != target {
				t.Errorf("%s was forwarded as %s", target, a.target())
			}
			if cookie != "" {
				signedIn++
				continue
			}
			free++
			for _, reading := range readingsOf(target) {
				if reading != "/health" && reading != "/public" && !strings.HasPrefix(reading, "/public/") {
					t.Errorf("%s reached the app without a session; some server reads it as %s", target, reading)
				}
			}
		}
	}
	t.Logf("of %d paths, %d reached the app without a session and %d with one", n, free, signedIn)
	if free < n/20 || signedIn < n/20 {
		t.Error("that is too few to show anything")
	}
}

// readingsOf are the paths that servers are known to make of a target: as it is,
// decoded, decoded twice, without path parameters, and each with dot segments removed
// and slashes of both kinds taken for one.
func readingsOf(target string) []string {
	raw, _, _ := strings.Cut(target, "?")
	readings := []string{raw}
	for range 2 {
		last := readings[len(readings)-1]
		if decoded, err := url.PathUnescape(last); err == nil && decoded != last {
			readings = append(readings, decoded)
		}
	}
	for _, r := range slices.Clone(readings) {
		before, _, _ := strings.Cut(r, "#")
		before, _, _ = strings.Cut(before, "?")
		segments := strings.Split(before, "/")
		for i, segment := range segments {
			segments[i], _, _ = strings.Cut(segment, ";")
		}
		readings = append(readings, before, strings.Join(segments, "/"))
	}
	for _, r := range slices.Clone(readings) {
		readings = append(readings, path.Clean(strings.ReplaceAll(r, `\`, "/")))
	}
	slices.Sort(readings)
	return slices.Compact(readings)
}

// hostileHeaders is class H.
func hostileHeaders(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	t.Run("A-H1", func(t *testing.T) {
		a := s.get(t, "/public/x", "X-Auth-User: admin", "X-Auth-Email: boss@corp.example", "X-Auth-Groups: admins")
		s.served(t, a, "")
		if got := append(a.field("X-Auth-Email"), a.field("X-Auth-Groups")...); len(got) > 0 {
			t.Errorf("the app got %q", got)
		}
	})
	t.Run("A-H2, A-H3, A-H5", func(t *testing.T) {
		names := []string{"X-Auth-User", "x-auth-user", "X_Auth_User", "x_auth_user", "X-Auth_User", "X_AUTH-USER", "X-AUTH-USER", "x-aUTH-uSER"}
		for _, target := range []string{"/public/x", "/admin"} {
			for _, name := range names {
				a := s.get(t, target, alice, name+": admin")
				s.served(t, a, "alice")
			}
			a := s.get(t, target, alice, "X-Auth-User: admin", "x-auth-USER: root", "x_auth_user: wheel")
			s.served(t, a, "alice")
		}
		for _, name := range []string{"X-Forwarded-User", "X-Auth-Request-User", "Coatcheck-State", "coatcheck_assertion", "X-Forwarded-Access-Token"} {
			a := s.get(t, "/public/x", name+": admin")
			s.served(t, a, "")
			if slices.Contains(a.field(name), "admin") {
				t.Errorf("the app got %s from the client", name)
			}
		}
	})
	t.Run("A-H4", func(t *testing.T) {
		for _, connection := range []string{
			"close, X-Auth-User", "close, x-auth-user", "close, cookie", "close, x-forwarded-for, x-forwarded-host",
			"close, authorization", "close, X-Auth-Email, X-Auth-Groups, X-Request-Id, Coatcheck-State", "close, host", "close, content-length",
		} {
			a := s.send(t, "GET /admin HTTP/1.1\r\nHost: "+s.host+"\r\nConnection: "+connection+"\r\n"+alice+"; theme=dark\r\n\r\n")
			s.served(t, a, "alice")
			for name, want := range map[string]string{
				"X-Auth-Email": "alice@example.com", "X-Auth-Groups": "admins,staff", "X-Forwarded-For": "127.0.0.1",
				"X-Forwarded-Host": s.host, "Cookie": "theme=dark", "Coatcheck-State": "authenticated", "Host": s.host,
			} {
				if got := a.field(name); !slices.Equal(got, []string{want}) {
					t.Errorf("Connection: %s: the app got %s: %q, want %q", connection, name, got, want)
				}
			}
		}
	})
	t.Run("A-H6", func(t *testing.T) {
		a := s.get(t, "/admin", s.signIn(t, "nobody").line(), "X-Auth-Email: boss@corp.example", "X-Auth-Groups: admins", "x_auth_groups: admins")
		s.served(t, a, "nobody")
		for _, name := range []string{"X-Auth-Email", "X-Auth-Groups"} {
			if got := strings.Join(a.field(name), ""); got != "" {
				t.Errorf("the app got %s: %q", name, got)
			}
		}
	})
	t.Run("A-H7, A-T2", func(t *testing.T) {
		lies := []string{
			"X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil.com", "X-Forwarded-Proto: http", "X-Forwarded-Port: 80",
			"X-Forwarded-Prefix: /x", "X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET", "X-Forwarded-Server: evil.com",
			"Forwarded: for=6.6.6.6;host=evil.com;proto=http", "X-Real-IP: 6.6.6.6", "X-Request-Id: chosen-by-a-stranger", "Proxy: http://evil.com",
		}
		a := s.get(t, "/admin", lies...)
		s.denied(t, a, true)
		u, err := url.Parse(a.location())
		if err != nil || u.Query().Get("redirect_uri") != s.public+"/oauth2/callback" {
			t.Errorf("redirect_uri in %q", a.location())
		}
		a = s.get(t, "/public/x", lies...)
		s.served(t, a, "")
		for name, want := range map[string][]string{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Real-IP": {"127.0.0.1"}, "X-Forwarded-Host": {s.host}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Port": nil, "X-Forwarded-Prefix": nil, "X-Forwarded-Uri": nil, "X-Forwarded-Method": nil, "X-Forwarded-Server": nil,
			"Forwarded": nil, "Proxy": nil,
		} {
			if got := a.field(name); !slices.Equal(got, want) {
				t.Errorf("the app got %s: %q, want %q", name, got, want)
			}
		}
		if got := a.field("X-Request-Id"); len(got) != 1 || got[0] == "chosen-by-a-stranger" {
			t.Errorf("the app got X-Request-Id: %q", got)
		}
		if log := s.logged(); strings.Contains(log, "6.6.6.6") || strings.Contains(log, "chosen-by-a-stranger") {
			t.Error("the log believes a stranger")
		}
	})
	t.Run("A-H9", func(t *testing.T) {
		for _, line := range []string{"X-Auth-User : admin", "X-Auth-User\t: admin", ": admin", "X-Auth-User", "X-Auth User: admin", "X-Auth-User: a\x00b", "X-Auth-User: a\rb"} {
			a := s.get(t, "/public/x", line)
			if a.StatusCode != http.StatusBadRequest || len(a.reached) > 0 {
				t.Errorf("%q: %s, reached the app: %q", line, a.Status, a.reached)
			}
		}
	})
	t.Run("A-H10, A-G10", func(t *testing.T) {
		// Nothing but the cookie signs anybody in: no ticket in another place, and no token,
		// though it be the provider's.
		ticket, token := strings.TrimPrefix(alice, "Cookie: "+s.cookie+"="), s.provider.access.Load().(string)
		for _, value := range []string{ticket, token, "junk", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."} {
			for _, name := range []string{"access_token", "token", "id_token", s.cookie} {
				form := name + "=" + value
				for _, target := range []string{"/admin", "/oauth2/auth", "/oauth2/userinfo"} {
					s.denied(t, s.get(t, target+"?"+form), target != "/oauth2/auth")
				}
				s.denied(t, s.send(t, s.request("POST", "/admin", "Content-Type: application/x-www-form-urlencoded", fmt.Sprintf("Content-Length: %d", len(form)))+form), false)
			}
			s.denied(t, s.get(t, "/admin", "Authorization: Bearer "+value), true)
		}
		for _, scheme := range []string{"Bearer junk", "Basic YWxpY2U6YWxpY2U=", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.", "Negotiate x"} {
			s.denied(t, s.get(t, "/admin", "Authorization: "+scheme), true)
			for _, target := range []string{"/admin", "/public/x"} {
				a := s.get(t, target, alice, "Authorization: "+scheme, "Proxy-Authorization: "+scheme)
				s.served(t, a, "alice")
				if got := append(a.field("Authorization"), a.field("Proxy-Authorization")...); len(got) > 0 {
					t.Errorf("the app got %q", got)
				}
			}
		}
	})
	t.Run("A-H11", func(t *testing.T) {
		for _, cookie := range []string{"", alice} {
			a := s.send(t, s.request("POST", "/public/x", cookie, "Transfer-Encoding: chunked", "Trailer: X-Auth-User, X-Fine")+
				"5\r\nhello\r\n0\r\nX-Auth-User: root\r\nX-Fine: x\r\nContent-Length: 99\r\n\r\n")
			if len(a.reached) != 1 {
				t.Fatalf("%d requests reached the app", len(a.reached))
			}
			if got := a.reached[0]; strings.Contains(got, "root") || strings.Contains(got, "X-Fine") || !strings.Contains(got, "hello") {
				t.Errorf("the app got\n%s", got)
			}
		}
	})
	t.Run("A-H12", func(t *testing.T) {
		session := strings.TrimPrefix(alice, "Cookie: ")
		for sent, want := range map[string]string{
			"a=1; " + session + "; b=2":                                              "a=1; b=2",
			session + ";b=2;  c=\"3 \\\" 4\"":                                        "b=2;  c=\"3 \\\" 4\"",
			"a=1;" + session:                                                         "a=1",
			"z=1; a=2; z=3; " + session + "; =x; y; é=ü; w=":                         "z=1; a=2; z=3; =x; y; é=ü; w=",
			session + "; coatcheck=x; __Secure-coatcheck=y; __host-COATCHECK=z; a=1": "a=1",
			session + "; __Host-coatcheck.0=x; __Host-coatcheck.1=y; a=1":            "a=1",
			session + "; __Host-coatcheck-login-0123456789abcdef=x; __Host-coatcheck-signins=y; a=1; __Host-coatchecker=keep; coat=1": "a=1; __Host-coatchecker=keep; coat=1",
			session + "; __Host-Http-coatcheck=x; \t coatcheck\t=y; a=1":                                                              "a=1",
		} {
			a := s.get(t, "/admin", "Cookie: "+sent)
			s.served(t, a, "alice")
			if got := a.field("Cookie"); !slices.Equal(got, []string{want}) {
				t.Errorf("the app got %q, want %q, of %q", got, want, sent)
			}
		}
		a := s.get(t, "/admin", alice)
		s.served(t, a, "alice")
		if got := a.field("Cookie"); got != nil {
			t.Errorf("the app got Cookie: %q", got)
		}
		a = s.get(t, "/admin", "Cookie: a=1", alice, "cookie: b=2")
		s.served(t, a, "alice")
		if got := fmt.Sprint(a.field("Cookie")); got != "[a=1 b=2]" && got != "[a=1; b=2]" {
			t.Errorf("the app got Cookie: %s", got)
		}
	})
}
