// Package config reads coatcheck's one YAML file: it parses, fills in defaults and
// validates, and does nothing else. [Load] returns either a configuration that can
// be wired up as it stands or every problem of the file at once, each with its line
// and an excerpt in which no secret shows.
//
// The structs are the reference: a field's yaml tag is its key in the file, its
// comment gives unit, default and bounds. docs/configuration.md says the same for
// operators, and a test holds it to these structs.
package config

import (
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/coatcheck/coatcheck"
)

// Config is a whole configuration. One that [Load] returned is complete and
// consistent; it must not be changed after that. All paths of files in it are
// resolved against the folder of the configuration file.
type Config struct {
	// Node names this node in events, logs and the registry: 1 to 64 printable ASCII
	// characters without spaces. Default the host's name. Nothing depends on it, but no two
	// nodes should have the same.
	Node string `yaml:"node"`
	// Listen is the address of the proxy, host:port. Default 127.0.0.1:4180. An
	// empty host means all interfaces, port 0 a free one.
	Listen string `yaml:"listen"`
	// PublicURL is where browsers find coatcheck: scheme, host and, unless it is
	// the scheme's own, port. Required. It alone says what is https and which host
	// is ours.
	PublicURL *url.URL `yaml:"public_url"`
	// InsecureHTTP allows a PublicURL of plain http. Default false.
	InsecureHTTP bool  `yaml:"insecure_http"`
	Admin        Admin `yaml:"admin"`
	// TrustedProxies are the peers whose X-Forwarded-* headers are believed: CIDRs
	// or single addresses. Default nobody; the whole Internet is refused.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"`
	Keys           Keys           `yaml:"keys"`
	Store          Store          `yaml:"store"`
	Cache          Cache          `yaml:"cache"`
	Session        Session        `yaml:"session"`
	// Allow holds for everything that asks for a signed-in user; a route's own
	// Allow comes on top of it. Default everybody the providers know.
	Allow Allow `yaml:"allow"`
	// Providers are the OpenID providers. This version supports exactly one.
	Providers []Provider `yaml:"providers"`
	Headers   Headers    `yaml:"headers"`
	// Routes lead from host and path to upstreams. At least one.
	Routes    []Route   `yaml:"routes"`
	Endpoints Endpoints `yaml:"endpoints"`
	Limits    Limits    `yaml:"limits"`
	Timeouts  Timeouts  `yaml:"timeouts"`
	Shutdown  Shutdown  `yaml:"shutdown"`
	Log       Log       `yaml:"log"`

	warnings    []string
	namedByHost bool // Node is the host's name, and not in the file
}

// Admin is the listener for metrics and, later, the console.
type Admin struct {
	// Listen is its address, host:port. Default empty: there is none. It must not
	// be Config.Listen.
	Listen string `yaml:"listen"`
}

// Keys says where the key ring is. At most one of the two is set. With SQLite the
// default is the file keys.json beside the database, made at first start. With the
// other drivers one is required, because all nodes must have the same ring.
type Keys struct {
	// File is the path of the key ring.
	File string `yaml:"file"`
	// Env names the environment variable that holds the key ring's text.
	Env string `yaml:"env"`
}

// Session says how a session is held and how long it lives.
type Session struct {
	Cookie Cookie `yaml:"cookie"`
	// IdleTimeout ends a session that nobody uses. Default 30m, from 1s to
	// AbsoluteTimeout.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// AbsoluteTimeout ends every session, used or not. Default 12h, from 1s to
	// 9600h, the 400 days that browsers keep a cookie at most (RFC 6265bis §5.5).
	AbsoluteTimeout time.Duration `yaml:"absolute_timeout"`
	Limits          SessionLimits `yaml:"limits"`
	// Tombstones is how long a session that has ended can tell its browser why.
	// Default 1h, at most 24h; 0s keeps none.
	Tombstones time.Duration `yaml:"tombstones"`
	// OutageGrace is how long sessions in the near cache go on while the store can't
	// be reached. Default 0s: not at all; at most 1h. It needs the near cache.
	OutageGrace time.Duration `yaml:"outage_grace"`
	// Escrow keeps the refresh token of each session so that the key ring alone opens it,
	// to revoke it at the provider when somebody else ends the session.
	Escrow bool `yaml:"escrow"`
}

// SessionLimits bound how many sessions are usable at once. Zero, the default, is no
// limit.
type SessionLimits struct {
	// PerUser is for one user, at most 10000.
	PerUser int `yaml:"per_user"`
	// PerApp is for one user who signed in for the same app, at most 10000 and
	// PerUser. The app is the host that the sign-in was for.
	PerApp int `yaml:"per_app"`
	// Total is for all users, at most 1000000000. It denies, whatever OnLimit says:
	// somebody else would have to pay.
	Total int `yaml:"total"`
	// OnLimit says who gives way at PerUser and PerApp: OnLimitDeny, the default,
	// OnLimitEvictOldest or OnLimitEvictIdle.
	OnLimit string `yaml:"on_limit"`
}

// Who gives way at a limit.
const (
	OnLimitDeny        = "deny"         // the one who comes
	OnLimitEvictOldest = "evict_oldest" // the session that started first
	OnLimitEvictIdle   = "evict_idle"   // the session that was used last the longest ago
)

// Cookie is the session cookie.
type Cookie struct {
	// Name is the cookie's name without the prefix __Host- or __Secure-, which is
	// added. Default coatcheck. At most 64 characters of an RFC 9110 token.
	Name string `yaml:"name"`
	// Domain makes the cookie reach the hosts below it. Default empty: only the
	// host of PublicURL gets it. It is stored in lower case, without leading dot.
	Domain string `yaml:"domain"`
}

// Allow says who may pass: whoever matches at least one entry of any list. All
// lists empty means everybody.
type Allow struct {
	// Emails are whole addresses.
	Emails []string `yaml:"emails"`
	// EmailDomains are what stands after the @, in lower case; subdomains don't match.
	EmailDomains []string `yaml:"email_domains"`
	// Groups are names as the provider gives them in Provider.GroupsClaim.
	Groups []string `yaml:"groups"`
}

// Empty reports whether a names nobody in particular, that is, everybody.
func (a Allow) Empty() bool {
	return len(a.Emails)+len(a.EmailDomains)+len(a.Groups) == 0
}

// Provider is an OpenID provider and coatcheck's registration there.
type Provider struct {
	// Name is the provider's name in sessions, logs and metrics: up to 32 lower-case
	// letters, digits and inner hyphens. Required.
	Name string `yaml:"name"`
	// Issuer is the issuer identifier exactly as the provider spells it (OpenID
	// Connect Discovery 1.0 §3). Required; https unless the host is a loopback one.
	Issuer string `yaml:"issuer"`
	// ClientID is the client identifier. Required.
	ClientID string `yaml:"client_id"`
	// ClientSecretFile is the path of a file with the client secret. At most one of
	// ClientSecretFile and ClientSecretEnv is set; neither makes a public client.
	ClientSecretFile string `yaml:"client_secret_file"`
	// ClientSecretEnv names the environment variable that holds the client secret.
	ClientSecretEnv string `yaml:"client_secret_env"`
	// ClientSecret is what Load read there; empty for a public client. It can't be
	// written in the file.
	ClientSecret coatcheck.Secret `yaml:"client_secret"`
	// Scopes are asked for at sign-in. Default openid, profile, email; openid must
	// be among them.
	Scopes []string `yaml:"scopes"`
	// GroupsClaim is the claim that holds a person's groups. Default groups.
	GroupsClaim string `yaml:"groups_claim"`
	// RotationGrace is for how long after it was redeemed the provider takes a refresh
	// token once more, and answers as it did. Default 0s: it may be sent once; at most 10m.
	RotationGrace time.Duration `yaml:"rotation_grace"`
	// Recheck is how often the provider is asked about somebody for whom there are no new
	// tokens meanwhile. Default 0s: never; else from 10s to 24h.
	Recheck time.Duration `yaml:"recheck"`
	// InsecureUnverifiedEmail believes e-mail addresses that the provider does not
	// vouch for. Default false.
	InsecureUnverifiedEmail bool `yaml:"insecure_unverified_email"`
	// InsecureIDTokenHint passes the ID token in the URL of an RP-initiated logout
	// (id_token_hint). Default false: client_id is passed instead.
	InsecureIDTokenHint bool `yaml:"insecure_id_token_hint"`
	// InsecureIssuerHTTP allows an Issuer of plain http that is not on a loopback
	// host. Default false.
	InsecureIssuerHTTP bool `yaml:"insecure_issuer_http"`
}

// Headers are the names of the identity headers that upstreams get. The names must
// differ, and differ too when case and the difference of - and _ are ignored.
type Headers struct {
	// User carries the subject. Default X-Forwarded-User.
	User string `yaml:"user"`
	// Email carries the verified e-mail address. Default X-Forwarded-Email.
	Email string `yaml:"email"`
	// Groups carries the groups. Default X-Forwarded-Groups.
	Groups string `yaml:"groups"`
	// PreferredUsername carries preferred_username. Default
	// X-Forwarded-Preferred-Username.
	PreferredUsername string `yaml:"preferred_username"`
}

// Route leads from a host and a path to an upstream.
type Route struct {
	// Host is a host name in lower case, without port. Default PublicURL's host.
	// Another host must lie within Session.Cookie.Domain.
	Host string `yaml:"host"`
	// Path is matched as a prefix that ends at a segment's end: /shop, like /shop/,
	// matches /shop and /shop/cart, not /shops. It is decoded and canonical, without
	// %, ;, backslash, //, and dot segments. Required.
	Path string `yaml:"path"`
	// Exact matches Path alone. Default false.
	Exact bool `yaml:"exact"`
	// Methods limits the route to these methods. Default all. A route that names a
	// request's method goes before one for all methods at the same place.
	Methods []string `yaml:"methods"`
	// Upstream is the scheme and host that requests go to. Default nil: the route
	// answers forward-auth only.
	Upstream *url.URL `yaml:"upstream"`
	// StripPrefix takes Path off before forwarding. Default false. Not with Exact,
	// and not with the path /.
	StripPrefix bool `yaml:"strip_prefix"`
	// PreserveHost sends the browser's Host to the upstream instead of the
	// upstream's own. Default true.
	PreserveHost bool `yaml:"preserve_host"`
	// Require is the session's state that the route asks for:
	// coatcheck.Authenticated, the default, or coatcheck.Anonymous.
	Require coatcheck.State `yaml:"require"`
	// Allow is a second condition beside Config.Allow. Default everybody. Not with
	// an anonymous route.
	Allow Allow `yaml:"allow"`
	// WebSocketOrigins may open WebSockets beside the route's own origin. Default none.
	WebSocketOrigins []*url.URL `yaml:"websocket_origins"`
	// Timeout bounds the wait for the upstream's response header. Default 60s, from
	// 1ms to 24h.
	Timeout time.Duration `yaml:"timeout"`
}

// Endpoints says where coatcheck's own endpoints are.
type Endpoints struct {
	// Prefix is the path above sign-in, callback and the rest, on every host.
	// Default /oauth2; up to 4 segments of letters, digits, - and _. No route may
	// lie under it.
	Prefix string `yaml:"prefix"`
}

// Limits bound what a client may send, and what may be under way for all of them.
type Limits struct {
	// HeaderBytes bounds request line and header. Default 65536 bytes, from 4096 to
	// 1048576.
	HeaderBytes int `yaml:"header_bytes"`
	// URIBytes bounds the request target. Default 16384 bytes, from 256 to
	// HeaderBytes.
	URIBytes int `yaml:"uri_bytes"`
	// Cookies bounds the number of cookies in a request. Default 256, from 16 to 4096.
	Cookies int `yaml:"cookies"`
	// UpstreamRequests bounds the requests that this node has under way to one app, which
	// is an Upstream of any number of routes; WebSockets and event streams that are open
	// don't count. Default 1000, at most 1000000; 0 is no bound.
	UpstreamRequests int `yaml:"upstream_requests"`
}

// Timeouts are those of the proxy's listener.
type Timeouts struct {
	// ReadHeader bounds the time a client takes to send a request's header, and the
	// body of a request that no app gets. Default 10s, from 100ms to 5m.
	ReadHeader time.Duration `yaml:"read_header"`
	// Upload bounds how long a client may keep an app waiting for the body of a request,
	// by sending nothing or less than 240 bytes a second. Default 60s, from 1s to 1h; 0s is
	// no bound.
	Upload time.Duration `yaml:"upload"`
	// Idle bounds the time a kept-alive connection waits for its next request.
	// Default 120s, from 1s to 1h.
	Idle time.Duration `yaml:"idle"`
}

// Shutdown says how a node leaves.
type Shutdown struct {
	// Delay is the time between /ready turning red and the listener closing, for
	// load balancers to notice. Default 3s, from 0s to 10m.
	Delay time.Duration `yaml:"delay"`
	// Grace is the time that requests then have to finish. Default 30s, from 0s to 1h.
	Grace time.Duration `yaml:"grace"`
}

// Log says what is logged.
type Log struct {
	// Level is the least level logged: debug, info, warn or error. Default info.
	Level slog.Level `yaml:"level"`
	// Access writes a line for each request. Default true.
	Access bool `yaml:"access"`
}

// defaults is called before the file's own values are written over it.
func (c *Config) defaults() {
	*c = Config{
		Listen: "127.0.0.1:4180",
		Store: Store{
			Driver:        DriverSQLite,
			SQLite:        SQLite{File: "coatcheck.db"},
			Redis:         Redis{URL: "redis://127.0.0.1:6379/0", Timeout: time.Second},
			Postgres:      Postgres{MaxConnections: 16, Timeout: 2 * time.Second},
			MaxConcurrent: 256,
		},
		Cache: Cache{SizeBytes: 64 << 20, Lease: time.Second},
		Session: Session{
			Cookie:          Cookie{Name: "coatcheck"},
			IdleTimeout:     30 * time.Minute,
			AbsoluteTimeout: 12 * time.Hour,
			Limits:          SessionLimits{OnLimit: OnLimitDeny},
			Tombstones:      time.Hour,
		},
		Headers: Headers{
			User:              "X-Forwarded-User",
			Email:             "X-Forwarded-Email",
			Groups:            "X-Forwarded-Groups",
			PreferredUsername: "X-Forwarded-Preferred-Username",
		},
		Endpoints: Endpoints{Prefix: "/oauth2"},
		Limits:    Limits{HeaderBytes: 64 << 10, URIBytes: 16 << 10, Cookies: 256, UpstreamRequests: 1000},
		Timeouts:  Timeouts{ReadHeader: 10 * time.Second, Upload: time.Minute, Idle: 2 * time.Minute},
		Shutdown:  Shutdown{Delay: 3 * time.Second, Grace: 30 * time.Second},
		Log:       Log{Level: slog.LevelInfo, Access: true},
	}
}

func (p *Provider) defaults() {
	p.Scopes = []string{"openid", "profile", "email"}
	p.GroupsClaim = "groups"
}

func (r *Route) defaults() {
	r.PreserveHost = true
	r.Require = coatcheck.Authenticated
	r.Timeout = time.Minute
}
