package oidc

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
)

var _ session.Provider = (*RelyingParty)(nil)

type object = map[string]any

// grant makes the provider answer refreshes with tokens other than those of the sign-in,
// and with these claims and this answer laid over the honest ones.
func (i *hostile) grant(claims, answer object) {
	i.set(func() {
		i.nonce, i.access = "", "access-2"
		i.claims = overlay(object{"nonce": nil}, nil)
		for k, v := range claims {
			i.claims[k] = v
		}
		i.answer = object{"access_token": "access-2", "refresh_token": "refresh-2"}
		for k, v := range answer {
			i.answer[k] = v
		}
	})
}

func TestRefresh(t *testing.T) {
	i, p, s := signedIn(t, nil)
	s.Renewal = coatcheck.Renewal{Attempt: "a", Failures: 3}
	before := *s
	i.grant(object{"groups": []string{"staff"}, "email": "alice@new.example"}, object{"expires_in": 600})
	got, err := p.Refresh(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want := before
	want.Identity.Groups = []string{"staff"} // A-S9
	want.Identity.Email = "alice@new.example"
	want.Tokens.Access, want.Tokens.Refresh = "access-2", "refresh-2"
	want.Tokens.AccessExpiry = p.Now().Add(10 * time.Minute)
	want.Tokens.ID = got.Tokens.ID
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Error(diff)
	}
	if got.Tokens.ID == before.Tokens.ID {
		t.Error("the ID token is the old one")
	}
	if diff := cmp.Diff(&before, s); diff != "" {
		t.Errorf("the session was changed: %s", diff)
	}
	if i.redeemed() != 2 {
		t.Fatalf("%d token requests, want one beside the sign-in's", i.redeemed())
	}
	req := i.tokenRequests[1]
	if diff := cmp.Diff(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"refresh-canary"}}, req.form); diff != "" {
		t.Error(diff)
	}
	if !req.basic || req.user != "client" || req.password != "s3cr%26t+canary" {
		t.Errorf("basic authentication %v, user %q, password %q", req.basic, req.user, req.password)
	}
	if len(i.revocations) != 0 || i.asked != 0 {
		t.Errorf("revoked %v, asked userinfo %d times", i.revocations, i.asked)
	}
}

// RFC 6749 §6: the provider need not rotate.
func TestRefreshTokenStays(t *testing.T) {
	i, p, s := signedIn(t, nil)
	i.grant(nil, object{"refresh_token": nil})
	got, err := p.Refresh(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if got.Tokens.Refresh != s.Tokens.Refresh || got.Tokens.Access != "access-2" {
		t.Errorf("refresh token %q, access token %q", got.Tokens.Refresh.Reveal(), got.Tokens.Access.Reveal())
	}
}

// A-O12, for refreshes.
func TestRefreshExpiresIn(t *testing.T) {
	for _, c := range []struct {
		v    any
		want time.Duration
	}{{nil, time.Hour}, {-1, time.Hour}, {"3600", time.Hour}, {1e18, 24 * time.Hour}, {"NaN", time.Hour}, {60, time.Minute}} {
		i, p, s := signedIn(t, nil)
		i.grant(nil, object{"expires_in": c.v})
		got, err := p.Refresh(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if life := got.Tokens.AccessExpiry.Sub(p.Now()); life != c.want {
			t.Errorf("expires_in %v: %v, want %v", c.v, life, c.want)
		}
	}
}

// A-S9: what holds of a person after a refresh.
func TestRefreshIdentity(t *testing.T) {
	alice := coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Name: "Alice", Groups: []string{"admins", "staff"}}
	with := func(change func(*coatcheck.Identity)) coatcheck.Identity {
		id := alice
		change(&id)
		return id
	}
	for _, c := range []struct {
		name     string
		change   func(*Config) // since the sign-in
		claims   object        // of the new ID token
		noToken  bool          // there is none
		userinfo object        // nil: it answers 403
		want     coatcheck.Identity
	}{
		{name: "nothing new", want: alice},
		{name: "group removed", claims: object{"groups": []string{"staff"}}, want: with(func(id *coatcheck.Identity) { id.Groups = []string{"staff"} })},
		{name: "all groups removed", claims: object{"groups": []string{}}, want: with(func(id *coatcheck.Identity) { id.Groups = []string{} })},
		{name: "no longer verified", claims: object{"email_verified": false}, want: with(func(id *coatcheck.Identity) { id.EmailVerified = false })},
		{
			name: "no longer verified, not asked for", claims: object{"email_verified": false}, want: alice,
			change: func(c *Config) { c.UnverifiedEmail = true },
		},
		{
			name: "userinfo for what is lacking", claims: object{"groups": nil}, want: with(func(id *coatcheck.Identity) { id.Groups = []string{"x"} }),
			userinfo: object{"sub": "alice-1", "groups": []string{"x"}, "email": "other@corp.example"},
		},
		{
			name: "nobody knows of a group", claims: object{"groups": nil}, want: with(func(id *coatcheck.Identity) { id.Groups = nil }),
			userinfo: object{"sub": "alice-1"},
		},
		{
			name: "userinfo fails", claims: object{"groups": nil, "name": "Alice B", "email": nil, "email_verified": nil},
			want: with(func(id *coatcheck.Identity) { id.Name = "Alice B" }),
		},
		{
			name: "userinfo fails and no groups are read any more", claims: object{"email": nil},
			change: func(c *Config) { c.GroupsClaim = "" }, want: with(func(id *coatcheck.Identity) { id.Groups = nil }),
		},
		{
			name: "no ID token", noToken: true, want: with(func(id *coatcheck.Identity) { id.Groups = []string{"x"} }),
			userinfo: object{"sub": "alice-1", "groups": []string{"x"}},
		},
		{
			name: "no ID token, another address", noToken: true,
			want:     with(func(id *coatcheck.Identity) { id.Email, id.EmailVerified = "a@b", false }),
			userinfo: object{"sub": "alice-1", "email": "a@b"},
		},
		{name: "no ID token and userinfo fails", noToken: true, want: alice},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, s := signedIn(t, nil)
			if c.change != nil {
				c.change(&p.Config)
			}
			var answer object
			if c.noToken {
				answer = object{"id_token": nil}
			}
			i.grant(c.claims, answer)
			i.set(func() { i.userinfo = c.userinfo })
			got, err := p.Refresh(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			want.Issuer, want.Subject, want.PreferredUsername = i.URL, "alice-1", "alice"
			if diff := cmp.Diff(want, got.Identity); diff != "" {
				t.Error(diff)
			}
			if c.noToken && got.Tokens.ID != s.Tokens.ID {
				t.Error("the ID token of the sign-in is gone")
			}
			if got.Tokens.Refresh != "refresh-2" {
				t.Error("the fresh tokens are lost")
			}
		})
	}
}

// Without a userinfo endpoint and an ID token nothing new is said.
func TestRefreshSaysNothing(t *testing.T) {
	i, p, s := signedIn(t, nil)
	i.set(func() { i.metadata = object{"userinfo_endpoint": nil} })
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.grant(nil, object{"id_token": nil})
	got, err := p.Refresh(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Identity, got.Identity); diff != "" {
		t.Error(diff)
	}
	// A new ID token is all there is then.
	i.grant(object{"groups": nil}, nil)
	if got, err = p.Refresh(t.Context(), s); err != nil || got.Identity.Groups != nil {
		t.Errorf("groups %q, %v", got.Identity.Groups, err)
	}
}

// A-S8: an ID token that is not good by this clock is not believed, but it ends no session
// and no token is revoked: everybody's would be, should the clock be wrong.
func TestRefreshByAnotherClock(t *testing.T) {
	for name, claims := range map[string]object{
		"expired":         {"exp": now.Add(-10 * time.Minute).Unix()},
		"issued too late": {"iat": now.Add(10 * time.Minute).Unix()},
		"not yet good":    {"nbf": now.Add(10 * time.Minute).Unix()},
	} {
		t.Run(name, func(t *testing.T) {
			i, p, s := signedIn(t, nil)
			claims["groups"] = []string{"others"}
			i.grant(claims, nil)
			got, err := p.Refresh(t.Context(), s)
			if err != nil || len(i.revocations) != 0 {
				t.Fatal(err, i.revocations)
			}
			want := *s
			want.Tokens.Access, want.Tokens.Refresh = "access-2", "refresh-2"
			want.Tokens.AccessExpiry = got.Tokens.AccessExpiry
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// OpenID Connect Core 1.0 §12.2. What must not be believed ends the session, and its tokens
// are revoked.
func TestRefreshNotBelieved(t *testing.T) {
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for _, c := range []struct {
		name     string
		claims   object
		userinfo object
		ok       bool
	}{
		{name: "honest", ok: true},
		{name: "sub", claims: object{"sub": "bob"}},
		{name: "no sub", claims: object{"sub": nil}},
		{name: "iss", claims: object{"iss": "https://evil.test"}},
		{name: "aud", claims: object{"aud": "other"}},
		{name: "aud beside", claims: object{"aud": []string{"client", "other"}}},
		{name: "azp", claims: object{"azp": "client"}, ok: true},
		{name: "other azp", claims: object{"azp": "other"}},
		{name: "expired, and sub", claims: object{"exp": at(-time.Hour), "sub": "bob"}},
		{name: "issued too late, and aud", claims: object{"iat": at(time.Hour), "aud": "other"}},
		{name: "expired, and at_hash", claims: object{"exp": at(-time.Hour), "at_hash": "x"}},
		{name: "no exp", claims: object{"exp": nil}},
		{name: "at_hash of another access token", claims: object{"at_hash": "x"}},
		{name: "auth_time", claims: object{"auth_time": at(0)}},
		{name: "earlier auth_time", claims: object{"auth_time": at(-time.Minute - time.Second)}},
		{name: "auth_time within the second", claims: object{"auth_time": float64(at(-time.Minute)) + 0.5}, ok: true},
		{name: "no auth_time", claims: object{"auth_time": nil}, ok: true},
		{name: "the same nonce", claims: object{"nonce": "same"}, ok: true},
		{name: "other nonce", claims: object{"nonce": "other"}},
		{name: "sid is not compared", claims: object{"sid": "s-2"}, ok: true},
		{name: "groups unreadable", claims: object{"groups": object{"a": 1}}},
		{name: "userinfo of another", claims: object{"groups": nil}, userinfo: object{"sub": "bob", "groups": []string{"x"}}},
		{name: "userinfo's groups unreadable", claims: object{"groups": nil}, userinfo: object{"sub": "alice-1", "groups": []any{1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, s := signedIn(t, nil)
			if c.claims["nonce"] == "same" {
				c.claims["nonce"] = held(s)["nonce"]
			}
			i.grant(c.claims, nil)
			i.set(func() { i.userinfo = c.userinfo })
			got, err := p.Refresh(t.Context(), s)
			var revoked []string
			for _, r := range i.revocations {
				revoked = append(revoked, r.form.Get("token_type_hint")+" "+r.form.Get("token"))
			}
			if c.ok {
				if err != nil || revoked != nil {
					t.Fatal(err, revoked)
				}
				if !got.AuthTime.Equal(s.AuthTime) || got.ProviderSID != s.ProviderSID {
					t.Errorf("auth_time %v, sid %q", got.AuthTime, got.ProviderSID)
				}
				return
			}
			wantOutcome(t, err, coatcheck.OutcomeRefused)
			if diff := cmp.Diff([]string{"access_token access-2", "refresh_token refresh-2"}, revoked); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("foreign signature", func(t *testing.T) {
		i, p, s := signedIn(t, nil)
		i.grant(nil, nil)
		i.set(func() { i.signer = signer("k1", rsaKey(1)) })
		_, err := p.Refresh(t.Context(), s)
		wantOutcome(t, err, coatcheck.OutcomeRefused)
	})
	t.Run("no claim to compare with", func(t *testing.T) {
		i, p, s := signedIn(t, nil)
		for _, id := range []coatcheck.Secret{"", "no token", "a.%.c", "a.bnVsbA.c"} {
			s.Tokens.ID = id
			i.grant(object{"auth_time": at(0), "nonce": "n"}, nil)
			if _, err := p.Refresh(t.Context(), s); err != nil {
				t.Errorf("%s: %v", id.Reveal(), err)
			}
		}
	})
	t.Run("not revoked either", func(t *testing.T) {
		i, p, s := signedIn(t, nil)
		i.grant(object{"sub": "bob"}, object{"refresh_token": nil})
		i.set(func() {
			i.onRevoke = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
		})
		_, err := p.Refresh(t.Context(), s)
		wantOutcome(t, err, coatcheck.OutcomeRefused)
		if len(i.revocations) != 1 || i.revocations[0].form.Get("token") != "access-2" {
			t.Errorf("revoked: %v", i.revocations)
		}
	})
}

// Whoever waited for the refresh may be gone.
func TestDiscardCancelled(t *testing.T) {
	i, p, _ := newPair(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.discard(ctx, &coatcheck.Tokens{Access: "a", Refresh: "r"})
	if len(i.revocations) != 2 {
		t.Errorf("revoked: %v", i.revocations)
	}
}

// A key that can't be had says nothing against the person, and must not lose the tokens;
// the ID token is not believed either.
func TestRefreshUnverified(t *testing.T) {
	for _, published := range []bool{true, false} {
		i, p, s := signedIn(t, nil)
		i.grant(object{"groups": []string{"x"}}, nil)
		i.set(func() {
			i.signer = signer("k2", rsaKey(1))
			i.userinfo = object{"sub": "alice-1", "groups": []string{"staff"}}
		})
		if !published {
			p.client.Transport = rewrite(p.client.Transport, "/jwks", "no keys")
		}
		got, err := p.Refresh(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if got.Tokens.ID != s.Tokens.ID || got.Tokens.Refresh != "refresh-2" || len(i.revocations) != 0 {
			t.Error("the tokens are lost, or the ID token was believed")
		}
		if diff := cmp.Diff([]string{"staff"}, got.Identity.Groups); diff != "" {
			t.Error(diff)
		}
	}
}

// A-S7: what the token endpoint's answers mean.
func TestRefreshOutcomes(t *testing.T) {
	const (
		none, refused = coatcheck.OutcomeNone, coatcheck.OutcomeRefused
		misconfigured = coatcheck.OutcomeMisconfigured
		unknown       = coatcheck.OutcomeUnknown
	)
	for _, c := range []struct {
		status int
		body   string
		want   coatcheck.Outcome
	}{
		{400, `{"error":"invalid_grant"}`, refused},
		{200, `{"error":"invalid_grant"}`, refused},
		{403, `{"error":"access_denied"}`, refused},
		{400, `{"error":"interaction_required"}`, refused},
		{400, `{"error":"login_required"}`, refused},
		{400, `{"error":"account_selection_required"}`, refused},
		{400, `{"error":"consent_required"}`, refused},
		{401, `{"error":"invalid_client"}`, misconfigured},
		{400, `{"error":"invalid_client"}`, misconfigured},
		{400, `{"error":"unauthorized_client"}`, misconfigured},
		{400, `{"error":"unsupported_grant_type"}`, misconfigured},
		{400, `{"error":"invalid_request"}`, misconfigured},
		{400, `{"error":"invalid_scope"}`, misconfigured},
		{400, `{"error":"server_error"}`, none},
		{400, `{"error":"temporarily_unavailable"}`, none},
		{400, `{"error":"slow_down"}`, none},
		{400, `{"error":"no specification has this"}`, none},
		{400, `{"error":"refresh-canary","error_description":"refresh-canary s3cr&t canary s3cr%26t+canary \u001b[31m` + strings.Repeat("x", 5000) + `"}`, none},
		{429, `{"error":"invalid_grant"}`, none},
		{429, ``, none},
		{500, `{"error":"invalid_grant"}`, none},
		{500, ``, none},
		{503, `<html>access-canary`, none},
		{400, ``, none},
		{401, `<html>access-canary`, none},
		{403, `{"error":7}`, none},
		{404, `{}`, none},
		{302, ``, none},
		{307, ``, none},
		{200, ``, unknown},
		{200, `access_token=access-canary`, unknown},
		{200, `{"access_token":["access-canary"]}`, unknown},
		{200, `{"token_type":"bearer"}`, unknown},
		{200, `{"access_token":"access-canary"}`, unknown},
		{200, `{"access_token":"access-canary","token_type":"DPoP"}`, unknown},
		{200, strings.Repeat(" ", maxBody+1), unknown},
		{204, ``, unknown},
		{201, `{"access_token":"access-canary","token_type":"bearer"}`, unknown},
	} {
		i, p, s := signedIn(t, nil)
		i.set(func() {
			i.onToken = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}
		})
		_, err := p.Refresh(t.Context(), s)
		t.Logf("%d %.60s: %v", c.status, c.body, err)
		wantOutcome(t, err, c.want)
		if i.redeemed() != 2 || len(i.otherRequests) != 0 {
			t.Errorf("%d token requests, and %q", i.redeemed()-1, i.otherRequests)
		}
	}
}

// Nothing is sent before the provider is known, and never to another than the session's.
func TestRefreshElsewhere(t *testing.T) {
	i, p, s := signedIn(t, nil)
	unready, _ := newParty(t, i.URL, nil)
	_, err := unready.Refresh(t.Context(), s)
	wantOutcome(t, err, coatcheck.OutcomeNone)
	_, err = unready.Check(t.Context(), s)
	wantOutcome(t, err, coatcheck.OutcomeNone)
	wantOutcome(t, unready.Revoke(t.Context(), "x", coatcheck.AccessToken), coatcheck.OutcomeNone)

	for _, change := range []func(*coatcheck.Session){
		func(s *coatcheck.Session) { s.Provider = "other" },
		func(s *coatcheck.Session) { s.Identity.Issuer = "https://old.test" },
	} {
		other := *s
		change(&other)
		_, err := p.Refresh(t.Context(), &other)
		wantOutcome(t, err, coatcheck.OutcomeMisconfigured)
		_, err = p.Check(t.Context(), &other)
		wantOutcome(t, err, coatcheck.OutcomeMisconfigured)
	}
	if i.redeemed() != 1 {
		t.Errorf("%d token requests, want the sign-in's only", i.redeemed())
	}
}

// A-S9
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name     string
		userinfo object
		status   int // instead
		want     coatcheck.Outcome
		groups   []string // nil: an error
	}{
		{name: "nothing new", userinfo: object{"sub": "alice-1", "groups": []string{"admins", "staff"}}, groups: []string{"admins", "staff"}},
		{name: "group removed", userinfo: object{"sub": "alice-1", "groups": []string{"staff"}}, groups: []string{"staff"}},
		{name: "all groups removed", userinfo: object{"sub": "alice-1", "groups": []string{}}, groups: []string{}},
		{name: "not spoken of", userinfo: object{"sub": "alice-1"}, groups: []string{"admins", "staff"}},
		{name: "somebody else", userinfo: object{"sub": "bob"}, want: coatcheck.OutcomeRefused},
		{name: "nobody", userinfo: object{}, want: coatcheck.OutcomeRefused},
		{name: "groups unreadable", userinfo: object{"sub": "alice-1", "groups": []any{1}}, want: coatcheck.OutcomeRefused},
		{name: "token not accepted", status: 401, want: coatcheck.OutcomeRefused},
		{name: "forbidden", status: 403, want: coatcheck.OutcomeNone}, // by a firewall, say, or for want of a scope
		{name: "not found", status: 404, want: coatcheck.OutcomeNone},
		{name: "too many", status: 429, want: coatcheck.OutcomeNone},
		{name: "fails", status: 500, want: coatcheck.OutcomeNone},
		{name: "redirect", status: 302, want: coatcheck.OutcomeNone},
		{name: "no JSON", status: 200, want: coatcheck.OutcomeNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, s := signedIn(t, nil)
			before := *s
			i.set(func() { i.userinfo = c.userinfo })
			if c.status != 0 {
				p.client.Transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
					body := io.NopCloser(strings.NewReader("<html>canary"))
					return &http.Response{StatusCode: c.status, Header: http.Header{}, Body: body, Request: r}, nil
				})
			}
			got, err := p.Check(t.Context(), s)
			if diff := cmp.Diff(&before, s); diff != "" {
				t.Errorf("the session was changed: %s", diff)
			}
			if c.groups == nil {
				wantOutcome(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := before
			want.Identity.Groups = c.groups
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("out of reach", func(t *testing.T) {
		i, p, s := signedIn(t, nil)
		i.Close()
		_, err := p.Check(t.Context(), s)
		wantOutcome(t, err, coatcheck.OutcomeNone)
	})
	t.Run("no endpoint", func(t *testing.T) {
		i, p, s := signedIn(t, nil)
		i.set(func() { i.metadata = object{"userinfo_endpoint": nil} })
		if err := p.Discover(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := p.Check(t.Context(), s)
		wantOutcome(t, err, coatcheck.OutcomeMisconfigured)
	})
}
