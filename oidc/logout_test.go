package oidc

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

// A-L3 as far as it is ours: what is asked of the provider, and what its answer is
// believed.
func TestEndSession(t *testing.T) {
	session := &coatcheck.Session{Tokens: coatcheck.Tokens{ID: "id-token-1"}}
	for _, hint := range []bool{false, true} {
		i, p, clock := newPair(t, func(c *Config) { c.IDTokenHint = hint })
		location, ok := p.EndSession(session, "/bye?x=1")
		if !ok || !strings.HasPrefix(location, i.URL+"/end?") {
			t.Fatalf("%q, %v", location, ok)
		}
		u, err := url.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		state := q.Get("state")
		want := url.Values{
			"a": {"b"}, "client_id": {"client"}, "post_logout_redirect_uri": {p.PostLogoutURL}, "state": {state},
		}
		if hint {
			want.Set("id_token_hint", "id-token-1")
		}
		if diff := cmp.Diff(want, q); diff != "" {
			t.Error(diff)
		}
		if got := p.EndSessionOrigin(); got != i.URL {
			t.Errorf("origin %q", got)
		}

		b := newBrowser(t)
		signedOut := func(query string) string { return p.SignedOut(b.request("/oauth2/sign_out/done?" + query)) }
		back := url.Values{"state": {state}}.Encode()
		if got := signedOut(back); got != "/bye?x=1" {
			t.Errorf("returns to %q", got)
		}
		for _, query := range []string{"", "state=", "state=x", back + "&" + back, back + "x", "state=//evil.com"} {
			if got := signedOut(query); got != "" {
				t.Errorf("%s: returns to %q", query, got)
			}
		}
		// A value of ours from another place is not a state.
		asked := b.start(p, "/")
		_, pre, err := p.findPreLogin(b.request("/").Header, asked.Get("state"))
		if err != nil {
			t.Fatal(err)
		}
		if got := signedOut("state=" + sealPreLogin(t, p, "x", pre)); got != "" {
			t.Errorf("a pre-login cookie as state returns to %q", got)
		}
		clock.add(signOutLife)
		if got := signedOut(back); got != "/bye?x=1" {
			t.Errorf("at the limit: returns to %q", got)
		}
		clock.add(time.Second)
		if got := signedOut(back); got != "" {
			t.Errorf("too late: returns to %q", got)
		}
	}
}

// A-R12
func TestEndSessionReturnURL(t *testing.T) {
	_, p, _ := newPair(t, nil)
	for _, c := range refusedReturns {
		location, ok := p.EndSession(&coatcheck.Session{}, c.raw)
		if !ok || strings.Contains(location, "state=") {
			t.Errorf("%s: %q leads to %q", c.id, c.raw, location)
		}
	}
	// Checked again when it is used.
	location, _ := p.EndSession(&coatcheck.Session{}, "https://b.t1.test:8443/")
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	p.Returns = NewReturns(&url.URL{Scheme: "https", Host: "app.t1.test"})
	if got := p.SignedOut(newBrowser(t).request("/?state=" + u.Query().Get("state"))); got != "/" {
		t.Errorf("returns to %q", got)
	}
}

func TestNoEndSession(t *testing.T) {
	i := newHostile(t)
	i.metadata = map[string]any{"end_session_endpoint": nil}
	p, _ := newParty(t, i.URL, nil)
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if location, ok := p.EndSession(&coatcheck.Session{}, "/"); ok || p.EndSessionOrigin() != "" {
		t.Errorf("signs out at %q", location)
	}
}
