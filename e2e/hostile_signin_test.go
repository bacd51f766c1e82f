package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// hostileSignIns is class O, as far as a browser or a person in between can do harm.
// What a provider may send wrong is tested beside package oidc.
func hostileSignIns(t *testing.T, s *site) {
	// fails checks that a callback made no session.
	fails := func(t *testing.T, a *answer, status int) {
		t.Helper()
		if a.StatusCode != status || a.location() != "" {
			t.Errorf("%s, Location %q", a.Status, a.location())
		}
		c := new(cookies)
		if c.keep(a); c.value(s.cookie) != "" {
			t.Error("there is a session")
		}
	}
	t.Run("A-O1", func(t *testing.T) {
		tokens := s.provider.tokens.Load()
		c := new(cookies)
		callback := s.provider.authorize(t, s.start(t, c, ""), "alice")
		fails(t, s.get(t, "/oauth2/callback?code=x", c.line()), 400)
		fails(t, s.get(t, "/oauth2/callback?code=x&state=", c.line()), 400)
		fails(t, s.get(t, "/oauth2/callback?code=x&state="+strings.Repeat("A", 43), c.line()), 400)
		fails(t, s.get(t, "/oauth2/callback", c.line()), 400)
		fails(t, s.get(t, callback), 400) // another browser
		other := new(cookies)
		s.start(t, other, "")
		fails(t, s.get(t, callback, other.line(), browserPage), 400) // another browser with a sign-in of its own
		if n := s.provider.tokens.Load() - tokens; n != 0 {
			t.Errorf("%d token requests", n)
		}
		// Nothing of that has harmed the browser whose sign-in it is.
		if a := s.get(t, callback, c.line()); a.StatusCode != http.StatusSeeOther {
			t.Errorf("%s: %s", a.Status, a.body)
		}
	})
	t.Run("A-O2", func(t *testing.T) {
		tokens := s.provider.tokens.Load()
		c := new(cookies)
		callback := s.provider.authorize(t, s.start(t, c, ""), "alice")
		saved := c.line()
		if a := s.get(t, callback, saved); a.StatusCode != http.StatusSeeOther {
			t.Fatalf("%s: %s", a.Status, a.body)
		}
		fails(t, s.get(t, callback, saved), 400)
		fails(t, s.get(t, callback, saved, browserPage), 400)
		if n := s.provider.tokens.Load() - tokens; n != 1 {
			t.Errorf("%d token requests", n)
		}
	})
	t.Run("A-O4", func(t *testing.T) {
		for _, order := range [][2]int{{0, 1}, {1, 0}} {
			c := new(cookies)
			targets := [2]string{"/first?x=1", "/second"}
			locations := [2]string{s.start(t, c, url.QueryEscape(targets[0])), s.start(t, c, url.QueryEscape(targets[1]))}
			for _, tab := range order {
				a := s.get(t, s.provider.authorize(t, locations[tab], "alice"), c.line())
				c.keep(a)
				if a.location() != targets[tab] {
					t.Errorf("tab %d ended at %q: %s", tab, a.location(), a.Status)
				}
			}
			s.served(t, s.get(t, "/", c.line()), "alice")
		}
	})
	t.Run("A-O5", func(t *testing.T) {
		seen := map[string]bool{}
		for range 5 {
			for _, target := range []string{"/oauth2/start", "/admin"} {
				u, err := url.Parse(s.get(t, target).location())
				if err != nil {
					t.Fatal(err)
				}
				q := u.Query()
				if q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || q.Get("response_type") != "code" {
					t.Errorf("the authorization request is %s", u.RawQuery)
				}
				for _, name := range []string{"code_challenge", "state", "nonce"} {
					if v := q.Get(name); len(v) < 43 || seen[v] {
						t.Errorf("%s is %q", name, v)
					}
					seen[q.Get(name)] = true
				}
			}
		}
	})
	t.Run("A-O8", func(t *testing.T) {
		c := new(cookies)
		location := s.start(t, c, "")
		target := "/oauth2/callback?error=" + url.QueryEscape("x<img>") + "&error_description=" + url.QueryEscape("<script>alert(1)</script>\r\nX: y") +
			"&error_uri=" + url.QueryEscape("javascript:alert(1)") + "&iss=" + url.QueryEscape(s.provider.issuer) + "&state=" + stateOf(t, location)
		saved := c.line()
		a := s.get(t, target, saved, browserPage)
		fails(t, a, 403)
		for _, hostile := range []string{"<script>alert", "alert(1)", "<img>", "javascript:"} {
			if strings.Contains(a.body, hostile) {
				t.Errorf("the page has %q in it", hostile)
			}
		}
		if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy: %s", csp)
		}
		c.keep(a)
		if left := c.names(s.cookie + "-login-"); len(left) > 0 {
			t.Errorf("the state is not consumed: %v", left)
		}
		fails(t, s.get(t, target, saved, browserPage), 400)
		fails(t, s.get(t, s.provider.authorize(t, location, "alice"), saved), 400)
	})
	t.Run("A-O7", func(t *testing.T) {
		tokens := s.provider.tokens.Load()
		for _, iss := range []string{"http://evil.com", s.provider.issuer + "/", "", "HTTP" + strings.TrimPrefix(s.provider.issuer, "http")} {
			c := new(cookies)
			u, err := url.Parse(s.provider.authorize(t, s.start(t, c, ""), "alice"))
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			q.Set("iss", iss)
			fails(t, s.get(t, u.Path+"?"+q.Encode(), c.line()), 400)
		}
		if n := s.provider.tokens.Load() - tokens; n != 0 {
			t.Errorf("%d token requests", n)
		}
	})
	t.Run("A-O9", func(t *testing.T) {
		tokens := s.provider.tokens.Load()
		c := new(cookies)
		location := s.start(t, c, "")
		callback := s.provider.authorize(t, location, "alice")
		for _, more := range []string{"code=x", "state=x", "state=" + stateOf(t, location), "iss=x", "error=access_denied", "error=a&error=b"} {
			fails(t, s.get(t, callback+"&"+more, c.line()), 400)
			_, query, _ := strings.Cut(callback, "?")
			fails(t, s.get(t, "/oauth2/callback?"+more+"&"+query, c.line()), 400)
		}
		if n := s.provider.tokens.Load() - tokens; n != 0 {
			t.Errorf("%d token requests", n)
		}
	})
	t.Run("A-O10", func(t *testing.T) {
		c := new(cookies)
		location := s.start(t, c, "")
		fails(t, s.get(t, "/oauth2/callback?access_token=x&id_token=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.&token_type=bearer&state="+stateOf(t, location), c.line()), 400)
		s.denied(t, s.get(t, "/admin?access_token=x&id_token=y", c.line()), true)
		// Beside a code they are not looked at.
		a := s.get(t, s.provider.authorize(t, location, "bob")+"&id_token=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.&access_token=x", c.line())
		c.keep(a)
		s.served(t, s.get(t, "/admin", c.line()), "bob")
	})
	t.Run("A-O15", func(t *testing.T) {
		ended := "Cookie: " + s.cookie + "=" + s.cookie + "-" + strings.Repeat("0", 32) + "." + strings.Repeat("A", 22)
		script := func(lines ...string) []string { return append(lines, ended) }
		for name, request := range map[string]string{
			"fetch":          s.request("GET", "/api", script("Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty", "Accept: */*")...),
			"no-cors":        s.request("GET", "/api.png", script("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image")...),
			"jQuery":         s.request("GET", "/api", script("X-Requested-With: XMLHttpRequest", browserPage)...),
			"accepts JSON":   s.request("GET", "/api", script("Accept: application/json")...),
			"HEAD":           s.request("HEAD", "/api", script(browserPage)...),
			"OPTIONS":        s.request("OPTIONS", "/api", script("Origin: https://other.test", "Access-Control-Request-Method: PUT")...),
			"POST of a form": s.request("POST", "/form", script("Sec-Fetch-Mode: navigate", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 3")...) + "a=b",
			"PUT":            s.request("PUT", "/api", script("Content-Length: 2")...) + "{}",
		} {
			t.Run(name, func(t *testing.T) {
				a := s.send(t, request)
				s.denied(t, a, false)
				if a.StatusCode != http.StatusUnauthorized || a.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s", a.Status)
				}
				if len(a.Header["Set-Cookie"]) > 0 {
					t.Errorf("a script's answer sets %q", a.Header["Set-Cookie"])
				}
				var said struct {
					Error     string `json:"error"`
					RequestID string `json:"request_id"`
				}
				if name != "HEAD" && name != "POST of a form" {
					if err := json.Unmarshal([]byte(a.body), &said); err != nil || said.Error != "sign_in_required" || said.RequestID == "" {
						t.Errorf("the body is %q: %v", a.body, err)
					}
				}
			})
		}
	})
	t.Run("A-O16", func(t *testing.T) {
		c := new(cookies)
		for range 100 {
			s.start(t, c, "/"+strings.Repeat("long-", 100))
			if n := len(c.names(s.cookie + "-login-")); n > 5 {
				t.Fatalf("%d pre-login cookies", n)
			}
		}
		if size := len(c.line()); size > 7<<10 {
			t.Errorf("the cookies of sign-ins have %d bytes", size)
		}
		s.signInTo(t, c, "alice", "")
		s.served(t, s.get(t, "/", c.line()), "alice")
	})
	t.Run("A-O18", func(t *testing.T) {
		c := new(cookies)
		if a := s.signInTo(t, c, "alice", ""); a.StatusCode != http.StatusSeeOther {
			t.Errorf("%s", a.Status)
		}
		out := s.send(t, s.request("POST", "/oauth2/sign_out", c.line(), "Sec-Fetch-Site: same-origin", "Content-Length: 0"))
		if out.StatusCode != http.StatusSeeOther {
			t.Errorf("%s", out.Status)
		}
	})
	t.Run("methods", func(t *testing.T) {
		for request, allow := range map[string]string{
			s.request("POST", "/oauth2/callback", "Content-Length: 0"): "GET",
			s.request("HEAD", "/oauth2/callback"):                      "GET",
			s.request("HEAD", "/oauth2/start"):                         "GET",
			s.request("DELETE", "/oauth2/sign_out"):                    "GET, POST",
			s.request("POST", "/oauth2/userinfo", "Content-Length: 0"): "GET, HEAD",
		} {
			if a := s.send(t, request); a.StatusCode != http.StatusMethodNotAllowed || a.Header.Get("Allow") != allow || a.Header["Set-Cookie"] != nil {
				t.Errorf("%.30q: %s, Allow: %q", request, a.Status, a.Header.Get("Allow"))
			}
		}
	})
}

func stateOf(t *testing.T, location string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("state")
}

// hostileSignOuts is A-L2: nobody else signs a person out.
func hostileSignOuts(t *testing.T, s *site) {
	alice := s.signIn(t, "alice").line()
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, site := range []string{"", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: none", "Sec-Fetch-Site: same-origin, cross-site", "Sec-Fetch-Site: SAME-ORIGIN"} {
		for _, request := range []string{
			s.request("GET", "/oauth2/sign_out", alice, site, browserPage),
			s.request("GET", "/oauth2/sign_out?token=x", alice, site, browserPage),
			s.request("POST", "/oauth2/sign_out", alice, site, form, "Content-Length: 0"),
			s.request("POST", "/oauth2/sign_out", alice, site, form, "Content-Length: 7") + "token=x",
		} {
			a := s.send(t, request)
			if a.StatusCode != http.StatusOK || !strings.Contains(a.body, "Sign out?") || a.Header["Set-Cookie"] != nil {
				t.Errorf("%.60q: %s, cookies %q", request, a.Status, a.Header["Set-Cookie"])
			}
			s.served(t, s.get(t, "/", alice), "alice")
		}
	}
	t.Run("too much of a form", func(t *testing.T) {
		body := "token=" + strings.Repeat("x", 64<<10)
		a := s.send(t, s.request("POST", "/oauth2/sign_out", alice, form, "Content-Length: 65542")+body)
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s", a.Status)
		}
		s.served(t, s.get(t, "/", alice), "alice")
	})
	t.Run("A-L1", func(t *testing.T) {
		a := s.get(t, "/oauth2/sign_out", alice, "Sec-Fetch-Site: same-origin")
		if a.StatusCode != http.StatusSeeOther || !strings.HasPrefix(a.location(), s.provider.issuer+"/") {
			t.Errorf("%s, Location %q", a.Status, a.location())
		}
		s.denied(t, s.get(t, "/", alice), true) // the saved cookie
	})
}
