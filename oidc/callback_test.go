package oidc

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
)

func TestSignIn(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	login, err := b.signIn(i, p, "/shop/?a=b")
	if err != nil {
		t.Fatal(err)
	}
	want := &Login{ReturnTo: "/shop/?a=b", Session: &coatcheck.Session{
		Tenant: "t1", Provider: "corp", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{
			Issuer: i.URL, Subject: "alice-1", Email: "alice@corp.example", EmailVerified: true,
			PreferredUsername: "alice", Name: "Alice", Groups: []string{"admins", "staff"},
		},
		ProviderSID: "s-1", AuthTime: now.Add(-time.Minute).Local(),
		Tokens: coatcheck.Tokens{Access: "access-1", Refresh: "refresh-1", AccessExpiry: now.Add(time.Hour)},
	}}
	if login.Session.Tokens.ID == "" {
		t.Error("no ID token kept")
	}
	login.Session.Tokens.ID = ""
	if diff := cmp.Diff(want, login, cmp.Comparer(func(a, b coatcheck.Secret) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got := b.cookies(); !cmp.Equal(got, []string{"__Host-coatcheck-signins"}) {
		t.Errorf("cookies after the sign-in: %q", got)
	}
	req := i.tokenRequests[0]
	if req.form.Get("redirect_uri") != p.RedirectURL || req.form.Get("code") != "code-canary" || req.form.Get("grant_type") != "authorization_code" {
		t.Errorf("token request %v", req.form)
	}
}

// A-O5
func TestAuthorizationRequest(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	seen := map[string]bool{}
	for range 3 {
		q := b.start(p, "/")
		want := map[string]string{
			"response_type": "code", "client_id": "client", "redirect_uri": p.RedirectURL,
			"scope": "openid email", "code_challenge_method": "S256",
		}
		for k, v := range want {
			if q.Get(k) != v {
				t.Errorf("%s = %q, want %q", k, q.Get(k), v)
			}
		}
		for _, k := range []string{"state", "nonce", "code_challenge"} {
			if len(q.Get(k)) < 43 || seen[q.Get(k)] {
				t.Errorf("%s = %q is short or was seen before", k, q.Get(k))
			}
			seen[q.Get(k)] = true
		}
		i.set(func() { i.nonce = q.Get("nonce") })
		if _, err := b.callback(p, i.response(q)); err != nil {
			t.Fatal(err)
		}
		sent := i.tokenRequests[len(i.tokenRequests)-1].form.Get("code_verifier")
		if len(sent) < 43 || challenge(sent) != q.Get("code_challenge") {
			t.Errorf("verifier %q does not fit the challenge %q", sent, q.Get("code_challenge"))
		}
	}
}

// Every answer that belongs to no sign-in of this browser is refused before any
// request to the provider.
func TestCallbackRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(q url.Values)
	}{
		{"A-O1 no state", func(q url.Values) { q.Del("state") }},
		{"A-O1 unknown state", func(q url.Values) { q.Set("state", "x") }},
		{"no code", func(q url.Values) { q.Del("code") }},
		{"code and error", func(q url.Values) { q.Set("error", "x") }},
		{"A-O7 other issuer", func(q url.Values) { q.Set("iss", "https://i2.test") }},
		{"A-O7 other issuer with an error", func(q url.Values) { q.Set("iss", "https://i2.test"); q.Del("code"); q.Set("error", "x") }},
		{"A-O7 iss missing", func(q url.Values) { q.Del("iss") }},
		{"A-O9 two codes", func(q url.Values) { q.Add("code", "other") }},
		{"A-O9 two states", func(q url.Values) { q.Add("state", q.Get("state")) }},
		{"A-O9 two issuers", func(q url.Values) { q.Add("iss", q.Get("iss")) }},
		{"two errors", func(q url.Values) { q.Del("code"); q["error"] = []string{"a", "b"} }},
		{"A-O10 tokens instead of a code", func(q url.Values) { q.Del("code"); q.Set("access_token", "a"); q.Set("id_token", "b") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, _ := newPair(t, nil)
			b := newBrowser(t)
			q := i.response(b.start(p, "/"))
			c.edit(q)
			_, err := b.callback(p, q)
			wantCode(t, err, coatcheck.CodeBadCallback)
			if n := i.redeemed(); n != 0 {
				t.Errorf("%d token requests", n)
			}
		})
	}
	t.Run("malformed query", func(t *testing.T) {
		i, p, _ := newPair(t, nil)
		b := newBrowser(t)
		r := b.request("/oauth2/callback?" + i.response(b.start(p, "/")).Encode() + ";x=%zz")
		r.Header = b.request("/").Header
		_, err := p.Callback(t.Context(), http.Header{}, r)
		wantCode(t, err, coatcheck.CodeBadCallback)
	})
	t.Run("A-O10 tokens beside a code", func(t *testing.T) {
		i, p, _ := newPair(t, nil)
		b := newBrowser(t)
		asked := b.start(p, "/")
		i.set(func() { i.nonce = asked.Get("nonce") })
		q := i.response(asked)
		q.Set("access_token", "evil")
		q.Set("id_token", "evil")
		login, err := b.callback(p, q)
		if err != nil || login.Session.Tokens.Access != "access-1" || login.Session.Tokens.ID == "evil" {
			t.Errorf("login %+v, %v", login, err)
		}
	})
}

// A-O1: login CSRF. The state is good, but of another browser.
func TestCallbackOfAnotherBrowser(t *testing.T) {
	i, p, _ := newPair(t, nil)
	attacker, victim := newBrowser(t), newBrowser(t)
	victim.start(p, "/")
	q := i.response(attacker.start(p, "/"))
	_, err := victim.callback(p, q)
	wantCode(t, err, coatcheck.CodeBadCallback)
	if i.redeemed() != 0 {
		t.Error("the code was sent")
	}
}

// A cookie is good under its own name, tenant and provider only.
func TestCallbackForeignCookie(t *testing.T) {
	ring := seal.NewRing()
	i, p, _ := newPair(t, func(c *Config) { c.Ring = ring })
	b := newBrowser(t)
	first, second := b.start(p, "/"), b.start(p, "/")

	t.Run("other name", func(t *testing.T) {
		r := b.request("/oauth2/callback?" + i.response(second).Encode())
		c, err := r.Cookie(p.preLoginName(first.Get("state")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Cookie": {p.preLoginName(second.Get("state")) + "=" + c.Value}}
		_, err = p.Callback(t.Context(), http.Header{}, r)
		wantCode(t, err, coatcheck.CodeBadCallback)
	})
	t.Run("other tenant", func(t *testing.T) {
		_, other, _ := newPair(t, func(c *Config) { c.Ring, c.Tenant = ring, "t2" })
		_, err := b.callback(other, i.response(first))
		wantCode(t, err, coatcheck.CodeBadCallback)
	})
	t.Run("other provider", func(t *testing.T) {
		other, _ := newParty(t, i.URL, func(c *Config) { c.Ring, c.Name = ring, "other" })
		if err := other.Discover(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := b.callback(other, i.response(first))
		wantCode(t, err, coatcheck.CodeBadCallback)
	})
	t.Run("other state under the same name", func(t *testing.T) {
		// Two states whose names collide can't be had; a sealed one can be made.
		state, h := second.Get("state"), http.Header{}
		name := p.preLoginName(state)
		forged := sealPreLogin(t, p, name, preLogin{Provider: "corp", State: "another", Issued: now.Unix()})
		p.Jar.Set(h, name, forged, time.Hour)
		b.keep(h)
		_, err := b.callback(p, i.response(second))
		wantCode(t, err, coatcheck.CodeBadCallback)
	})
	if i.redeemed() != 0 {
		t.Error("a code was sent")
	}
}

// A-O2: not even with the cookie of before.
func TestCallbackReplay(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/")
	i.set(func() { i.nonce = asked.Get("nonce") })
	saved := b.request("/").Header

	if _, err := b.callback(p, i.response(asked)); err != nil {
		t.Fatal(err)
	}
	_, err := b.callback(p, i.response(asked))
	wantCode(t, err, coatcheck.CodeBadCallback)

	r := b.request("/oauth2/callback?" + i.response(asked).Encode())
	r.Header = saved
	_, err = p.Callback(t.Context(), http.Header{}, r)
	wantCode(t, err, coatcheck.CodeBadCallback)
	if n := i.redeemed(); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// A-O3, and the exact limit.
func TestCallbackExpired(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		code  coatcheck.Code
	}{
		{preLoginLife - time.Second, ""},
		{preLoginLife, coatcheck.CodeSignInExpired},
		{preLoginKept - time.Second, coatcheck.CodeSignInExpired},
	} {
		t.Run(c.after.String(), func(t *testing.T) {
			i, p, clock := newPair(t, nil)
			b := newBrowser(t)
			asked := b.start(p, "/deep?x=1")
			i.set(func() {
				i.nonce = asked.Get("nonce")
				i.claims = map[string]any{"exp": now.Add(2 * time.Hour).Unix()}
			})
			clock.add(c.after)
			_, err := b.callback(p, i.response(asked))
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCode(t, err, c.code)
			var expired *ExpiredError
			if !errors.As(err, &expired) || expired.ReturnTo != "/deep?x=1" {
				t.Errorf("no way to start afresh: %v", err)
			}
			if i.redeemed() != 0 {
				t.Error("the code was sent")
			}
			b.start(p, expired.ReturnTo)
			if n := len(b.cookies()); n != 1 {
				t.Errorf("%d cookies after the fresh start, want 1", n)
			}
		})
	}
}

// A-O4: each tab lands on its own page, in either order.
func TestTwoTabs(t *testing.T) {
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		i, p, _ := newPair(t, nil)
		b := newBrowser(t)
		asked := [2]url.Values{b.start(p, "/tab0"), b.start(p, "/tab1")}
		for _, n := range order {
			i.set(func() { i.nonce = asked[n].Get("nonce") })
			login, err := b.callback(p, i.response(asked[n]))
			if err != nil {
				t.Fatal(err)
			}
			if want := [2]string{"/tab0", "/tab1"}[n]; login.ReturnTo != want {
				t.Errorf("order %v: landed on %q, want %q", order, login.ReturnTo, want)
			}
		}
	}
}

// One answer that comes many times at once is redeemed once.
func TestCallbackRace(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/")
	i.set(func() { i.nonce = asked.Get("nonce") })
	r := b.request("/oauth2/callback?" + i.response(asked).Encode())
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 20 {
		wg.Go(func() {
			if _, err := p.Callback(t.Context(), http.Header{}, r); err == nil {
				mu.Lock()
				done++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if done != 1 || i.redeemed() != 1 {
		t.Errorf("%d sign-ins and %d token requests, want 1 and 1", done, i.redeemed())
	}
}

// A-O6
func TestNonceOfAnotherSignIn(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	other := b.start(p, "/")
	asked := b.start(p, "/")
	i.set(func() { i.nonce = other.Get("nonce") })
	_, err := b.callback(p, i.response(asked))
	wantCode(t, err, coatcheck.CodeBadToken)
}

// A-O7: a provider that does not advertise iss need not send it.
func TestIssuerNotAdvertised(t *testing.T) {
	i := newHostile(t)
	i.metadata = map[string]any{"authorization_response_iss_parameter_supported": nil}
	p, _ := newParty(t, i.URL, nil)
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t)
	asked := b.start(p, "/")
	i.set(func() { i.nonce = asked.Get("nonce") })
	q := i.response(asked)
	q.Del("iss")
	if _, err := b.callback(p, q); err != nil {
		t.Error(err)
	}
}

// A-O8
func TestProviderRefuses(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/")
	q := i.response(asked)
	q.Del("code")
	q.Set("error", "access_denied\r\n\x1b[31m")
	q.Set("error_description", "<script>alert(1)</script>\x00"+strings.Repeat("x", 5000))
	saved := b.request("/").Header
	_, err := b.callback(p, q)
	wantCode(t, err, coatcheck.CodeProviderRefused)
	if strings.ContainsAny(err.Error(), "\r\n\x1b\x00") || len(err.Error()) > 1000 {
		t.Errorf("the provider's text is not fit for a log: %q", err)
	}
	if got := b.cookies(); len(got) != 0 {
		t.Errorf("the cookie stays: %q", got)
	}
	// The state is used up, cookie or not.
	r := b.request("/oauth2/callback?" + i.response(asked).Encode())
	r.Header = saved
	_, err = p.Callback(t.Context(), http.Header{}, r)
	wantCode(t, err, coatcheck.CodeBadCallback)
	if i.redeemed() != 0 {
		t.Error("a code was sent")
	}
}

// If the store can't say whether the sign-in was used, nothing is lost.
func TestStoreDown(t *testing.T) {
	down := true
	i, p, _ := newPair(t, func(c *Config) {
		works := c.Once
		c.Once = onceFunc(func() error {
			if down {
				return context.DeadlineExceeded
			}
			return works.Create(t.Context(), "k", nil, time.Minute)
		})
	})
	b := newBrowser(t)
	asked := b.start(p, "/")
	i.set(func() { i.nonce = asked.Get("nonce") })
	_, err := b.callback(p, i.response(asked))
	wantCode(t, err, coatcheck.CodeUnknown)
	if i.redeemed() != 0 {
		t.Error("the code was spent")
	}
	down = false
	if _, err := b.callback(p, i.response(asked)); err != nil {
		t.Errorf("the second try: %v", err)
	}
}

func TestOtherKeys(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/")
	other, _ := newParty(t, i.URL, nil)
	if err := other.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := b.callback(other, i.response(asked))
	wantCode(t, err, coatcheck.CodeOtherKeys)
	if !errors.Is(err, seal.ErrUnknownKey) || !strings.Contains(err.Error(), "same keys file") {
		t.Errorf("the cause does not say what to do: %v", err)
	}
	// The node that has the key still completes it.
	i.set(func() { i.nonce = asked.Get("nonce") })
	if _, err := b.callback(p, i.response(asked)); err != nil {
		t.Error(err)
	}
}

func TestNotReady(t *testing.T) {
	p, _ := newParty(t, "http://127.0.0.1:1", nil)
	b := newBrowser(t)
	_, err := p.Start(http.Header{}, b.request("/"), "/")
	wantCode(t, err, coatcheck.CodeNotReady)
	_, err = b.callback(p, url.Values{"state": {"s"}, "code": {"c"}})
	wantCode(t, err, coatcheck.CodeNotReady)
	if p.Ready() == nil {
		t.Error("ready before discovery")
	}
	if _, ok := p.EndSession(&coatcheck.Session{}, "/"); ok || p.EndSessionOrigin() != "" {
		t.Error("a place to sign out before discovery")
	}
}

// The return URL is checked again when it is used: another node, or an older
// configuration, may have sealed it.
func TestReturnURLCheckedTwice(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	_, err := p.Start(http.Header{}, b.request("/"), "//evil.com")
	wantCode(t, err, coatcheck.CodeBadReturnURL)

	asked := b.start(p, "https://b.t1.test:8443/x")
	i.set(func() { i.nonce = asked.Get("nonce") })
	p.Returns = NewReturns(&url.URL{Scheme: "https", Host: "app.t1.test"})
	login, err := b.callback(p, i.response(asked))
	if err != nil || login.ReturnTo != "/" {
		t.Errorf("returns to %+v, %v", login, err)
	}

	_, p, clock := newPair(t, nil)
	asked = b.start(p, "https://b.t1.test:8443/x")
	p.Returns = NewReturns(&url.URL{Scheme: "https", Host: "app.t1.test"})
	clock.add(preLoginLife)
	_, err = b.callback(p, url.Values{"state": {asked.Get("state")}, "code": {"c"}})
	var expired *ExpiredError
	if !errors.As(err, &expired) || expired.ReturnTo != "/" {
		t.Errorf("starts afresh to %+v, %v", expired, err)
	}
}

// Mix-up between two providers: nothing of one sign-in reaches the other provider.
func TestMixUp(t *testing.T) {
	honest, p1, _ := newPair(t, nil)
	evil := newHostile(t)
	b := newBrowser(t)
	asked := b.start(p1, "/")
	q := evil.response(asked)
	_, err := b.callback(p1, q)
	wantCode(t, err, coatcheck.CodeBadCallback)
	if honest.redeemed()+evil.redeemed() != 0 {
		t.Error("the code was sent")
	}
	if len(b.cookies()) != 0 {
		t.Error("the sign-in can still be completed")
	}
}

type claimFunc func(ttl time.Duration) error

func (f claimFunc) Create(_ context.Context, _ string, _ []byte, ttl time.Duration) error {
	return f(ttl)
}

// A used sign-in is remembered until no node takes its cookie any more, however late it
// was used and whatever the clocks say.
func TestUsedSignInIsRemembered(t *testing.T) {
	i, p, clock := newPair(t, nil)
	var claimed time.Duration
	p.Once = claimFunc(func(ttl time.Duration) error { claimed = ttl; return nil })
	b := newBrowser(t)
	asked := b.start(p, "/")
	i.set(func() { i.nonce = asked.Get("nonce") })
	clock.add(preLoginLife - time.Second)
	_, _ = b.callback(p, i.response(asked))
	if claimed < preLoginLife+time.Minute {
		t.Errorf("claimed for %v", claimed)
	}
}

// A flood of callbacks does not become a flood at the provider.
func TestConnectionsToTheProviderAreBounded(t *testing.T) {
	if n := newClient().Transport.(*http.Transport).MaxConnsPerHost; n <= 0 || n > 100 {
		t.Errorf("MaxConnsPerHost = %d", n)
	}
}
