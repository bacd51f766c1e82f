package config

import (
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coatcheck/coatcheck"
)

// identity lists the identity headers with their paths.
func (h Headers) identity() []struct{ path, name string } {
	return []struct{ path, name string }{
		{"headers.user", h.User},
		{"headers.email", h.Email},
		{"headers.groups", h.Groups},
		{"headers.preferred_username", h.PreferredUsername},
	}
}

func (v *validator) headers() {
	seen := map[string]string{}
	for _, h := range v.cfg.Headers.identity() {
		switch {
		case !fieldName.MatchString(h.name):
			v.refuse(h.path, "must be the name of a header, as in X-Forwarded-User")
			continue
		case taken(h.name):
			v.refuse(h.path, "this header means something else: choose another name")
			continue
		}
		// Upstreams that hand headers on as CGI variables fold case, - and _ into
		// one, so two names that differ only there are the same header.
		folded := strings.ReplaceAll(strings.ToLower(h.name), "_", "-")
		if other, twice := seen[folded]; twice {
			v.refuse(h.path, "is the same header as %s", other)
			continue
		}
		seen[folded] = h.path
	}
}

// taken reports whether a header has a meaning of its own to a client, a server or
// a proxy, so that it can't carry an identity.
func taken(name string) bool {
	name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	switch name {
	case "Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", // RFC 9110 §7.6.1
		"Host", "Cookie", "Set-Cookie", "Authorization", "Www-Authenticate", "Origin", "Referer", "Expect", "Via",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-Ip":
		return true
	}
	for _, prefix := range []string{"Content-", "Proxy-", "Sec-", "Access-Control-", "Coatcheck-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (v *validator) routes() {
	routes := v.cfg.Routes
	v.require("routes", len(routes) > 0, "a list with at least one route, as in [{path: /, upstream: http://127.0.0.1:8080}]")
	for i := range routes {
		path := element("routes", i)
		v.route(path, &routes[i])
		for j := range i {
			if overlap(routes[i], routes[j]) {
				other := element("routes", j)
				v.refuse(path, "leads from the same place as %s on line %d", other, v.place(other).line)
				break
			}
		}
	}
}

var (
	method = regexp.MustCompile(`^[A-Z][A-Z0-9_-]*$`)
	scope  = regexp.MustCompile(`^[!#-\[\]-~]+$`) // RFC 6749 §3.3
	vschar = regexp.MustCompile(`^[ -~]+$`)       // RFC 6749 appendix A
)

func (v *validator) route(path string, r *Route) {
	v.routeHost(path+".host", r)
	if v.require(path+".path", r.Path != "", "what the route matches, as in / or /shop") {
		v.routePath(path+".path", r.Path)
	}
	for i, m := range r.Methods {
		if !method.MatchString(m) {
			v.refuse(element(path+".methods", i), "must be a method in upper case, as in GET")
		}
	}
	switch {
	case r.StripPrefix && r.Exact:
		v.refuse(path+".strip_prefix", "can't go with exact: nothing would be left of the path")
	case r.StripPrefix && r.Path == "/":
		v.refuse(path+".strip_prefix", "the path / has no prefix to strip")
	case r.StripPrefix && r.Upstream == nil && !v.broken(path+".upstream"):
		v.refuse(path+".strip_prefix", "needs an upstream")
	}
	v.allow(path+".allow", &r.Allow)
	if r.Require == coatcheck.Anonymous && !r.Allow.Empty() {
		v.refuse(path+".allow", "needs require: authenticated, because nobody is known on an anonymous route")
	}
	for i, origin := range r.WebSocketOrigins {
		if origin == nil {
			v.refuse(element(path+".websocket_origins", i), "%v", errOrigin)
		}
	}
	v.between(path+".timeout", r.Timeout, time.Millisecond, 24*time.Hour)
}

func (v *validator) routeHost(path string, r *Route) {
	public := v.cfg.PublicURL.Hostname()
	if r.Host == "" {
		r.Host = public
		return
	}
	r.Host = strings.ToLower(r.Host)
	if checkHost(r.Host) != nil {
		v.refuse(path, "must be a host name alone, as in shop.example.com; scheme and port are those of public_url")
		return
	}
	domain := v.cfg.Session.Cookie.Domain
	switch {
	case r.Host == public || public == "" || v.broken("session.cookie.domain"):
	case domain == "":
		v.refuse(path, "the session cookie reaches only %s, the host of public_url: set session.cookie.domain to a domain that holds both", public)
	case !within(r.Host, domain):
		v.refuse(path, "the session cookie can't reach this host, which does not lie within session.cookie.domain")
	}
}

func (v *validator) routePath(path, text string) {
	if wrong := checkPath(text); wrong != "" {
		v.refuse(path, "%s", wrong)
		return
	}
	for _, own := range []string{v.cfg.Endpoints.Prefix, "/ping", "/ready"} {
		// A prefix that is wrong itself has its own message.
		if endpointPrefix.MatchString(own) && under(text, own) {
			v.refuse(path, "lies under %s, where coatcheck's own endpoints are", own)
		}
	}
}

// checkPath returns what is wrong with a path of the configuration, or "". Paths
// are written in the one form that requests are brought to: decoded, and without
// anything that could be read in two ways.
func checkPath(path string) string {
	switch {
	case !strings.HasPrefix(path, "/"):
		return "must begin with a slash"
	case strings.ContainsAny(path, "?#"):
		return "must be a path without query and fragment"
	case strings.Contains(path, "%"):
		return "must be written decoded, and hold no percent sign"
	case strings.Contains(path, "//"):
		return "must not hold an empty segment (//)"
	case strings.ContainsAny(path, `;\`) || strings.ContainsFunc(path, unicode.IsControl):
		return "must not hold a semicolon, a backslash or a control character"
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return "must not hold the segments . and .."
		}
	}
	return ""
}

// under reports whether a path is another or lies below it.
func under(path, other string) bool {
	return path == other || strings.HasPrefix(path, other+"/")
}

// overlap reports whether there is a request that both routes match equally well. A
// route that names the request's method goes before one for all methods.
func overlap(a, b Route) bool {
	if a.Path == "" || a.Host != b.Host || a.Exact != b.Exact || a.place() != b.place() {
		return false
	}
	return len(a.Methods) == 0 && len(b.Methods) == 0 ||
		slices.ContainsFunc(a.Methods, func(m string) bool { return slices.Contains(b.Methods, m) })
}

// place returns the path for comparison: as prefixes, /shop and /shop/ are one.
func (r Route) place() string {
	if r.Exact {
		return r.Path
	}
	return strings.TrimSuffix(r.Path, "/")
}

var providerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (v *validator) providers() {
	providers := v.cfg.Providers
	if v.require("providers", len(providers) > 0, "a list with one OpenID provider") && len(providers) > 1 {
		v.refuse(element("providers", 1), "one provider is supported by this version")
	}
	for i := range providers {
		v.provider(element("providers", i), &providers[i])
	}
}

func (v *validator) provider(path string, p *Provider) {
	if v.require(path+".name", p.Name != "", "a short name for logs, as in corp") && !providerName.MatchString(p.Name) {
		v.refuse(path+".name", "must be up to 32 lower-case letters, digits and inner hyphens")
	}
	if v.require(path+".issuer", p.Issuer != "", "the provider's issuer identifier, as in https://idp.example.com") {
		v.issuer(path, p)
	}
	if v.require(path+".client_id", p.ClientID != "", "the name under which coatcheck is registered at the provider") && !vschar.MatchString(p.ClientID) {
		v.refuse(path+".client_id", "must be printable ASCII (RFC 6749 appendix A)")
	}
	v.sources(path+".client_secret", &p.ClientSecretFile, p.ClientSecretEnv)
	for i, s := range p.Scopes {
		if !scope.MatchString(s) {
			v.refuse(element(path+".scopes", i), "must be one scope, without spaces")
		}
	}
	if !slices.Contains(p.Scopes, "openid") {
		v.refuse(path+".scopes", "must hold openid (OpenID Connect Core 1.0 §3.1.2.1)")
	}
	if p.GroupsClaim == "" {
		v.refuse(path+".groups_claim", "must be the name of a claim")
	}
	v.between(path+".rotation_grace", p.RotationGrace, 0, 10*time.Minute)
	if p.Recheck != 0 {
		v.between(path+".recheck", p.Recheck, 10*time.Second, 24*time.Hour)
	}
}

// issuer checks an issuer identifier (OpenID Connect Discovery 1.0 §3), which stays
// as it is written because it is compared with the provider's own spelling.
func (v *validator) issuer(path string, p *Provider) {
	u, err := url.Parse(p.Issuer)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		checkHost(strings.ToLower(u.Hostname())) != nil || u.Port() != "" && !validPort(u.Port(), 1):
		v.refuse(path+".issuer", "must be an https URL, as in https://idp.example.com")
	case u.User != nil || strings.ContainsAny(p.Issuer, "?#"):
		v.refuse(path+".issuer", "must not hold a user, a query or a fragment")
	case strings.Contains(u.Path, "/.well-known/"):
		v.refuse(path+".issuer", "must be the issuer alone: the path from /.well-known on is added")
	case u.Scheme == "http" && !isLoopback(strings.ToLower(u.Hostname())) && !p.InsecureIssuerHTTP:
		v.refuse(path+".issuer", "must be https: over plain http anybody on the way can sign in as anybody")
	case u.Scheme == "https" && p.InsecureIssuerHTTP:
		v.refuse(path+".insecure_issuer_http", "remove it: issuer is https")
	}
}
