package route_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/route"
)

func table(t testing.TB, patterns ...route.Pattern) *route.Table[string] {
	t.Helper()
	entries := make([]route.Entry[string], len(patterns))
	for i, p := range patterns {
		name := p.Host + p.Path
		if p.Exact {
			name = "=" + name
		}
		if len(p.Methods) > 0 {
			name = strings.Join(p.Methods, ",") + " " + name
		}
		entries[i] = route.Entry[string]{Pattern: p, Value: name}
	}
	tab, err := route.NewTable(entries)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// match reads and matches; a refusal is returned as its code.
func match(tab *route.Table[string], method, host, uri string) string {
	r, err := route.Forwarded(method, host, uri, "https")
	if err != nil {
		return string(coatcheck.CodeOf(err))
	}
	v, err := tab.Match(r)
	if err != nil {
		return string(coatcheck.CodeOf(err))
	}
	return *v
}

const (
	notFound  = string(coatcheck.CodeNotFound)
	malformed = string(coatcheck.CodeMalformed)
)

func TestMatch(t *testing.T) {
	tab := table(t,
		route.Pattern{Path: "/"},
		route.Pattern{Path: "/public/"},
		route.Pattern{Path: "/admin"},
		route.Pattern{Path: "/admin/Reports"},
		route.Pattern{Path: "/health", Exact: true, Methods: []string{"GET"}},
		route.Pattern{Path: "/files/caf\u00e9"},
		route.Pattern{Host: "shop.test", Path: "/cart"},
		route.Pattern{Host: "shop.test", Path: "/cart", Methods: []string{"POST", "PUT"}},
		route.Pattern{Host: "shop.test", Path: "/exact/", Exact: true},
		route.Pattern{Host: "shop.test:8443", Path: "/"},
	)
	tests := []struct {
		method, host, uri, want string
	}{
		{"GET", "a.test", "/", "/"},
		{"GET", "a.test", "/x/y/z", "/"},
		{"GET", "a.test", "/public", "/public/"},
		{"GET", "a.test", "/public/", "/public/"},
		{"GET", "a.test", "/public/x", "/public/"},
		{"GET", "a.test", "/publicity", "/"},
		{"GET", "a.test", "/admin", "/admin"},
		{"GET", "a.test", "/admin/Reports/1", "/admin/Reports"},
		{"GET", "a.test", "/%61dmin/x", "/admin"}, // judged decoded
		{"GET", "a.test", "/files/caf%C3%A9/x", "/files/caf\u00e9"},
		{"GET", "a.test", "/" + strings.Repeat("x/", 4000), "/"},

		{"GET", "a.test", "/admin?x=/public/", "/admin"}, // A-P7

		// A-P11, A-F4: other methods, and none, pass the route by.
		{"GET", "a.test", "/health", "GET =/health"},
		{"POST", "a.test", "/health", "/"},
		{"HEAD", "a.test", "/health", "/"},
		{"get", "a.test", "/health/", "/"},

		// A method in small letters leads past no route either.
		{"get", "a.test", "/health", malformed},
		{"Put", "shop.test", "/cart/1", malformed},
		{"delete", "shop.test", "/cart/1", "shop.test/cart"},
		{"delete", "shop.test", "/cart/1;x", "shop.test/cart"},
		{"", "a.test", "/health", "/"},
		{"GET", "a.test", "/health/", "/"},

		// The host goes before everything, a port belongs to it.
		{"GET", "shop.test", "/cart/1", "shop.test/cart"},
		{"PUT", "shop.test", "/cart/1", "POST,PUT shop.test/cart"},
		{"", "shop.test", "/cart/1", "shop.test/cart"},
		{"GET", "shop.test", "/admin", "/admin"},
		{"GET", "shop.test", "/exact/", "=shop.test/exact/"},
		{"GET", "shop.test", "/exact", "/"},
		{"GET", "shop.test", "/exact/x", "/"},
		{"GET", "shop.test:8443", "/cart", "shop.test:8443/"},

		// A-P13: capitals don't lead past a more specific route.
		{"GET", "a.test", "/ADMIN", notFound},
		{"GET", "a.test", "/Admin/", notFound},
		{"GET", "a.test", "/%41dmin", notFound},
		{"GET", "a.test", "/admin/reports", notFound},
		{"GET", "a.test", "/admin/REPORTS/1", notFound},
		{"GET", "a.test", "/HEALTH", notFound},
		{"POST", "a.test", "/HEALTH", "/"},
		{"GET", "a.test", "/admin/X", "/admin"},
		{"GET", "a.test", "/Readme", "/"},
		{"GET", "a.test", "/files/CAF%C3%89", notFound},
		{"GET", "shop.test", "/CART", notFound},
		{"GET", "a.test", "/ADMIN;x", malformed},

		// A-P4, A-P8 and their like: both readings must lead to one route.
		{"GET", "a.test", "/admin;x=1", malformed},
		{"GET", "a.test", "/admin;/x", malformed},
		{"GET", "a.test", "/admin%3Bx", malformed},
		{"GET", "a.test", "/x;ADMIN", "/"},
		{"GET", "a.test", "/public;x/y", malformed},
		{"GET", "a.test", "/public/y;x=1/z", "/public/"},
		{"GET", "a.test", "/ADMI%4E;x", malformed},
		{"GET", "a.test", "/admin%23/public/", malformed},
		{"GET", "a.test", "/admin%3f/public/", malformed},
		{"GET", "a.test", "/public/C%23/%3f", "/public/"},
		{"GET", "a.test", "/%2561dmin", malformed},
		{"GET", "a.test", "/%2541dmin", malformed},
		{"GET", "a.test", "/public/50%25/%2520", "/public/"},
		{"GET", "a.test", "/%2561dmin;x%23", malformed},
	}
	for _, tt := range tests {
		if got := match(tab, tt.method, tt.host, tt.uri); got != tt.want {
			t.Errorf("%s %s %.60s: %s, want %s", tt.method, tt.host, tt.uri, got, tt.want)
		}
	}
}

// Routes written in capitals are not freed by small letters either.
func TestMatchCapitalRoute(t *testing.T) {
	tab := table(t, route.Pattern{Path: "/"}, route.Pattern{Path: "/Admin"}, route.Pattern{Path: "/Straße"}, route.Pattern{Path: "/\u023a"})
	for uri, want := range map[string]string{
		"/Admin/x": "/Admin", "/admin/x": notFound, "/other": "/", "/%E2%84%AAey": "/",
		"/Stra%C3%9Fe": "/Straße", "/stra%C3%9Fe": notFound, "/%C8%BA": "/\u023a", "/%E2%B1%A5": notFound,
	} {
		if got := match(tab, "GET", "a.test", uri); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
	// Letters that fold to ASCII.
	tab = table(t, route.Pattern{Path: "/"}, route.Pattern{Path: "/keys"})
	for _, uri := range []string{"/%E2%84%AAeys", "/key%C5%BF", "/KEYS"} {
		if got := match(tab, "GET", "a.test", uri); got != notFound {
			t.Errorf("%s: %s, want %s", uri, got, notFound)
		}
	}
}

func TestMatchNothing(t *testing.T) {
	tab := table(t, route.Pattern{Host: "a.test", Path: "/x"})
	for _, r := range [][2]string{{"a.test", "/"}, {"a.test", "/y"}, {"b.test", "/x"}, {"a.test", "/X"}} {
		if got := match(tab, "GET", r[0], r[1]); got != notFound {
			t.Errorf("%v: %s, want %s", r, got, notFound)
		}
	}
}

func TestTableKnowsAndAll(t *testing.T) {
	tab := table(t,
		route.Pattern{Host: "a.test", Path: "/x"},
		route.Pattern{Host: "b.test", Path: "/"},
		route.Pattern{Host: "a.test", Path: "/"},
	)
	for host, want := range map[string][]string{"a.test": {"a.test/x", "a.test/"}, "b.test": {"b.test/"}, "c.test": nil, "": nil} {
		var got []string
		for v := range tab.All(host) {
			got = append(got, *v)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("All(%q) (-want +got):\n%s", host, diff)
		}
		if tab.Knows(host) != (want != nil) {
			t.Errorf("Knows(%q) = %v", host, tab.Knows(host))
		}
	}
	every := table(t, route.Pattern{Path: "/"}, route.Pattern{Host: "a.test", Path: "/x"})
	if !every.Knows("c.test") {
		t.Error("a route for every host knows none")
	}
	for v := range every.All("a.test") {
		if *v != "/" {
			t.Errorf("first = %s", *v)
		}
		break
	}
}

func TestTableCovers(t *testing.T) {
	tab := table(t,
		route.Pattern{Host: "all.test", Path: "/"},
		route.Pattern{Host: "below.test", Path: "/x"},
		route.Pattern{Host: "exact.test", Path: "/", Exact: true},
		route.Pattern{Host: "get.test", Path: "/", Methods: []string{"GET"}},
	)
	every := table(t, route.Pattern{Path: "/"}, route.Pattern{Host: "below.test", Path: "/x"})
	for host, want := range map[string]bool{"all.test": true, "below.test": false, "exact.test": false, "get.test": false, "other.test": false} {
		if got := tab.Covers(host); got != want {
			t.Errorf("Covers(%q) = %v", host, got)
		}
		if !every.Covers(host) {
			t.Errorf("a route for every host leaves %q uncovered", host)
		}
	}
}

func TestTableMethods(t *testing.T) {
	tab := table(t,
		route.Pattern{Path: "/"},
		route.Pattern{Path: "/x", Methods: []string{"PUT", "GET"}},
		route.Pattern{Path: "/y", Methods: []string{"DELETE", "GET"}},
	)
	if diff := cmp.Diff([]string{"DELETE", "GET", "PUT"}, tab.Methods()); diff != "" {
		t.Errorf("Methods (-want +got):\n%s", diff)
	}
}

func TestNewTableRefuses(t *testing.T) {
	tests := map[string][]route.Pattern{
		"relative":         {{Path: "x"}},
		"empty":            {{Path: ""}},
		"dot segment":      {{Path: "/a/../b"}},
		"empty segment":    {{Path: "/a//b"}},
		"parameter":        {{Path: "/a;x"}},
		"encoded":          {{Path: "/a%20b"}},
		"query":            {{Path: "/a?b"}},
		"fragment":         {{Path: "/a#b"}},
		"backslash":        {{Path: `/a\b`}},
		"control":          {{Path: "/a\n"}},
		"not UTF-8":        {{Path: "/\xff"}},
		"host in capitals": {{Host: "A.test", Path: "/"}},
		"no host name":     {{Host: "a test", Path: "/"}},
		"no method":        {{Path: "/", Methods: []string{"GE T"}}},
		"empty method":     {{Path: "/", Methods: []string{""}}},
		"twice":            {{Path: "/a"}, {Path: "/a"}},
		"twice, slash":     {{Path: "/a"}, {Path: "/a/"}},
		"method twice":     {{Path: "/a", Methods: []string{"GET", "PUT"}}, {Path: "/a", Methods: []string{"PUT"}}},
		"exact twice":      {{Path: "/a", Exact: true}, {Path: "/a", Exact: true}},
	}
	for name, patterns := range tests {
		t.Run(name, func(t *testing.T) {
			var entries []route.Entry[int]
			for _, p := range patterns {
				entries = append(entries, route.Entry[int]{Pattern: p})
			}
			if _, err := route.NewTable(entries); err == nil {
				t.Errorf("NewTable(%+v) has no error", patterns)
			}
		})
	}
}

// The index finds what a walk over all patterns finds.
func TestMatchIsTheMostSpecific(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.Custom(func(t *rapid.T) string {
			return "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab"}), 0, 4).Draw(t, "segments"), "/")
		})
		var entries []route.Entry[string]
		for _, p := range rapid.SliceOfNDistinct(path, 1, 8, rapid.ID).Draw(t, "patterns") {
			exact := rapid.Bool().Draw(t, "exact")
			entries = append(entries, route.Entry[string]{Pattern: route.Pattern{Path: p, Exact: exact}, Value: p})
		}
		tab, err := route.NewTable(entries)
		if err != nil {
			t.Fatal(err)
		}
		asked := path.Draw(t, "path")
		slices.SortFunc(entries, func(a, b route.Entry[string]) int { return len(b.Value) - len(a.Value) })
		want := ""
		for _, e := range entries {
			if e.Value == asked || !e.Pattern.Exact && strings.HasPrefix(asked, strings.TrimSuffix(e.Value, "/")+"/") {
				want = e.Value
				break
			}
		}
		got, err := tab.Match(route.Request{Method: "GET", Host: "a.test", Path: asked})
		switch {
		case err != nil && want != "":
			t.Fatalf("%s: %v, want %s", asked, err, want)
		case err == nil && *got != want:
			t.Fatalf("%s: %s, want %q", asked, *got, want)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	tab := table(b, route.Pattern{Path: "/"}, route.Pattern{Path: "/shop"}, route.Pattern{Path: "/shop/cart"},
		route.Pattern{Path: "/health", Exact: true}, route.Pattern{Host: "app.example.com", Path: "/api"})
	r := route.Request{Method: "GET", Host: "app.example.com", Path: "/shop/cart/items"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tab.Match(r); err != nil {
			b.Fatal(err)
		}
	}
}
