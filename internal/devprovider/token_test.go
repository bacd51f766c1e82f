package devprovider_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

func sid(t *testing.T, id *oidc.IDToken) string {
	t.Helper()
	var c claims
	if err := id.Claims(&c); err != nil {
		t.Fatal(err)
	}
	return c.SID
}

// tokenRequest posts a right token request for a code with some parameters changed.
func (r *rig) tokenRequest(t *testing.T, code string, headers []string, change ...string) (status int, oauthErr string, challenge string) {
	t.Helper()
	form := url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {r.oauth.RedirectURL},
		"code_verifier": {verifier}, "client_id": {"web"}, "client_secret": {"s3cret of web"},
	}
	for i := 0; i < len(change); i += 2 {
		if form.Set(change[i], change[i+1]); change[i+1] == "" {
			form.Del(change[i])
		}
	}
	page := r.fetch(t, "POST", r.issuer+"/token", form.Encode(), headers...)
	if page.Header.Get("Cache-Control") != "no-store" {
		t.Error("the answer may be cached")
	}
	var answer struct{ Error string }
	if err := json.Unmarshal([]byte(page.Body), &answer); err != nil {
		t.Fatalf("not JSON: %v", err)
	}
	return page.Status, answer.Error, page.Header.Get("WWW-Authenticate")
}

func basic(id, secret string) []string {
	req := http.Request{Header: http.Header{}}
	req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	return []string{"Authorization", req.Header.Get("Authorization")}
}

func TestClientAuthentication(t *testing.T) {
	r := newRig(t)
	noBody := []string{"client_id", "", "client_secret", ""}
	tests := []struct {
		name    string
		headers []string
		change  []string
		status  int
		err     string
	}{
		{"in the body", nil, nil, 200, ""},
		{"Basic", basic("web", "s3cret of web"), noBody, 200, ""},
		{"Basic with the id in the body", basic("web", "s3cret of web"), []string{"client_secret", ""}, 200, ""},
		{"Basic with another id in the body", basic("web", "s3cret of web"), []string{"client_id", "other", "client_secret", ""}, 401, "invalid_client"},
		{"both", basic("web", "s3cret of web"), nil, 400, "invalid_request"},
		{"wrong secret", nil, []string{"client_secret", "wrong"}, 401, "invalid_client"},
		{"wrong secret, Basic", basic("web", "wrong"), noBody, 401, "invalid_client"},
		{"no secret", nil, []string{"client_secret", ""}, 401, "invalid_client"},
		{"nothing", nil, noBody, 401, "invalid_client"},
		{"unknown client", nil, []string{"client_id", "nobody"}, 401, "invalid_client"},
		{"another client's secret", nil, []string{"client_secret", "s3cret of other"}, 401, "invalid_client"},
		{"another scheme", []string{"Authorization", "Bearer x"}, noBody, 401, "invalid_client"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, oauthErr, challenge := r.tokenRequest(t, r.signIn(t, "alice"), tt.headers, tt.change...)
			if status != tt.status || oauthErr != tt.err {
				t.Errorf("%d %q, want %d %q", status, oauthErr, tt.status, tt.err)
			}
			if wants := status == 401 && tt.headers != nil; (challenge != "") != wants { // RFC 6749 §5.2
				t.Errorf("WWW-Authenticate: %q", challenge)
			}
		})
	}
}

func TestTokenRequestErrors(t *testing.T) {
	r := newRig(t)
	tests := []struct {
		name   string
		change []string
		want   string
	}{
		{"no verifier", []string{"code_verifier", ""}, "invalid_grant"},
		{"wrong verifier", []string{"code_verifier", strings.Repeat("x", 43)}, "invalid_grant"},
		{"no redirect URI", []string{"redirect_uri", ""}, "invalid_grant"},
		{"another redirect URI", []string{"redirect_uri", r.client + "/callback?tenant=a"}, "invalid_grant"},
		{"another client", []string{"client_id", "other", "client_secret", "s3cret of other"}, "invalid_grant"},
		{"no code", []string{"code", ""}, "invalid_grant"},
		{"unknown code", []string{"code", "a.b"}, "invalid_grant"},
		{"no grant type", []string{"grant_type", ""}, "invalid_request"},
		{"password grant", []string{"grant_type", "password"}, "unsupported_grant_type"},
		{"a code as a refresh token", []string{"grant_type", "refresh_token"}, "invalid_grant"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if status, oauthErr, _ := r.tokenRequest(t, r.signIn(t, "alice"), nil, tt.change...); status != 400 || oauthErr != tt.want {
				t.Errorf("%d %q, want %q", status, oauthErr, tt.want)
			}
		})
	}
	t.Run("a guessed code", func(t *testing.T) {
		grant, _, _ := strings.Cut(r.signIn(t, "alice"), ".")
		if _, oauthErr, _ := r.tokenRequest(t, grant+".guess", nil); oauthErr != "invalid_grant" {
			t.Errorf("%q", oauthErr)
		}
	})
	t.Run("a parameter twice", func(t *testing.T) {
		page := r.fetch(t, "POST", r.issuer+"/token", "grant_type=authorization_code&code=a&code=b")
		if page.Status != 400 || !strings.Contains(page.Body, "invalid_request") {
			t.Errorf("%d %s", page.Status, page.Body)
		}
	})
	t.Run("in the query", func(t *testing.T) {
		page := r.fetch(t, "POST", r.issuer+"/token?client_id=web&client_secret=s3cret+of+web&grant_type=authorization_code", "a=b")
		if page.Status != 401 {
			t.Errorf("%d: a secret in a URL was believed", page.Status)
		}
	})
	t.Run("a huge body", func(t *testing.T) {
		page := r.fetch(t, "POST", r.issuer+"/token", "code="+strings.Repeat("x", 70_000))
		if page.Status != 400 {
			t.Errorf("%d", page.Status)
		}
	})
}

// A verifier is tried once: after a wrong one the code is used up.
func TestWrongVerifierUsesUpTheCode(t *testing.T) {
	r := newRig(t)
	code := r.signIn(t, "alice")
	r.tokenRequest(t, code, nil, "code_verifier", strings.Repeat("x", 43))
	if _, err := r.oauth.Exchange(t.Context(), code, oauth2.VerifierOption(verifier)); tokenError(err) != "invalid_grant" {
		t.Errorf("second try: %v", err)
	}
}

// Another client that got hold of a code can't use it, and can't spoil it either.
func TestCodeOfAnotherClient(t *testing.T) {
	r := newRig(t)
	code := r.signIn(t, "alice")
	r.tokenRequest(t, code, nil, "client_id", "other", "client_secret", "s3cret of other")
	r.exchange(t, code)
}

func TestReplayedCodeRevokes(t *testing.T) {
	r := newRig(t)
	code := r.signIn(t, "alice")
	token := r.exchange(t, code)
	if got := r.userinfo(t, token.AccessToken); got != 200 {
		t.Fatalf("userinfo before the replay: %d", got)
	}
	if _, err := r.oauth.Exchange(t.Context(), code, oauth2.VerifierOption(verifier)); tokenError(err) != "invalid_grant" {
		t.Fatalf("replay: %v", err)
	}
	if got := r.userinfo(t, token.AccessToken); got != 401 {
		t.Errorf("userinfo after the replay: %d", got)
	}
	if _, err := r.refresh(t.Context(), token.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("refresh after the replay: %v", err)
	}
}

func TestRefresh(t *testing.T) {
	r := newRig(t)
	first := r.exchange(t, r.signIn(t, "alice"))
	firstID, _ := r.idToken(t, first)
	second, err := r.refresh(t.Context(), first.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	if second.RefreshToken == first.RefreshToken || second.AccessToken == first.AccessToken {
		t.Error("nothing was rotated")
	}
	// OpenID Connect Core 1.0 §12.2
	id, _ := r.idToken(t, second)
	var a, b claims
	if err := firstID.Claims(&a); err != nil {
		t.Fatal(err)
	}
	if err := id.Claims(&b); err != nil {
		t.Fatal(err)
	}
	if b.Subject != "alice" || b.AuthTime != a.AuthTime || b.SID != a.SID || id.Nonce != "" || id.VerifyAccessToken(second.AccessToken) != nil {
		t.Errorf("refreshed ID token: %+v, nonce %q", b, id.Nonce)
	}
	third, err := r.refresh(t.Context(), second.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	// A replay means that somebody has a copy: nobody keeps anything.
	if _, err := r.refresh(t.Context(), first.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("replay: %v", err)
	}
	if _, err := r.refresh(t.Context(), third.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("after the replay: %v", err)
	}
	if got := r.userinfo(t, third.AccessToken); got != 401 {
		t.Errorf("userinfo after the replay: %d", got)
	}
}

func TestRefreshTokenOfAnotherClient(t *testing.T) {
	r := newRig(t)
	token := r.exchange(t, r.signIn(t, "alice"))
	thief := *r
	thief.oauth.ClientID, thief.oauth.ClientSecret = "other", "s3cret of other"
	if _, err := thief.refresh(t.Context(), token.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("another client's refresh: %v", err)
	}
	if _, err := r.refresh(t.Context(), token.RefreshToken); err != nil {
		t.Errorf("the client's own refresh after that: %v", err)
	}
}

func TestUserinfoRefuses(t *testing.T) {
	r := newRig(t)
	token := r.exchange(t, r.signIn(t, "alice"))
	_, rawID := r.idToken(t, token)
	for name, authorization := range map[string]string{
		"garbage":         "Bearer x",
		"an ID token":     "Bearer " + rawID,
		"a refresh token": "Bearer " + token.RefreshToken,
		"unsigned":        "Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.eyJzdWIiOiJhbGljZSJ9.",
		"a cut signature": "Bearer " + token.AccessToken[:len(token.AccessToken)-4],
		"Basic":           "Basic YTpi",
		"nothing":         "",
	} {
		page := r.fetch(t, "GET", r.issuer+"/userinfo", "", "Authorization", authorization)
		if page.Status != 401 || !strings.HasPrefix(page.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s: %d, %q", name, page.Status, page.Header.Get("WWW-Authenticate"))
		}
	}
}
