package oidc

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A-O11: the token endpoint answers with anything but tokens. Each is refused in time,
// and nothing of it is shown but the OAuth error.
func TestTokenEndpointFails(t *testing.T) {
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s reached the other host", r.Method, r.URL)
	}))
	t.Cleanup(evil.Close)
	stop := make(chan struct{})
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for _, c := range []struct {
		name  string
		serve http.HandlerFunc
		code  coatcheck.Code
	}{
		{"no id_token", text(200, `{"access_token":"canary","token_type":"bearer"}`), coatcheck.CodeProviderFailed},
		{"no access_token", text(200, `{"id_token":"canary","token_type":"bearer"}`), coatcheck.CodeProviderFailed},
		{"no token_type", text(200, `{"id_token":"canary","access_token":"canary"}`), coatcheck.CodeProviderFailed},
		{"other token_type", text(200, `{"id_token":"canary","access_token":"canary","token_type":"DPoP"}`), coatcheck.CodeProviderFailed},
		{"no JSON", text(200, `access_token=canary`), coatcheck.CodeProviderFailed},
		{"wrong types", text(200, `{"id_token":["canary"]}`), coatcheck.CodeProviderFailed},
		{"empty", text(200, ``), coatcheck.CodeProviderFailed},
		{"created", text(201, `{"id_token":"canary","access_token":"canary","token_type":"bearer"}`), coatcheck.CodeProviderFailed},
		{"OAuth error", text(400, `{"error":"invalid_grant","error_description":"\u001b[31m`+strings.Repeat("x", 5000)+`","access_token":"canary"}`), coatcheck.CodeProviderRefused},
		{"OAuth error that repeats what was sent", func(w http.ResponseWriter, r *http.Request) {
			_, secret, _ := r.BasicAuth()
			said := r.FormValue("code") + " " + secret // both hold the word canary
			text(400, `{"error":"`+said+`","error_description":"`+said+`"}`)(w, r)
		}, coatcheck.CodeProviderRefused},
		{"OAuth error with 200", text(200, `{"error":"invalid_grant"}`), coatcheck.CodeProviderRefused},
		{"another client secret", text(401, `{"error":"invalid_client"}`), coatcheck.CodeProviderFailed},
		{"OAuth error with 500", text(500, `{"error":"server_error"}`), coatcheck.CodeProviderFailed},
		{"error page", text(503, `<html>canary`), coatcheck.CodeProviderFailed},
		{"307 to another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, evil.URL, http.StatusTemporaryRedirect)
		}, coatcheck.CodeProviderFailed},
		{"302 to another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, evil.URL, http.StatusFound)
		}, coatcheck.CodeProviderFailed},
		{"50 MB", func(w http.ResponseWriter, _ *http.Request) {
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 50 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, coatcheck.CodeProviderFailed},
		{"drip", func(w http.ResponseWriter, r *http.Request) {
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-ticker.C:
					_, _ = io.WriteString(w, " ")
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}, coatcheck.CodeProviderFailed},
		{"silence", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-stop:
			}
		}, coatcheck.CodeProviderFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, _ := newPair(t, nil)
			i.set(func() { i.onToken = c.serve })
			if c.name == "drip" || c.name == "silence" {
				p.once.Timeout = 200 * time.Millisecond
			}
			b := newBrowser(t)
			_, err := b.signIn(i, p, "/") // also looks for the canary in the error
			wantCode(t, err, c.code)
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("the error is not fit for a log: %.100q", err)
			}
			if len(b.cookies()) != 0 {
				t.Errorf("cookies left: %q", b.cookies())
			}
		})
	}
	close(stop)
}

func TestAnswerSize(t *testing.T) {
	i, p, _ := newPair(t, nil)
	i.set(func() { i.answer = map[string]any{"x": strings.Repeat("x", maxBody)} })
	_, err := newBrowser(t).signIn(i, p, "/")
	wantCode(t, err, coatcheck.CodeProviderFailed)
	if !strings.Contains(err.Error(), "over 1048576 bytes") {
		t.Errorf("the error does not say why: %v", err)
	}
}

// A-C9: tokens with which a session would find no room in a store begin none.
func TestTokenSize(t *testing.T) {
	for _, name := range []string{"access_token", "refresh_token"} {
		for size, code := range map[int]coatcheck.Code{maxToken: "", maxToken + 1: coatcheck.CodeProviderFailed} {
			i, p, _ := newPair(t, nil)
			i.set(func() { i.answer = map[string]any{name: strings.Repeat("x", size)} })
			_, err := newBrowser(t).signIn(i, p, "/")
			if code == "" {
				if err != nil && strings.Contains(err.Error(), "bytes") {
					t.Errorf("%s of %d bytes: %v", name, size, err)
				}
				continue
			}
			wantCode(t, err, code)
			if !strings.Contains(err.Error(), "over 65536 bytes") {
				t.Errorf("the error does not say why: %v", err)
			}
		}
	}
}

// How the client authenticates is decided before the secret is sent, and it is sent
// once.
func TestClientAuthentication(t *testing.T) {
	const secret = "s3cr&t canary"
	for _, c := range []struct {
		name    string
		methods any
		secret  coatcheck.Secret
		basic   bool
		post    bool
	}{
		{"default", nil, secret, true, false},
		{"basic", []string{"client_secret_post", "client_secret_basic"}, secret, true, false},
		{"post", []string{"client_secret_post"}, secret, false, true},
		{"public client", []string{"client_secret_basic", "none"}, "", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newHostile(t)
			i.metadata = map[string]any{"token_endpoint_auth_methods_supported": c.methods}
			p, _ := newParty(t, i.URL, func(config *Config) { config.ClientSecret = c.secret })
			if err := p.Discover(t.Context()); err != nil {
				t.Fatal(err)
			}
			i.set(func() {
				i.onToken = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
			})
			_, err := newBrowser(t).signIn(i, p, "/")
			wantCode(t, err, coatcheck.CodeProviderFailed)
			if i.redeemed() != 1 {
				t.Fatalf("%d token requests, want 1", i.redeemed())
			}
			req := i.tokenRequests[0]
			if req.basic != c.basic || c.basic && (req.user != "client" || req.password != "s3cr%26t+canary") {
				t.Errorf("basic authentication %v, user %q, password %q", req.basic, req.user, req.password)
			}
			if got := req.form.Get("client_secret"); (got == secret) != c.post || !c.post && got != "" {
				t.Errorf("client_secret in the form: %q", got)
			}
			if (req.form.Get("client_id") == "client") == c.basic {
				t.Errorf("client_id in the form: %q", req.form.Get("client_id"))
			}
		})
	}
}

// A-O12
func TestExpiresIn(t *testing.T) {
	for _, c := range []struct {
		raw  string
		want time.Duration
	}{
		{`null`, defaultAccessLife},
		{`-1`, defaultAccessLife},
		{`0`, defaultAccessLife},
		{`3600`, time.Hour},
		{`7200`, 2 * time.Hour},
		{`0.5`, minAccessLife},
		{`1e-300`, minAccessLife},
		{`"3600"`, time.Hour},
		{`3600.5`, time.Hour + 500*time.Millisecond},
		{`86400`, maxAccessLife},
		{`86401`, maxAccessLife},
		{`1e18`, maxAccessLife},
		{`1e400`, defaultAccessLife},
		{`1000000000000000000000000`, maxAccessLife},
		{`"NaN"`, defaultAccessLife},
		{`"Inf"`, maxAccessLife},
		{`"soon"`, defaultAccessLife},
		{`true`, defaultAccessLife},
		{`{}`, defaultAccessLife},
		{``, defaultAccessLife}, // absent
	} {
		t.Run(c.raw, func(t *testing.T) {
			i, p, _ := newPair(t, nil)
			var v any
			if c.raw != "" {
				v = json.RawMessage(c.raw)
			}
			i.set(func() { i.answer = map[string]any{"expires_in": v} })
			login, err := newBrowser(t).signIn(i, p, "/")
			if err != nil {
				t.Fatal(err)
			}
			if got, want := login.Session.Tokens.AccessExpiry, now.Add(c.want); !got.Equal(want) {
				t.Errorf("the access token ends at %v, want %v", got, want)
			}
		})
	}
}
