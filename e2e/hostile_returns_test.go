package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	whatwg "github.com/nlnwa/whatwg-url/url"
)

// hostileReturns are values of rd as they stand in a query, by case.
var hostileReturns = []struct {
	id     string
	values []string
}{
	{"A-R1", []string{"//evil.com", "%2F%2Fevil.com", "///evil.com", "//evil.com/%2e%2e"}},
	{"A-R2", []string{`/\evil.com`, "/%5Cevil.com", `\\evil.com`, "%5C%5Cevil.com", `\/evil.com`, `/%5C/evil.com`}},
	{"A-R3", []string{"https:evil.com", "https:/evil.com", "http:evil.com", "https:%5C%5Cevil.com", "http://app.t1.test/"}},
	{"A-R4", []string{"/%09/evil.com", "/%0a/evil.com", "/%0d/evil.com", "%09//evil.com", "/%00/evil.com", "ht%0Atps://evil.com"}},
	{"A-R5", []string{"https://app.t1.test@evil.com/", "https://app.t1.test:x@evil.com", "https://evil.com@app.t1.test/", "https://app.t1.test%40evil.com/"}},
	{"A-R6", []string{"https://app.t1.test.evil.com/", "https://evil-t1.test/", "https://evilt1.test/", "https://xapp.t1.test/", "https://t1.test/", "https://app.t1.test%2eevil.com/"}},
	{"A-R7", []string{"javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:alert(1)", "%20javascript:alert(1)", "vbscript:x", "blob:https://app.t1.test/x"}},
	{"A-R8", []string{"https://app.t1.test:8443/", "https://app.t1.test:80/", "https://app.t1.test:0443/", "https://app.t1.test:/"}},
}

// hostileReturnURLs is class R, at the start of a sign-in and at its end.
func hostileReturnURLs(t *testing.T, s *site) {
	for _, tt := range hostileReturns {
		t.Run(tt.id, func(t *testing.T) {
			for _, rd := range tt.values {
				if a := s.get(t, "/oauth2/start?rd="+rd); a.StatusCode == http.StatusBadRequest {
					if len(a.Header["Set-Cookie"]) > 0 {
						t.Errorf("%q was refused and left cookies", rd)
					}
					continue
				}
				s.leadsHome(t, rd, s.signInTo(t, new(cookies), "alice", rd))
			}
			a := s.get(t, "/oauth2/sign_in?rd="+tt.values[0])
			if a.StatusCode != http.StatusBadRequest || strings.Contains(a.body, "evil") {
				t.Errorf("the sign-in page answers %s", a.Status)
			}
		})
		t.Run("A-R12: "+tt.id, func(t *testing.T) {
			for _, rd := range tt.values {
				for _, browser := range []*cookies{{}, s.signIn(t, "alice")} {
					a := s.get(t, "/oauth2/sign_out?rd="+rd, browser.line(), "Sec-Fetch-Site: same-origin")
					if a.StatusCode == http.StatusBadRequest {
						continue
					}
					if strings.HasPrefix(a.location(), s.provider.issuer+"/") {
						a = s.afterProviderSignOut(t, a.location())
					}
					s.leadsHome(t, rd, a)
				}
			}
		})
	}
	t.Run("A-R9", func(t *testing.T) {
		for rd, want := range map[string]string{
			"/ok?next=//evil.com":                              "/ok?next=//evil.com",
			"%2Fok%3Fnext%3D%2F%2Fevil.com":                    "/ok?next=//evil.com",
			"/a%252Fb?x=%2526":                                 "/a%2Fb?x=%26", // as encodeURIComponent makes it
			"/a%2Fb?x=%26":                                     "/a/b?x=&",     // decoded once, by the query
			"https://app.t1.test/x%23y":                        "https://app.t1.test/x#y",
			"https%3A%2F%2Fapp.t1.test%3A443%2F":               "https://app.t1.test:443/",
			url.QueryEscape("/ö x"):                            "/%C3%B6%20x",
			"/%252e%252e/%255C%2509/x":                         "/%2e%2e/%5C%09/x",
			url.QueryEscape("https://APP.t1.test/?u=a@b:c//d"): "https://APP.t1.test/?u=a@b:c//d",
		} {
			a := s.signInTo(t, new(cookies), "alice", rd)
			if a.location() != want {
				t.Errorf("rd=%s leads to %q, want %q", rd, a.location(), want)
			}
			s.leadsHome(t, rd, a)
		}
	})
	t.Run("A-R9: after sign-out", func(t *testing.T) {
		out := s.get(t, "/oauth2/sign_out?rd=/bye?x=%2526", s.signIn(t, "alice").line(), "Sec-Fetch-Site: same-origin")
		if a := s.afterProviderSignOut(t, out.location()); a.location() != "/bye?x=%26" {
			t.Errorf("the sign-out leads to %q", a.location())
		}
	})
	t.Run("A-R10", func(t *testing.T) {
		for _, q := range []string{"rd=/ok&rd=//evil.com", "rd=//evil.com&rd=/ok", "rd=/ok&rd=/ok", "rd=/ok&%72d=//evil.com"} {
			for _, endpoint := range []string{"start", "sign_in", "sign_out"} {
				if a := s.get(t, "/oauth2/"+endpoint+"?"+q); a.StatusCode != http.StatusBadRequest {
					t.Errorf("%s?%s: %s, Location %q", endpoint, q, a.Status, a.location())
				}
			}
		}
		// A semicolon separates nothing (WHATWG URL); Go's parser calls it an error.
		if a := s.get(t, "/oauth2/start?rd=/ok;rd=//evil.com"); a.StatusCode != http.StatusBadRequest {
			t.Errorf("semicolon: %s", a.Status)
		}
	})
	t.Run("A-R11", func(t *testing.T) {
		header := []string{
			"Referer: https://evil.com/", "X-Auth-Request-Redirect: //evil.com", "X-Forwarded-Uri: //evil.com",
			"X-Forwarded-Host: evil.com", "X-Original-URL: //evil.com", "X-Rewrite-Url: //evil.com",
		}
		for target, want := range map[string]string{"/oauth2/start": "/", "/secret?a=%2F": "/secret?a=%2F"} {
			c := new(cookies)
			a := s.get(t, target, header...)
			c.keep(a)
			a = s.get(t, s.provider.authorize(t, a.location(), "alice"), append(header, c.line())...)
			if a.location() != want {
				t.Errorf("%s leads to %q, want %q", target, a.location(), want)
			}
		}
	})
	t.Run("A-R13", func(t *testing.T) {
		for _, rd := range []string{"/%0d%0aSet-Cookie:%20x=1", "/%0d%0a%0d%0a<script>", "/%E5%98%8A%E5%98%8DSet-Cookie:%20x=1"} {
			for _, endpoint := range []string{"start", "sign_in", "sign_out"} {
				a := s.get(t, "/oauth2/"+endpoint+"?rd="+rd)
				for _, line := range a.Header["Set-Cookie"] {
					if strings.HasPrefix(line, "x=") {
						t.Errorf("%s?rd=%s sets %q", endpoint, rd, line)
					}
				}
				if strings.ContainsAny(a.location(), "\r\n") || strings.Contains(a.body, "<script>") {
					t.Errorf("%s?rd=%s: %q", endpoint, rd, a.location())
				}
			}
		}
	})
	t.Run("A-R14", func(t *testing.T) {
		for _, size := range []int{2001, 8 << 10, 16 << 10, 40 << 10} {
			a := s.get(t, "/oauth2/start?rd=/"+strings.Repeat("a", size))
			if a.StatusCode != http.StatusBadRequest && a.StatusCode != http.StatusRequestURITooLong || len(a.Header["Set-Cookie"]) > 0 {
				t.Errorf("%d bytes: %s, %d cookies", size, a.Status, len(a.Header["Set-Cookie"]))
			}
		}
		// A page with a long address is not lost: its sign-in starts, and leads to what
		// fits.
		c := new(cookies)
		a := s.get(t, "/page?q="+strings.Repeat("a", 5000))
		c.keep(a)
		if a = s.get(t, s.provider.authorize(t, a.location(), "alice"), c.line()); a.location() != "/page" {
			t.Errorf("the sign-in for a long address leads to %q", a.location())
		}
	})
}

// leadsHome reads the Location of an answer as a browser would, against the address of
// the request. It must lead to an origin of ours.
func (s *site) leadsHome(t *testing.T, rd string, a *answer) {
	t.Helper()
	location := a.location()
	if a.StatusCode != http.StatusSeeOther || location == "" {
		t.Errorf("rd=%s: %s, Location %q", rd, a.Status, location)
		return
	}
	u, err := whatwg.ParseRef(s.public+"/oauth2/callback?code=x&state=y", location)
	if err != nil {
		t.Errorf("rd=%s: a browser can't read the Location %q: %v", rd, location, err)
		return
	}
	if origin := fmt.Sprintf("%s//%s", u.Protocol(), u.Host()); !slices.Contains(s.origins, origin) {
		t.Errorf("rd=%s: the Location %q leads to %s", rd, location, origin)
	}
	if u.Username() != "" || u.Password() != "" {
		t.Errorf("rd=%s: the Location %q has a user", rd, location)
	}
}

// afterProviderSignOut comes back from the provider's end_session_endpoint with the
// state that it was sent.
func (s *site) afterProviderSignOut(t *testing.T, location string) *answer {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if got, want := q.Get("post_logout_redirect_uri"), s.public+"/oauth2/sign_out/done"; got != want {
		t.Errorf("post_logout_redirect_uri is %q, want %q", got, want)
	}
	return s.get(t, "/oauth2/sign_out/done?state="+url.QueryEscape(q.Get("state")))
}
