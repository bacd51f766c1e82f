package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A-O13, and every other lie that metadata can tell.
func TestMetadataRefused(t *testing.T) {
	const issuer = "https://idp.test"
	type lies = map[string]any
	honest := map[string]any{
		"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t", "jwks_uri": issuer + "/j",
		"userinfo_endpoint": issuer + "/u", "end_session_endpoint": issuer + "/e",
		"revocation_endpoint":                   issuer + "/r",
		"id_token_signing_alg_values_supported": []string{"RS256"},
	}
	for _, c := range []struct {
		name string
		lies lies
		want string // in the error; "" for none
	}{
		{"honest", nil, ""},
		{"other hosts", lies{"token_endpoint": "https://tokens.test/", "jwks_uri": "https://keys.test:8443/"}, ""},
		{"no optional endpoints", lies{"userinfo_endpoint": nil, "end_session_endpoint": nil, "revocation_endpoint": nil}, ""},
		{"no algorithms", lies{"id_token_signing_alg_values_supported": nil}, ""},
		{"issuer", lies{"issuer": "https://evil.test"}, "calls itself"},
		{"issuer slash", lies{"issuer": issuer + "/"}, "calls itself"},
		{"issuer case", lies{"issuer": "https://IDP.test"}, "calls itself"},
		{"no issuer", lies{"issuer": nil}, "calls itself"},
		{"no authorization endpoint", lies{"authorization_endpoint": nil}, "authorization_endpoint in the metadata is missing"},
		{"no token endpoint", lies{"token_endpoint": nil}, "token_endpoint in the metadata is missing"},
		{"no keys", lies{"jwks_uri": nil}, "jwks_uri in the metadata is missing"},
		{"relative", lies{"token_endpoint": "/token"}, "absolute"},
		{"no host", lies{"token_endpoint": "https:///token"}, "absolute"},
		{"other scheme", lies{"jwks_uri": "file:///etc/passwd"}, "absolute"},
		{"script", lies{"end_session_endpoint": "javascript:alert(1)"}, "absolute"},
		{"no URL", lies{"userinfo_endpoint": "https://[x"}, "absolute"},
		{"plain http", lies{"token_endpoint": "http://idp.test/t"}, "not https"},
		{"tokens revoked in plain http", lies{"revocation_endpoint": "http://idp.test/r"}, "revocation_endpoint in the metadata is not https"},
		{"user", lies{"token_endpoint": "https://user@idp.test/t"}, "user name"},
		{"fragment", lies{"authorization_endpoint": issuer + "/a#b"}, "fragment"},
		{"empty fragment", lies{"authorization_endpoint": issuer + "/a#"}, "fragment"},
		{"host for a policy", lies{"end_session_endpoint": "https://a;script-src/e"}, "host"},
		{"weak algorithms only", lies{"id_token_signing_alg_values_supported": []string{"none", "HS256"}}, "no algorithm"},
		{"no way to authenticate", lies{"token_endpoint_auth_methods_supported": []string{"private_key_jwt"}}, "neither"},
		{"wrong type", lies{"issuer": 7}, "can't be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := newParty(t, issuer, nil)
			p.client.Transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
				if r.URL.String() != issuer+wellKnownPath {
					t.Errorf("asked %s", r.URL)
				}
				w := httptest.NewRecorder()
				writeJSON(w, overlay(honest, c.lies))
				return w.Result(), nil
			})
			err := p.Discover(t.Context())
			if c.want == "" {
				if err != nil || p.Ready() != nil {
					t.Error(err, p.Ready())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(p.Ready(), err) {
				t.Errorf("got %v, ready %v, want %q", err, p.Ready(), c.want)
			}
		})
	}
}

// Somebody who comes to sign in does not wait for Run's next attempt, be it half a minute
// away. Those who come together share an attempt, and nobody waits for long.
func TestDiscoveredWhenAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const issuer = "https://idp.test"
		p, _ := newParty(t, issuer, nil)
		var asked int
		var answer func(*http.Request) (*http.Response, error)
		p.client.Transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
			asked++
			time.Sleep(10 * time.Millisecond)
			return answer(r)
		})
		// start is that of many at once, and says how long it took.
		start := func(want coatcheck.Code) time.Duration {
			t.Helper()
			began := time.Now()
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					_, err := p.Start(http.Header{}, httptest.NewRequest("GET", "/", nil), "/")
					if (err == nil) != (want == "") || err != nil && coatcheck.CodeOf(err) != want {
						t.Errorf("%v, want %q", err, want)
					}
				})
			}
			all.Wait()
			return time.Since(began)
		}
		answer = func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }
		if start(coatcheck.CodeNotReady); asked != 1 {
			t.Errorf("%d attempts for those who came together, want one", asked)
		}
		if start(coatcheck.CodeNotReady); asked != 1 {
			t.Error("it is tried again at once")
		}
		time.Sleep(minRetry)
		answer = func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }
		if took := start(coatcheck.CodeNotReady); took > lookLimit+time.Second || asked != 2 {
			t.Errorf("%v, %d attempts: a provider that hangs keeps people waiting", took, asked)
		}
		time.Sleep(minRetry)
		answer = func(*http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			writeJSON(w, map[string]any{
				"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t", "jwks_uri": issuer + "/k",
			})
			return w.Result(), nil
		}
		if start(""); asked != 3 {
			t.Errorf("%d attempts", asked)
		}
		if start(""); asked != 3 {
			t.Error("what is known is asked again")
		}
	})
}

// Another configuration goes on with what is known of the same issuer, if it can.
func TestWith(t *testing.T) {
	i, p, _ := newPair(t, nil)
	i.set(func() { i.metadata = map[string]any{"issuer": nil} }) // nothing can be discovered
	next := p.With(p.Config)
	if _, err := newBrowser(t).signIn(i, next, "/"); err != nil {
		t.Fatal(err)
	}
	before, _ := p.provider("test")
	if after, _ := next.provider("test"); after.keys != before.keys {
		t.Error("the keys were forgotten")
	}
	i.set(func() { i.metadata = nil })
	if err := next.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := p.provider("test"); again != before {
		t.Error("what the old one goes by has changed")
	}

	other := p.Config
	other.Issuer += "/other"
	if next := p.With(other); next.Ready() == nil {
		t.Error("another issuer's metadata is taken for this one's")
	}
	p.current.TokenAuthMethods = []string{authNone}
	if next := p.With(p.Config); next.Ready() == nil || !strings.Contains(next.Ready().Error(), "neither") {
		t.Errorf("a way to authenticate that there is not: %v", next.Ready())
	}
	never, _ := newParty(t, i.URL, nil)
	if next := never.With(never.Config); next.Ready() == nil {
		t.Error("ready, and nothing was ever discovered")
	}
}

// What one issuer has given goes to no other, though it may have the same name now: not the
// code of a sign-in that is under way (RFC 9700 §4.4), and no token.
func TestWithAnotherIssuer(t *testing.T) {
	i, p, _ := newPair(t, func(c *Config) { c.IDTokenHint = true })
	i.set(func() { i.metadata = map[string]any{"authorization_response_iss_parameter_supported": nil} })
	other := newHostile(t)
	other.set(func() { other.metadata = map[string]any{"authorization_response_iss_parameter_supported": nil} })
	config := p.Config
	config.Issuer = other.URL
	next := p.With(config)
	if err := next.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}

	b := newBrowser(t)
	answer := i.response(b.start(p, "/"))
	answer.Del("iss")
	if _, err := b.callback(next, answer); coatcheck.CodeOf(err) != coatcheck.CodeBadCallback || len(other.tokenRequests) != 0 {
		t.Errorf("a code of another issuer: %v, %d token requests", err, len(other.tokenRequests))
	}
	s := &coatcheck.Session{
		Provider: p.Name, Identity: coatcheck.Identity{Issuer: p.Issuer}, Tokens: coatcheck.Tokens{ID: "an ID token", Refresh: "a token"},
	}
	if location, ok := next.EndSession(s, "/"); ok {
		t.Errorf("signed out at another issuer: %s", location)
	}
	if _, ok := p.EndSession(s, "/"); !ok {
		t.Error("not signed out at its own issuer")
	}
	if _, err := next.Refresh(t.Context(), s); err == nil || len(other.tokenRequests) != 0 {
		t.Errorf("refreshed at another issuer: %v", err)
	}
	if p.Knows(p.Name, other.URL) || p.Knows("another", p.Issuer) || !p.Knows(p.Name, p.Issuer) {
		t.Error("the wrong sessions are known")
	}
}

func TestMetadataUnreadable(t *testing.T) {
	evil := newHostile(t)
	for name, serve := range map[string]http.HandlerFunc{
		"not found": http.NotFound,
		"redirect":  http.RedirectHandler(evil.URL+wellKnownPath, http.StatusFound).ServeHTTP,
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"too large": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxBody+1)) },
	} {
		s := httptest.NewServer(serve)
		p, _ := newParty(t, s.URL, nil)
		if err := p.Discover(t.Context()); err == nil || len(err.Error()) > 1000 {
			t.Errorf("%s: %v", name, err)
		}
		p.client.CloseIdleConnections()
		s.Close()
	}
}

// The keys stay while the provider names the same set, and go when it names another.
func TestRediscovery(t *testing.T) {
	i, p, _ := newPair(t, nil)
	if _, err := newBrowser(t).signIn(i, p, "/"); err != nil {
		t.Fatal(err)
	}
	before, _ := p.provider("test")
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, _ := p.provider("test")
	if after.keys != before.keys {
		t.Error("the keys were thrown away")
	}
	i.set(func() { i.metadata = map[string]any{"jwks_uri": i.URL + "/jwks?2"} })
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, _ = p.provider("test"); after.keys == before.keys {
		t.Error("the keys of the old address stay")
	}
	// A failure keeps what was known.
	i.set(func() { i.metadata = map[string]any{"issuer": "https://evil.test"} })
	if err := p.Discover(t.Context()); err == nil {
		t.Error("the lie was believed")
	}
	if p.Ready() != nil {
		t.Error("not ready any more")
	}
	if _, err := newBrowser(t).signIn(i, p, "/"); err != nil {
		t.Errorf("sign-in with what was known: %v", err)
	}
}

// Run asks again, ever more slowly, until the provider is there, and then now and
// then; and it ends.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const issuer = "https://idp.test"
		var asked atomic.Int32
		var up atomic.Bool
		p, _ := newParty(t, issuer, nil)
		p.client.Transport = roundTripFunc(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			if !up.Load() {
				return nil, errors.New("connection refused")
			}
			w := httptest.NewRecorder()
			_ = json.NewEncoder(w).Encode(map[string]any{
				"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t", "jwks_uri": issuer + "/j",
			})
			return w.Result(), nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			p.Run(ctx)
			close(done)
		}()
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times at once", n)
		}
		time.Sleep(minRetry)
		synctest.Wait()
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times after %v", n, minRetry)
		}
		if err := p.Ready(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("ready: %v", err)
		}
		time.Sleep(10 * time.Minute)
		before := asked.Load()
		if before > 40 || before < 20 {
			t.Errorf("asked %d times in ten minutes", before)
		}
		up.Store(true)
		time.Sleep(maxRetry)
		if err := p.Ready(); err != nil || asked.Load() != before+1 {
			t.Errorf("%v, asked %d times more", err, asked.Load()-before)
		}
		time.Sleep(rediscovery)
		if n := asked.Load() - before; n != 2 {
			t.Errorf("asked %d times more within the hour", n)
		}
		cancel()
		<-done
	})
}
