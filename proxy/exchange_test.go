package proxy

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestPeer(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, tt := range []struct {
		name, remote string
		forwarded    []string
		want         peer
	}{
		{"A-H7: nobody believes a stranger", "192.0.2.1:5", []string{"6.6.6.6"}, peer{ip: "192.0.2.1"}},
		{"no header", "10.0.0.1:5", nil, peer{ip: "10.0.0.1", trusted: true}},
		{"A-H8: the right-most untrusted hop", "10.0.0.1:5", []string{"6.6.6.6, 192.0.2.9, 10.0.0.9"}, peer{ip: "192.0.2.9", trusted: true}},
		{"several lines are one list", "10.0.0.1:5", []string{"6.6.6.6", "192.0.2.9", "10.0.0.9"}, peer{ip: "192.0.2.9", trusted: true}},
		{"all trusted: the left-most", "10.0.0.1:5", []string{"10.0.0.7, 10.0.0.8"}, peer{ip: "10.0.0.7", trusted: true}},
		{"junk ends what can be believed", "10.0.0.1:5", []string{"6.6.6.6, junk, 10.0.0.9"}, peer{ip: "10.0.0.9", trusted: true}},
		{"an empty element is junk", "10.0.0.1:5", []string{"6.6.6.6,, 10.0.0.9"}, peer{ip: "10.0.0.9", trusted: true}},
		{"IPv6", "[::1]:5", []string{"2001:db8::5"}, peer{ip: "2001:db8::5", trusted: true}},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:5", []string{"::ffff:192.0.2.9"}, peer{ip: "192.0.2.9", trusted: true}},
		{"no address at all", "@", []string{"6.6.6.6"}, peer{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.remote
			r.Header["X-Forwarded-For"] = tt.forwarded
			p := &Proxy{Options: Options{Trusted: trusted}}
			if got := p.peer(r); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestRequestID(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Request-Id", "abcdef-0123456789")
	if got := (peer{trusted: true}).requestID(r); got != "abcdef-0123456789" {
		t.Errorf("the id of a trusted proxy was not kept: %q", got)
	}
	if got := (peer{}).requestID(r); got == "abcdef-0123456789" || !goodRequestID(got) {
		t.Errorf("a stranger chose the request id, or ours is bad: %q", got)
	}
	for _, bad := range []string{"", "short", "has space in it", "new\nline12345", string(make([]byte, 65))} {
		r.Header["X-Request-Id"] = []string{bad}
		if got := (peer{trusted: true}).requestID(r); got == bad {
			t.Errorf("%q was taken as a request id", bad)
		}
	}
}

// TestNavigation: A-O15.
func TestNavigation(t *testing.T) {
	page := "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, tt := range []struct {
		name, method     string
		header           http.Header
		navigation, page bool
	}{
		{"a browser", "GET", http.Header{"Sec-Fetch-Mode": {"navigate"}, "Accept": {page}}, true, true},
		{"an old browser", "GET", http.Header{"Accept": {page}}, true, true},
		{"curl", "GET", http.Header{"Accept": {"*/*"}}, true, false},
		{"fetch", "GET", http.Header{"Sec-Fetch-Mode": {"cors"}, "Accept": {"*/*"}}, false, false},
		{"an image", "GET", http.Header{"Sec-Fetch-Mode": {"no-cors"}, "Accept": {"image/*"}}, false, false},
		{"fetch that accepts pages", "GET", http.Header{"Sec-Fetch-Mode": {"same-origin"}, "Accept": {page}}, false, false},
		{"jQuery", "GET", http.Header{"X-Requested-With": {"XMLHttpRequest"}, "Accept": {page}}, false, false},
		{"asks for JSON", "GET", http.Header{"Accept": {"application/json, text/plain;q=0.5"}}, false, false},
		{"asks for JSON with a weight", "GET", http.Header{"Accept": {"text/plain, Application/JSON;q=0.9"}}, false, false},
		{"a form", "POST", http.Header{"Sec-Fetch-Mode": {"navigate"}, "Accept": {page}}, false, true},
		{"a WebSocket", "GET", http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header = tt.header
			x := &exchange{r: r}
			if got := x.navigation(); got != tt.navigation {
				t.Errorf("navigation: %v, want %v", got, tt.navigation)
			}
			if got := x.wantsPage(); got != tt.page {
				t.Errorf("wantsPage: %v, want %v", got, tt.page)
			}
		})
	}
}

// TestLegible: A-D2.
func TestLegible(t *testing.T) {
	for in, want := range map[string]string{
		"Mozilla/5.0":       "Mozilla/5.0",
		"/straße":           "/straße",
		"a\u009b31mred\x7f": "a\ufffd31mred\ufffd",
		"a\u202etxt.exe":    "a\ufffdtxt.exe",
	} {
		if got := legible(in); got != want {
			t.Errorf("legible(%q) = %q, want %q", in, got, want)
		}
	}
}
