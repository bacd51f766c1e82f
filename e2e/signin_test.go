package e2e

import (
	"context"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// TestSignIn is the main job on one machine, against the certified provider: claims in
// the ID token, and claims from the userinfo endpoint.
func TestSignIn(t *testing.T) {
	t.Parallel() // it waits, mostly
	port := testenv.FreePort(t)
	public := "http://" + testenv.Loopback(port)
	for _, tt := range []struct {
		name     string
		userinfo bool
	}{
		{"claims in the ID token", false},
		{"claims from userinfo", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			provider := testenv.StartProvider(t, testenv.ProviderOptions{
				RedirectURIs:         []string{public + "/oauth2/callback"},
				ConformIDTokenClaims: tt.userinfo,
			})
			n := startNode(t, nodeOptions{
				port:     port,
				client:   client{provider.Issuer, provider.ClientID, provider.ClientSecret},
				upstream: startApp(t, "app"),
			})
			n.awaitSignIn()
			browser := testenv.NewBrowser(t)
			page, err := browser.SignIn(context.Background(), n.url+"/whoami?x=%2F", "alice")
			who := whoami(t, page, err)
			if who.User != "alice" || who.Email != "alice@example.com" || len(who.Groups) == 0 {
				t.Errorf("the app sees %+v", who)
			}
			if page.URL.RequestURI() != "/whoami?x=%2F" {
				t.Errorf("the sign-in led to %s", page.URL.RequestURI())
			}
			n.Stop()
		})
	}
}
