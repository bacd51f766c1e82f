package proxy

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/route"
)

// TestNoLongerAllowed: a session that has outlived its person's right to sign in names
// nobody to an app, on free routes neither.
func TestNoLongerAllowed(t *testing.T) {
	r := newRig(t)
	var got http.Header
	r.app.answer = func(req *http.Request) (*http.Response, error) {
		got = req.Header
		return new(faultyApp).RoundTrip(req)
	}
	_, alice := r.signedIn(t, "alice")
	_, bob := r.signedIn(t, "bob")
	r.Proxy.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} // where httptest's requests come from
	r.Proxy.Allow = policy.NewRule("allow", []string{"bob@example.com"}, nil, nil)
	for _, tt := range []struct {
		cookie      http.Header
		user, state string
	}{{alice, "", "anonymous"}, {bob, "bob", "authenticated"}} {
		w := r.serveHTTP("GET", "/public", "", tt.cookie)
		if w.Code != http.StatusOK || got.Get("X-Forwarded-User") != tt.user || got.Get("Coatcheck-State") != tt.state {
			t.Errorf("%d as %q, %s; want %q, %s", w.Code, got.Get("X-Forwarded-User"), got.Get("Coatcheck-State"), tt.user, tt.state)
		}
		asked := http.Header{"X-Forwarded-Uri": {"/public"}, "X-Forwarded-Method": {"GET"}}
		if w := r.serveHTTP("GET", "/oauth2/auth", "", tt.cookie, asked); w.Code != http.StatusAccepted || w.Header().Get("X-Auth-Request-User") != tt.user {
			t.Errorf("forward-auth: %d as %q, want %q", w.Code, w.Header().Get("X-Auth-Request-User"), tt.user)
		}
	}
}

// TestForwardAuthWithoutRoute: where no route says what a host demands, nobody passes,
// whether or not the host is ours and a path was named.
func TestForwardAuthWithoutRoute(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	routes, err := route.NewTable([]route.Entry[Route]{{
		Pattern: route.Pattern{Host: "shop.example.com", Path: "/"},
		Value:   Route{Name: "/", Require: coatcheck.Anonymous},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.Proxy.Routes = routes
	r.Proxy.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for host, status := range map[string]int{"": 403, "app.example.com": 403, "evil.example": 403, "shop.example.com": 202} {
		for _, path := range []string{"", "/"} {
			asked := http.Header{"X-Forwarded-Host": {host}, "X-Forwarded-Uri": {path}}
			for _, cookie := range []http.Header{nil, alice} {
				if w := r.serveHTTP("GET", "/oauth2/auth", "", cookie, asked); w.Code != status {
					t.Errorf("host %q, path %q: %d, want %d", host, path, w.Code, status)
				}
			}
		}
	}
}

// TestForwardAuthWithoutPath: free routes do not free a path that is none of theirs.
func TestForwardAuthWithoutPath(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	routes, err := route.NewTable([]route.Entry[Route]{{
		Pattern: route.Pattern{Host: "app.example.com", Path: "/public"},
		Value:   Route{Name: "/public", Require: coatcheck.Anonymous},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.Proxy.Routes = routes
	for _, tt := range []struct {
		cookie http.Header
		status int
	}{{nil, 401}, {alice, 202}} {
		if w := r.serveHTTP("GET", "/oauth2/auth", "", tt.cookie); w.Code != tt.status {
			t.Errorf("%v: %d, want %d", tt.cookie, w.Code, tt.status)
		}
	}
}

// TestClientLeft: a client that hangs up is nothing that an operator must look at.
func TestClientLeft(t *testing.T) {
	r := newRig(t)
	r.app.answer = func(req *http.Request) (*http.Response, error) { return nil, req.Context().Err() }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/public", nil)
	req.Host = r.PublicURL.Host
	r.ServeHTTP(httptest.NewRecorder(), req)
	if log := r.log.String(); !strings.Contains(log, "request refused") || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("the log:\n%s", log)
	}
}
