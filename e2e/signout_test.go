package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-L1, A-L3, A-C15, A-C17: a sign-out ends the session on every node and at the
// provider, and comes back to where it was asked to. A-O2: a sign-in is completed once.
func TestSignOut(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startCluster(t, clusterOptions{})
	s := newSender(t)

	t.Run("everywhere", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		alice, err := newGuest(t, b, c.url, "alice")
		if err != nil {
			t.Fatal(err)
		}
		other := signInGuest(t, c.url, "alice") // on another device
		ended := c.provider.Counts().EndSession

		// A typed address asks first.
		page, err := b.Open(t.Context(), c.url+"/oauth2/sign_out?rd=/whoami%3Ffrom=sign-out")
		if err != nil || page.Status != http.StatusOK || !strings.Contains(page.Body, "Sign out?") {
			t.Fatalf("the confirm page: %+v, %v", page, err)
		}
		checkServed(t, c.url, []guest{alice})

		// Its button ends the session here; then the provider asks on its own account.
		page, err = b.Submit(t.Context(), page, nil)
		if err != nil || page.Status != http.StatusOK || !strings.HasPrefix(page.URL.String(), c.provider.Issuer+"/session/end?") {
			t.Fatalf("the confirm page's form led to %+v, %v", page, err)
		}
		query := page.URL.Query()
		if query.Get("client_id") != c.provider.ClientID || query.Get("state") == "" || query.Has("id_token_hint") ||
			query.Get("post_logout_redirect_uri") != c.url+"/oauth2/sign_out/done" {
			t.Errorf("the provider is asked with %v", query)
		}
		for _, n := range c.nodes {
			checkEnded(t, s, c.at(n, request{url: "/whoami"}), alice, coatcheck.ReasonSignedOut)
		}
		for _, cookie := range cookiesOf(b, c.url) {
			if strings.Contains(cookie.Name, "coatcheck") {
				t.Errorf("the browser still holds %s", cookie.Name)
			}
		}

		// From there the browser comes back to the address that was asked for, as
		// nobody: the provider shows its form again.
		page, err = b.Submit(t.Context(), page, nil)
		if err != nil || page.Status != http.StatusOK || !strings.Contains(page.Body, `name="password"`) {
			t.Fatalf("after the provider's sign-out: %+v, %v", page, err)
		}
		if !strings.Contains(strings.Join(page.Redirects, "\n"), c.url+"/whoami?from=sign-out\n") {
			t.Errorf("the way back was %q", page.Redirects)
		}
		if got := c.provider.Counts().EndSession - ended; got != 1 {
			t.Errorf("the provider's end_session was asked %d times", got)
		}
		checkServed(t, c.url, []guest{other})
	})

	// The state of the way back is ours or of no effect (A-R12).
	t.Run("the way back is not anybody's to choose", func(t *testing.T) {
		for _, query := range []string{"", "?state=https://evil.com", "?state=%2Fwhoami", "?rd=https://evil.com"} {
			page := s.mustSend(t, request{url: c.url + "/oauth2/sign_out/done" + query, header: asNavigation})
			if page.Status != http.StatusOK || !strings.Contains(page.Body, "You are signed out") {
				t.Errorf("%q: %d to %s", query, page.Status, page.Header.Get("Location"))
			}
		}
	})

	t.Run("a callback is used once", func(t *testing.T) {
		b := testenv.NewBrowser(t)
		signIn(t, b, c.url+"/whoami", "bob")
		before := c.provider.Counts().Token
		callback := pendingCallback(t, b, c.url)
		u, err := url.Parse(callback)
		if err != nil {
			t.Fatal(err)
		}
		saved := asHeader(cookiesOf(b, c.url))

		// All at once, on both nodes, with everything that the browser had.
		pages := make([]*testenv.Page, 2*len(c.nodes))
		var all sync.WaitGroup
		i := 0
		for range len(pages) / len(c.nodes) {
			for _, n := range c.nodes {
				r := c.at(n, request{url: u.RequestURI(), cookie: saved, header: asNavigation})
				place := &pages[i]
				all.Go(func() { *place, _ = s.send(r) })
				i++
			}
		}
		all.Wait()
		// And once more afterwards.
		for _, n := range c.nodes {
			pages = append(pages, s.mustSend(t, c.at(n, request{url: u.RequestURI(), cookie: saved, header: asNavigation})))
		}
		completed := 0
		for _, page := range pages {
			switch {
			case page == nil:
				t.Error("no answer")
			case page.Status == http.StatusSeeOther && page.Header.Get("Location") == "/whoami":
				completed++
			case page.Status != http.StatusBadRequest || sets(page, sessionCookie):
				t.Errorf("a replay: %d %q", page.Status, page.Header)
			}
		}
		if asked := c.provider.Counts().Token - before; completed != 1 || asked != 1 {
			t.Errorf("%d of %d callbacks made a session, with %d token requests; want one of each", completed, len(pages), asked)
		}
	})
}

// asHeader returns the Cookie header that sends these cookies.
func asHeader(cookies []*http.Cookie) string {
	var pairs []string
	for _, c := range cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; ")
}

// sets tells whether an answer gives the browser a cookie, in contrast to clearing it.
func sets(page *testenv.Page, name string) bool {
	for _, line := range page.Header.Values("Set-Cookie") {
		if c, err := http.ParseSetCookie(line); err != nil || c.Name == name && c.Value != "" && c.MaxAge >= 0 {
			return true
		}
	}
	return false
}
