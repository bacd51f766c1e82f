package testenv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"
)

// context returns one in which oauth2 trusts the provider's token endpoint.
func (p *Provider) context(t *testing.T) context.Context {
	return context.WithValue(t.Context(), oauth2.HTTPClient, p.client(t))
}

func (p *Provider) client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	if p.Proxy != nil {
		ca, err := os.ReadFile(p.Proxy.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(ca)
	}
	return &http.Client{Transport: transport}
}

func TestProviderProxy(t *testing.T) {
	start, connect := relyingParty(t)
	p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start), AccessTokenLifetime: 7 * time.Second, Faults: true})
	connect(p)
	page, err := NewBrowser(t).SignIn(t.Context(), start, "alice")
	if err != nil {
		t.Fatal(err)
	}
	var tokens struct {
		Refresh string `json:"refresh"`
	}
	if err := json.Unmarshal([]byte(page.Body), &tokens); err != nil || tokens.Refresh == "" {
		t.Fatalf("%v: %s", err, page.Body)
	}
	client := p.client(t)
	post := func(address string, form url.Values) (status int, body string, err error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(p.ClientSecret))
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text), err
	}
	refresh := func(token string) (status int, body string, err error) {
		return post("https://"+p.Proxy.tokens+"/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
	}
	check := func(what string, passed PassedRefreshes, seen Refreshes) {
		t.Helper()
		if diff := cmp.Diff(passed, p.Proxy.Passed()); diff != "" {
			t.Errorf("%s: what passed (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff(seen, p.Refreshes()); diff != "" {
			t.Errorf("%s: what the provider has seen (-want +got):\n%s", what, diff)
		}
	}
	check("at first", PassedRefreshes{}, Refreshes{Live: 1})

	p.Proxy.Fault(RefreshFaults{Unavailable: 1})
	if status, _, err := refresh(tokens.Refresh); status != http.StatusServiceUnavailable || err != nil {
		t.Errorf("unavailable: %d, %v", status, err)
	}
	p.Proxy.Fault(RefreshFaults{Reset: 1})
	if status, _, err := refresh(tokens.Refresh); err == nil {
		t.Errorf("reset: %d", status)
	}
	p.Proxy.Cut()
	if status, _, err := refresh(tokens.Refresh); err == nil {
		t.Errorf("cut: %d", status)
	}
	p.Proxy.Restore()
	p.Proxy.Fault(RefreshFaults{})
	check("unseen", PassedRefreshes{Unavailable: 1, Reset: 1}, Refreshes{Live: 1})

	// A fault that ends lets go of what it delays.
	p.Proxy.Fault(RefreshFaults{Before: time.Hour})
	time.AfterFunc(50*time.Millisecond, func() { p.Proxy.Fault(RefreshFaults{}) })
	status, body, err := refresh(tokens.Refresh)
	var second struct {
		Refresh string `json:"refresh_token"`
		Expires int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(body), &second); err != nil {
		t.Errorf("%v: %s", err, body)
	}
	if status != http.StatusOK || err != nil || second.Expires != 7 || second.Refresh == tokens.Refresh {
		t.Fatalf("%d, %v: %s", status, err, body)
	}
	check("delayed", PassedRefreshes{Total: 1, Most: 1, Unavailable: 1, Reset: 1}, Refreshes{Total: 1, Most: 1, Live: 1})

	p.Proxy.Fault(RefreshFaults{Lose: true})
	if status, _, err := refresh(second.Refresh); err == nil {
		t.Errorf("lost: %d", status)
	}
	p.Proxy.Fault(RefreshFaults{})
	check("lost", PassedRefreshes{Total: 2, Most: 1, Unavailable: 1, Reset: 1}, Refreshes{Total: 2, Most: 1, Live: 1})
	if status, _, err := refresh(second.Refresh); status != http.StatusBadRequest || err != nil {
		t.Errorf("a replay: %d, %v", status, err)
	}
	check("replayed", PassedRefreshes{Total: 3, Most: 2, Unavailable: 1, Reset: 1}, Refreshes{Total: 3, Most: 2, Refused: 1})

	if status, _, err := post(p.Issuer+"/token/revocation", url.Values{"token": {second.Refresh}}); status != http.StatusOK || err != nil {
		t.Errorf("a revocation: %d, %v", status, err)
	}
	if got := p.Proxy.Passed().Revoked; got != 1 {
		t.Errorf("%d revoked", got)
	}

	p.Kill()
	if status, _, err := refresh(second.Refresh); status != http.StatusServiceUnavailable || err != nil {
		t.Errorf("without a provider: %d, %v", status, err)
	}
	if got := p.Proxy.Passed().Total; got != 3 {
		t.Errorf("%d have passed", got)
	}
}

func TestProviderChangesPeople(t *testing.T) {
	start, connect := relyingParty(t)
	p := StartProvider(t, ProviderOptions{RedirectURIs: callbackOf(start)})
	connect(p)
	p.SetGroups("alice", "guests")
	page, err := NewBrowser(t).SignIn(t.Context(), start, "alice")
	if err != nil || !strings.Contains(page.Body, `"groups":["guests"]`) {
		t.Errorf("%+v, %v", page, err)
	}
	p.Disable("alice")
	if page, err = NewBrowser(t).SignIn(t.Context(), start, "alice"); err != nil || page.Status != http.StatusUnauthorized {
		t.Errorf("disabled: %+v, %v", page, err)
	}
}
