package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/session"
)

// A logoutRig is a proxy whose provider signs logout tokens and does nothing else.
type logoutRig struct {
	*rig
	signer jose.Signer
}

func newLogoutRig(t testing.TB) *logoutRig {
	t.Helper()
	r := &logoutRig{rig: newRig(t)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}},
		(&jose.SignerOptions{}).WithType("logout+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	published := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}}
	mux := http.NewServeMux()
	answer := func(body any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(body) }
	}
	provider := httptest.NewServer(mux)
	t.Cleanup(provider.Close)
	r.issuer = provider.URL
	mux.HandleFunc("/jwks", answer(published))
	mux.HandleFunc("/.well-known/openid-configuration", answer(map[string]any{
		"issuer": r.issuer, "authorization_endpoint": r.issuer + "/authorize", "token_endpoint": r.issuer + "/token",
		"jwks_uri": r.issuer + "/jwks", "id_token_signing_alg_values_supported": []string{"ES256"},
		"end_session_endpoint": "http://127.0.0.1:1/end",
	}))
	config := r.SignIn.Config
	config.Issuer, config.Logger = r.issuer, slog.New(slog.DiscardHandler)
	r.SignIn = oidc.New(config)
	discoverProvider(t, r.SignIn)
	return r
}

// token returns a logout token with these claims beside the usual ones; nil takes one away.
func (r *logoutRig) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	all := map[string]any{
		"iss": r.issuer, "aud": "test", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "jti": rand.Text(),
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := r.signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var formHeader = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}

// logout sends a logout token as a provider does.
func (r *logoutRig) logout(token string) *httptest.ResponseRecorder {
	return r.serveHTTP("POST", "/oauth2/backchannel-logout", url.Values{"logout_token": {token}}.Encode(), formHeader)
}

// signedInAt keeps a session that stands on the provider's session sid.
func (r *rig) signedInAt(t testing.TB, user, sid string) http.Header {
	t.Helper()
	h := http.Header{}
	_, err := r.Sessions.Begin(t.Context(), h, http.Header{}, &coatcheck.Session{
		Provider: "test", State: coatcheck.Authenticated, ProviderSID: sid,
		Identity: coatcheck.Identity{Issuer: r.issuer, Subject: user, Name: user},
		Origin: coatcheck.Origin{
			App: "app.example.com", IP: "192.0.2.7",
			UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
		},
	}, time.Now().Add(2*time.Second)) // later than what the test has logged out
	if err != nil {
		t.Fatal(err)
	}
	pair, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
	return http.Header{"Cookie": {pair}}
}

// wantAlive fails the test unless these sessions live, and no others of those that are given.
func (r *rig) wantAlive(t *testing.T, want map[string]bool, sessions map[string]http.Header) {
	t.Helper()
	for name, cookie := range sessions {
		if alive := r.alive(t, cookie); alive != want[name] {
			t.Errorf("%s is alive: %t", name, alive)
		}
		if reason := r.Sessions.Ended(t.Context(), cookie); !want[name] && reason == "" {
			t.Errorf("%s can't say why it ended", name)
		}
	}
}

// A-L4, A-L8, A-L9: what a logout token ends, and what it leaves alone.
func TestBackChannelLogout(t *testing.T) {
	r := newLogoutRig(t)
	sessions := map[string]http.Header{
		"alice at s1": r.signedInAt(t, "alice", "s1"), "alice at s2": r.signedInAt(t, "alice", "s2"),
		"alice": r.signedInAt(t, "alice", ""), "bob": r.signedInAt(t, "bob", "s3"),
	}
	r.issuer += "/elsewhere"
	sessions["alice of another provider"] = r.signedInAt(t, "alice", "s1")
	r.issuer = strings.TrimSuffix(r.issuer, "/elsewhere")
	accepted := func(w *httptest.ResponseRecorder) {
		t.Helper()
		if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" || w.Header()["Set-Cookie"] != nil || w.Body.Len() != 0 {
			t.Errorf("%d, %v: %s", w.Code, w.Header(), w.Body)
		}
	}
	bySID := r.token(t, map[string]any{"sid": "s1", "sub": "alice"})
	accepted(r.logout(bySID))
	r.wantAlive(t, map[string]bool{"alice at s2": true, "alice": true, "bob": true, "alice of another provider": true}, sessions)

	bySub := r.token(t, map[string]any{"sub": "alice"})
	accepted(r.logout(bySub))
	r.wantAlive(t, map[string]bool{"bob": true, "alice of another provider": true}, sessions)

	// Nobody has a session: that is what was asked for.
	accepted(r.logout(r.token(t, map[string]any{"sub": "carol"})))

	// Replayed, each ends nothing, of those that have begun since then either.
	sessions["alice again"] = r.signedInAt(t, "alice", "s4")
	for _, token := range []string{bySID, bySub} {
		if w := r.logout(token); w.Code != http.StatusBadRequest {
			t.Errorf("a replay: %d", w.Code)
		}
	}
	r.wantAlive(t, map[string]bool{"bob": true, "alice of another provider": true, "alice again": true}, sessions)
}

// A-L5 to A-L8, A-L10 to A-L12: what is no logout ends nothing.
func TestBackChannelLogoutRefused(t *testing.T) {
	r := newLogoutRig(t)
	alice := r.signedInAt(t, "alice", "s1")
	good := r.token(t, map[string]any{"sid": "s1"})
	form := func(token string) string { return url.Values{"logout_token": {token}}.Encode() }
	with := func(name string, value any) string { return form(r.token(t, map[string]any{"sid": "s1", name: value})) }
	past := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	header, _, _ := strings.Cut(good, ".")
	for name, tc := range map[string]struct {
		method, query, body, kind string
		status                    int
	}{
		"GET":                     {method: "GET", query: "?" + form(good), status: http.StatusMethodNotAllowed},
		"PUT":                     {method: "PUT", body: form(good), status: http.StatusMethodNotAllowed},
		"in the query":            {query: "?" + form(good)},
		"JSON":                    {body: `{"logout_token":"` + good + `"}`, kind: "application/json"},
		"the token as such":       {body: good, kind: "application/jwt"},
		"no media type":           {body: form(good), kind: "-"},
		"multipart":               {body: form(good), kind: "multipart/form-data; boundary=x"},
		"no token":                {body: "a=b"},
		"an empty one":            {body: "logout_token="},
		"two":                     {body: form(good) + "&" + form(good)},
		"a malformed form":        {body: form(good) + "&%zz"},
		"too much":                {body: form(good) + "&a=" + strings.Repeat("a", maxLogout)},
		"junk":                    {body: form("junk")},
		"no signature":            {body: form(strings.Join(strings.Split(good, ".")[:2], ".") + ".")},
		"another one's signature": {body: form(header + "." + strings.Split(r.token(t, nil), ".")[1] + "." + strings.Split(good, ".")[2])},
		"a nonce":                 {body: with("nonce", "n")},
		"no events":               {body: with("events", nil)},
		"another event":           {body: with("events", map[string]any{"http://schemas.openid.net/event/other": map[string]any{}})},
		"an event that is none":   {body: with("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": true})},
		"nobody":                  {body: with("sid", nil)},
		"another issuer":          {body: with("iss", "https://other.example")},
		"another client":          {body: with("aud", "other")},
		"over":                    {body: with("exp", past(10*time.Minute))},
		"old":                     {body: with("iat", past(10*time.Minute))},
		"no jti":                  {body: with("jti", nil)},
		"an ID token": {body: form(r.token(t, map[string]any{
			"sid": "s1", "sub": "alice", "events": nil, "nonce": "n", "auth_time": time.Now().Unix(),
		}))},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{"Content-Type": {tc.kind}}
			switch tc.kind {
			case "":
				h = formHeader
			case "-":
				h = nil
			}
			if tc.method == "" {
				tc.method, tc.status = "POST", http.StatusBadRequest
			}
			w := r.serveHTTP(tc.method, "/oauth2/backchannel-logout"+tc.query, tc.body, h)
			if w.Code != tc.status || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%d, %v: %s", w.Code, w.Header(), w.Body)
			}
			var said struct {
				Error       string `json:"error"`
				Description string `json:"error_description"`
			}
			err := json.Unmarshal(w.Body.Bytes(), &said)
			if tc.status == http.StatusBadRequest && (err != nil || said.Error != "invalid_request" || said.Description == "") {
				t.Errorf("the answer is %s, %v", w.Body, err)
			}
			if !r.alive(t, alice) {
				t.Fatal("alice's session has ended")
			}
		})
	}
	if log := r.log.String(); strings.Contains(log, good) || strings.Contains(log, strings.Split(good, ".")[1]) {
		t.Error("the log has the token")
	}
	if w := r.logout(good); w.Code != http.StatusOK || r.alive(t, alice) {
		t.Errorf("after all that the good one gets %d", w.Code)
	}
}

// Where nobody can tell what has ended the provider is told to come again, and may; the
// logout then ends what it was for.
func TestBackChannelLogoutOutage(t *testing.T) {
	for name, calls := range map[string]int{"at once": 1, "once the barrier stands": 3, "when the record is to be deleted": 5} {
		t.Run(name, func(t *testing.T) {
			r := newLogoutRig(t)
			alice := r.signedInAt(t, "alice", "s1")
			token := r.token(t, map[string]any{"sub": "alice"})
			n := 0
			r.store.fault = func() {
				if n++; n >= calls {
					r.store.err = errors.New("down")
				}
			}
			w := r.logout(token)
			r.store.fault, r.store.err = nil, nil
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store" {
				t.Fatalf("%d, %v: %s", w.Code, w.Header(), w.Body)
			}
			time.Sleep(2 * time.Second) // somebody who comes after the logout, as far as clocks tell
			later := r.signedInAt(t, "alice", "s2")
			if w = r.logout(token); w.Code != http.StatusOK || r.alive(t, alice) {
				t.Errorf("the second time: %d, alive: %t", w.Code, r.alive(t, alice))
			}
			// What is remembered of the first time says since when; where nothing is, all end.
			if alive := r.alive(t, later); alive != (calls > 3) {
				t.Errorf("who signed in since then is alive: %t", alive)
			}
			if w = r.logout(token); w.Code != http.StatusBadRequest {
				t.Errorf("the third time: %d", w.Code)
			}
		})
	}
	t.Run("the provider's keys can't be had", func(t *testing.T) {
		r := newLogoutRig(t)
		token := r.token(t, map[string]any{"sub": "alice"})
		config := r.SignIn.Config
		config.Issuer = "http://127.0.0.1:1"
		r.SignIn = oidc.New(config)
		if w := r.logout(token); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	})
}

// A-L9: a logout is remembered for longer than its token is taken.
func TestBackChannelLogoutIsRemembered(t *testing.T) {
	r := newLogoutRig(t)
	for _, life := range []time.Duration{time.Minute, time.Hour} {
		token := r.token(t, map[string]any{"sub": "alice", "exp": time.Now().Add(life).Unix()})
		logout, err := r.SignIn.LogoutToken(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if w := r.logout(token); w.Code != http.StatusOK {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		var longest time.Duration
		for key, err := range r.store.Keys(t.Context(), "logout-token-") {
			rec, getErr := r.store.Get(t.Context(), key)
			if err != nil || getErr != nil {
				t.Fatal(err, getErr)
			}
			longest = max(longest, rec.TTL)
		}
		if left := time.Until(logout.Expires); longest < left+time.Minute {
			t.Errorf("remembered for %v, and taken for %v", longest, left)
		}
	}
}

// A provider that does not wait for the answer has ended the sessions all the same.
func TestBackChannelLogoutUnawaited(t *testing.T) {
	r := newLogoutRig(t)
	alice := r.signedInAt(t, "alice", "s1")
	ctx, hangUp := context.WithCancel(t.Context())
	r.store.fault = hangUp // with the first thing that it costs the store
	body := url.Values{"logout_token": {r.token(t, map[string]any{"sid": "s1"})}}.Encode()
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/oauth2/backchannel-logout", strings.NewReader(body))
	req.Host, req.Header["Content-Type"] = r.PublicURL.Host, formHeader["Content-Type"]
	r.ServeHTTP(httptest.NewRecorder(), req)
	r.store.fault = nil
	if r.alive(t, alice) {
		t.Error("alice's session lives")
	}
}

// The cookie that somebody sends along is neither looked at nor cleared.
func TestBackChannelLogoutLeavesCookiesAlone(t *testing.T) {
	r := newLogoutRig(t)
	bob := r.signedInAt(t, "bob", "s2")
	w := r.serveHTTP("POST", "/oauth2/backchannel-logout", "logout_token=junk", formHeader, bob, page200)
	if w.Code != http.StatusBadRequest || w.Header()["Set-Cookie"] != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
	w = r.serveHTTP("POST", "/oauth2/backchannel-logout", url.Values{"logout_token": {r.token(t, map[string]any{"sid": "s1"})}}.Encode(),
		formHeader, bob, http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"no-cors"}})
	if w.Code != http.StatusOK || w.Header()["Set-Cookie"] != nil || !r.alive(t, bob) {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
}

// A logout that comes while the code is being redeemed: the person is told, and has no
// session.
func TestLogoutDuringCallback(t *testing.T) {
	r := newRig(t)
	w := r.serveHTTP("GET", "/x", "", page200)
	pair, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	back := r.authorize(t, w.Header().Get("Location"), "alice")
	other := session.New(session.Options{
		Store: r.store.Store, Registry: r.store.Store, Ring: r.Ring, Jar: r.Sessions.Jar, Tenant: "default",
		Idle: time.Hour, Absolute: time.Hour,
	})
	redeemed := time.Duration(0)
	r.Sessions.Now = func() time.Time { return time.Now().Add(redeemed) }
	r.store.fault = func() { // the sign-in is claimed: the code comes next
		r.store.fault = nil
		if _, err := other.BackChannelLogout(t.Context(), session.Logout{Issuer: r.issuer, Subject: "alice", ID: "1"}); err != nil {
			t.Error(err)
		}
		redeemed = 10 * time.Second // is how long the provider takes
	}
	w = r.serveHTTP("GET", back, "", page200, http.Header{"Cookie": {pair}})
	e := endings[coatcheck.ReasonBackChannel]
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), e.text) || !strings.Contains(w.Body.String(), `"/oauth2/start?rd=%2Fx">Sign in again<`) {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	for _, line := range w.Header()["Set-Cookie"] {
		if strings.HasPrefix(line, r.Sessions.Jar.Session()+"=") {
			t.Errorf("the browser gets %s", line)
		}
	}
	for e, err := range r.Sessions.Find(t.Context(), session.Query{}) {
		t.Errorf("listed: %+v, %v", e, err)
	}
}

// A-L13: the front channel ends the session that its query names, for the provider alone.
func TestFrontChannelLogout(t *testing.T) {
	r := newLogoutRig(t)
	alice, bob := r.signedInAt(t, "alice", "s1"), r.signedInAt(t, "bob", "s2")
	iss := url.QueryEscape(r.issuer)
	for _, query := range []string{
		"", "?iss=" + iss, "?sid=s1", "?iss=" + iss + "&sid=", "?iss=&sid=s1", "?iss=https://other.example&sid=s1",
		"?iss=" + iss + "/&sid=s1", "?iss=" + iss + "&sid=s1&sid=s1", "?iss=" + iss + "&iss=" + iss + "&sid=s1", "?iss=" + iss + "&sid=s1&%zz",
	} {
		w := r.serveHTTP("GET", "/oauth2/frontchannel-logout"+query, "", alice, page200)
		if w.Code != http.StatusBadRequest || w.Header().Get("X-Frame-Options") != "DENY" || !r.alive(t, alice) {
			t.Errorf("%s: %d", query, w.Code)
		}
		if !strings.Contains(w.Body.String(), "Nobody was signed out") || !strings.Contains(r.log.String(), `"level":"WARN","msg":"request refused"`) {
			t.Errorf("%s: nobody is told what was missing: %s", query, w.Body)
		}
		r.log.Reset()
	}
	target := "/oauth2/frontchannel-logout?iss=" + iss + "&sid=s1"
	if w := r.serveHTTP("POST", target, ""); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	r.store.err = errors.New("down")
	if w := r.serveHTTP("GET", target, ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("with the store down: %d", w.Code)
	}
	r.store.err = nil

	w := r.serveHTTP("GET", target, "", page200, http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Dest": {"iframe"}})
	csp := w.Header().Get("Content-Security-Policy")
	if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" || w.Header()["Set-Cookie"] != nil {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
	if !strings.HasSuffix(csp, "frame-ancestors "+r.issuer+" http://127.0.0.1:1") || w.Header()["X-Frame-Options"] != nil {
		t.Errorf("%s, %v", csp, w.Header()["X-Frame-Options"])
	}
	r.wantAlive(t, map[string]bool{"bob": true}, map[string]http.Header{"alice": alice, "bob": bob})
	if reason := r.Sessions.Ended(t.Context(), alice); reason != coatcheck.ReasonFrontChannel {
		t.Errorf("alice's session ended for %q", reason)
	}
}

// Nothing else of ours is shown in a frame of anybody's.
func TestPagesAreUnframable(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	for _, target := range []string{"/oauth2/sign_in", "/oauth2/sign_out", "/oauth2/sign_out/done", "/oauth2/sessions", "/oauth2/frontchannel-logout", "/oauth2/nothing"} {
		for _, h := range []http.Header{nil, alice} {
			w := r.serveHTTP("GET", target, "", h, page200)
			if w.Code == http.StatusSeeOther {
				continue
			}
			if csp := w.Header().Get("Content-Security-Policy"); !strings.HasSuffix(csp, "; frame-ancestors 'none'") || w.Header().Get("X-Frame-Options") != "DENY" {
				t.Errorf("%s: %d, %s", target, w.Code, csp)
			}
		}
	}
}

// FuzzBackChannelLogout: whatever is sent without the provider's signature ends nothing.
func FuzzBackChannelLogout(f *testing.F) {
	f.Add("application/x-www-form-urlencoded", "logout_token=eyJhbGciOiJub25lIn0.e30.")
	f.Add("application/x-www-form-urlencoded; charset=utf-8", "logout_token=a.b.c&logout_token=")
	f.Add("application/json", `{"logout_token":""}`)
	r := newLogoutRig(f)
	r.AccessLog, r.Logger = nil, slog.New(slog.DiscardHandler)
	alice := r.signedInAt(f, "alice", "s1")
	f.Add("application/x-www-form-urlencoded", url.Values{"logout_token": {r.token(f, map[string]any{"sid": "s1", "nonce": ""})}}.Encode())
	f.Fuzz(func(t *testing.T, kind, body string) {
		w := r.serveHTTP(http.MethodPost, "/oauth2/backchannel-logout", body, http.Header{"Content-Type": {kind}})
		var said struct{ Error string }
		err := json.Unmarshal(w.Body.Bytes(), &said)
		// A key that the provider may have made a moment ago is no reason to refuse for good.
		later := w.Code == http.StatusServiceUnavailable && said.Error == "temporarily_unavailable"
		if err != nil || !later && (w.Code != http.StatusBadRequest || said.Error != "invalid_request") {
			t.Errorf("%d: %s, %v", w.Code, w.Body, err)
		}
		if !r.alive(t, alice) {
			t.Error("alice's session has ended")
		}
	})
}
