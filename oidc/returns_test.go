package oidc

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	whatwg "github.com/nlnwa/whatwg-url/url"

	"github.com/coatcheck/coatcheck"
)

// origins are where testReturns may lead, as a browser writes them.
var origins = []string{"https://app.t1.test", "https://b.t1.test:8443", "https://c.t1.test"}

func testReturns() *Returns {
	return NewReturns(&url.URL{Scheme: "https", Host: "app.t1.test"}, "b.t1.test:8443", "C.t1.test:443")
}

// checkOrigin asks a browser's URL parser where an accepted return URL leads.
func checkOrigin(t *testing.T, accepted string) {
	t.Helper()
	for _, base := range []string{"https://app.t1.test/oauth2/callback?code=x", "https://app.t1.test/", "https://app.t1.test/a/b/"} {
		u, err := whatwg.ParseRef(base, accepted)
		if err != nil {
			t.Errorf("%q does not parse: %v", accepted, err)
			continue
		}
		if origin := u.Protocol() + "//" + u.Host(); !slices.Contains(origins, origin) {
			t.Errorf("%q leads to %s", accepted, origin)
		}
		if u.Username() != "" || u.Password() != "" {
			t.Errorf("%q has a user in it", accepted)
		}
	}
	for _, c := range []byte(accepted) {
		if c <= ' ' || c >= 0x7f {
			t.Errorf("%q is not fit for a header", accepted)
		}
	}
	if len(accepted) > MaxReturnURL {
		t.Errorf("%d bytes were accepted", len(accepted))
	}
}

var refusedReturns = []struct{ id, raw string }{
	{"A-R1", "//evil.com"},
	{"A-R1", "///evil.com"},
	{"A-R1", "////evil.com"},
	{"A-R2", `/\evil.com`},
	{"A-R2", `\/evil.com`},
	{"A-R2", `\\evil.com`},
	{"A-R2", `/a\b`},
	{"A-R2", `https:\\app.t1.test/`},
	{"A-R2", `https://app.t1.test\@evil.com/`},
	{"A-R2", `https://evil.com\.app.t1.test/`},
	{"A-R3", "https:evil.com"},
	{"A-R3", "https:/evil.com"},
	{"A-R3", "http:evil.com"},
	{"A-R3", "https:app.t1.test"},
	{"A-R3", "https:/app.t1.test/"},
	{"A-R3", "https:///app.t1.test/"},
	{"A-R3", "https:///evil.com"},
	{"A-R4", "/\t/evil.com"},
	{"A-R4", "/\n/evil.com"},
	{"A-R4", "/\r/evil.com"},
	{"A-R4", "\t//evil.com"},
	{"A-R4", "ht\ntps://evil.com"},
	{"A-R4", "/a\x00b"},
	{"A-R4", "/a\x7fb"},
	{"A-R4", "/?\n"},
	{"A-R4", " //evil.com"},
	{"A-R4", " /a"},
	{"A-R5", "https://app.t1.test@evil.com/"},
	{"A-R5", "https://app.t1.test:x@evil.com"},
	{"A-R5", "https://user@app.t1.test/"},
	{"A-R5", "https://user:pass@app.t1.test/"},
	{"A-R5", "https://@app.t1.test/"},
	{"A-R5", "https://evil.com#@app.t1.test/"},
	{"A-R5", "https://evil.com?@app.t1.test/"},
	{"A-R6", "https://app.t1.test.evil.com/"},
	{"A-R6", "https://evil-t1.test/"},
	{"A-R6", "https://evilt1.test/"},
	{"A-R6", "https://x.app.t1.test/"},
	{"A-R6", "https://t1.test/"},
	{"A-R6", "https://app.t1.test./"},
	{"A-R6", "https://app.t1.tesT\u212a/"},
	{"A-R6", "https://app%2et1.test/"},
	{"A-R6", "https://app。t1。test/"},
	{"A-R7", "javascript:alert(1)"},
	{"A-R7", "JaVaScRiPt:alert(1)"},
	{"A-R7", "javascript://app.t1.test/%0aalert(1)"},
	{"A-R7", "data:text/html,x"},
	{"A-R7", "http://app.t1.test/"},
	{"A-R7", "blob:https://app.t1.test/x"},
	{"A-R8", "https://app.t1.test:8443/"},
	{"A-R8", "https://app.t1.test:80/"},
	{"A-R8", "https://b.t1.test/"},
	{"A-R8", "https://b.t1.test:443/"},
	{"A-R8", "https://app.t1.test:/"},
	{"A-R8", "https://app.t1.test:0443/"},
	{"A-R13", "/\r\nSet-Cookie: x=1"},
	{"A-R14", "/" + strings.Repeat("x", 16<<10)},
	{"A-R14", "/" + strings.Repeat("x", MaxReturnURL)},
	{"A-R14", "/" + strings.Repeat(" ", MaxReturnURL/2)},
	{"relative", "a/b"},
	{"relative", "?x"},
	{"relative", "#x"},
	{"empty", ""},
}

func TestReturnsRefused(t *testing.T) {
	v := testReturns()
	for _, c := range refusedReturns {
		got, err := v.Check(c.raw)
		if err == nil {
			t.Errorf("%s: %q is accepted as %q", c.id, c.raw, got)
			continue
		}
		wantCode(t, err, coatcheck.CodeBadReturnURL)
	}
}

func TestReturnsAccepted(t *testing.T) {
	v := testReturns()
	for raw, want := range map[string]string{
		"/":                               "",
		"/a/b?c=d#e":                      "",
		"/ok?next=//evil.com":             "", // A-R9
		`/ok?next=\\evil.com`:             "",
		"/a%2Fb?x=%26":                    "", // A-R9
		"/%09/evil.com":                   "", // A-R4: decoded once it is a path with %09 in it
		"/%0d%0aSet-Cookie:%20x=1":        "", // A-R13
		"/%5Cevil.com":                    "", // A-R2: likewise
		"/a b":                            "/a%20b",
		"/é?ü":                            "/%C3%A9?%C3%BC",
		"/\xff":                           "/%FF",
		"/@evil.com":                      "",
		"https://app.t1.test":             "",
		"https://app.t1.test/x?y":         "",
		"https://app.t1.test?y":           "",
		"https://app.t1.test#y":           "",
		"https://APP.t1.TEST/":            "",
		"https://app.t1.test:443/":        "",
		"https://b.t1.test:8443/x":        "",
		"https://c.t1.test/":              "",
		"https://app.t1.test//x":          "",
		"/" + strings.Repeat("x", 1999):   "",
		"/a;b=c/../d/./e":                 "",
		"/javascript:alert(1)":            "",
		"/a?rd=https://user@evil.com/\\x": "",
	} {
		if want == "" {
			want = raw
		}
		got, err := v.Check(raw)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", raw, got, err, want)
			continue
		}
		checkOrigin(t, got)
		if again, err := v.Check(got); err != nil || again != got {
			t.Errorf("%q, checked again: %q, %v", got, again, err)
		}
	}
}

func TestReturnsPlainHTTP(t *testing.T) {
	v := NewReturns(&url.URL{Scheme: "http", Host: "127.0.0.1:4180"}, "[::1]:4180", "x.test:80")
	for raw, ok := range map[string]bool{
		"http://127.0.0.1:4180/":  true,
		"http://[::1]:4180/":      true,
		"http://x.test/":          true,
		"http://x.test:80/":       true,
		"http://127.0.0.1/":       false,
		"http://127.1:4180/":      false,
		"https://127.0.0.1:4180/": false,
	} {
		if _, err := v.Check(raw); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// A-R10, A-R11
func TestReturnsFromQuery(t *testing.T) {
	v := testReturns()
	for query, want := range map[string]string{
		"":                            "/",
		"x=y":                         "/",
		"rd=":                         "/",
		"rd=/ok":                      "/ok",
		"rd=/a%2Fb":                   "/a/b",
		"rd=/a%252Fb":                 "/a%2Fb", // decoded once
		"rd=/ok&rd=//evil.com":        "refused",
		"rd=//evil.com&rd=/ok":        "refused",
		"rd=/ok&rd=/ok":               "refused",
		"rd=%2F%2Fevil.com":           "refused",
		"rd=/%5Cevil.com":             "refused", // A-R2
		"rd=/%09/evil.com":            "refused", // A-R4
		"rd=/%0d%0aSet-Cookie:%20x=1": "refused", // A-R13
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.FromQuery(q)
		if want == "refused" {
			wantCode(t, err, coatcheck.CodeBadReturnURL)
		} else if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", query, got, err, want)
		}
	}
}

func TestReturnsFromRequest(t *testing.T) {
	v := testReturns()
	long := strings.Repeat("x", MaxReturnURL)
	for _, c := range []struct{ host, target, want string }{
		{"app.t1.test", "/a?b=c", "/a?b=c"},
		{"APP.t1.test:443", "/a", "/a"},
		{"b.t1.test:8443", "/a?b", "https://b.t1.test:8443/a?b"},
		{"c.t1.test", "/", "https://c.t1.test/"},
		{"evil.com", "/a", "/"},
		{"b.t1.test", "/a", "/"},
		{"app.t1.test", "/a?" + long, "/a"},
		{"app.t1.test", "/" + long, "/"},
		{"b.t1.test:8443", "/a?" + long, "https://b.t1.test:8443/a"},
		{"b.t1.test:8443", "/" + long, "https://b.t1.test:8443/"},
		{"app.t1.test", "//evil.com/?x", "/"},
		{"app.t1.test", `/\evil.com`, "/"},
		{"app.t1.test", "https://b.t1.test:8443/", "/"},
		{"b.t1.test:8443", ".evil.com/", "https://b.t1.test:8443/"},
		{"app.t1.test", "*", "/"},
	} {
		got := v.FromRequest(c.host, c.target)
		if got != c.want {
			t.Errorf("%s %.40s: %.60q, want %q", c.host, c.target, got, c.want)
		}
		checkOrigin(t, got)
	}
}

// A-R11: nothing but rd and the request's own target is looked at.
func TestStartIgnoresHeaders(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	r := b.request("/oauth2/start")
	for _, name := range []string{"Referer", "X-Auth-Request-Redirect", "X-Forwarded-Uri", "X-Forwarded-Host"} {
		r.Header.Set(name, "//evil.com")
	}
	h := http.Header{}
	location, err := p.Start(h, r, "/")
	if err != nil {
		t.Fatal(err)
	}
	b.keep(h)
	u, _ := url.Parse(location)
	i.set(func() { i.nonce = u.Query().Get("nonce") })
	login, err := b.callback(p, i.response(u.Query()))
	if err != nil || login.ReturnTo != "/" || u.Query().Get("redirect_uri") != p.RedirectURL {
		t.Errorf("%+v, %v", login, err)
	}
}

// FuzzReturns: what is accepted leads, in a browser, to one of our origins.
func FuzzReturns(f *testing.F) {
	for _, c := range refusedReturns {
		f.Add(c.raw)
	}
	for _, s := range []string{"/", "/a?b#c", "https://app.t1.test/x", "https://b.t1.test:8443/ é", "/.//evil.com", "/%2e%2e//evil.com"} {
		f.Add(s)
	}
	v := testReturns()
	f.Fuzz(func(t *testing.T, raw string) {
		accepted, err := v.Check(raw)
		if err == nil {
			checkOrigin(t, accepted)
			if again, err := v.Check(accepted); err != nil || again != accepted {
				t.Errorf("%q is accepted, but not %q", raw, accepted)
			}
		}
		checkOrigin(t, v.FromRequest("app.t1.test", raw))
		checkOrigin(t, v.FromRequest("b.t1.test:8443", raw))
		checkOrigin(t, v.FromRequest(raw, "/"))
	})
}
