package devprovider_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func (r *rig) endSessionURL(params ...string) string {
	q := url.Values{}
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	return r.issuer + "/connect/end_session?" + q.Encode()
}

func (r *rig) signedIn(t *testing.T) bool {
	t.Helper()
	return r.open(t, r.authURL("prompt", "none")).URL.Query().Has("code")
}

// With a hint that fits, sign-out needs no click, and every token is gone.
func TestEndSessionWithHint(t *testing.T) {
	r := newRig(t)
	token := r.exchange(t, r.signIn(t, "alice"))
	_, hint := r.idToken(t, token)
	page := r.open(t, r.endSessionURL("id_token_hint", hint, "post_logout_redirect_uri", r.client+"/bye", "state", "a b"))
	if page.URL.String() != r.client+"/bye?state=a+b" {
		t.Errorf("ended at %s", page.URL)
	}
	if r.signedIn(t) {
		t.Error("still signed in")
	}
	if _, err := r.refresh(t.Context(), token.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("refresh after sign-out: %v", err)
	}
	if got := r.userinfo(t, token.AccessToken); got != http.StatusUnauthorized {
		t.Errorf("userinfo after sign-out: %d", got)
	}
	// Once more, with nobody there: still back to the client.
	page = r.open(t, r.endSessionURL("id_token_hint", hint, "post_logout_redirect_uri", r.client+"/bye"))
	if page.URL.String() != r.client+"/bye" {
		t.Errorf("second sign-out ended at %s", page.URL)
	}
}

func TestEndSessionTakesPost(t *testing.T) {
	r := newRig(t)
	_, hint := r.idToken(t, r.exchange(t, r.signIn(t, "alice")))
	page := r.fetch(t, "POST", r.issuer+"/connect/end_session", url.Values{"id_token_hint": {hint}}.Encode())
	if page.Status != http.StatusOK || r.signedIn(t) {
		t.Errorf("answer %d, or still signed in", page.Status)
	}
}

// Without a hint, or with one of another session, the person is asked.
func TestEndSessionAsks(t *testing.T) {
	r := newRig(t)
	_, oldHint := r.idToken(t, r.exchange(t, r.signIn(t, "bob")))
	r.signIn(t, "alice", "prompt", "login")
	for name, params := range map[string][]string{
		"nothing at all": nil,
		"client_id":      {"client_id", "web", "post_logout_redirect_uri", r.client + "/bye", "state", "x"},
		"old hint":       {"id_token_hint", oldHint, "post_logout_redirect_uri", r.client + "/bye", "state", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			page := r.open(t, r.endSessionURL(params...))
			if page.Status != http.StatusOK || !strings.Contains(page.Body, "Alice Archer") || strings.Contains(page.Body, oldHint) {
				t.Fatalf("answer %d", page.Status)
			}
			if !r.signedIn(t) {
				t.Fatal("signed out without being asked")
			}
			page = r.submit(t, page, nil)
			if params != nil && page.URL.String() != r.client+"/bye?state=x" {
				t.Errorf("ended at %s", page.URL)
			}
			if params == nil && !strings.Contains(page.Body, "You are signed out") {
				t.Errorf("answer %d at %s", page.Status, page.URL)
			}
			if r.signedIn(t) {
				t.Error("still signed in")
			}
			r.signIn(t, "alice")
		})
	}
}

// A wrong request signs nobody out and leads nowhere.
func TestEndSessionRefuses(t *testing.T) {
	r := newRig(t)
	token := r.exchange(t, r.signIn(t, "alice"))
	_, hint := r.idToken(t, token)
	bye := r.client + "/bye"
	for name, url := range map[string]string{
		"unregistered URI":         r.endSessionURL("id_token_hint", hint, "post_logout_redirect_uri", "http://evil.example/"),
		"longer URI":               r.endSessionURL("id_token_hint", hint, "post_logout_redirect_uri", bye+"/x"),
		"a sign-in's redirect URI": r.endSessionURL("id_token_hint", hint, "post_logout_redirect_uri", r.client+"/callback"),
		"URI without a client":     r.endSessionURL("post_logout_redirect_uri", bye),
		"another client's URI":     r.endSessionURL("client_id", "other", "post_logout_redirect_uri", bye),
		"another client":           r.endSessionURL("id_token_hint", hint, "client_id", "other"),
		"unknown client":           r.endSessionURL("client_id", "nobody"),
		"access token as hint":     r.endSessionURL("id_token_hint", token.AccessToken),
		"garbage as hint":          r.endSessionURL("id_token_hint", "x"),
		"URI twice":                r.endSessionURL("client_id", "web", "post_logout_redirect_uri", bye) + "&post_logout_redirect_uri=x",
	} {
		page := r.open(t, url)
		if page.Status != http.StatusBadRequest || len(page.Redirects) > 0 {
			t.Errorf("%s: %d, redirects %v", name, page.Status, page.Redirects)
		}
	}
	if !r.signedIn(t) {
		t.Error("signed out")
	}
}
