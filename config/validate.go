package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
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
	v.listeners()
	v.publicURL()
	v.store()
	v.keys()
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
	host, port, ok := v.address("listen", c.Listen)
	if c.Admin.Listen == "" {
		return
	}
	adminHost, adminPort, adminOK := v.address("admin.listen", c.Admin.Listen)
	// A port taken on all interfaces is taken on each of them.
	if ok && adminOK && port == adminPort && port != "0" && (host == adminHost || everywhere(host) || everywhere(adminHost)) {
		v.refuse("admin.listen", "must not be the address of the proxy: metrics are not for its clients")
	}
}

func (v *validator) address(path, text string) (host, port string, ok bool) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || !validPort(port, 0) {
		v.refuse(path, "must be HOST:PORT, as in 127.0.0.1:4180")
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

var (
	keyPrefix   = regexp.MustCompile(`^[!-z|~]{0,64}$`) // printable, no braces: those make a hash tag
	environment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func (v *validator) store() {
	s := &v.cfg.Store
	switch s.Driver {
	case DriverSQLite:
		v.otherDriver("store.redis", DriverRedis)
	case DriverRedis:
		v.otherDriver("store.sqlite", DriverSQLite)
		v.redis(&s.Redis)
	case "memory":
		v.refuse("store.driver", "memory is for tests: choose sqlite or redis")
	default:
		v.refuse("store.driver", "must be sqlite or redis")
	}
	v.file("store.sqlite.file", &s.SQLite.File)
	if s.SQLite.File == "" {
		v.refuse("store.sqlite.file", "must be the path of a file")
	}
}

func (v *validator) otherDriver(path, driver string) {
	if v.given(path) && !v.broken("store.driver") {
		v.refuse(path, "is for driver: %s, and the driver is %s", driver, v.cfg.Store.Driver)
	}
}

func (v *validator) redis(r *Redis) {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "redis" && u.Scheme != "rediss" || u.Hostname() == "":
		v.refuse("store.redis.url", "must be a redis or rediss URL, as in redis://127.0.0.1:6379/0")
	case checkHost(strings.ToLower(u.Hostname())) != nil || u.Port() != "" && !validPort(u.Port(), 1):
		v.refuse("store.redis.url", "must hold a host name or an address, and a port from 1 to 65535")
	case strings.ContainsAny(r.URL, "?#"):
		v.refuse("store.redis.url", "must not hold a query or a fragment")
	case !database(strings.TrimPrefix(u.Path, "/")):
		v.refuse("store.redis.url", "the path must be the number of a database, as in redis://127.0.0.1:6379/0")
	case u.User != nil:
		if _, has := u.User.Password(); has {
			v.refuse("store.redis.url", "a password must not stand in this file: use password_file or password_env")
		} else if r.Username != "" {
			v.refuse("store.redis.username", "the URL names a user too: remove one")
		}
		r.Username = u.User.Username()
		u.User = nil
		r.URL = u.String()
	}
	v.sources("store.redis.password", &r.PasswordFile, r.PasswordEnv)
	if !keyPrefix.MatchString(r.KeyPrefix) {
		v.refuse("store.redis.key_prefix", "must be at most 64 printable characters, without spaces and braces")
	}
	v.between("store.redis.timeout", r.Timeout, 10*time.Millisecond, 30*time.Second)
}

func database(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return text == "" || err == nil && strconv.FormatUint(n, 10) == text
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
	case DriverRedis:
		v.refuse("keys", "is required with redis, because all nodes must have the same keys: make them with `coatcheck key new FILE` and name the file in keys: {file: FILE}")
	}
}

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
	v.between("timeouts.read_header", t.ReadHeader, 100*time.Millisecond, 5*time.Minute)
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
