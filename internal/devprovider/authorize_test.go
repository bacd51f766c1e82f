package devprovider_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// What is wrong with a request whose client and redirect URI are right goes back to the
// client, with its state and our issuer (RFC 6749 §4.1.2.1, RFC 9207 §2).
func TestAuthorizationErrorsGoToTheClient(t *testing.T) {
	r := newRig(t)
	tests := []struct {
		name   string
		change []string
		want   string
	}{
		{"no PKCE", []string{"code_challenge", "", "code_challenge_method", ""}, "invalid_request"},
		{"plain PKCE", []string{"code_challenge_method", "plain", "code_challenge", verifier}, "invalid_request"},
		{"plain PKCE by default", []string{"code_challenge_method", ""}, "invalid_request"},
		{"a short challenge", []string{"code_challenge", "abc"}, "invalid_request"},
		{"implicit flow", []string{"response_type", "id_token"}, "unsupported_response_type"},
		{"hybrid flow", []string{"response_type", "code id_token"}, "unsupported_response_type"},
		{"no response type", []string{"response_type", ""}, "invalid_request"},
		{"fragment", []string{"response_mode", "fragment"}, "invalid_request"},
		{"no openid", []string{"scope", "profile"}, "invalid_scope"},
		{"request object", []string{"request", "ey"}, "request_not_supported"},
		{"request object by reference", []string{"request_uri", "https://a.example"}, "request_uri_not_supported"},
		{"unknown prompt", []string{"prompt", `"<create>`}, "invalid_request"},
		{"none and login", []string{"prompt", "none login"}, "invalid_request"},
		{"negative max_age", []string{"max_age", "-1"}, "invalid_request"},
		{"nobody signed in", []string{"prompt", "none"}, "login_required"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			page := r.open(t, r.authURL(tt.change...))
			q := page.URL.Query()
			if !strings.HasPrefix(page.URL.String(), r.oauth.RedirectURL+"?") || q.Get("error") != tt.want ||
				q.Get("state") != state || q.Get("iss") != r.issuer || q.Has("code") {
				t.Errorf("called back at %s", page.URL)
			}
		})
	}
	t.Run("a parameter twice", func(t *testing.T) {
		page := r.open(t, r.authURL()+"&nonce=another")
		if page.URL.Query().Get("error") != "invalid_request" {
			t.Errorf("called back at %s", page.URL)
		}
	})
	t.Run("the state twice", func(t *testing.T) {
		page := r.open(t, r.authURL()+"&state=another")
		if q := page.URL.Query(); q.Get("error") != "invalid_request" || q.Has("state") {
			t.Errorf("called back at %s", page.URL)
		}
	})
}

// Where client or redirect URI are wrong there is nowhere to send anybody.
func TestAuthorizationErrorsStayHere(t *testing.T) {
	r := newRig(t)
	r.signIn(t, "alice") // a session must make no difference
	for name, url := range map[string]string{
		"unknown client":       r.authURL("client_id", "nobody"),
		"no client":            r.authURL("client_id", ""),
		"no redirect URI":      r.authURL("redirect_uri", ""),
		"another path":         r.authURL("redirect_uri", r.client+"/callback/x"),
		"another query":        r.authURL("redirect_uri", r.client+"/callback?tenant=b"),
		"another host":         r.authURL("redirect_uri", "http://evil.example/callback"),
		"upper case":           r.authURL("redirect_uri", strings.ToUpper(r.client)+"/callback"),
		"another client's":     r.authURL("client_id", "other", "redirect_uri", r.client+"/callback?tenant=a"),
		"two redirect URIs":    r.authURL() + "&redirect_uri=http%3A%2F%2Fevil.example",
		"two clients":          r.authURL() + "&client_id=other",
		"markup in the client": r.authURL("client_id", "<script>"),
	} {
		page := r.open(t, url)
		if page.Status != http.StatusBadRequest || len(page.Redirects) > 0 || strings.Contains(page.Body, "<script>") {
			t.Errorf("%s: %d, redirects %v", name, page.Status, page.Redirects)
		}
	}
}

func TestRedirectURIKeepsItsQuery(t *testing.T) {
	r := newRig(t)
	page, err := r.browser.SignIn(t.Context(), r.authURL("redirect_uri", r.client+"/callback?tenant=a"), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if q := page.URL.Query(); q.Get("tenant") != "a" || q.Get("code") == "" {
		t.Errorf("called back at %s", page.URL)
	}
}

func TestWrongPassword(t *testing.T) {
	r := newRig(t)
	for _, fields := range []map[string]string{
		{"username": "alice", "password": "bob"},
		{"username": "alice", "password": ""},
		{"username": `nobody"><b>`, "password": "nobody"},
	} {
		page := r.submit(t, r.open(t, r.authURL()), fields)
		if page.Status != http.StatusForbidden || !strings.Contains(page.Body, "go together") || strings.Contains(page.Body, "<b>") {
			t.Errorf("%v: %d", fields, page.Status)
		}
		if len(r.cookies(t)) > 0 {
			t.Errorf("%v: got a session", fields)
		}
	}
	page := r.submit(t, r.open(t, r.authURL()), map[string]string{"username": "alice", "password": "alcie"})
	if !strings.Contains(page.Body, `name="username" value="alice"`) {
		t.Error("the user name is gone")
	}
	// The form still works.
	if page = r.submit(t, page, map[string]string{"password": "alice"}); page.URL.Query().Get("code") == "" {
		t.Errorf("second try ended at %s", page.URL)
	}
}

func (r *rig) cookies(t *testing.T) []*http.Cookie {
	t.Helper()
	u, err := url.Parse(r.issuer + "/connect/authorize")
	if err != nil {
		t.Fatal(err)
	}
	return r.browser.Jar.Cookies(u)
}

// A-O18: a POST with a password is answered by 303, and by nothing that repeats it.
func TestSignInRedirectsWith303(t *testing.T) {
	r := newRig(t)
	action := strings.Replace(r.authURL(), "/authorize", "/sign_in", 1)
	page := r.fetch(t, "POST", action, "username=alice&password=alice")
	if page.Status != http.StatusSeeOther {
		t.Errorf("status %d", page.Status)
	}
	cookie := page.Header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Lax", "Path=/connect/"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("the session cookie lacks %s", want)
		}
	}
}

// Nobody can be signed in, or out, by a form on a foreign page.
func TestForeignFormsAreRefused(t *testing.T) {
	r := newRig(t)
	signIn := strings.Replace(r.authURL(), "/authorize", "/sign_in", 1)
	for _, headers := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"}, // another port of this host
		{"Origin", "http://evil.example"},
		{"Origin", "null"},
	} {
		page := r.fetch(t, "POST", signIn, "username=alice&password=alice", headers...)
		if page.Status != http.StatusForbidden || page.Header.Get("Set-Cookie") != "" {
			t.Errorf("sign_in with %v: %d", headers, page.Status)
		}
	}
	r.signIn(t, "alice")
	page := r.fetch(t, "POST", r.issuer+"/connect/sign_out", "a=b", "Sec-Fetch-Site", "cross-site")
	if page.Status != http.StatusForbidden || page.Header.Get("Set-Cookie") != "" {
		t.Errorf("sign_out: %d", page.Status)
	}
}

func TestSingleSignOn(t *testing.T) {
	r := newRig(t)
	first, _ := r.idToken(t, r.exchange(t, r.signIn(t, "alice")))
	asks := func(change ...string) bool {
		page := r.open(t, r.authURL(change...))
		return strings.Contains(page.Body, `name="password"`)
	}
	tests := []struct {
		name   string
		change []string
		asks   bool
	}{
		{"again", nil, false},
		{"prompt=none", []string{"prompt", "none"}, false},
		{"consent is not asked for", []string{"prompt", "consent"}, false},
		{"recent enough", []string{"max_age", "3600"}, false},
		{"another client", []string{"client_id", "other"}, false},
		{"prompt=login", []string{"prompt", "login"}, true},
		{"prompt=select_account", []string{"prompt", "select_account"}, true},
		{"max_age=0", []string{"max_age", "0"}, true},
	}
	for _, tt := range tests {
		if got := asks(tt.change...); got != tt.asks {
			t.Errorf("%s: asks for a password: %v, want %v", tt.name, got, tt.asks)
		}
	}
	if page := r.open(t, r.authURL("prompt", "none", "max_age", "0")); page.URL.Query().Get("error") != "login_required" {
		t.Errorf("prompt=none with max_age=0 ended at %s", page.URL)
	}
	if page := r.open(t, r.authURL("prompt", "login", "login_hint", "bob")); !strings.Contains(page.Body, `value="bob"`) {
		t.Error("login_hint is not in the form")
	}

	before := r.cookies(t)[0].Value
	again, _ := r.idToken(t, r.exchange(t, r.signIn(t, "alice", "prompt", "login")))
	if sid(t, again) != sid(t, first) || r.cookies(t)[0].Value == before {
		t.Error("the same person's new sign-in is another session, or has the old cookie")
	}
	bob, _ := r.idToken(t, r.exchange(t, r.signIn(t, "bob", "prompt", "login")))
	if bob.Subject != "bob" || sid(t, bob) == sid(t, first) {
		t.Error("bob is in alice's session")
	}
}

// Somebody else's sign-in in the same browser ends what was granted before.
func TestAnotherPersonEndsTheSession(t *testing.T) {
	r := newRig(t)
	alice := r.exchange(t, r.signIn(t, "alice"))
	r.exchange(t, r.signIn(t, "bob", "prompt", "login"))
	if _, err := r.refresh(t.Context(), alice.RefreshToken); tokenError(err) != "invalid_grant" {
		t.Errorf("refresh: %v", err)
	}
	if got := r.userinfo(t, alice.AccessToken); got != http.StatusUnauthorized {
		t.Errorf("userinfo: %d", got)
	}
}

func TestAuthorizeTakesPost(t *testing.T) {
	r := newRig(t)
	_, query, _ := strings.Cut(r.authURL(), "?")
	page := r.fetch(t, "POST", r.issuer+"/connect/authorize", query)
	if page.Status != http.StatusOK || !strings.Contains(page.Body, `name="username"`) {
		t.Errorf("answer %d", page.Status)
	}
}

func TestCancel(t *testing.T) {
	r := newRig(t)
	form := r.open(t, r.authURL())
	if !strings.Contains(form.Body, "error=access_denied") {
		t.Error("there is no way to cancel")
	}
}

func TestReloadedFormStartsOver(t *testing.T) {
	r := newRig(t)
	page := r.open(t, strings.Replace(r.authURL(), "/authorize", "/sign_in", 1))
	if page.Status != http.StatusOK || page.URL.Path != "/connect/authorize" || !strings.Contains(page.Body, `name="username"`) {
		t.Errorf("%d at %s", page.Status, page.URL)
	}
}

// The form's Content-Security-Policy holds for the redirects that follow, which only a
// real browser enforces.
func TestSignInAndOutInChromium(t *testing.T) {
	r := newRig(t)
	ctx := testenv.StartChromium(t)
	arrives := func(path string) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); ; {
			at, err := chromedp.Run(ctx, chromedp.Location())
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(at, r.client+path) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the browser is at %s, not at %s", at, path)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	err := chromedp.Do(ctx,
		chromedp.Navigate(r.authURL()),
		chromedp.SendKeys(chromedp.CSS("#username"), "alice"),
		chromedp.SendKeys(chromedp.CSS("#password"), "alice"),
		chromedp.Click(chromedp.CSS("button")),
	)
	if err != nil {
		t.Fatal(err)
	}
	arrives("/callback?code=")
	err = chromedp.Do(ctx,
		chromedp.Navigate(r.issuer+"/connect/end_session?client_id=web&post_logout_redirect_uri="+url.QueryEscape(r.client+"/bye")),
		chromedp.Click(chromedp.CSS("button")),
	)
	if err != nil {
		t.Fatal(err)
	}
	arrives("/bye")
}
