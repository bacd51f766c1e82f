package devprovider_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

const notice = "For trying coatcheck on this machine only; everybody can read these passwords"

// A rig is a provider, a client of it that keeps what it is called back with, and a
// browser. The client is go-oidc and x/oauth2, which know nothing of the provider.
type rig struct {
	issuer   string
	client   string // the client's origin
	browser  *testenv.Browser
	oauth    oauth2.Config
	provider *oidc.Provider
	log      *syncBuffer
}

// A syncBuffer is what the provider has logged.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	client := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<title>the client</title>")
	}))
	t.Cleanup(client.Close)
	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	issuer := "http://" + l.Addr().String()
	log := new(syncBuffer)
	p, err := devprovider.New(devprovider.Options{
		Issuer: issuer,
		Clients: []devprovider.Client{
			{
				ID: "web", Secret: "s3cret of web",
				RedirectURIs:           []string{client.URL + "/callback", client.URL + "/callback?tenant=a"},
				PostLogoutRedirectURIs: []string{client.URL + "/bye"},
			},
			{ID: "other", Secret: "s3cret of other", RedirectURIs: []string{client.URL + "/callback"}},
		},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(p)
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	provider, err := oidc.NewProvider(t.Context(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{
		issuer: issuer, client: client.URL, browser: testenv.NewBrowser(t), provider: provider, log: log,
		oauth: oauth2.Config{
			ClientID: "web", ClientSecret: "s3cret of web", Endpoint: provider.Endpoint(),
			RedirectURL: client.URL + "/callback", Scopes: []string{"openid", "profile", "email"},
		},
	}
}

const (
	state    = "the state"
	nonce    = "the nonce"
	verifier = "a-verifier-of-43-characters-or-more-is-what-RFC-7636-wants"
)

// authURL is a right authorization request with some parameters changed; an empty
// value takes one out.
func (r *rig) authURL(change ...string) string {
	u, err := url.Parse(r.oauth.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		panic(err)
	}
	q := u.Query()
	for i := 0; i < len(change); i += 2 {
		if q.Set(change[i], change[i+1]); change[i+1] == "" {
			q.Del(change[i])
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func (r *rig) open(t *testing.T, url string) *testenv.Page {
	t.Helper()
	page, err := r.browser.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func (r *rig) submit(t *testing.T, page *testenv.Page, fields map[string]string) *testenv.Page {
	t.Helper()
	page, err := r.browser.Submit(t.Context(), page, fields)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func (r *rig) fetch(t *testing.T, method, url, body string, headers ...string) *testenv.Page {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	page, err := r.browser.Fetch(req)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// signIn signs in and returns the code that the client is called back with.
func (r *rig) signIn(t *testing.T, username string, change ...string) string {
	t.Helper()
	page, err := r.browser.SignIn(t.Context(), r.authURL(change...), username)
	if err != nil {
		t.Fatal(err)
	}
	code := page.URL.Query().Get("code")
	if code == "" {
		t.Fatalf("no code came back: %d at %s", page.Status, page.URL)
	}
	return code
}

func (r *rig) exchange(t *testing.T, code string) *oauth2.Token {
	t.Helper()
	token, err := r.oauth.Exchange(t.Context(), code, oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (r *rig) idToken(t *testing.T, token *oauth2.Token) (*oidc.IDToken, string) {
	t.Helper()
	raw, _ := token.Extra("id_token").(string)
	id, err := r.provider.Verifier(&oidc.Config{ClientID: "web"}).Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	return id, raw
}

func (r *rig) userinfo(t *testing.T, accessToken string) int {
	t.Helper()
	return r.fetch(t, "GET", r.issuer+"/userinfo", "", "Authorization", "Bearer "+accessToken).Status
}

func (r *rig) refresh(ctx context.Context, token string) (*oauth2.Token, error) {
	return r.oauth.TokenSource(ctx, &oauth2.Token{RefreshToken: token}).Token()
}

// tokenError is the code of an error of the token endpoint.
func tokenError(err error) string {
	var re *oauth2.RetrieveError
	if errors.As(err, &re) {
		return re.ErrorCode
	}
	return ""
}

func TestSignIn(t *testing.T) {
	r := newRig(t)
	form := r.open(t, r.authURL())
	for _, want := range []string{notice, `name="username"`, `name="password"`, "alice", "bob", "carol", "admins"} {
		if !strings.Contains(form.Body, want) {
			t.Errorf("the sign-in page lacks %q", want)
		}
	}
	back := r.submit(t, form, map[string]string{"username": "alice", "password": "alice"})
	q := back.URL.Query()
	if !strings.HasPrefix(back.URL.String(), r.oauth.RedirectURL) || q.Get("state") != state || q.Get("iss") != r.issuer { // RFC 9207
		t.Fatalf("called back at %s", back.URL)
	}
	token := r.exchange(t, q.Get("code"))
	if token.TokenType != "Bearer" || token.RefreshToken == "" || token.ExpiresIn != 300 {
		t.Errorf("token answer: %s, expires in %d s", token.TokenType, token.ExpiresIn)
	}
	id, _ := r.idToken(t, token)
	if id.Subject != "alice" || id.Nonce != nonce || id.VerifyAccessToken(token.AccessToken) != nil {
		t.Errorf("ID token: sub %q, nonce %q, at_hash %v", id.Subject, id.Nonce, id.VerifyAccessToken(token.AccessToken))
	}
	var fromToken, fromUserinfo claims
	if err := id.Claims(&fromToken); err != nil {
		t.Fatal(err)
	}
	info, err := r.provider.UserInfo(t.Context(), oauth2.StaticTokenSource(token))
	if err != nil {
		t.Fatal(err)
	}
	if err := info.Claims(&fromUserinfo); err != nil {
		t.Fatal(err)
	}
	for where, c := range map[string]claims{"ID token": fromToken, "userinfo": fromUserinfo} {
		if c.Subject != "alice" || c.Name != "Alice Archer" || c.PreferredUsername != "alice" ||
			c.Email != "alice@example.com" || !c.EmailVerified || !slices.Equal(c.Groups, []string{"admins", "staff"}) {
			t.Errorf("%s says %+v", where, c)
		}
	}
	if fromToken.AuthTime == 0 || fromToken.SID == "" {
		t.Errorf("auth_time %d, sid %q", fromToken.AuthTime, fromToken.SID)
	}
}

type claims struct {
	Subject           string   `json:"sub"`
	Name              string   `json:"name"`
	PreferredUsername string   `json:"preferred_username"`
	Email             string   `json:"email"`
	EmailVerified     bool     `json:"email_verified"`
	Groups            []string `json:"groups"`
	AuthTime          int64    `json:"auth_time"`
	SID               string   `json:"sid"`
}

func TestScopeLimitsClaims(t *testing.T) {
	r := newRig(t)
	tests := []struct {
		scope  string
		name   bool
		email  bool
		groups int
	}{
		{"openid", false, false, 0},
		{"openid email", false, true, 0},
		{"openid groups", false, false, 1},
		{"openid profile offline_access", true, false, 1},
	}
	for _, tt := range tests {
		t.Run(tt.scope, func(t *testing.T) {
			token := r.exchange(t, r.signIn(t, "bob", "scope", tt.scope))
			id, _ := r.idToken(t, token)
			var c claims
			if err := id.Claims(&c); err != nil {
				t.Fatal(err)
			}
			if (c.Name != "") != tt.name || (c.Email != "") != tt.email || len(c.Groups) != tt.groups {
				t.Errorf("claims: %+v", c)
			}
			if got, _ := token.Extra("scope").(string); strings.Contains(got, "offline_access") {
				t.Errorf("granted scope %q", got)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	r := newRig(t)
	var doc struct {
		ResponseIss      bool     `json:"authorization_response_iss_parameter_supported"`
		ChallengeMethods []string `json:"code_challenge_methods_supported"`
		AuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
		EndSession       string   `json:"end_session_endpoint"`
		Userinfo         string   `json:"userinfo_endpoint"`
		RequestURI       *bool    `json:"request_uri_parameter_supported"`
	}
	if err := r.provider.Claims(&doc); err != nil {
		t.Fatal(err)
	}
	if !doc.ResponseIss || !slices.Equal(doc.ChallengeMethods, []string{"S256"}) ||
		!slices.Equal(doc.AuthMethods, []string{"client_secret_basic", "client_secret_post"}) ||
		doc.EndSession == "" || doc.Userinfo == "" || doc.RequestURI == nil || *doc.RequestURI {
		t.Errorf("discovery: %+v", doc)
	}
	keys := r.fetch(t, "GET", r.issuer+"/jwks.json", "")
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal([]byte(keys.Body), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("jwks: %v, %d keys", err, len(set.Keys))
	}
	if _, private := set.Keys[0]["d"]; private || set.Keys[0]["kid"] == "" || set.Keys[0]["alg"] != "ES256" {
		t.Error("the key set shows a private key, or a key without kid and alg")
	}
}

// Every page says what it is for, runs no script, and stands in no frame.
func TestPages(t *testing.T) {
	r := newRig(t)
	r.signIn(t, "alice")
	for url, status := range map[string]int{
		r.issuer + "/":                                    200,
		r.issuer + "/nothing":                             404,
		r.authURL("prompt", "login"):                      200,
		r.authURL("client_id", "nobody"):                  400,
		r.issuer + "/connect/end_session":                 200,
		r.issuer + "/connect/end_session?state=a&state=b": 400,
	} {
		page := r.open(t, url)
		csp := page.Header.Get("Content-Security-Policy")
		if page.Status != status || !strings.Contains(page.Body, notice) {
			t.Errorf("%s: %d, notice: %v", url, page.Status, strings.Contains(page.Body, notice))
		}
		if !strings.HasPrefix(csp, "default-src 'none'; ") || !strings.Contains(csp, "frame-ancestors 'none'") ||
			strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
			t.Errorf("%s: Content-Security-Policy %q", url, csp)
		}
		if page.Header.Get("Cache-Control") != "no-store" || page.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", url, page.Header)
		}
		if strings.Contains(page.Body, "s3cret") {
			t.Errorf("%s shows a client secret", url)
		}
	}
	signIn := r.open(t, r.authURL("prompt", "login"))
	if csp := signIn.Header.Get("Content-Security-Policy"); !strings.HasSuffix(csp, "form-action 'self' "+r.client) {
		t.Errorf("the form may not lead back to the client: %q", csp)
	}
}

// A name that somebody points at 127.0.0.1 is not the provider's.
func TestOtherHostIsRefused(t *testing.T) {
	r := newRig(t)
	req, err := http.NewRequestWithContext(t.Context(), "GET", r.issuer+"/userinfo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example"
	page, err := r.browser.Fetch(req)
	if err != nil || page.Status != http.StatusMisdirectedRequest {
		t.Errorf("answer %d, %v", page.Status, err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := func() devprovider.Options {
		return devprovider.Options{
			Issuer:  "http://127.0.0.1:5556",
			Clients: []devprovider.Client{{ID: "web", Secret: "s", RedirectURIs: []string{"http://127.0.0.1/cb"}}},
		}
	}
	if _, err := devprovider.New(good()); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*devprovider.Options){
		"issuer elsewhere":          func(o *devprovider.Options) { o.Issuer = "http://192.0.2.1:5556" },
		"issuer with a name":        func(o *devprovider.Options) { o.Issuer = "http://idp.example:5556" },
		"issuer with a path":        func(o *devprovider.Options) { o.Issuer = "http://127.0.0.1:5556/" },
		"issuer without a port":     func(o *devprovider.Options) { o.Issuer = "http://127.0.0.1" },
		"issuer with a user":        func(o *devprovider.Options) { o.Issuer = "http://a@127.0.0.1:1" },
		"no issuer":                 func(o *devprovider.Options) { o.Issuer = "" },
		"no clients":                func(o *devprovider.Options) { o.Clients = nil },
		"a client twice":            func(o *devprovider.Options) { o.Clients = append(o.Clients, o.Clients[0]) },
		"a client without a secret": func(o *devprovider.Options) { o.Clients[0].Secret = "" },
		"no redirect URI":           func(o *devprovider.Options) { o.Clients[0].RedirectURIs = nil },
		"a redirect URI that runs":  func(o *devprovider.Options) { o.Clients[0].RedirectURIs = []string{"javascript:alert(1)"} },
		"a fragment":                func(o *devprovider.Options) { o.Clients[0].PostLogoutRedirectURIs = []string{"http://a/#b"} },
		"a user twice": func(o *devprovider.Options) {
			o.Users = append(devprovider.DefaultUsers(), devprovider.DefaultUsers()...)
		},
		"a user without a password": func(o *devprovider.Options) { o.Users = []devprovider.User{{Username: "a"}} },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			spoil(&o)
			if _, err := devprovider.New(o); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestListen(t *testing.T) {
	for _, addr := range []string{
		"", ":0", ":8080", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "10.0.0.1:0", "169.254.1.1:0",
		"idp.example:0", "localhost.example:0", "127.0.0.1", "127.1:0", "2130706433:0", "[::ffff:0.0.0.0]:0",
	} {
		l, err := devprovider.Listen(addr)
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, devprovider.ErrNotLoopback) {
			t.Errorf("Listen(%q) = %v, want ErrNotLoopback", addr, err)
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "127.8.9.1:0", "localhost:0"} {
		l, err := devprovider.Listen(addr)
		if err != nil {
			t.Errorf("Listen(%q): %v", addr, err)
			continue
		}
		if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
			t.Errorf("Listen(%q) listens on %s", addr, l.Addr())
		}
		_ = l.Close()
	}
}

// A-D1, for the provider: what was signed in, granted and refused leaves nothing secret in the log.
func TestLogHoldsNoSecrets(t *testing.T) {
	r := newRig(t)
	r.submit(t, r.open(t, r.authURL()), map[string]string{"username": "pasted-password", "password": "wrong-password"})
	code := r.signIn(t, "alice")
	cookie := r.cookies(t)[0].Value
	token := r.exchange(t, code)
	r.tokenRequest(t, code, nil) // a replay
	if _, err := r.refresh(t.Context(), token.RefreshToken); err == nil {
		t.Fatal("refreshed after a replay")
	}
	_, hint := r.idToken(t, token)
	r.open(t, r.endSessionURL("id_token_hint", hint))
	log := r.log.String()
	if !strings.Contains(log, "user=alice") {
		t.Fatalf("the sign-in is not in the log:\n%s", log)
	}
	for name, secret := range map[string]string{
		"user name that may be a password": "pasted-password", "password": "wrong-password",
		"code": code, "cookie": cookie, "access token": token.AccessToken, "refresh token": token.RefreshToken,
		"ID token": hint, "client secret": "s3cret", "verifier": verifier, "state": state, "nonce": nonce,
	} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds the %s", name)
		}
	}
}
