package cookie_test

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck/cookie"
)

// modes are the three kinds of jar.
var modes = []struct {
	name    string
	jar     *cookie.Jar
	session string
	domain  string // of the attribute; "" for none
	secure  bool
}{
	{"one host", cookie.New("coatcheck", "", false), "__Host-coatcheck", "", true},
	{"a domain", cookie.New("coatcheck", "sso.test", false), "__Secure-coatcheck", "sso.test", true},
	{"plain http", cookie.New("coatcheck", "", true), "coatcheck", "", false},
	{"plain http and a domain", cookie.New("coatcheck", "sso.test", true), "coatcheck", "sso.test", false},
}

func header(lines ...string) http.Header {
	return http.Header{"Cookie": lines}
}

// pairs returns what Each yields.
func pairs(h http.Header) [][2]string {
	var out [][2]string
	for name, value := range cookie.Each(h) {
		out = append(out, [2]string{name, value})
	}
	return out
}

// lint checks a Set-Cookie line against RFC 6265bis and the conventions for all our
// cookies, and returns the cookie. A-C7
func lint(t *testing.T, line, name, domain string, secure bool) *http.Cookie {
	t.Helper()
	c, err := http.ParseSetCookie(line)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if c.Name != name {
		t.Errorf("name %q, want %q", c.Name, name)
	}
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Secure != secure || c.Domain != domain {
		t.Errorf("attributes of %q are wrong", line)
	}
	if c.Unparsed != nil {
		t.Errorf("%q has attributes that nobody knows: %q", line, c.Unparsed)
	}
	switch {
	case strings.HasPrefix(name, "__Host-") && (!c.Secure || c.Domain != "" || c.Path != "/"),
		strings.HasPrefix(name, "__Secure-") && !c.Secure:
		t.Errorf("a browser drops %q: its prefix does not fit", line)
	}
	if len(c.Name)+len(c.Value) > cookie.MaxSize {
		t.Errorf("name and value have %d bytes, a browser keeps %d", len(c.Name)+len(c.Value), cookie.MaxSize)
	}
	for attribute := range strings.SplitSeq(line, ";") {
		if len(attribute) > 1024 && !strings.HasPrefix(attribute, name) {
			t.Errorf("an attribute has %d bytes", len(attribute))
		}
	}
	if c.MaxAge > 400*24*60*60 {
		t.Errorf("%q lives longer than 400 days", line)
	}
	return c
}

// A-C7
func TestSet(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			if got := mode.jar.Session(); got != mode.session {
				t.Fatalf("Session() = %q, want %q", got, mode.session)
			}
			login := mode.jar.Name("login-1")
			if want := mode.session + "-login-1"; login != want {
				t.Fatalf("Name = %q, want %q", login, want)
			}
			h := http.Header{"Set-Cookie": {"app=1"}, "Cache-Control": {"public, max-age=60"}}
			mode.jar.Set(h, mode.session, "abc", 12*time.Hour)
			mode.jar.Set(h, login, "def.ghi-_", 0)
			lines := h["Set-Cookie"]
			if len(lines) != 3 || lines[0] != "app=1" {
				t.Fatalf("Set-Cookie: %q, want two more lines than before", lines)
			}
			if c := lint(t, lines[1], mode.session, mode.domain, mode.secure); c.MaxAge != 12*60*60 || c.Value != "abc" {
				t.Errorf("%q has Max-Age %d and value %q", lines[1], c.MaxAge, c.Value)
			}
			if c := lint(t, lines[2], login, mode.domain, mode.secure); c.MaxAge != 0 || c.RawExpires != "" || c.Value != "def.ghi-_" {
				t.Errorf("%q does not end with the browser", lines[2])
			}
			if got := h["Cache-Control"]; !slices.Equal(got, []string{"no-store"}) {
				t.Errorf("Cache-Control: %q, want no-store", got)
			}
		})
	}
}

func TestMaxAge(t *testing.T) {
	for _, test := range []struct {
		maxAge time.Duration
		want   string // "" for no attribute
	}{
		{-time.Second, ""},
		{0, ""},
		{time.Nanosecond, "1"}, // 0 would delete the cookie
		{time.Second, "1"},
		{1500 * time.Millisecond, "2"},
		{time.Hour, "3600"},
		{400 * 24 * time.Hour, "34560000"},
		{401 * 24 * time.Hour, "34560000"},
		{1<<63 - 1, "34560000"},
	} {
		h := http.Header{}
		modes[0].jar.Set(h, "x", "y", test.maxAge)
		_, got, _ := strings.Cut(h.Get("Set-Cookie"), "; Max-Age=")
		if got != test.want {
			t.Errorf("%v: Max-Age=%s, want %q", test.maxAge, got, test.want)
		}
	}
}

func TestExpire(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			h := http.Header{}
			mode.jar.Expire(h, mode.session)
			c := lint(t, h.Get("Set-Cookie"), mode.session, mode.domain, mode.secure)
			if c.MaxAge >= 0 || c.Value != "" || !c.Expires.Equal(time.Unix(0, 0)) {
				t.Errorf("%q does not delete the cookie", h.Get("Set-Cookie"))
			}
			if got := h.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control: %q, want no-store", got)
			}
		})
	}
}

func TestEach(t *testing.T) {
	for _, test := range []struct {
		name string
		h    http.Header
		want [][2]string
	}{
		{"no header", http.Header{}, nil},
		{"an empty line", header(""), nil},
		{"one", header("a=1"), [][2]string{{"a", "1"}}},
		{"several, in order, with a name twice", header("b=2; a=1; b=3"), [][2]string{{"b", "2"}, {"a", "1"}, {"b", "3"}}},
		{"several lines", header("a=1; b=2", "", "c=3"), [][2]string{{"a", "1"}, {"b", "2"}, {"c", "3"}}},
		{"odd spacing", header(" a=1;b=2;\tc=3 ;  d = 4 \t"), [][2]string{{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d ", " 4"}}},
		{"empty pairs", header(";;a=1; ;\t;b=2;;"), [][2]string{{"a", "1"}, {"b", "2"}}},
		{"quotes", header(`a="1 2"; b="x;y"`), [][2]string{{"a", `"1 2"`}, {"b", `"x`}, {`y"`, ""}}},
		{"no value", header("a; b=; =c; ="), [][2]string{{"a", ""}, {"b", ""}, {"", "c"}, {"", ""}}},
		{"more than one =", header("a=b=c=="), [][2]string{{"a", "b=c=="}}},
		{"nothing is decoded", header("a=%3B%20+; ü=\xff"), [][2]string{{"a", "%3B%20+"}, {"ü", "\xff"}}},
		{"a field of another spelling is another field", http.Header{"cookie": {"a=1"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, pairs(test.h)); diff != "" {
				t.Errorf("Each (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEachStops(t *testing.T) {
	seen := 0
	for range cookie.Each(header("a=1; b=2", "c=3")) {
		seen++
		break
	}
	if seen != 1 {
		t.Errorf("the loop ran %d times", seen)
	}
}

func TestCount(t *testing.T) {
	for _, test := range []struct {
		h    http.Header
		want int
	}{
		{http.Header{}, 0},
		{header("a=1"), 1},
		{header("a=1; b=2", "c=3"), 3},
		{header(strings.Repeat("a=;", 1000)), 1001},   // A-C10
		{header(strings.Repeat(";", 50_000)), 50_001}, // A-C10: empty pairs are work too
	} {
		if got := cookie.Count(test.h); got != test.want {
			t.Errorf("Count = %d, want %d", got, test.want)
		}
	}
}

// Each, Count and Strip cost nothing but time where there is nothing to strip. A-C10
func TestManyCookiesAreBounded(t *testing.T) {
	for _, n := range []int{1000, 50_000} {
		h := header(strings.Repeat("a=;", n))
		allocs := testing.AllocsPerRun(3, func() {
			if cookie.Count(h) < n {
				t.Error("Count is too small")
			}
			modes[0].jar.Strip(h)
			for range cookie.Each(h) {
			}
		})
		if allocs > 2 {
			t.Errorf("%d cookies cost %v allocations", n, allocs)
		}
	}
}

// A-C11
func TestPart(t *testing.T) {
	for _, mode := range modes {
		for _, test := range []struct {
			rest  string
			index int
			ok    bool
		}{
			{"", 0, false},
			{"-login", 0, false},
			{"0", 0, false},
			{".0", 0, true},
			{".1", 1, true},
			{".15", 15, true},
			{".16", -1, true},
			{".99999999", -1, true},
			{".99999999999999999999999999", -1, true},
			{".-1", -1, true},
			{".-0", -1, true},
			{".-5", -1, true},
			{".+1", -1, true},
			{".1e9", -1, true},
			{".01", -1, true},
			{".00", -1, true},
			{".0x1", -1, true},
			{".1_0", -1, true},
			{". 1", -1, true},
			{".1 ", -1, true},
			{".", -1, true},
			{"..1", -1, true},
			{".1.1", -1, true},
			{".\u0661", -1, true}, // a digit, but not ASCII
		} {
			if index, ok := mode.jar.Part(mode.session + test.rest); index != test.index || ok != test.ok {
				t.Errorf("Part(%q) = %d, %t; want %d, %t", mode.session+test.rest, index, ok, test.index, test.ok)
			}
		}
	}
	for _, name := range []string{"", ".0", "coatcheck.0", "__host-coatcheck.0", "__Host-Coatcheck.0", "__Secure-coatcheck.0", "__Host-other.0", "x__Host-coatcheck.0"} {
		if index, ok := modes[0].jar.Part(name); ok {
			t.Errorf("Part(%q) = %d, want none", name, index)
		}
	}
}

var (
	oursEverywhere = []string{
		"coatcheck", "Coatcheck", "COATCHECK", "coatcheck-", "coatcheck-login", "coatcheck.0", "coatcheck.", "coatcheck.99",
		"__Host-coatcheck", "__host-coatcheck", "__HOST-COATCHECK-LOGIN", "__Host-coatcheck.3",
		"__Secure-coatcheck", "__sEcUrE-coatcheck.0", "__Http-coatcheck", "__Host-Http-coatcheck", "__host-http-Coatcheck-x",
		" coatcheck", "__Host-coatcheck\t ",
	}
	foreign = []string{
		"", "a", "coat", "coatchec", "coatcheck2", "coatcheck_x", "coatchecker", "xcoatcheck", "my-coatcheck", "__Host-", "__Secure-",
		"__Host-app", "__Host-coatcheck2", "__Host_coatcheck", "_Host-coatcheck", "Host-coatcheck", "__Other-coatcheck", "$Version", "$coatcheck",
		"__Host- coatcheck", "coat check",
	}
)

func TestOurs(t *testing.T) {
	for _, mode := range modes {
		for _, name := range oursEverywhere {
			if !mode.jar.Ours(name) {
				t.Errorf("%s: %q is not ours", mode.name, name)
			}
		}
		for _, name := range foreign {
			if mode.jar.Ours(name) {
				t.Errorf("%s: %q is ours", mode.name, name)
			}
		}
		for _, name := range []string{mode.jar.Session(), mode.jar.Name("login-abc"), mode.session + ".0"} {
			if !mode.jar.Ours(name) {
				t.Errorf("%s: the cookie %q that we set is not ours", mode.name, name)
			}
		}
	}
}

// A-H12
func TestStrip(t *testing.T) {
	const c = "__Host-coatcheck"
	for _, test := range []struct {
		name     string
		in, want []string // nil for no header
	}{
		{"no header", nil, nil},
		{"nothing of ours", []string{"a=1; b=2"}, []string{"a=1; b=2"}},
		{"nothing of ours, oddly written", []string{" ;a=1;;b = 2; ", ""}, []string{" ;a=1;;b = 2; ", ""}},
		{"only ours", []string{c + "=x"}, nil},
		{"only ours, several", []string{c + "=x; " + c + "-login-1=y;" + c + ".0=z"}, nil},
		{"only ours and empty pairs", []string{"; " + c + "=x;; "}, nil},
		{"first", []string{c + "=x; a=1; b=2"}, []string{"a=1; b=2"}},
		{"middle", []string{"a=1; " + c + "=x; b=2"}, []string{"a=1; b=2"}},
		{"last", []string{"a=1; b=2; " + c + "=x"}, []string{"a=1; b=2"}},
		{"twice", []string{c + "=x; a=1; " + c + "=y; b=2; " + c + "=z"}, []string{"a=1; b=2"}},
		{"several lines", []string{"a=1; " + c + "=x", c + "=y", "b=2"}, []string{"a=1", "b=2"}},
		{"odd spacing", []string{"a=1;" + c + "=x;b=2 ;\tc= 3;" + c + " =y"}, []string{"a=1;b=2 ;\tc= 3"}},
		{"tabs around the name", []string{"a=1;\t" + c + "\t=x; b=2"}, []string{"a=1; b=2"}},
		{"quotes", []string{`a="1 2"; ` + c + `="x"; b="3"`}, []string{`a="1 2"; b="3"`}},
		{"a quote hides nothing", []string{`a="1; ` + c + `=x; b=2"`}, []string{`a="1; b=2"`}},
		{"no =", []string{"a; " + c + "; b"}, []string{"a; b"}},
		{"= in the value", []string{"a=b=c; " + c + "=x=y; d=="}, []string{"a=b=c; d=="}},
		{"our name in another's value", []string{"a=" + c + "; " + c + "=x"}, []string{"a=" + c}},
		{"mixed case", []string{"__hOST-coatCHECK=x; a=1"}, []string{"a=1"}},
		{"another prefix", []string{"__Host-Http-coatcheck=x; __Secure-coatcheck=y; coatcheck=z; a=1"}, []string{"a=1"}},
		{"a longer name", []string{c + "2=x; " + c + "=y; my-coatcheck=z"}, []string{c + "2=x; my-coatcheck=z"}},
		{"bytes that are not text", []string{"a=\xff\xfe; " + c + "=x; \xc3=1"}, []string{"a=\xff\xfe; \xc3=1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"Other": {"stays"}}
			if test.in != nil {
				h["Cookie"] = slices.Clone(test.in)
			}
			before := h["Cookie"]
			modes[0].jar.Strip(h)
			want := http.Header{"Other": {"stays"}}
			if test.want != nil {
				want["Cookie"] = test.want
			}
			if diff := cmp.Diff(want, h); diff != "" {
				t.Errorf("Strip (-want +got):\n%s", diff)
			}
			if !slices.Equal(before, test.in) {
				t.Error("Strip changed the lines in place; another header may share them")
			}
		})
	}
}

func TestStripSet(t *testing.T) {
	const c = "__Host-coatcheck"
	for _, test := range []struct {
		name     string
		in, want []string
	}{
		{"no header", nil, nil},
		{"nothing of ours", []string{"a=1; Path=/", "b=2"}, []string{"a=1; Path=/", "b=2"}},
		{"only ours", []string{c + "=x; Path=/; Secure"}, nil},
		{"first", []string{c + "=x", "a=1"}, []string{"a=1"}},
		{"middle", []string{"a=1", c + "=x", "b=2"}, []string{"a=1", "b=2"}},
		{"several", []string{c + "=x", "a=1", c + "-login=y", c + ".0=z", "b=2"}, []string{"a=1", "b=2"}},
		{"a deletion", []string{c + "=; Max-Age=0"}, nil},
		{"no =", []string{c, c + "; Path=/", "a"}, []string{"a"}},
		{"= in an attribute only", []string{c + "; Path=/"}, nil},
		{"our name as another's attribute", []string{"a; " + c + "=x"}, []string{"a; " + c + "=x"}},
		{"white space", []string{" \t" + c + " \t=x", " a=1"}, []string{" a=1"}},
		{"mixed case", []string{"__HOST-coatCheck=x"}, nil},
		{"another prefix", []string{"coatcheck=x", "__Secure-coatcheck=x", "__Host-Http-coatcheck=x", "__http-coatcheck=x"}, nil},
		{"a longer name", []string{c + "2=x"}, []string{c + "2=x"}},
		// A browser stores a cookie with an empty name and sends its value alone.
		{"an empty name", []string{"=coatcheck=x", "= " + c + "=x; Path=/", " ==coatcheck=x", "=a=1", "="}, []string{"=a=1", "="}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"Other": {"stays"}}
			if test.in != nil {
				h["Set-Cookie"] = slices.Clone(test.in)
			}
			before := h["Set-Cookie"]
			modes[0].jar.StripSet(h)
			want := http.Header{"Other": {"stays"}}
			if test.want != nil {
				want["Set-Cookie"] = test.want
			}
			if diff := cmp.Diff(want, h); diff != "" {
				t.Errorf("StripSet (-want +got):\n%s", diff)
			}
			if !slices.Equal(before, test.in) {
				t.Error("StripSet changed the lines in place")
			}
		})
	}
}

// pairGen makes cookie pairs, with names of ours among them.
var pairGen = rapid.Custom(func(t *rapid.T) string {
	name := rapid.OneOf(
		rapid.SampledFrom(oursEverywhere), rapid.SampledFrom(foreign),
		rapid.StringMatching(`[!-:<>-~ ]{0,12}`),
	).Draw(t, "name")
	pair := rapid.StringMatching(`[ \t]{0,2}`).Draw(t, "before") + name
	if rapid.Bool().Draw(t, "has a value") {
		pair += "=" + rapid.StringMatching(`[!-:<-~"]{0,8}`).Draw(t, "value")
	}
	return pair + rapid.StringMatching(`[ \t]{0,2}`).Draw(t, "after")
})

// A-H12: what is left of the cookies is exactly what is not ours, in order.
func TestStripLeavesTheOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.Map(rapid.SliceOfN(pairGen, 0, 5), func(pairs []string) string {
			return strings.Join(pairs, ";")
		}), 0, 3).Draw(t, "lines")
		checkStrip(t, modes[rapid.IntRange(0, len(modes)-1).Draw(t, "mode")].jar, lines)
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func checkStrip(t fataler, jar *cookie.Jar, lines []string) {
	t.Helper()
	before := header(slices.Clone(lines)...)
	var want [][2]string
	for _, p := range pairs(before) {
		if !jar.Ours(p[0]) {
			want = append(want, p)
		}
	}
	h := header(slices.Clone(lines)...)
	jar.Strip(h)
	if got := pairs(h); !slices.Equal(got, want) {
		t.Fatalf("Strip of %q left %q, want %q", lines, got, want)
	}
	if len(want) == len(pairs(before)) && !slices.Equal(h["Cookie"], lines) {
		t.Fatalf("Strip touched %q, where nothing is ours: %q", lines, h["Cookie"])
	}
	again := h.Clone()
	jar.Strip(again)
	if !slices.Equal(again["Cookie"], h["Cookie"]) {
		t.Fatalf("a second Strip of %q changed %q to %q", lines, h["Cookie"], again["Cookie"])
	}
}

func FuzzStrip(f *testing.F) {
	f.Add("a=1; __Host-coatcheck=x; b=2", "coatcheck=y")
	f.Add(`a="1; __host-coatcheck.0=x"`, ";;")
	f.Add(" ; \t__Secure-Coatcheck-login \t= x", "=")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, mode := range modes {
			checkStrip(t, mode.jar, []string{a, b})
		}
	})
}

var setCookieName = regexp.MustCompile(`^[!-:<>-~]+=`)

// What Set and Expire write is one line that our own StripSet would not let an app
// write, whatever the purpose.
func TestSetIsOurs(t *testing.T) {
	for _, mode := range modes {
		h := http.Header{}
		for i := range 3 {
			mode.jar.Set(h, mode.jar.Name("login-"+strconv.Itoa(i)), "v", time.Minute)
		}
		mode.jar.Expire(h, mode.jar.Session())
		for _, line := range h["Set-Cookie"] {
			if !setCookieName.MatchString(line) {
				t.Errorf("%q is no Set-Cookie", line)
			}
		}
		mode.jar.StripSet(h)
		if left := h["Set-Cookie"]; left != nil {
			t.Errorf("%s: StripSet leaves %q", mode.name, left)
		}
	}
}

func BenchmarkEach(b *testing.B) {
	h := header("theme=dark; _ga=GA1.1.1234567890.1234567890; locale=en-GB; __Host-coatcheck=__Host-coatcheck-00112233445566778899aabbccddeeff.AAAAAAAAAAAAAAAAAAAAAA")
	b.ReportAllocs()
	for b.Loop() {
		for range cookie.Each(h) {
		}
	}
}

func BenchmarkStrip(b *testing.B) {
	line := []string{"theme=dark; _ga=GA1.1.1234567890.1234567890; __Host-coatcheck=__Host-coatcheck-00112233445566778899aabbccddeeff.AAAAAAAAAAAAAAAAAAAAAA; locale=en-GB"}
	b.ReportAllocs()
	for b.Loop() {
		modes[0].jar.Strip(http.Header{"Cookie": line})
	}
}
