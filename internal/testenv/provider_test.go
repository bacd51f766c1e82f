package testenv

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"
)

// relyingParty is the least that can sign somebody in: it answers the callback with
// the claims of the ID token, those of userinfo in a second field, and the refresh token.
func relyingParty(t *testing.T) (start string, connect func(*Provider)) {
	var p *Provider
	var config oauth2.Config
	var issuer *oidc.Provider
	const verifier = "a-verifier-that-is-long-enough-for-RFC-7636-4.1"
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("/start", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, config.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), http.StatusFound)
	})
	mux.HandleFunc("/callback", func(w http.ResponseWriter, r *http.Request) {
		token, err := config.Exchange(p.context(t), r.FormValue("code"), oauth2.VerifierOption(verifier))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		raw, _ := token.Extra("id_token").(string)
		id, err := issuer.Verifier(&oidc.Config{ClientID: p.ClientID}).Verify(r.Context(), raw)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		info, err := issuer.UserInfo(r.Context(), oauth2.StaticTokenSource(token))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		var idClaims, infoClaims map[string]any
		if err := id.Claims(&idClaims); err != nil {
			t.Error(err)
		}
		if err := info.Claims(&infoClaims); err != nil {
			t.Error(err)
		}
		if token.RefreshToken == "" {
			t.Error("no refresh token")
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"id": idClaims, "info": infoClaims, "refresh": token.RefreshToken})
	})
	return server.URL + "/start", func(running *Provider) {
		p = running
		var err error
		if issuer, err = oidc.NewProvider(t.Context(), p.Issuer); err != nil {
			t.Fatal(err)
		}
		config = oauth2.Config{
			ClientID:     p.ClientID,
			ClientSecret: p.ClientSecret,
			Endpoint:     issuer.Endpoint(),
			RedirectURL:  strings.TrimSuffix(server.URL, "/") + "/callback",
			Scopes:       []string{"openid", "profile", "email"},
		}
	}
}

func callbackOf(start string) []string {
	return []string{strings.TrimSuffix(start, "/start") + "/callback"}
}

func TestProviderSignsPeopleIn(t *testing.T) {
	for _, conform := range []bool{true, false} {
		t.Run(fmt.Sprintf("conform=%t", conform), func(t *testing.T) {
			start, connect := relyingParty(t)
			p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start), ConformIDTokenClaims: conform})
			connect(p)

			b := NewBrowser(t)
			page, err := b.SignIn(t.Context(), start, "alice")
			if err != nil {
				t.Fatal(err)
			}
			var claims struct{ ID, Info map[string]any }
			if err := json.Unmarshal([]byte(page.Body), &claims); err != nil {
				t.Fatalf("%v: %s", err, page.Body)
			}
			if claims.ID["sub"] != "alice" || claims.Info["email"] != "alice@example.com" ||
				claims.Info["email_verified"] != true || fmt.Sprint(claims.Info["groups"]) != "[admins staff]" {
				t.Errorf("claims = %+v", claims)
			}
			if _, inToken := claims.ID["email"]; inToken == conform {
				t.Errorf("e-mail in the ID token: %t", inToken)
			}

			// The provider has a session now: no form, no password.
			if page, err = b.Open(t.Context(), start); err != nil || page.Status != http.StatusOK {
				t.Errorf("second sign-in: %+v, %v", page, err)
			}
			if c := p.Counts(); c.Token != 2 || c.UserInfo != 2 || c.Authorize != 2 || c.Discovery != 1 {
				t.Errorf("counts = %+v", c)
			}
		})
	}
}

func TestProviderRefuses(t *testing.T) {
	start, connect := relyingParty(t)
	p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start)})
	connect(p)
	b := NewBrowser(t)

	page, err := b.SignIn(t.Context(), start, "mallory")
	if err != nil || page.Status != http.StatusUnauthorized {
		t.Errorf("an unknown user: %+v, %v", page, err)
	}
	page, err = b.Submit(t.Context(), page, map[string]string{"username": "bob", "password": "alice"})
	if err != nil || page.Status != http.StatusUnauthorized {
		t.Errorf("a wrong password: %+v, %v", page, err)
	}
	page, err = b.Submit(t.Context(), page, map[string]string{"username": "bob", "password": "bob"})
	if err != nil || page.Status != http.StatusOK {
		t.Errorf("the right password then: %+v, %v", page, err)
	}

	withoutPKCE := p.Issuer + "/auth?" + url.Values{
		"client_id": {p.ClientID}, "response_type": {"code"}, "scope": {"openid"}, "redirect_uri": callbackOf(start),
	}.Encode()
	page, err = b.Open(t.Context(), withoutPKCE)
	if err != nil || page.URL.Query().Get("error") != "invalid_request" {
		t.Errorf("without PKCE: %+v, %v", page, err)
	}
}

func TestProviderRestartKeepsItsClient(t *testing.T) {
	start, connect := relyingParty(t)
	p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start)})
	p.Kill()
	p.Restart()
	connect(p)
	if page, err := NewBrowser(t).SignIn(t.Context(), start, "carol"); err != nil || page.Status != http.StatusOK {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestProviderSignsTwoHundredPeopleIn(t *testing.T) {
	start, connect := relyingParty(t)
	p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start)})
	connect(p)
	var g errgroup.Group
	g.SetLimit(16)
	for i := range 200 {
		b := NewBrowser(t)
		g.Go(func() error {
			page, err := b.SignIn(t.Context(), start, fmt.Sprintf("u%d", i))
			if err == nil && !strings.Contains(page.Body, fmt.Sprintf(`"u%d@example.com"`, i)) {
				err = fmt.Errorf("u%d: %d at %s: %s", i, page.Status, page.URL, page.Body)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestNodeIsNewEnough(t *testing.T) {
	for version, want := range map[string]bool{
		"v20.12.0\n": true, "v22.0.1": true, "v100.1.1": true,
		"v20.11.9": false, "v18.20.4": false, "": false, "v22": false, "vx.y.z": false,
	} {
		if got := nodeIsNewEnough(version); got != want {
			t.Errorf("nodeIsNewEnough(%q) = %t", version, got)
		}
	}
}
