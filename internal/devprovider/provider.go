// Package devprovider is a small OpenID provider for development: what `coatcheck
// dev` signs people in with. It speaks the authorization code flow with PKCE, refresh
// token rotation and RP-initiated logout the way a production provider does, so that
// what works against it works elsewhere.
//
// It is not for production. Its users and their passwords stand on the sign-in page,
// its signing key and everything it remembers end with the process, and it serves
// under loopback addresses only.
package devprovider

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A User is a person who can sign in. The subject is the user name.
type User struct {
	Username string
	Password string // shown on the sign-in page
	Name     string
	Email    string // always given out as verified
	Groups   []string
}

// DefaultUsers returns alice (in admins and staff), bob (in staff) and carol (in no
// group). Everybody's password is the user name.
func DefaultUsers() []User {
	return []User{
		{Username: "alice", Password: "alice", Name: "Alice Archer", Email: "alice@example.com", Groups: []string{"admins", "staff"}},
		{Username: "bob", Password: "bob", Name: "Bob Baker", Email: "bob@example.com", Groups: []string{"staff"}},
		{Username: "carol", Password: "carol", Name: "Carol Carter", Email: "carol@example.com"},
	}
}

// A Client is a relying party, always a confidential one.
type Client struct {
	ID     string
	Secret coatcheck.Secret
	// RedirectURIs are compared as strings (RFC 9700 §2.1). At least one; absolute
	// http or https URLs without a fragment.
	RedirectURIs []string
	// PostLogoutRedirectURIs obey the same rules; there may be none.
	PostLogoutRedirectURIs []string
}

// Options say what a Provider is made of.
type Options struct {
	// Issuer is the provider's origin as browsers and clients see it: http or https,
	// a loopback address or "localhost", a port, and no path.
	Issuer  string
	Users   []User       // nil: DefaultUsers
	Clients []Client     // at least one
	Logger  *slog.Logger // nil: slog.Default

	// Zero lifetimes mean their defaults.
	CodeLifetime    time.Duration // of an authorization code; 1 minute
	TokenLifetime   time.Duration // of an ID or access token; 5 minutes
	SessionLifetime time.Duration // of a sign-in and its refresh tokens; 8 hours
}

// A Provider is an http.Handler that serves one issuer. It starts no goroutine and
// holds nothing but memory, so there is nothing to close.
type Provider struct {
	issuer        string
	host          string // what a request's Host must be
	cookie        string // the session cookie's name
	users         []User
	clients       map[string]Client
	log           *slog.Logger
	tokenLifetime time.Duration
	keys          keys
	ledger        *ledger
	handler       http.Handler
}

// Browsers keep one cookie jar for all ports of a host. A path of their own keeps the
// provider's cookie from the apps that are tried beside it.
const browserPath = "/connect/"

const (
	authorizePath  = browserPath + "authorize"
	signInPath     = browserPath + "sign_in"
	endSessionPath = browserPath + "end_session"
	signOutPath    = browserPath + "sign_out"
	tokenPath      = "/token"
	userinfoPath   = "/userinfo"
	jwksPath       = "/jwks.json"
)

// maxBody bounds a request body, in bytes.
const maxBody = 64 << 10

// New returns a provider with a fresh ES256 signing key. The error names every part of
// the options that can't be used.
func New(o Options) (*Provider, error) {
	if o.Users == nil {
		o.Users = DefaultUsers()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	issuer, err := checkIssuer(o.Issuer)
	clients, clientsErr := checkClients(o.Clients)
	if err := errors.Join(err, checkUsers(o.Users), clientsErr); err != nil {
		return nil, fmt.Errorf("devprovider: %w", err)
	}
	keys, err := newKeys()
	if err != nil {
		return nil, fmt.Errorf("devprovider: %w", err)
	}
	p := &Provider{
		issuer:        o.Issuer,
		host:          issuer.Host,
		cookie:        "dev_provider_" + issuer.Port(), // another port is another provider
		users:         o.Users,
		clients:       clients,
		log:           o.Logger,
		tokenLifetime: orDefault(o.TokenLifetime, 5*time.Minute),
		keys:          keys,
		ledger: newLedger(
			orDefault(o.CodeLifetime, time.Minute),
			orDefault(o.SessionLifetime, 8*time.Hour),
		),
	}
	p.handler = p.routes()
	return p, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

func (p *Provider) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.home)
	mux.HandleFunc("GET /style.css", serveAsset("text/css; charset=utf-8", styleCSS))
	mux.HandleFunc("GET /icon.svg", serveAsset("image/svg+xml", iconSVG))
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET "+jwksPath, p.jwks)
	// OpenID Connect Core 1.0 §3.1.2.1 and RP-Initiated Logout 1.0 §2 ask for both
	// methods; so does Core §5.3.1 at userinfo.
	mux.HandleFunc("GET "+authorizePath, p.authorize)
	mux.HandleFunc("POST "+authorizePath, p.authorize)
	mux.HandleFunc("GET "+endSessionPath, p.endSession)
	mux.HandleFunc("POST "+endSessionPath, p.endSession)
	mux.HandleFunc("GET "+userinfoPath, p.userinfo)
	mux.HandleFunc("POST "+userinfoPath, p.userinfo)
	mux.HandleFunc("POST "+tokenPath, p.token)
	// The provider's own forms. A foreign page must not be able to submit them: that
	// would sign somebody in as somebody else, or out.
	mux.Handle("POST "+signInPath, p.sameOrigin(p.signIn))
	mux.Handle("POST "+signOutPath, p.sameOrigin(p.signOut))
	// Whoever reloads the page of a form by its address starts over.
	mux.HandleFunc("GET "+signInPath, restart(authorizePath))
	mux.HandleFunc("GET "+signOutPath, restart(endSessionPath))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		p.fail(w, http.StatusNotFound, "Nothing here", "This provider has no page at this address.")
	})
	return mux
}

func restart(path string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, path+"?"+r.URL.RawQuery, http.StatusSeeOther)
	}
}

func (p *Provider) sameOrigin(next http.HandlerFunc) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.fail(w, http.StatusForbidden, "Not from this page",
			"This form was submitted by another site, so nothing was done.")
	}))
	return guard.Handler(next)
}

// ServeHTTP answers requests for the issuer's host and no other, so that a page
// somewhere on the web can't reach the provider under a name that it points at
// 127.0.0.1.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host != p.host {
		p.fail(w, http.StatusMisdirectedRequest, "Wrong address",
			"This provider answers at "+p.issuer+" only.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	p.handler.ServeHTTP(w, r)
}

func checkIssuer(issuer string) (*url.URL, error) {
	u, err := url.Parse(issuer)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Port() == "" || u.Scheme+"://"+u.Host != issuer {
		return nil, fmt.Errorf("issuer %q: want scheme://host:port and nothing after it", issuer)
	}
	if !isLoopback(u.Hostname()) {
		return nil, fmt.Errorf("issuer %q: %w", issuer, ErrNotLoopback)
	}
	return u, nil
}

func checkUsers(users []User) error {
	var errs []error
	seen := map[string]bool{}
	for _, u := range users {
		switch {
		case u.Username == "" || u.Password == "":
			errs = append(errs, fmt.Errorf("user %q: needs a user name and a password", u.Username))
		case seen[u.Username]:
			errs = append(errs, fmt.Errorf("user %q: named twice", u.Username))
		}
		seen[u.Username] = true
	}
	return errors.Join(errs...)
}

func checkClients(clients []Client) (map[string]Client, error) {
	if len(clients) == 0 {
		return nil, errors.New("no clients")
	}
	var errs []error
	byID := make(map[string]Client, len(clients))
	for _, c := range clients {
		if c.ID == "" || c.Secret == "" || len(c.RedirectURIs) == 0 {
			errs = append(errs, fmt.Errorf("client %q: needs an id, a secret and a redirect URI", c.ID))
		}
		if _, twice := byID[c.ID]; twice {
			errs = append(errs, fmt.Errorf("client %q: named twice", c.ID))
		}
		for _, uri := range slices.Concat(c.RedirectURIs, c.PostLogoutRedirectURIs) {
			if !isRedirectURI(uri) {
				errs = append(errs, fmt.Errorf("client %q: %q is not an absolute http(s) URL without a fragment", c.ID, uri))
			}
		}
		byID[c.ID] = c
	}
	return byID, errors.Join(errs...)
}

// isRedirectURI holds a URI to RFC 6749 §3.1.2. The schemes keep "javascript:" from
// ever becoming a link.
func isRedirectURI(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.Fragment == ""
}
