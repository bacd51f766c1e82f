package e2e

import (
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// hostileApp is the app behind the node. By their paths, requests are answered well or
// in ways that no app should answer.
func hostileApp(conn net.Conn, request string) bool {
	answers := map[string]string{
		"/public/sets-cookies": "HTTP/1.1 200 OK\r\nSet-Cookie: theme=dark; Path=/\r\n" +
			"Set-Cookie: __Host-coatcheck=evil; Path=/; Secure\r\nSet-Cookie: coatcheck=evil; Domain=t1.test\r\n" +
			"Set-Cookie: __Secure-Coatcheck.0=evil\r\nSet-Cookie: =__Host-coatcheck=evil\r\nSet-Cookie: __Host-coatchecker=1\r\n" +
			"Content-Length: 0\r\n\r\n",
		"/socket426":     "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n",
		"/socket101":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		"/broken/words":  "SSH-2.0-OpenSSH_9.9\r\n",
		"/broken/status": "HTTP/1.1 -7 Wrong\r\n\r\n",
		"/broken/field":  "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"/broken/length": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"/broken/large":  "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"/broken/closes": "",
	}
	target := testenv.Target(request)
	if strings.HasPrefix(target, "/slow") {
		_, _ = conn.Read(make([]byte, 1)) // until somebody gives up
		return false
	}
	if answer, ok := answers[target]; ok {
		_, _ = io.WriteString(conn, answer)
		return false
	}
	return testenv.OK(conn, request)
}

// handshake is the header of a valid WebSocket handshake.
var handshake = []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}

// hostileWire is what of class W begins at the request line, and requests that no
// browser sends.
func hostileWire(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	bob := s.signIn(t, "bob").line()
	// bare is a request that does not say Connection: close.
	bare := func(method, target string, lines ...string) string {
		return strings.Replace(s.request(method, target, lines...), "Connection: close\r\n", "", 1)
	}
	t.Run("A-W6", func(t *testing.T) {
		next := s.request("GET", "/admin")
		for _, version := range []string{"777", "12", "", "13, 777", "013"} {
			lines := append([]string{alice, "Sec-WebSocket-Version: " + version}, handshake...)
			answers := s.sendAll(t, bare("GET", "/admin", lines...)+next)
			if len(answers) == 0 || answers[0].StatusCode != http.StatusUpgradeRequired || answers[0].Header.Get("Sec-Websocket-Version") != "13" || answers[0].Header.Get("Upgrade") != "websocket" {
				t.Fatalf("version %q: %d answers", version, len(answers))
			}
			for _, a := range answers {
				if len(a.reached) > 0 {
					t.Errorf("version %q: reached the app: %q", version, a.reached)
				}
			}
			if len(answers) == 2 {
				s.denied(t, answers[1], true)
			}
		}
		lines := append([]string{alice, "Sec-WebSocket-Version: 13"}, handshake...)
		answers := s.sendAll(t, bare("GET", "/socket426", lines...)+next)
		if len(answers) == 0 || answers[0].StatusCode != http.StatusUpgradeRequired || len(answers[0].reached) != 1 {
			t.Fatalf("an app that answers 426: %d answers", len(answers))
		}
		if len(answers) == 2 && answers[1].StatusCode != http.StatusSeeOther {
			t.Errorf("what follows a 426 is answered with %s", answers[1].Status)
		}
		// An app that switches without having read the handshake's key.
		answers = s.sendAll(t, bare("GET", "/socket101", lines...)+next)
		if len(answers) == 0 || answers[0].StatusCode != http.StatusBadGateway || len(answers[0].reached) != 1 {
			t.Fatalf("an app that answers a bad 101: %d answers", len(answers))
		}
	})
	t.Run("A-W7", func(t *testing.T) {
		opened := s.rec.Opened()
		shake := func(lines ...string) *answer {
			return s.send(t, strings.Replace(s.request("GET", "/socket", append(lines, append(handshake[1:], "Sec-WebSocket-Version: 13")...)...),
				"Connection: close", "Connection: Upgrade, close", 1))
		}
		a := shake()
		s.denied(t, a, false)
		if a.StatusCode != http.StatusUnauthorized {
			t.Errorf("without a session: %s", a.Status)
		}
		s.denied(t, shake("Origin: "+s.public), false)
		for _, origin := range []string{"https://evil.com", "null", "http://app.t1.test", "https://app.t1.test.evil.com", "https://app.t1.test:8443", "https://app.t1.test/", ""} {
			if a := shake(alice, "Origin: "+origin); a.StatusCode != http.StatusForbidden {
				t.Errorf("Origin: %s: %s", origin, a.Status)
			}
		}
		if a := shake(alice, "Origin: "+s.public, "Origin: https://evil.com"); a.StatusCode != http.StatusForbidden {
			t.Errorf("two origins: %s", a.Status)
		}
		if got := s.rec.Opened(); got != opened {
			t.Errorf("%d connections to the app", got-opened)
		}
	})
	t.Run("A-W8", func(t *testing.T) {
		a := s.send(t, strings.Replace(s.request("GET", "/public/x", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
			"Connection: close", "Connection: Upgrade, HTTP2-Settings, close", 1))
		s.served(t, a, "")
		for _, name := range []string{"Upgrade", "HTTP2-Settings", "Connection"} {
			if got := a.field(name); got != nil {
				t.Errorf("the app got %s: %q", name, got)
			}
		}
	})
	t.Run("A-W12", func(t *testing.T) {
		for _, head := range []string{
			"GET /public/x HTTP/1.1\r\n", "GET /public/x HTTP/1.1\r\nHost: app.t1.test\r\nHost: app.t1.test\r\n",
			"GET /public/x HTTP/1.1\r\nHost: app.t1.test\r\nhost: evil.com\r\n", "GET /public/x HTTP/1.1\r\nHost: a b\r\n",
			"GET /public/x HTTP/1.1\r\nHost: \r\n", "GET /public/x HTTP/1.1\r\nHost: app.t1.test, evil.com\r\n",
			"GET /public/x HTTP/1.1\r\nHost: x@app.t1.test\r\n", "GET /public/x HTTP/1.1\r\nHost: app.t1.test/\r\n",
			"GET /public/x HTTP/1.1\r\nHost: app.t1.test:99999\r\n", "GET /public/x HTTP/1.1\r\nHost: app.t1.test%00\r\n",
			"GET /public/x HTTP/1.0\r\n", "GET /public/x HTTP/1.0\r\nHost:\r\n", "OPTIONS * HTTP/1.1\r\nHost: app.t1.test\r\n",
			"CONNECT app.t1.test:443 HTTP/1.1\r\nHost: app.t1.test:443\r\n", "GET app.t1.test HTTP/1.1\r\nHost: app.t1.test\r\n",
			"GET  /public/x HTTP/1.1\r\nHost: app.t1.test\r\n", "GET ftp://app.t1.test/public/x HTTP/1.1\r\nHost: app.t1.test\r\n",
		} {
			a := s.send(t, head+"Connection: close\r\n\r\n")
			if a.StatusCode != http.StatusBadRequest || len(a.reached) > 0 {
				t.Errorf("%q: %s, reached the app: %q", head, a.Status, a.reached)
			}
		}
		for _, host := range []string{"evil.com", "app.t1.test:8443", "127.0.0.1", "localhost", "app.t1.test.evil.com", "t1.test", "[::1]"} {
			a := s.get(t, "/public/x", "Host: "+host, browserPage)
			if a.StatusCode != http.StatusMisdirectedRequest || len(a.reached) > 0 || a.Header["Set-Cookie"] != nil {
				t.Errorf("Host: %s: %s", host, a.Status)
			}
		}
		for _, host := range []string{"APP.T1.test", "app.t1.test:443", "app.t1.test."} {
			s.served(t, s.get(t, "/public/x", "Host: "+host), "")
		}
		// RFC 9112 §3.2.2: the target's authority counts, not Host.
		s.served(t, s.get(t, "http://app.t1.test/public/x", "Host: evil.com"), "")
		if a := s.get(t, "http://evil.com/public/x"); a.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("another authority in the target: %s", a.Status)
		}
	})
	t.Run("A-W1 to A-W5", func(t *testing.T) {
		const smuggled = "GET /admin HTTP/1.1\r\nHost: app.t1.test\r\nConnection: close\r\n\r\n"
		for name, request := range map[string]string{
			"CL and TE":        "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
			" chunked":         "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: 4\r\nTransfer-Encoding:  chunked\r\n\r\n0\r\n\r\n" + smuggled,
			"xchunked":         "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
			"chunked, twice":   "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + smuggled,
			"chunked identity": "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
			"vertical tab":     "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + smuggled,
			"two lengths":      "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: 0\r\nContent-Length: 63\r\n\r\n" + smuggled,
			"+5":               "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: +0\r\n\r\n" + smuggled,
			"0x5":              "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: 0x0\r\n\r\n" + smuggled,
			"5,5":              "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nContent-Length: 0,0\r\n\r\n" + smuggled,
			"obs-fold":         "GET /public/x HTTP/1.1\r\nHost: app.t1.test\r\n X: y\r\n\r\n",
			"bare LF in chunk": "POST /public/x HTTP/1.1\r\nHost: app.t1.test\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
		} {
			t.Run(name, func(t *testing.T) {
				answers := s.sendAll(t, request)
				for _, a := range answers {
					for _, r := range a.reached {
						if !strings.HasPrefix(r, "POST /public/x ") {
							t.Errorf("reached the app: %q", r)
						}
						if len(testenv.Fields(r, "Content-Length"))+len(testenv.Fields(r, "Transfer-Encoding")) > 1 {
							t.Errorf("the app can't tell where this ends: %q", r)
						}
					}
				}
				if len(answers) > 1 {
					t.Errorf("%d answers: the connection outlives a request whose end is not certain", len(answers))
				}
			})
		}
	})
	t.Run("pipelined requests are judged one by one", func(t *testing.T) {
		before := len(s.rec.Requests())
		answers := s.sendAll(t, bare("GET", "/1", alice)+bare("GET", "/2")+bare("GET", "/3", bob)+bare("GET", "/public/4")+
			bare("POST", "/5", "Content-Length: 3")+"a=b"+bare("GET", "/6", alice)+s.request("GET", "/7"))
		var statuses []int
		for _, a := range answers {
			statuses = append(statuses, a.StatusCode)
		}
		if want := "[200 303 200 200 401 200 303]"; fmt.Sprint(statuses) != want {
			t.Errorf("statuses %v, want %s", statuses, want)
		}
		var got []string
		for _, r := range s.rec.Requests()[before:] {
			if testenv.Target(r) == "/public/x" {
				continue // the app had one of those above before it, broken off
			}
			got = append(got, fmt.Sprint(testenv.Target(r), testenv.Fields(r, "X-Auth-User")))
		}
		if want := "[/1[alice] /3[bob] /public/4[] /6[alice]]"; fmt.Sprint(got) != want {
			t.Errorf("the app got %v, want %s", got, want)
		}
	})
	t.Run("A-G13", func(t *testing.T) {
		// Nobody is led to another host than a route's upstream by way of the node.
		other := testenv.Record(t, testenv.OK)
		addr := strings.TrimPrefix(other.URL, "http://")
		for _, request := range []string{
			s.request("GET", other.URL+"/public/x", alice),
			s.request("GET", other.URL+"/public/x", alice, "Host: "+addr),
			s.request("GET", "/public/x", alice, "Host: "+addr),
			s.request("GET", "http://app.t1.test@"+addr+"/public/x", alice),
			s.request("CONNECT", addr, alice, "Host: "+addr),
			s.request("CONNECT", addr, alice),
		} {
			a := s.send(t, request)
			if a.StatusCode != http.StatusMisdirectedRequest && a.StatusCode != http.StatusBadRequest || len(a.reached) > 0 {
				t.Errorf("%.60q: %s, reached the app: %q", request, a.Status, a.reached)
			}
		}
		for _, target := range []string{"/public/x?url=" + other.URL, "//" + addr + "/public/x", "/public/" + other.URL} {
			s.get(t, target, alice, "X-Forwarded-Host: "+addr, "X-Forwarded-Server: "+addr, "X-Original-URL: "+other.URL, "Forwarded: host="+addr)
		}
		if n := other.Opened(); n != 0 {
			t.Errorf("%d connections were opened to it", n)
		}
	})
	t.Run("other methods", func(t *testing.T) {
		for _, method := range []string{"HEAD", "OPTIONS", "TRACE", "PATCH", "PURGE", "M-SEARCH"} {
			s.denied(t, s.send(t, s.request(method, "/admin")), false)
			a := s.send(t, s.request(method, "/admin", alice))
			s.served(t, a, "alice")
			if !strings.HasPrefix(a.reached[0], method+" /admin HTTP/1.1\r\n") || strings.Contains(a.reached[0], "coatcheck-") {
				t.Errorf("the app got %q", a.reached[0])
			}
		}
	})
}

// hostileAdmin: what is for operators is not on the public listener.
func hostileAdmin(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	t.Run("A-M3", func(t *testing.T) {
		const image = `<img src=x onerror=alert(1)>`
		c := new(cookies)
		a := s.get(t, s.provider.authorize(t, s.start(t, c, ""), markup), c.line(), "User-Agent: "+image)
		if a.StatusCode != http.StatusSeeOther {
			t.Fatalf("the callback answers %s", a.Status)
		}
		c.keep(a)
		for _, target := range []string{"/oauth2/sessions", "/oauth2/sign_in", "/oauth2/sign_out", "/oauth2/" + url.PathEscape(image)} {
			a := s.get(t, target, c.line(), browserPage)
			if !strings.Contains(a.body, "<html") || strings.Contains(a.body, "<script") || strings.Contains(a.body, "<img") || strings.Contains(a.body, `"">`) {
				t.Errorf("%s: %s", target, a.body)
			}
			if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
				t.Errorf("%s: Content-Security-Policy: %s", target, csp)
			}
		}
		page := s.get(t, "/oauth2/sessions", c.line(), browserPage)
		for _, name := range []string{image, markup} {
			if !strings.Contains(html.UnescapeString(page.body), name) || strings.Contains(page.body, name) {
				t.Errorf("the page does not say %q: %s", name, page.body)
			}
		}
		for _, target := range []string{"/oauth2/sessions", "/oauth2/userinfo"} {
			a := s.get(t, target, c.line(), "Accept: application/json")
			if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("X-Content-Type-Options") != "nosniff" || strings.Contains(a.body, "<") {
				t.Errorf("%s: %q %s", target, a.Header.Get("Content-Type"), a.body)
			}
		}
	})
	t.Run("A-M4", func(t *testing.T) {
		for _, target := range []string{"/oauth2/..%2fadmin", "/oauth2/../admin", "/oauth2//admin"} {
			s.denied(t, s.get(t, target, alice), false)
		}
		for _, target := range []string{"/oauth2/admin", "/oauth2/metrics", "/oauth2", "/oauth2/", "/oauth2/start/", "/oauth2/sign_out/done/x"} {
			if a := s.get(t, target, alice, browserPage); a.StatusCode != http.StatusNotFound || len(a.reached) > 0 {
				t.Errorf("%s: %s", target, a.Status)
			}
		}
		for _, target := range []string{"/oauth2start", "/oauth2x", "/OAUTH2/start"} { // an app's, if anybody's
			a := s.get(t, target, alice)
			s.served(t, a, "alice")
		}
		for _, host := range []string{"admin", strings.TrimPrefix(s.admin, "http://")} {
			if a := s.get(t, "/metrics", alice, "Host: "+host); a.StatusCode != http.StatusMisdirectedRequest || len(a.reached) > 0 {
				t.Errorf("Host: %s: %s", host, a.Status)
			}
		}
	})
	t.Run("A-M5", func(t *testing.T) {
		addr := strings.TrimPrefix(s.admin, "http://")
		_, port, _ := net.SplitHostPort(addr)
		for host, status := range map[string]string{addr: "200", "localhost:" + port: "200", "evil.com:" + port: "403", "evil.com": "403", s.host: "403"} {
			answer := testenv.Send(t, addr, "GET /metrics HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			if !strings.HasPrefix(answer, "HTTP/1.1 "+status+" ") || strings.Contains(answer, "coatcheck_") != (status == "200") {
				t.Errorf("Host: %s: %.200q", host, answer)
			}
		}
	})
	t.Run("A-M6", func(t *testing.T) {
		for _, target := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/vars"} {
			s.denied(t, s.get(t, target), true)
			s.served(t, s.get(t, target, alice), "alice") // the app's, if it has such a thing
		}
		if text, err := get(s.admin + "/metrics"); err != nil || !strings.Contains(text, "coatcheck_requests_total") {
			t.Errorf("the admin listener has no metrics: %v", err)
		}
	})
}

// hostileBadInput is what clients and apps send wrong beside the classes.
func hostileBadInput(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	t.Run("huge headers", func(t *testing.T) {
		for _, lines := range [][]string{
			{"X-Large: " + strings.Repeat("x", 100<<10)},
			{"X-" + strings.Repeat("x", 100<<10) + ": y"},
			strings.Split(strings.TrimSuffix(strings.Repeat("X: y|", 30_000), "|"), "|"),
		} {
			a := s.get(t, "/public/x", lines...)
			if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge || len(a.reached) > 0 {
				t.Errorf("%s", a.Status)
			}
		}
		if a := s.get(t, "/public/"+strings.Repeat("x", 20<<10)); a.StatusCode != http.StatusRequestURITooLong || len(a.reached) > 0 {
			t.Errorf("a target of 20 KiB: %s", a.Status)
		}
	})
	t.Run("broken apps", func(t *testing.T) {
		for target, want := range map[string]int{
			"/slow": 504, "/down": 502, "/broken/words": 502, "/broken/status": 502, "/broken/field": 502,
			"/broken/length": 502, "/broken/large": 502, "/broken/closes": 502,
		} {
			t.Run(target, func(t *testing.T) {
				start := time.Now()
				a := s.get(t, target, browserPage, alice)
				id := requestID(a.body)
				if a.StatusCode != want || id == "" {
					t.Errorf("%s, request id %q", a.Status, id)
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("answered after %s", took)
				}
				if strings.Contains(a.body, "127.0.0.1") || a.Header["Set-Cookie"] != nil {
					t.Errorf("the page names the app, or the cookie is changed: %q", a.Header["Set-Cookie"])
				}
				if !strings.Contains(s.logged(), id) {
					t.Errorf("the log does not know the request %s", id)
				}
			})
		}
		s.served(t, s.get(t, "/", alice), "alice")
	})
	t.Run("a body that ends early", func(t *testing.T) {
		for _, a := range s.sendAll(t, s.request("POST", "/public/x", "Transfer-Encoding: chunked")+"zz\r\n") {
			if a.StatusCode != http.StatusBadRequest {
				t.Errorf("%s", a.Status)
			}
		}
	})
}

// requestID finds the request id in a page.
func requestID(page string) string {
	_, rest, _ := strings.Cut(page, "<code>")
	id, _, _ := strings.Cut(rest, "</code>")
	return id
}
