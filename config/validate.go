package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coatcheck/coatcheck"
)

// A validator judges a decoded configuration as a whole and fills in the defaults
// that depend on other settings.
type validator struct {
	*decoder
	cfg *Config
}

func (v *validator) validate() {
	if c := v.cfg; v.given("node") && !nodeName.MatchString(c.Node) {
		v.refuse("node", "%s", wrongNodeName)
	}
	v.listeners()
	v.publicURL()
	v.store()
	v.keys()
	v.cache()
	v.session()
	v.allow("allow", &v.cfg.Allow)
	v.providers()
	v.headers()
	v.endpoints()
	v.routes()
	v.bounds()
}

// refuse records a problem with the value at path. It is silent about values that
// could not be decoded: what is said about them would be about a default.
func (v *validator) refuse(path, format string, args ...any) {
	if !v.broken(path) {
		v.add(v.place(path), path, format, args...)
	}
}

// require reports whether a value is there, and records a problem if not.
func (v *validator) require(path string, there bool, why string) bool {
	if !there {
		v.refuse(path, "is required: %s", why)
	}
	return there
}

// broken reports whether the value at path, or one that it is part of, could not be
// decoded.
func (v *validator) broken(path string) bool {
	for ; path != ""; path = parent(path) {
		if v.failed[path] {
			return true
		}
	}
	return v.failed[""]
}

// refused reports whether a problem with the value at path is recorded.
func (v *validator) refused(path string) bool {
	return slices.ContainsFunc(v.problems, func(f finding) bool { return f.path == path })
}

// given reports whether the file says something at path.
func (v *validator) given(path string) bool {
	_, ok := v.places[path]
	return ok
}

// place returns where the value at path stands or, if the file says nothing there,
// what it would be part of.
func (v *validator) place(path string) place {
	for ; path != ""; path = parent(path) {
		if at, ok := v.places[path]; ok {
			return at
		}
	}
	return v.places[""]
}

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func (v *validator) listeners() {
	c := v.cfg
	const example = "127.0.0.1:4180"
	host, port, ok := v.address("listen", c.Listen, example)
	if c.Admin.Listen == "" {
		return
	}
	adminHost, adminPort, adminOK := v.address("admin.listen", c.Admin.Listen, example)
	// A port taken on all interfaces is taken on each of them.
	if ok && adminOK && port == adminPort && port != "0" && (host == adminHost || everywhere(host) || everywhere(adminHost)) {
		v.refuse("admin.listen", "must not be the address of the proxy: metrics are not for its clients")
	}
}

func (v *validator) address(path, text, example string) (host, port string, ok bool) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || !validPort(port, 0) {
		v.refuse(path, "must be HOST:PORT, as in %s", example)
		return "", "", false
	}
	if host != "" {
		if err := checkHost(strings.ToLower(host)); err != nil {
			v.refuse(path, "%v", err)
			return "", "", false
		}
	}
	return strings.ToLower(host), port, true
}

func everywhere(host string) bool {
	return host == "" || net.ParseIP(host).IsUnspecified()
}

var nodeName = regexp.MustCompile(`^[!-~]{1,64}$`)

const wrongNodeName = "must be 1 to 64 printable ASCII characters, without spaces"

func (v *validator) publicURL() {
	c := v.cfg
	switch {
	case !v.require("public_url", c.PublicURL != nil, "where browsers find coatcheck, as in https://app.example.com"):
		// A validator that goes on needs some host; the problem is recorded.
		c.PublicURL = new(url.URL)
	case c.PublicURL.Scheme == "http" && !c.InsecureHTTP && !v.broken("insecure_http"):
		v.refuse("public_url", "plain http needs insecure_http: true, because anybody on the way can then read and use sessions")
	case c.PublicURL.Scheme == "https" && c.InsecureHTTP:
		v.refuse("insecure_http", "remove it: public_url is https")
	}
}

func (v *validator) keys() {
	k := &v.cfg.Keys
	v.sources("keys", &k.File, k.Env)
	if k.File != "" || k.Env != "" || v.broken("keys.file") || v.broken("keys.env") {
		return
	}
	switch v.cfg.Store.Driver {
	case DriverSQLite:
		k.File = filepath.Join(filepath.Dir(v.cfg.Store.SQLite.File), "keys.json")
	case DriverRedis, DriverPostgres:
		v.refuse("keys", "is required with %s, because all nodes must have the same keys: make them with `coatcheck key new FILE` and name the file in keys: {file: FILE}", v.cfg.Store.Driver)
	}
}

var environment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// sources checks a pair of settings of which one names a file and one an
// environment variable. Their paths are key_file and key_env; those of keys, which
// has a section of its own, are keys.file and keys.env.
func (v *validator) sources(key string, file *string, env string) {
	separator := "_"
	if key == "keys" {
		separator = "."
	}
	v.file(key+separator+"file", file)
	if env != "" && !environment.MatchString(env) {
		v.refuse(key+separator+"env", "must be the name of an environment variable: letters, digits and underscores")
	}
	if *file != "" && env != "" {
		v.refuse(key+separator+"env", "a file is named too: remove one")
	}
}

// file resolves a path.
func (v *validator) file(path string, file *string) {
	if strings.ContainsFunc(*file, unicode.IsControl) {
		v.refuse(path, "a path must not hold a control character")
	}
	*file = resolve(v.src.name, *file)
}

// fieldName is a token of RFC 9110 §5.6.2: what cookie and field names are made of.
var fieldName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")

func (v *validator) session() {
	s := &v.cfg.Session
	name := strings.ToLower(s.Cookie.Name)
	switch {
	case strings.HasPrefix(name, "__host-"), strings.HasPrefix(name, "__secure-"):
		v.refuse("session.cookie.name", "must be without the prefix __Host- or __Secure-: the one that fits is added")
	case !fieldName.MatchString(s.Cookie.Name):
		v.refuse("session.cookie.name", "must be 1 to 64 letters, digits and characters such as - and _")
	}
	v.cookieDomain(&s.Cookie)
	v.between("session.absolute_timeout", s.AbsoluteTimeout, time.Second, 400*24*time.Hour)
	v.between("session.idle_timeout", s.IdleTimeout, time.Second, 400*24*time.Hour)
	if s.IdleTimeout > s.AbsoluteTimeout && !v.broken("session.absolute_timeout") {
		v.refuse("session.idle_timeout", "must not be longer than absolute_timeout, which is %s", short(s.AbsoluteTimeout))
	}
	v.sessionLimits(&s.Limits)
	v.between("session.tombstones", s.Tombstones, 0, 24*time.Hour)
	v.between("session.outage_grace", s.OutageGrace, 0, time.Hour)
	if s.OutageGrace > 0 && v.cfg.Cache.SizeBytes == 0 && !v.broken("cache.size_bytes") {
		v.refuse("session.outage_grace", "needs the near cache, and cache.size_bytes is 0")
	}
}

func (v *validator) sessionLimits(l *SessionLimits) {
	v.whole("session.limits.per_user", l.PerUser, 0, maxPerUser)
	v.whole("session.limits.per_app", l.PerApp, 0, maxPerUser)
	v.whole("session.limits.total", l.Total, 0, 1_000_000_000)
	if l.PerUser > 0 && l.PerApp > l.PerUser && !v.broken("session.limits.per_user") {
		v.refuse("session.limits.per_app", "must not be more than per_user, which is %d", l.PerUser)
	}
	switch l.OnLimit {
	case OnLimitDeny, OnLimitEvictOldest, OnLimitEvictIdle:
	default:
		v.refuse("session.limits.on_limit", "must be deny, evict_oldest or evict_idle")
	}
}

func (v *validator) cookieDomain(c *Cookie) {
	const path = "session.cookie.domain"
	c.Domain = strings.ToLower(strings.TrimPrefix(c.Domain, "."))
	host := v.cfg.PublicURL.Hostname()
	switch {
	case c.Domain == "":
	case isAddress(c.Domain):
		v.refuse(path, "must be a domain: a cookie for an address reaches that address alone")
	case checkHost(c.Domain) != nil:
		v.refuse(path, "must be a domain, as in example.com")
	case !strings.Contains(c.Domain, "."):
		v.refuse(path, "must have at least two parts, as in example.com: browsers refuse cookies for less")
	case host != "" && !within(host, c.Domain):
		v.refuse(path, "must hold the host of public_url, which is %s", host)
	}
}

// within reports whether a host is a domain or lies below it (RFC 6265 §5.1.3).
func within(host, domain string) bool {
	return host == domain || !isAddress(host) && strings.HasSuffix(host, "."+domain)
}

func (v *validator) allow(path string, a *Allow) {
	for i, address := range a.Emails {
		if coatcheck.EmailDomain(address) == "" {
			v.refuse(element(path+".emails", i), "must be an e-mail address, as in alice@example.com")
		}
	}
	for i, domain := range a.EmailDomains {
		at := element(path+".email_domains", i)
		domain = strings.ToLower(domain)
		switch {
		case strings.HasPrefix(domain, "@"):
			v.refuse(at, "must be without the @, as in example.com")
		case strings.Contains(domain, "@"):
			v.refuse(at, "is an address: whole addresses belong in emails")
		case strings.Contains(domain, "*"):
			v.refuse(at, "a domain is given in full: there are no wildcards")
		case isAddress(domain) || checkHost(domain) != nil:
			v.refuse(at, "must be a domain, as in example.com")
		}
		a.EmailDomains[i] = domain
	}
	for i, group := range a.Groups {
		if group == "" || strings.ContainsFunc(group, unicode.IsControl) {
			v.refuse(element(path+".groups", i), "must be the name of a group")
		}
	}
}

// endpointPrefix is what stands in a URL as it is, in a redirect URI above all.
var endpointPrefix = regexp.MustCompile(`^(/[A-Za-z0-9_-]{1,64}){1,4}$`)

func (v *validator) endpoints() {
	const path = "endpoints.prefix"
	prefix := v.cfg.Endpoints.Prefix
	switch wrong := checkPath(prefix); {
	case wrong != "":
		v.refuse(path, "%s", wrong)
	case !endpointPrefix.MatchString(prefix):
		v.refuse(path, "must be a path of letters, digits, - and _, without a final slash, as in /oauth2")
	case under(prefix, "/ping"), under(prefix, "/ready"):
		v.refuse(path, "must not lie under /ping or /ready, which are endpoints of their own")
	}
}

func (v *validator) bounds() {
	l, t, s := v.cfg.Limits, v.cfg.Timeouts, v.cfg.Shutdown
	v.whole("limits.header_bytes", l.HeaderBytes, 4<<10, 1<<20)
	if most := l.HeaderBytes; !v.broken("limits.header_bytes") && most >= 256 {
		v.whole("limits.uri_bytes", l.URIBytes, 256, most)
	}
	v.whole("limits.cookies", l.Cookies, 16, 4096)
	v.whole("limits.upstream_requests", l.UpstreamRequests, 0, 1_000_000)
	v.between("timeouts.read_header", t.ReadHeader, 100*time.Millisecond, 5*time.Minute)
	if t.Upload != 0 {
		v.between("timeouts.upload", t.Upload, time.Second, time.Hour)
	}
	v.between("timeouts.idle", t.Idle, time.Second, time.Hour)
	v.between("shutdown.delay", s.Delay, 0, 10*time.Minute)
	v.between("shutdown.grace", s.Grace, 0, time.Hour)
}

func (v *validator) between(path string, d, least, most time.Duration) {
	if d < least || d > most {
		v.refuse(path, "must be from %s to %s", short(least), short(most))
	}
}

func (v *validator) whole(path string, n, least, most int) {
	if n < least || n > most {
		v.refuse(path, "must be from %d to %d", least, most)
	}
}

// short writes a duration as people do: 12h, not 12h0m0s.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// note records something that is allowed and that an operator should know.
func (v *validator) note(format string, args ...any) {
	v.cfg.warnings = append(v.cfg.warnings, fmt.Sprintf(format, args...))
}
