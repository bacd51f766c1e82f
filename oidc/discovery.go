package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// How often the metadata is read: until it was read once, and from then on.
const (
	minRetry    = 500 * time.Millisecond
	maxRetry    = 30 * time.Second
	rediscovery = time.Hour
)

// wellKnownPath follows the issuer (OpenID Connect Discovery 1.0 §4).
const wellKnownPath = "/.well-known/openid-configuration"

// metadata is what we use of the provider's metadata (OpenID Connect Discovery 1.0
// §3, OpenID Connect RP-Initiated Logout 1.0 §2.1, RFC 8414 §2, RFC 9207 §3).
type metadata struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	JWKSURI               string   `json:"jwks_uri"`
	UserinfoEndpoint      string   `json:"userinfo_endpoint"`
	EndSessionEndpoint    string   `json:"end_session_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	SigningAlgorithms     []string `json:"id_token_signing_alg_values_supported"`
	TokenAuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethods []string `json:"revocation_endpoint_auth_methods_supported"`
	IssuerInAnswer        bool     `json:"authorization_response_iss_parameter_supported"`
}

// signingAlgorithms are those we accept for ID tokens. None is symmetric: with those,
// whoever can verify can sign (RFC 8725 §3.1).
var signingAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512,
	jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512,
	jose.EdDSA,
}

// Ways to authenticate at the token and revocation endpoints (OpenID Connect Core 1.0 §9).
const (
	authBasic = "client_secret_basic"
	authPost  = "client_secret_post"
	authNone  = "none"
)

// Run discovers the provider, again and again until it succeeds, and from then on
// reads the metadata anew every hour; if that fails, the old stays. It returns when
// ctx ends.
func (p *RelyingParty) Run(ctx context.Context) {
	defer p.client.CloseIdleConnections()
	wait := minRetry
	for {
		pause := rediscovery
		err := p.Discover(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.Logger.ErrorContext(ctx, "discovery failed",
				"tenant", p.Tenant, "provider", p.Name, "ready", p.Ready() == nil, "error", err.Error())
			pause, wait = wait, min(2*wait, maxRetry)
		default:
			wait = minRetry
		}
		timer := time.NewTimer(pause - rand.N(pause/4)) // nodes must not knock in step
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// Discover reads the provider's metadata once; Run does so again and again. The key set is
// kept for as long as the provider names the same one.
func (p *RelyingParty) Discover(ctx context.Context) error {
	found, err := p.readMetadata(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.cause = fmt.Errorf("oidc: discovery of %s: %w", p.Issuer, err)
		return p.cause
	}
	if p.current == nil {
		p.Logger.InfoContext(ctx, "provider discovered", "tenant", p.Tenant, "provider", p.Name, "issuer", p.Issuer)
	}
	var keys *keySet
	if p.current != nil && p.current.JWKSURI == found.JWKSURI {
		keys = p.current.keys
	} else {
		keys = p.newKeySet(found.JWKSURI)
	}
	p.current = &provider{metadata: *found, keys: keys}
	return nil
}

func (p *RelyingParty) readMetadata(ctx context.Context) (*metadata, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(p.Issuer, "/")+wellKnownPath, nil)
	if err != nil {
		return nil, err
	}
	body, err := p.fetchOK(req)
	if err != nil {
		return nil, err
	}
	var m metadata
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("the metadata can't be read: %w", err)
	}
	if err := p.checkMetadata(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

// checkMetadata refuses metadata that must not be used, and reduces its signing
// algorithms to those we accept.
func (p *RelyingParty) checkMetadata(m *metadata) error {
	// OpenID Connect Discovery 1.0 §4.3: exactly, or one tenant's provider could
	// speak for another's.
	if m.Issuer != p.Issuer {
		return fmt.Errorf("the provider calls itself %s, but issuer is configured as %q; they must be equal to the letter", quote(m.Issuer), p.Issuer)
	}
	for _, e := range [...]struct {
		name, value string
		required    bool
	}{
		{"authorization_endpoint", m.AuthorizationEndpoint, true},
		{"token_endpoint", m.TokenEndpoint, true},
		{"jwks_uri", m.JWKSURI, true},
		{"userinfo_endpoint", m.UserinfoEndpoint, false},
		{"end_session_endpoint", m.EndSessionEndpoint, false},
		{"revocation_endpoint", m.RevocationEndpoint, false},
	} {
		if e.value == "" && !e.required {
			continue
		}
		if err := p.checkEndpoint(e.value); err != nil {
			return fmt.Errorf("%s in the metadata %w", e.name, err)
		}
	}
	if len(m.SigningAlgorithms) == 0 {
		m.SigningAlgorithms = []string{string(jose.RS256)} // what every provider must support (§3)
	}
	m.SigningAlgorithms = slices.DeleteFunc(m.SigningAlgorithms, func(alg string) bool {
		return !slices.Contains(signingAlgorithms, jose.SignatureAlgorithm(alg))
	})
	if len(m.SigningAlgorithms) == 0 {
		return errors.New("the provider signs ID tokens with no algorithm that coatcheck accepts")
	}
	if p.authMethod(m.TokenAuthMethods) == "" {
		return fmt.Errorf("the token endpoint takes neither %s nor %s", authBasic, authPost)
	}
	return nil
}

// checkEndpoint returns an error that continues the sentence "x in the metadata".
func (p *RelyingParty) checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case endpoint == "":
		return errors.New("is missing")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("is not an absolute URL")
	case u.Scheme != "https" && strings.HasPrefix(p.Issuer, "https:"):
		return errors.New("is not https, as the issuer is")
	case strings.ContainsAny(u.Host, `!"$%&'()*+,;<=>`):
		return errors.New("has a host that is none") // it stands in a page's policy
	case u.User != nil:
		return errors.New("has a user name or password in it")
	case u.Fragment != "" || strings.Contains(endpoint, "#"):
		return errors.New("has a fragment") // RFC 6749 §3.1, §3.2
	}
	return nil
}

// authMethod returns how to authenticate at an endpoint that takes these methods; "" if
// there is no way. It is never found out by trying, which would show the secret twice and
// may spend the code.
func (p *RelyingParty) authMethod(supported []string) string {
	switch {
	case p.ClientSecret == "":
		return authNone
	case len(supported) == 0, slices.Contains(supported, authBasic):
		return authBasic // the default (OpenID Connect Discovery 1.0 §3, RFC 8414 §2)
	case slices.Contains(supported, authPost):
		return authPost
	default:
		return ""
	}
}
