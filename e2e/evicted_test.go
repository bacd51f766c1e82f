package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// startLimited starts three nodes with limits of sessions, in YAML.
func startLimited(t *testing.T, limits, more string) *cluster {
	t.Helper()
	port := testenv.FreePort(t)
	return startCluster(t, clusterOptions{
		port:   port,
		third:  true,
		client: startDevProvider(t, "http://"+testenv.Loopback(port)),
		more:   "session: {limits: " + limits + "}\n" + more,
	})
}

// A-S3: with a limit of two, the third sign-in signs the first one out, and the person who
// sat there is told why: on the next page, to a script, and to an open WebSocket.
func TestBrowserIsEvicted(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLimited(t, "{per_user: 2, on_limit: evict_oldest}", "")
	b := openBrowser(t)
	b.open(c.url + "/page?x=1")
	b.signIn("alice")
	b.awaitPage("Hello, alice")
	b.await(`document.querySelector("#ws-state").innerText === "open"`)
	second := signInGuest(t, c.url, "alice")
	if f := b.fetch("/whoami", "{}"); f.Status != http.StatusOK {
		t.Errorf("with two sessions: %+v", f)
	}

	other := openBrowser(t)
	other.open(c.url)
	other.signIn("alice")
	other.awaitPage("Hello, alice")
	b.await(`document.querySelector("#ws-state").innerText === "closed (1008, session_ended)"`)
	f := b.fetch("/whoami", "{}")
	var said struct{ Error, Reason, Message string }
	if err := json.Unmarshal([]byte(f.Body), &said); err != nil || f.Status != http.StatusUnauthorized || f.Redirected ||
		said.Error != "session_ended" || said.Reason != "evicted" || !strings.Contains(said.Message, "another device") {
		t.Errorf("a script: %+v, %v", f, err)
	}
	if status := b.open(c.url + "/page?x=2"); status != http.StatusUnauthorized {
		t.Errorf("the page: %d", status)
	}
	b.awaitPage("You were signed out")
	if text := b.text("main"); !strings.Contains(text, "because you signed in on another device") {
		t.Errorf("the page says %q", text)
	}
	b.picture("evicted")
	b.legible()
	checkServed(t, c.url, []guest{second})

	// The page's button leads back to where the person was going, and now it is the second
	// session that has to give way.
	b.click(".primary")
	b.awaitPage("Hello, alice")
	if got, want := b.location(), c.url+"/page?x=2"; got != want {
		t.Errorf("the page's button leads to %s, not to %s", got, want)
	}
	checkEnded(t, newSender(t), request{url: c.url + "/whoami"}, second, coatcheck.ReasonEvicted)
	if f := other.fetch("/whoami", "{}"); f.Status != http.StatusOK {
		t.Errorf("the third session: %+v", f)
	}
}

// A-S3: the same limit, where nobody gives way.
func TestBrowserIsDenied(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLimited(t, "{per_user: 2, on_limit: deny}", "")
	first, second := signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "alice")
	b := openBrowser(t)
	b.open(c.url + "/page?x=1")
	b.signIn("alice")
	b.awaitPage("You are signed in on too many devices")
	b.picture("denied")
	b.legible()
	if kept := b.cookies(); len(kept) > 0 {
		t.Errorf("who was denied has the cookie %s", kept[0].Name)
	}
	checkServed(t, c.url, []guest{first, second})

	s := newSender(t)
	page := s.mustSend(t, request{method: http.MethodPost, url: c.url + "/oauth2/sign_out", cookie: first.asCookie(), header: asScript})
	if sets(page, sessionCookie) || page.Header.Get("Set-Cookie") == "" {
		t.Errorf("signing out: %d %v", page.Status, page.Header)
	}
	b.click(".primary")
	b.awaitPage("Hello, alice")
	if got, want := b.location(), c.url+"/page?x=1"; got != want {
		t.Errorf("the page's button leads to %s, not to %s", got, want)
	}
	checkServed(t, c.url, []guest{second})
}

// picture takes a picture of the page for people to look at, where the environment names a
// folder for them.
func (b *tab) picture(name string) {
	b.t.Helper()
	folder := os.Getenv("COATCHECK_TEST_PICTURES")
	if folder == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, name+".png"), png, 0o600)
	}
	if err != nil {
		b.t.Error(err)
	}
}
