package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// Warnings returns what is allowed and yet worth an operator's attention, one
// sentence each: `coatcheck check` prints them and serve logs them. They hold no
// secrets.
func (c *Config) Warnings() []string { return c.warnings }

// warn notes what holds for a configuration without problems.
func (v *validator) warn() {
	c := v.cfg
	if c.InsecureHTTP {
		v.note("insecure_http: sessions and sign-ins cross the network in plain text")
	}
	if host, _, err := net.SplitHostPort(c.Admin.Listen); err == nil && !isLoopback(host) {
		v.note("admin.listen: metrics can be read from other machines: nobody is asked to sign in there")
	}
	switch c.Store.Driver {
	case DriverRedis:
		v.warnRedis(c.Store.Redis)
	case DriverPostgres:
		v.warnPostgres(c.Store.Postgres.URL)
	}
	l := c.Session.Limits
	if v.given("session.limits.on_limit") && l.PerUser == 0 && l.PerApp == 0 {
		v.note("session.limits.on_limit: it says who gives way at per_user and per_app, and neither of them is set")
	}
	if l.Total > 0 && l.Total < max(l.PerUser, l.PerApp) {
		v.note("session.limits.total: it is reached before per_user or per_app is: one user can take all places")
	}
	if grace := c.Session.OutageGrace; grace > 0 {
		v.note("session.outage_grace: while a node can't reach the store, it goes on serving the sessions it knows for up to %s, also those that are ended meanwhile", short(grace))
	}
	if c.Session.Escrow {
		v.note("session.escrow: whoever has both the store and the key ring can read refresh tokens, without anybody's cookie")
	}
	for i, p := range c.Providers {
		v.warnProvider(element("providers", i), p)
	}
	v.warnAllow()
	for i, r := range c.Routes {
		if r.Require == coatcheck.Anonymous {
			v.note("%s: open to everybody, signed in or not", describeRoute(i, r))
		}
	}
}

// warnAllow notes that anybody whom the provider knows may pass, and where, unless that is
// everywhere.
func (v *validator) warnAllow() {
	if !v.cfg.Allow.Empty() {
		return
	}
	var passed []string
	rules := false
	for i, r := range v.cfg.Routes {
		switch {
		case !r.Allow.Empty():
			rules = true
		case r.Require != coatcheck.Anonymous:
			passed = append(passed, describeRoute(i, r))
		}
	}
	if !rules || len(passed) == 0 {
		v.note("allow: everybody the provider knows may sign in: no allow rule")
		return
	}
	v.note("allow: everybody the provider knows may sign in, and pass at %s: no allow rule", strings.Join(passed, ", "))
}

func describeRoute(i int, r Route) string {
	return fmt.Sprintf("%s (%s%s)", element("routes", i), r.Host, r.Path)
}

func (v *validator) warnRedis(r Redis) {
	if r.Username != "" && !v.given("store.redis.username") && r.PasswordFile == "" && r.PasswordEnv == "" {
		v.note("store.redis.url: there is no password_file or password_env: the part before @ is a user name, not a password")
	}
	if r.TLS.Enabled {
		return
	}
	if u, err := url.Parse(r.URL); err == nil && r.URL != "" && !isLoopback(strings.ToLower(u.Hostname())) {
		v.note("store.redis.url: the connection to another machine is not encrypted: rediss:// is")
	}
	for _, address := range slices.Concat(r.Sentinel.Addresses, r.Cluster.Addresses) {
		if host, _, err := net.SplitHostPort(address); err == nil && !isLoopback(strings.ToLower(host)) {
			v.note("store.redis: the connections to other machines are not encrypted: with tls: {enabled: true} they are")
			return
		}
	}
}

func (v *validator) warnPostgres(text string) {
	u, hosts, _ := parsePostgres(text)
	query := u.Query()
	if !slices.ContainsFunc(hosts, func(h *url.URL) bool { return !isLoopback(strings.ToLower(h.Hostname())) }) ||
		query.Get("sslrootcert") == "system" { // which is verify-full
		return
	}
	switch query.Get("sslmode") {
	case "", "verify-full":
	case "require", "verify-ca":
		v.note("store.postgres.url: whose server it is that answers on another machine is not verified: with sslmode=verify-full it is")
	default:
		v.note("store.postgres.url: the connection to another machine may go unencrypted: with sslmode=verify-full it does not, and the server is verified")
	}
}

func (v *validator) warnProvider(path string, p Provider) {
	if p.ClientSecretFile == "" && p.ClientSecretEnv == "" {
		v.note("%s: a public client, without client secret: PKCE alone protects its sign-ins", path)
	}
	if p.InsecureUnverifiedEmail {
		v.note("%s.insecure_unverified_email: e-mail addresses are believed as people typed them", path)
	}
	if p.InsecureIDTokenHint {
		v.note("%s.insecure_id_token_hint: ID tokens stand in the URL of a sign-out, and so in histories and logs", path)
	}
	if p.InsecureIssuerHTTP {
		v.note("%s.insecure_issuer_http: anybody on the way to the provider can sign in as anybody", path)
	}
}
