package route_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/route"
)

// request returns what net/http hands to a handler for this request line.
func request(method, host, uri string) *http.Request {
	return &http.Request{Method: method, Host: host, RequestURI: uri, Header: http.Header{}}
}

func canonical(uri string) (route.Request, error) {
	return route.Canonical(request("GET", "app.example.com", uri), "https", route.DefaultLimits)
}

func TestCanonical(t *testing.T) {
	type want = route.Request
	tests := map[string]struct {
		method, host, uri, scheme string
		want                      want
	}{
		"plain":            {"GET", "app.example.com", "/shop/cart?a=b", "https", want{"GET", "app.example.com", "/shop/cart", "/shop/cart", "a=b", false}},
		"root":             {"GET", "app.example.com", "/", "https", want{"GET", "app.example.com", "/", "/", "", false}},
		"bare ?":           {"GET", "app.example.com", "/x?", "https", want{"GET", "app.example.com", "/x", "/x", "", true}},
		"encoded letter":   {"GET", "app.example.com", "/%61dmin/%E2%82%AC", "https", want{"GET", "app.example.com", "/admin/€", "/%61dmin/%E2%82%AC", "", false}},
		"encoded space":    {"GET", "app.example.com", "/a%20b", "https", want{"GET", "app.example.com", "/a b", "/a%20b", "", false}},
		"encoded percent":  {"GET", "app.example.com", "/50%25", "https", want{"GET", "app.example.com", "/50%", "/50%25", "", false}},
		"raw delimiters":   {"GET", "app.example.com", `/a|b^c"<>{}[]` + "`", "https", want{"GET", "app.example.com", `/a|b^c"<>{}[]` + "`", `/a|b^c"<>{}[]` + "`", "", false}},
		"matrix parameter": {"GET", "app.example.com", "/shop;v=1/cart", "https", want{"GET", "app.example.com", "/shop;v=1/cart", "/shop;v=1/cart", "", false}},
		"odd query":        {"GET", "app.example.com", `/x?a=%zz;b&&=?/../\|`, "https", want{"GET", "app.example.com", "/x", "/x", `a=%zz;b&&=?/../\|`, false}},
		"dots in a name":   {"GET", "app.example.com", "/.well-known/..a/a..", "https", want{"GET", "app.example.com", "/.well-known/..a/a..", "/.well-known/..a/a..", "", false}},
		"any method":       {"PROPFIND", "app.example.com", "/x", "https", want{"PROPFIND", "app.example.com", "/x", "/x", "", false}},

		"case of host":         {"GET", "APP.Example.com", "/", "https", want{"GET", "app.example.com", "/", "/", "", false}},
		"default port":         {"GET", "app.example.com:443", "/", "https", want{"GET", "app.example.com", "/", "/", "", false}},
		"other port":           {"GET", "App.example.com:8443", "/", "https", want{"GET", "app.example.com:8443", "/", "/", "", false}},
		"other scheme's port":  {"GET", "app.example.com:80", "/", "https", want{"GET", "app.example.com:80", "/", "/", "", false}},
		"default port of http": {"GET", "127.0.0.1:80", "/", "http", want{"GET", "127.0.0.1", "/", "/", "", false}},
		"trailing dot":         {"GET", "app.example.com.", "/", "https", want{"GET", "app.example.com", "/", "/", "", false}},
		"trailing dot, port":   {"GET", "App.example.com.:8443", "/", "https", want{"GET", "app.example.com:8443", "/", "/", "", false}},
		"IPv6":                 {"GET", "[::1]:4180", "/", "http", want{"GET", "[::1]:4180", "/", "/", "", false}},
		"IPv6, default port":   {"GET", "[::1]:80", "/", "http", want{"GET", "[::1]", "/", "/", "", false}},

		// A-P14: the authority of the target governs over Host (RFC 9112 §3.2.2).
		"absolute-form":             {"GET", "other.example.com", "http://app.example.com/admin?x", "https", want{"GET", "app.example.com", "/admin", "/admin", "x", false}},
		"absolute-form, no path":    {"GET", "app.example.com", "https://app.example.com", "https", want{"GET", "app.example.com", "/", "/", "", false}},
		"absolute-form, only query": {"GET", "app.example.com", "HTTPS://APP.example.com?x", "https", want{"GET", "app.example.com", "/", "/", "x", false}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := route.Canonical(request(tt.method, tt.host, tt.uri), tt.scheme, route.DefaultLimits)
			if err != nil {
				t.Fatalf("Canonical: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Canonical (-want +got):\n%s", diff)
			}
		})
	}
}

// hostileTargets can be read in two ways, or in none.
var hostileTargets = map[string][]string{
	"A-P1":  {"/public/../admin", "/public/..", "/..", "/./admin", "/public/."},
	"A-P2":  {"/public/%2e%2e/admin", "/public/%2E./admin", "/public/.%2e/admin", "/%2e/admin"},
	"A-P3":  {"/public/..%2fadmin", "/public/..%2Fadmin", "/public/..%5cadmin", `/public/..\admin`, `/public\admin`},
	"A-P4":  {"/public/..;/admin", "/public/..;x=y/admin", "/public/..%3b/admin", "/public/%2e%2e;/admin", "/public/.;/admin", "/;/admin", "/admin/;x"},
	"A-P5":  {"//admin", "/public//../admin", "/public//admin", "/admin//"},
	"A-P6":  {"/public%2f..%2fadmin", "/admin%2f", "/admin%5C"},
	"A-P8":  {"/admin#/public/", "/public/#", "/x?a#b", "http://app.example.com#/public"},
	"twice": {"/%252e%252e/admin", "/public/..%252fadmin", "/public/%25%32%65/x", "/x%255c", "/x%2500", "/x%252525", "/x%253b", "/x%253f", "/x%2523", "/x%25c0%25ae", "/x%257f"},
	"bytes": {"/a%00", "/a%0d%0aX:%20y", "/a%0A", "/a%7f", "/a\x00b", "/a\tb", "/a b", "/a\x7f", "/caf\xc3\xa9", "/x?a\x01", "/x?\xc3\xa9", "/x?a b"},
	"utf8":  {"/%ff", "/%c0%af", "/%c0%ae%c0%ae/", "/%ed%a0%80"},
	"hex":   {"/%", "/%2", "/%zz", "/a%", "/%u002e", "/%%35"},
	"form":  {"", "*", "app.example.com:443", "admin", "ftp://app.example.com/", "http:///admin", "http:/admin", "http://", "http://u@app.example.com/", "http://u:p@app.example.com/", "://app.example.com/", "?x"},
}

func TestCanonicalRefuses(t *testing.T) {
	for id, targets := range hostileTargets {
		for _, uri := range targets {
			t.Run(id, func(t *testing.T) {
				got, err := canonical(uri)
				if err == nil || coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
					t.Errorf("Canonical(%q) = %+v, %v; want %s", uri, got, err, coatcheck.CodeMalformed)
				}
				got, err = route.Forwarded("GET", "app.example.com", uri, "https")
				if err == nil || coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
					t.Errorf("Forwarded(%q) = %+v, %v; want %s", uri, got, err, coatcheck.CodeMalformed)
				}
			})
		}
	}
}

// A-W12, as far as net/http lets it through.
func TestCanonicalRefusesHost(t *testing.T) {
	for _, host := range []string{
		"", ".", "..", "a..b", ".a", "a..", "a b", "a/b", "a@b", "a%41", "a,b", "a:b", "a:", "a:0", "a:65536", "a:080", "a:+80", "a:80:80",
		"[::1", "::1", "[::1]x", "[::1%25lo]", "[127.0.0.1]", "[]", "[", "bücher.example", "a\x00", strings.Repeat("a.", 130) + "a",
	} {
		got, err := route.Canonical(request("GET", host, "/"), "https", route.DefaultLimits)
		if err == nil || coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
			t.Errorf("host %q: %+v, %v; want %s", host, got, err, coatcheck.CodeMalformed)
		}
	}
}

func TestCanonicalRefusesMethod(t *testing.T) {
	for _, method := range []string{"", "CONNECT", "GE T", "GET\x00", "GÉT"} {
		if _, err := route.Canonical(request(method, "a", "/"), "https", route.DefaultLimits); err == nil || coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
			t.Errorf("method %q: %v; want %s", method, err, coatcheck.CodeMalformed)
		}
	}
}

func TestCanonicalLimits(t *testing.T) {
	limits := route.Limits{URI: 16, Cookies: 3}
	tests := map[string]struct {
		uri, cookies string
		want         coatcheck.Code // "": none
	}{
		"at the limits":                {"/" + strings.Repeat("a", 15), "a=1; b=2; c=3", ""},
		"URI too long, A-W11":          {"/" + strings.Repeat("a", 16), "", coatcheck.CodeURITooLong},
		"query counts":                 {"/a?" + strings.Repeat("a", 14), "", coatcheck.CodeURITooLong},
		"too many cookies, A-C10":      {"/", "a=1; b=2; c=3; d=4", coatcheck.CodeTooManyCookies},
		"many empty cookies, A-C10":    {"/", strings.Repeat(";", 50_000), coatcheck.CodeTooManyCookies},
		"length comes before the form": {strings.Repeat("#", 17), "", coatcheck.CodeURITooLong},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := request("GET", "a", tt.uri)
			r.Header.Set("Cookie", tt.cookies)
			_, err := route.Canonical(r, "https", limits)
			var code coatcheck.Code
			if err != nil {
				code = coatcheck.CodeOf(err)
			}
			if code != tt.want {
				t.Errorf("code = %q (%v), want %q", code, err, tt.want)
			}
		})
	}
}

func TestForwarded(t *testing.T) {
	type want = route.Request
	tests := map[string]struct {
		method, host, uri string
		want              want
		malformed         bool
	}{
		"path":               {method: "POST", host: "App.example.com", uri: "/a%20b?c", want: want{"POST", "app.example.com", "/a b", "/a%20b", "c", false}},
		"absolute":           {method: "GET", uri: "https://app.example.com/a", want: want{"GET", "app.example.com", "/a", "/a", "", false}},
		"absolute and host":  {method: "GET", host: "app.example.com:443", uri: "https://APP.example.com/a", want: want{"GET", "app.example.com", "/a", "/a", "", false}},
		"two hosts":          {method: "GET", host: "b.example.com", uri: "https://app.example.com/a", malformed: true},
		"absolute, bad host": {method: "GET", host: "b b", uri: "https://app.example.com/a", malformed: true},
		"absolute, bad path": {method: "GET", host: "app.example.com", uri: "https://app.example.com/..", malformed: true},
		"no host":            {method: "GET", uri: "/a", malformed: true},
		"no method, A-F4":    {host: "app.example.com", uri: "/a", want: want{"", "app.example.com", "/a", "/a", "", false}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := route.Forwarded(tt.method, tt.host, tt.uri, "https")
			if tt.malformed {
				if err == nil || coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
					t.Errorf("Forwarded = %+v, %v; want %s", got, err, coatcheck.CodeMalformed)
				}
				return
			}
			if err != nil {
				t.Fatalf("Forwarded: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Forwarded (-want +got):\n%s", diff)
			}
		})
	}
}

// target writes a canonical request's target again.
func target(r route.Request) string {
	s := r.RawPath
	if r.ForceQuery || r.RawQuery != "" {
		s += "?" + r.RawQuery
	}
	return s
}

// checkCanonical holds for whatever Canonical accepts.
func checkCanonical(t interface{ Fatalf(string, ...any) }, uri string) {
	got, err := canonical(uri)
	if err != nil {
		var e *coatcheck.Error
		if !errors.As(err, &e) {
			t.Fatalf("%q: error without a code: %v", uri, err)
		}
		return
	}
	// A-P15: what is judged is what came and what goes out.
	if strings.HasPrefix(uri, "/") && target(got) != uri {
		t.Fatalf("%q is forwarded as %q", uri, target(got))
	}
	again, err := route.Forwarded(got.Method, got.Host, target(got), "https")
	if err != nil {
		t.Fatalf("%q is canonical, its reading %q is not: %v", uri, target(got), err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Fatalf("%q read twice differs:\n%s", uri, diff)
	}
	// An independent decoder agrees on the path.
	u, err := http.NewRequest("GET", "http://app.example.com"+got.RawPath, nil)
	if err != nil {
		t.Fatalf("%q: net/url refuses %q: %v", uri, got.RawPath, err)
	}
	if u.URL.Path != got.Path {
		t.Fatalf("%q is judged as %q, net/url reads %q", uri, got.Path, u.URL.Path)
	}
	for i, segment := range strings.Split(got.Path, "/") {
		name, params, cut := strings.Cut(segment, ";")
		if name == "." || name == ".." || i == 0 && segment != "" || name == "" && cut && params != "" {
			t.Fatalf("%q passed with the segment %q", uri, segment)
		}
	}
	if strings.Contains(got.Path, "//") || strings.ContainsAny(got.Path, "\\\x00\r\n") {
		t.Fatalf("%q passed as %q", uri, got.Path)
	}
}

// A-P15
func TestCanonicalProperties(t *testing.T) {
	piece := rapid.SampledFrom([]string{
		"/", "/", "/", "a", "b", "admin", "public", ".", "..", "%2e", "%2f", "%5c", "%25", "2e", "2f", ";", "%3b", "=", "%00", "%41", "%c3%a9",
		"%e2%82%ac", "%ff", "|", "^", "\"", "\\", "#", "?", "%3f", "%23", "&", "+", "~", "%", "%2", "http://", "@", ":", "é", " ", "\t",
	})
	generated := rapid.SliceOfN(piece, 0, 12)
	for range 100 { // rapid runs 100 checks each
		rapid.Check(t, func(t *rapid.T) {
			checkCanonical(t, "/"+strings.Join(generated.Draw(t, "pieces"), ""))
		})
		if testing.Short() {
			break
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, targets := range hostileTargets {
		for _, uri := range targets {
			f.Add(uri)
		}
	}
	f.Add("/shop;v=1/a%20b?c=d")
	f.Add("https://app.example.com/x?")
	f.Fuzz(func(t *testing.T, uri string) { checkCanonical(t, uri) })
}

func BenchmarkCanonical(b *testing.B) {
	r := request("GET", "app.example.com", "/shop/cart/items?page=2")
	r.Header.Set("Cookie", "theme=dark; __Host-coatcheck=x")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := route.Canonical(r, "https", route.DefaultLimits); err != nil {
			b.Fatal(err)
		}
	}
}
