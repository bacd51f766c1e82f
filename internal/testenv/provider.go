package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ProviderOptions are the settings of an independent OpenID provider.
type ProviderOptions struct {
	RedirectURIs           []string // where sign-ins may end; at least one
	PostLogoutRedirectURIs []string
	BackchannelLogoutURI   string // empty: no back-channel logout
	// ConformIDTokenClaims follows OpenID Connect Core 1.0 §5.4 to the letter: the
	// claims of a scope come from the userinfo endpoint. False: they are in the ID
	// token as well.
	ConformIDTokenClaims bool
	// AccessTokenLifetime is in whole seconds. Zero: an hour.
	AccessTokenLifetime time.Duration
	// Faults puts a ProviderProxy in front of the provider.
	Faults bool
}

// A Provider is a running OpenID provider that is not our own: the certified npm
// package oidc-provider in e2e/provider. It demands PKCE with S256, rotates refresh
// tokens and answers a replayed one by revoking the grant. It knows alice (in the
// group admins), bob, carol and u0 to u999; everybody is in staff, the password is
// the user name, and the e-mail address user@example.com is verified.
type Provider struct {
	Issuer       string
	ClientID     string
	ClientSecret string
	Proxy        *ProviderProxy // nil without ProviderOptions.Faults

	t       testing.TB
	direct  string // where the process itself listens
	command Command
	process *Process
}

// StartProvider starts a provider with one client.
func StartProvider(t testing.TB, o ProviderOptions) *Provider {
	t.Helper()
	node := requireNode(t)
	dir := filepath.Join(moduleRoot(t), "e2e", "provider")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "oidc-provider")); err != nil {
		missing(t, "the packages of e2e/provider are not installed (make deps)")
	}

	port := FreePort(t)
	p := &Provider{
		Issuer:       "http://" + Loopback(port),
		ClientID:     "coatcheck",
		ClientSecret: rand.Text(),
		t:            t,
		direct:       "http://" + Loopback(port),
	}
	if o.Faults {
		p.Proxy = startProviderProxy(t, Loopback(port))
		p.Issuer = p.Proxy.issuer
	}
	client := map[string]any{ // RFC 7591 §2
		"client_id":                 p.ClientID,
		"client_secret":             p.ClientSecret,
		"redirect_uris":             o.RedirectURIs,
		"post_logout_redirect_uris": append([]string{}, o.PostLogoutRedirectURIs...),
	}
	if o.BackchannelLogoutURI != "" {
		client["backchannel_logout_uri"] = o.BackchannelLogoutURI
		client["backchannel_logout_session_required"] = true
	}
	config, err := json.Marshal(map[string]any{
		"issuer":               p.Issuer,
		"port":                 port,
		"conformIdTokenClaims": o.ConformIDTokenClaims,
		"accessTokenLifetime":  int(o.AccessTokenLifetime.Seconds()),
		"clients":              []any{client},
	})
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	file := filepath.Join(t.TempDir(), "provider.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	p.command = Command{
		Path:  node,
		Args:  []string{"provider.mjs", file},
		Dir:   dir,
		Ready: func(ctx context.Context) error { return p.ask(ctx, http.MethodGet, "/_counts", nil, new(Counts)) },
	}
	p.process = Start(t, p.command)
	return p
}

// Counts says how often each endpoint of a Provider was asked since it started.
type Counts struct {
	Discovery  int `json:"discovery"`
	Authorize  int `json:"authorize"`
	Token      int `json:"token"`
	Revocation int `json:"revocation"`
	UserInfo   int `json:"userinfo"`
	JWKS       int `json:"jwks"`
	EndSession int `json:"end_session"`
}

// Counts asks the provider, which must be running.
func (p *Provider) Counts() Counts {
	p.t.Helper()
	var c Counts
	p.mustAsk(http.MethodGet, "/_counts", nil, &c)
	return c
}

// Refreshes says what has become of a Provider's refresh tokens since it started.
type Refreshes struct {
	Total   int `json:"total"`   // how often any was redeemed, by a client that the provider knows
	Most    int `json:"most"`    // how often the one was that was redeemed most often
	Refused int `json:"refused"` // how many of Total got nothing
	Live    int `json:"live"`    // how many could be redeemed now
}

// Refreshes asks the provider, which must be running.
func (p *Provider) Refreshes() Refreshes {
	p.t.Helper()
	var r Refreshes
	p.mustAsk(http.MethodGet, "/_refreshes", nil, &r)
	return r
}

// SetGroups changes the groups of a person.
func (p *Provider) SetGroups(username string, groups ...string) {
	p.t.Helper()
	p.mustAsk(http.MethodPost, "/_people", map[string]any{"sub": username, "groups": append([]string{}, groups...)}, &struct{}{})
}

// Disable closes the account of a person, who can't sign in any more and gets no tokens.
func (p *Provider) Disable(username string) {
	p.t.Helper()
	p.mustAsk(http.MethodPost, "/_people", map[string]any{"sub": username, "disabled": true}, &struct{}{})
}

// Stop ends the provider in an orderly way.
func (p *Provider) Stop() { p.process.Stop() }

// Kill ends the provider at once (SIGKILL).
func (p *Provider) Kill() { p.process.Kill() }

// Restart ends the provider if it runs and starts it again under the same issuer
// and for the same client. It has forgotten everything else: its sessions, its tokens,
// its counts and what it was told of people; its signing keys are new.
func (p *Provider) Restart() {
	p.t.Helper()
	p.process.Stop()
	p.process = Start(p.t, p.command)
}

func (p *Provider) mustAsk(method, path string, body, into any) {
	p.t.Helper()
	if err := p.ask(p.t.Context(), method, path, body, into); err != nil {
		p.t.Fatalf("testenv: provider: %v", err)
	}
}

// ask asks one of the provider's endpoints for tests, past the proxy.
func (p *Provider) ask(ctx context.Context, method, path string, body, into any) error {
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.direct+path, &text)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// requireNode returns a Node.js that runs the provider: 20.12 or newer, the first to
// have crypto.hash. It is the one in PATH or the one that scripts/setup.sh keeps in
// .tools.
func requireNode(t testing.TB) string {
	t.Helper()
	candidates := []string{filepath.Join(moduleRoot(t), ".tools", "node_modules", ".bin", "node")}
	if path, err := exec.LookPath("node"); err == nil {
		candidates = append([]string{path}, candidates...)
	}
	for _, path := range candidates {
		if out, err := exec.Command(path, "--version").Output(); err == nil && nodeIsNewEnough(string(out)) {
			return path
		}
	}
	missing(t, "Node.js 20.12 or newer is not installed (on Debian: make deps)")
	return ""
}

// nodeIsNewEnough reads what node --version prints, as in "v20.12.0\n".
func nodeIsNewEnough(version string) bool {
	parts := strings.SplitN(strings.TrimPrefix(strings.TrimSpace(version), "v"), ".", 3)
	if len(parts) != 3 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return false
	}
	return major > 20 || major == 20 && minor >= 12
}

// missing skips the test for want of something that can be installed, or fails it
// where COATCHECK_TEST_REQUIRE=1 is set.
func missing(t testing.TB, what string) {
	t.Helper()
	if Required() {
		t.Fatal(what)
	}
	t.Skip(what)
}

// moduleRoot returns the folder of go.mod above the test's own.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("testenv: no go.mod above the test's folder")
		}
		dir = parent
	}
}
