// Package oidc is the relying party: it sends a browser to an OpenID provider, takes
// it back, and says who came. It speaks OpenID Connect Core 1.0 with the
// authorization code flow alone, always with PKCE S256, state and nonce, and follows
// RFC 9700 (security best practice) and RFC 9207 (issuer in the answer).
//
// What the provider says is not believed before it is checked: the provider may lie in
// its metadata, answer with 50 MB, or be impersonated. What a node must remember
// between start and callback stands sealed in a cookie, so that any node with the same
// keys can take the browser back.
//
// The package answers no request itself. It reads the request, adds cookies to the
// response header it is given, and returns values and *coatcheck.Error. The cause in
// such an error is made for the log: it holds no token, code or secret, and what the
// provider wrote stands in it quoted and cut.
package oidc

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
)

// A Config is one provider as one tenant uses it.
type Config struct {
	Tenant string
	Name   string // the provider's configured name
	Issuer string // exactly as the provider spells it
	// ClientSecret is empty for a public client.
	ClientID     string
	ClientSecret coatcheck.Secret
	Scopes       []string // with "openid"
	// GroupsClaim names the claim with the person's groups, or the way to it through
	// nested objects, as in realm_access.roles. Empty: no groups are read.
	GroupsClaim string
	// UnverifiedEmail takes every e-mail address for verified.
	UnverifiedEmail bool
	// IDTokenHint sends the ID token along at sign-out, in a URL.
	IDTokenHint   bool
	RedirectURL   string // exactly as registered at the provider
	PostLogoutURL string // likewise
	Returns       *Returns
	Ring          *seal.Ring
	Jar           *cookie.Jar
	Once          Once
	Logger        *slog.Logger
	Now           func() time.Time // nil is time.Now
}

// Once claims a sign-in for one use in the whole cluster.
type Once interface {
	// Create writes a record where none lives, or returns store.ErrExists. After any
	// other error it is unknown whether the record was written.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) error
}

// A RelyingParty signs people in at one provider for one tenant, and asks it anew about
// those who are. All methods are safe for concurrent use.
type RelyingParty struct {
	Config
	client *http.Client
	once   *http.Client // for requests that must not be sent twice
	// signInsName is the cookie that counts completed sign-ins.
	signInsName string

	mu      sync.RWMutex
	current *provider // nil until discovery has succeeded once
	cause   error     // why it is nil

	looking chan struct{} // holds one while somebody who waits has discovery tried again
	looked  time.Time     // when that was over last
}

// A provider is what discovery has found.
type provider struct {
	metadata
	keys *keySet
}

// New returns a relying party that knows its provider by name only: Run discovers the
// rest.
func New(config Config) *RelyingParty {
	if config.Now == nil {
		config.Now = time.Now
	}
	return &RelyingParty{
		Config:      config,
		client:      newClient(),
		once:        newOnceClient(),
		signInsName: config.Jar.Name("signins"),
		cause:       errors.New("oidc: the provider was not asked yet"),
		looking:     make(chan struct{}, 1),
	}
}

// With returns a relying party that goes by another configuration from now on. What p has
// discovered of the same issuer it knows too, if it can use it; p stays as it is, for
// sign-ins that are under way with it.
func (p *RelyingParty) With(config Config) *RelyingParty {
	next := New(config)
	if next.Issuer != p.Issuer {
		return next
	}
	next.client, next.once = p.client, p.once
	p.mu.RLock()
	defer p.mu.RUnlock()
	next.cause = p.cause
	if p.current != nil {
		known := *p.current
		if next.cause = next.checkMetadata(&known.metadata); next.cause == nil {
			next.current = &known
		}
	}
	return next
}

// Ready returns nil once discovery has succeeded, and until then why it has not.
func (p *RelyingParty) Ready() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.current == nil {
		return p.cause
	}
	return nil
}

// provider returns what discovery has found, or a CodeNotReady error.
func (p *RelyingParty) provider(op string) (*provider, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.current == nil {
		return nil, coatcheck.E(coatcheck.CodeNotReady, op, p.cause)
	}
	return p.current, nil
}

// lookLimit bounds how long a request waits for discovery.
const lookLimit = 2 * time.Second

// awaited is provider for a request that somebody waits for: before discovery has succeeded,
// it is tried anew, which Run may do much later. All who wait share an attempt, and there is
// one in minRetry at most.
func (p *RelyingParty) awaited(ctx context.Context, op string) (*provider, error) {
	if current, err := p.provider(op); err == nil {
		return current, nil
	}
	select {
	case p.looking <- struct{}{}:
		defer func() { <-p.looking }()
	case <-ctx.Done():
		return p.provider(op)
	}
	if p.Ready() != nil && time.Since(p.looked) >= minRetry {
		// Detached: who hangs up must not fail it for the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
		defer cancel()
		_ = p.Discover(ctx) // provider tells why
		p.looked = time.Now()
	}
	return p.provider(op)
}

// Start begins a sign-in: it adds the pre-login cookie to h and returns the
// provider's URL to send the browser to. It returns CodeNotReady before discovery has
// succeeded and CodeBadReturnURL if returnTo does not pass Returns.
func (p *RelyingParty) Start(h http.Header, r *http.Request, returnTo string) (location string, err error) {
	const op = "oidc.start"
	current, err := p.awaited(r.Context(), op)
	if err != nil {
		return "", err
	}
	returnTo, err = p.Returns.Check(returnTo)
	if err != nil {
		return "", err
	}
	pre := preLogin{
		Provider: p.Name,
		State:    random(),
		Nonce:    random(),
		Verifier: oauth2.GenerateVerifier(), // 256 bits (RFC 7636 §7.1)
		ReturnTo: returnTo,
		Issued:   p.Now().Unix(),
		Issuer:   p.Issuer,
	}
	if err := p.keepPreLogin(h, r.Header, pre); err != nil {
		return "", coatcheck.E(coatcheck.CodeInternal, op, err)
	}
	request := oauth2.Config{
		ClientID:    p.ClientID,
		Endpoint:    oauth2.Endpoint{AuthURL: current.AuthorizationEndpoint},
		RedirectURL: p.RedirectURL,
		Scopes:      p.Scopes,
	}
	// PKCE is used whether or not the metadata mentions it: a provider that does not
	// know it ignores it (RFC 7636 §5, RFC 9700 §2.1.1).
	return request.AuthCodeURL(pre.State, gooidc.Nonce(pre.Nonce), oauth2.S256ChallengeOption(pre.Verifier)), nil
}

// random returns 256 random bits as base64url.
func random() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}
