package e2e

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-L16, A-L2: a person ends sessions of their own from another one: one by the button of the
// page, then all others. Every node hears of it, open WebSockets close, and with escrow the
// provider is told to take back what it had granted.
func TestEndSessionsElsewhere(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLogoutCluster(t, clusterOptions{more: "session: {escrow: true}\n"}, asItIs)
	s := newSender(t)
	others := []guest{signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "alice")}
	bob := signInGuest(t, c.url, "bob")
	sockets := make([]*websocket.Conn, len(others))
	for i, g := range others {
		_, sockets[i] = c.dial(g)
	}
	b := testenv.NewBrowser(t)
	alice, err := newGuest(t, b, c.url, "alice")
	if err != nil {
		t.Fatal(err)
	}
	granted := c.provider.Refreshes().Live

	page, err := b.Open(t.Context(), c.url+"/oauth2/sessions")
	if err != nil || page.Status != http.StatusOK || strings.Count(page.Body, "<li>") != 1+len(others) {
		t.Fatalf("the page of sessions: %+v, %v", page, err)
	}
	for _, who := range append(others, alice, bob) {
		if key, secret, _ := strings.Cut(who.cookie, "."); strings.Contains(page.Body, key) || strings.Contains(page.Body, secret) {
			t.Error("the page shows a part of a ticket")
		}
	}
	end := func(g guest, what string, header ...string) *testenv.Page {
		return s.mustSend(t, request{
			method: http.MethodPost, url: c.url + "/oauth2/sessions", cookie: g.asCookie(), body: "end=" + what,
			header: append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...),
		})
	}
	sameOrigin := []string{"Accept", "application/json", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}
	// Who asks from elsewhere, or for somebody else's, ends nothing.
	if page := end(alice, "others", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"); page.Status != http.StatusForbidden {
		t.Errorf("from another site: %d", page.Status)
	}
	if page := end(alice, string(refOfGuest(bob)), sameOrigin...); page.Status != http.StatusNotFound {
		t.Errorf("bob's session: %d %s", page.Status, page.Body)
	}
	checkServed(t, c.url, append(others, alice, bob))

	if page := end(alice, string(refOfGuest(others[0])), sameOrigin...); page.Status != http.StatusOK {
		t.Fatalf("one session: %d %s", page.Status, page.Body)
	}
	c.denials(t, s, others[0], coatcheck.ReasonSignedOutElsewhere, time.Now(), time.Second)
	checkServed(t, c.url, append(others[1:], alice, bob))
	if page := end(alice, "others", sameOrigin...); page.Status != http.StatusOK || !strings.Contains(page.Body, `"ended":2`) {
		t.Fatalf("all others: %d %s", page.Status, page.Body)
	}
	ended := time.Now()
	for _, g := range others[1:] {
		c.denials(t, s, g, coatcheck.ReasonSignedOutElsewhere, ended, time.Second)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, conn := range sockets {
		_, _, err := conn.Read(ctx)
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.StatusPolicyViolation || closed.Reason != "session_ended" {
			t.Errorf("a WebSocket ended with %v", err)
		}
	}
	checkServed(t, c.url, []guest{alice, bob})
	await(t, "the provider to take back what it had granted to three sessions", func() bool {
		return c.provider.Refreshes().Live == granted-len(others)
	})

	// Everywhere: the browser goes on to the provider, and is nobody here.
	page, err = b.Open(t.Context(), c.url+"/oauth2/sessions")
	if err != nil || !strings.Contains(page.Body, "You are signed in nowhere else.") {
		t.Fatalf("the page of sessions: %+v, %v", page, err)
	}
	page, err = b.Submit(t.Context(), page, map[string]string{"end": "everywhere"})
	if err != nil || !strings.HasPrefix(page.URL.String(), c.provider.Issuer+"/session/end?") {
		t.Fatalf("the page's form led to %+v, %v", page, err)
	}
	c.denials(t, s, alice, coatcheck.ReasonSignedOut, time.Now(), time.Second)
	if cookieOf(b, c.url, sessionCookie) != "" {
		t.Error("the browser keeps its cookie")
	}
	await(t, "the provider to take back what it had granted to the last session", func() bool {
		return c.provider.Refreshes().Live == granted-len(others)-1
	})
	checkServed(t, c.url, []guest{bob})
}

// A-L14: a provider that is gone keeps nobody signed in here.
func TestSignOutWithoutProvider(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startLogoutCluster(t, clusterOptions{more: "session: {escrow: true}\n"}, asItIs)
	s := newSender(t)
	alice, bob := signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "bob")
	c.provider.Kill()
	for i, g := range []guest{alice, bob} {
		began := time.Now()
		c.signOut(t, s, c.nodes[c.names()[i]], g)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s waited %v to be signed out", g.user, took)
		}
		c.denials(t, s, g, coatcheck.ReasonSignedOut, time.Now(), time.Second)
	}
}
