package oidc

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// now is where the tests' clock stands at first.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var rsaKeys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		keys[i], _ = rsa.GenerateKey(rand.Reader, 2048)
	}
	return keys
})

func rsaKey(i int) *rsa.PrivateKey { return rsaKeys()[i] }

// A hostile is a double of an OpenID provider that says whatever a test wants it to:
// no real provider can be made to lie. That we get on with real ones is shown by the
// end-to-end tests, against a certified one.
type hostile struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	metadata map[string]any // laid over the honest metadata; nil removes
	claims   map[string]any // laid over the honest claims; nil removes
	answer   map[string]any // laid over the honest token answer; nil removes
	userinfo map[string]any
	keys     []jose.JSONWebKey
	signer   func(claims map[string]any) string
	onToken  http.HandlerFunc // instead of the token endpoint
	onRevoke http.HandlerFunc // instead of the revocation endpoint
	access   string           // what the userinfo endpoint takes
	nonce    string           // of the sign-in that is redeemed next

	tokenRequests []tokenRequest
	revocations   []tokenRequest
	jwksRequests  int
	asked         int // how often userinfo was
	otherRequests []string
}

type tokenRequest struct {
	form           url.Values
	user, password string
	basic          bool
}

func newTokenRequest(r *http.Request) tokenRequest {
	_ = r.ParseForm()
	req := tokenRequest{form: r.PostForm}
	req.user, req.password, req.basic = r.BasicAuth()
	return req
}

func newHostile(t *testing.T) *hostile {
	i := &hostile{t: t, access: "access-1"}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.serveMetadata)
	mux.HandleFunc("GET /jwks", i.serveKeys)
	mux.HandleFunc("POST /token", i.serveToken)
	mux.HandleFunc("POST /revoke", i.serveRevoke)
	mux.HandleFunc("GET /userinfo", i.serveUserinfo)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.otherRequests = append(i.otherRequests, r.Method+" "+r.URL.String())
		http.NotFound(w, r)
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	i.publish("k1", rsaKey(0))
	return i
}

// publish makes key the one that is published and signs.
func (i *hostile) publish(kid string, key *rsa.PrivateKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []jose.JSONWebKey{{Key: key.Public(), KeyID: kid, Algorithm: "RS256", Use: "sig"}}
	i.signer = signer(kid, key)
}

func signer(kid string, key *rsa.PrivateKey) func(map[string]any) string {
	return func(c map[string]any) string {
		return sign(map[string]any{"alg": "RS256", "kid": kid, "typ": "JWT"}, c, key)
	}
}

func (i *hostile) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func overlay(honest, lies map[string]any) map[string]any {
	m := maps.Clone(honest)
	for k, v := range lies {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	return m
}

func (i *hostile) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	writeJSON(w, overlay(map[string]any{
		"issuer":                                i.URL,
		"authorization_endpoint":                i.URL + "/authorize",
		"token_endpoint":                        i.URL + "/token",
		"jwks_uri":                              i.URL + "/jwks",
		"userinfo_endpoint":                     i.URL + "/userinfo",
		"end_session_endpoint":                  i.URL + "/end?a=b",
		"revocation_endpoint":                   i.URL + "/revoke",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
		"authorization_response_iss_parameter_supported": true,
	}, i.metadata))
}

func (i *hostile) serveKeys(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.jwksRequests++
	writeJSON(w, jose.JSONWebKeySet{Keys: i.keys})
}

// honest returns the claims of a good ID token.
func (i *hostile) honest(nonce string) map[string]any {
	return map[string]any{
		"iss": i.URL, "sub": "alice-1", "aud": "client", "nonce": nonce,
		"exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix(),
		"email": "alice@corp.example", "email_verified": true, "name": "Alice",
		"preferred_username": "alice", "groups": []string{"admins", "staff"}, "sid": "s-1",
		"auth_time": now.Add(-time.Minute).Unix(),
	}
}

func (i *hostile) serveToken(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tokenRequests = append(i.tokenRequests, newTokenRequest(r))
	if i.onToken != nil {
		i.onToken(w, r)
		return
	}
	writeJSON(w, overlay(map[string]any{
		"id_token":     i.signer(overlay(i.honest(i.nonce), i.claims)),
		"access_token": "access-1", "token_type": "bearer", "refresh_token": "refresh-1", "expires_in": 3600,
	}, i.answer))
}

func (i *hostile) serveRevoke(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revocations = append(i.revocations, newTokenRequest(r))
	if i.onRevoke != nil {
		i.onRevoke(w, r)
	}
}

func (i *hostile) serveUserinfo(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.userinfo == nil || r.Header.Get("Authorization") != "Bearer "+i.access {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	writeJSON(w, i.userinfo)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// sign makes an RS256 token of any header and claims, given as text or values.
func sign(header, claims any, key *rsa.PrivateKey) string {
	input := part(header) + "." + part(claims)
	sum := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func part(v any) string {
	text, ok := v.(string)
	if !ok {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		text = string(data)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// A clock is set by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// newParty returns a relying party of the provider that has not discovered it yet.
func newParty(t testing.TB, issuer string, change func(*Config)) (*RelyingParty, *clock) {
	c := &clock{t: now}
	public := &url.URL{Scheme: "https", Host: "app.t1.test"}
	config := Config{
		Tenant: "t1", Name: "corp", Issuer: issuer, ClientID: "client", ClientSecret: "s3cr&t canary",
		Scopes: []string{"openid", "email"}, GroupsClaim: "groups",
		RedirectURL: "https://app.t1.test/oauth2/callback", PostLogoutURL: "https://app.t1.test/oauth2/sign_out/done",
		Returns: NewReturns(public, "b.t1.test:8443"), Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", false),
		Once: memory.New(), Logger: slog.New(slog.DiscardHandler), Now: c.now,
	}
	if change != nil {
		change(&config)
	}
	p := New(config)
	t.Cleanup(p.client.CloseIdleConnections)
	return p, c
}

// newPair returns a provider and a relying party that has discovered it.
func newPair(t *testing.T, change func(*Config)) (*hostile, *RelyingParty, *clock) {
	i := newHostile(t)
	p, c := newParty(t, i.URL, change)
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	return i, p, c
}

// A browser keeps cookies.
type browser struct {
	t   *testing.T
	jar http.CookieJar
}

func newBrowser(t *testing.T) *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{t, jar}
}

func (b *browser) request(target string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "https://app.t1.test"+target, nil)
	for _, c := range b.jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	return r
}

func (b *browser) keep(h http.Header) {
	b.jar.SetCookies(&url.URL{Scheme: "https", Host: "app.t1.test", Path: "/"}, (&http.Response{Header: h}).Cookies())
}

// cookies returns the names of those that the browser has.
func (b *browser) cookies() (names []string) {
	for _, c := range b.request("/").Cookies() {
		names = append(names, c.Name)
	}
	return names
}

// start returns the query of the authorization request.
func (b *browser) start(p *RelyingParty, returnTo string) url.Values {
	b.t.Helper()
	h := http.Header{}
	location, err := p.Start(h, b.request("/oauth2/start"), returnTo)
	if err != nil {
		b.t.Fatal(err)
	}
	b.keep(h)
	u, err := url.Parse(location)
	if err != nil {
		b.t.Fatal(err)
	}
	return u.Query()
}

func (b *browser) callback(p *RelyingParty, query url.Values) (*Login, error) {
	h := http.Header{}
	login, err := p.Callback(b.t.Context(), h, b.request("/oauth2/callback?"+query.Encode()))
	b.keep(h)
	if err != nil && strings.Contains(err.Error(), "canary") {
		b.t.Errorf("the error shows a secret: %v", err)
	}
	return login, err
}

// signIn goes all the way, and counts. The provider answers with the nonce of this
// sign-in.
func (b *browser) signIn(i *hostile, p *RelyingParty, returnTo string) (*Login, error) {
	b.t.Helper()
	asked := b.start(p, returnTo)
	i.set(func() { i.nonce = asked.Get("nonce") })
	login, err := b.callback(p, i.response(asked))
	if err != nil {
		return nil, err
	}
	h := http.Header{}
	err = p.Completed(h, b.request("/oauth2/callback").Header)
	b.keep(h)
	return login, err
}

// response is the provider's honest answer to an authorization request.
func (i *hostile) response(asked url.Values) url.Values {
	return url.Values{"state": {asked.Get("state")}, "code": {"code-canary"}, "iss": {i.URL}}
}

// wantCode fails the test unless err has this code.
func wantCode(t *testing.T, err error, code coatcheck.Code) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", code)
	}
	if got := coatcheck.CodeOf(err); got != code {
		t.Fatalf("code %s (%v), want %s", got, err, code)
	}
}

func (i *hostile) redeemed() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.tokenRequests)
}

func (i *hostile) fetchedKeys() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.jwksRequests
}

// onceFunc makes a function a Once.
type onceFunc func() error

func (f onceFunc) Create(context.Context, string, []byte, time.Duration) error { return f() }
