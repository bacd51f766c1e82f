// Package route reads the request line into one canonical form and finds the route
// that it belongs to.
//
// A request is parsed here once. What matching and policy judge is what the upstream
// gets, byte for byte, so there is no second parser to disagree with. Whatever two
// servers are known to read differently (encoded slashes, dot segments, empty
// segments, path parameters around them, double encodings) is refused instead of
// repaired.
package route

import (
	"errors"
	"net/http"
	"strings"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
)

// A Request is an HTTP request in canonical form. It comes from [Canonical] or
// [Forwarded]; reading its target again yields the same Request.
type Request struct {
	Method     string // as it came; "" only from Forwarded, where the proxy named none
	Host       string // lower case host[:port]; the scheme's default port and a trailing dot removed
	Path       string // decoded once, for matching and rules; valid UTF-8, begins with "/"
	RawPath    string // the bytes as they came, and as they are forwarded
	RawQuery   string // the bytes as they came, without the "?"
	ForceQuery bool   // there was a "?" with nothing behind it
}

// Limits bound what a request line may cost. Both must be positive.
type Limits struct {
	URI     int // bytes of the request target
	Cookies int // number of cookies
}

// DefaultLimits leave room for what browsers send: they keep some 180 cookies for a
// site (RFC 6265 §6.1 asks for 50), and servers refuse targets of 8 KiB and more
// (RFC 9110 §4.1 asks for 8000 bytes).
var DefaultLimits = Limits{URI: 8 << 10, Cookies: 200}

// Canonical reads the request line and Host of r. The scheme is the site's own,
// "http" or "https"; it says which port goes without saying.
//
// Errors are *coatcheck.Error: CodeURITooLong and CodeTooManyCookies for what is
// over the limits, CodeMalformed for everything that could be read in two ways.
func Canonical(r *http.Request, scheme string, limits Limits) (Request, error) {
	if len(r.RequestURI) > limits.URI {
		return Request{}, coatcheck.E(coatcheck.CodeURITooLong, "route.canonical", nil)
	}
	if cookie.Count(r.Header) > limits.Cookies {
		return Request{}, coatcheck.E(coatcheck.CodeTooManyCookies, "route.canonical", nil)
	}
	if r.Method == "" {
		return Request{}, malformed(errMethod)
	}
	// RFC 9112 §3.2.2: the authority of an absolute-form target replaces the Host
	// field, whatever that says.
	host, target, err := splitTarget(r.RequestURI)
	if err != nil {
		return Request{}, malformed(err)
	}
	if host == "" {
		host = r.Host
	}
	return read(r.Method, host, target, scheme)
}

// Forwarded reads a request that a proxy asks about, from what the proxy says of it.
// Only a trusted one may be believed; that is for the caller to decide. The uri is a
// path with its query, or absolute; a host beside an absolute uri must be the same.
// An empty method is kept: it matches no route that names methods.
//
// Errors are *coatcheck.Error with CodeMalformed.
func Forwarded(method, host, uri, scheme string) (Request, error) {
	authority, target, err := splitTarget(uri)
	if err != nil {
		return Request{}, malformed(err)
	}
	if authority == "" {
		return read(method, host, target, scheme)
	}
	req, err := read(method, authority, target, scheme)
	if err != nil || host == "" {
		return req, err
	}
	if host, err = readHost(host, scheme); err != nil {
		return Request{}, malformed(err)
	}
	if host != req.Host {
		return Request{}, malformed(errHostsDiffer)
	}
	return req, nil
}

var (
	errMethod      = errors.New("not a method that has a path")
	errTarget      = errors.New("request target in neither origin-form nor absolute-form")
	errHostsDiffer = errors.New("two different hosts")
	errQuery       = errors.New("query with a control, space, # or non-ASCII byte")
)

func malformed(cause error) error {
	return coatcheck.E(coatcheck.CodeMalformed, "route.canonical", cause)
}

// splitTarget separates the authority of an absolute-form target (RFC 9112 §3.2.2)
// from what follows. In origin-form the authority is empty. Asterisk-form and
// authority-form (§3.2.3, §3.2.4) have no path and are errors.
func splitTarget(uri string) (authority, target string, err error) {
	if strings.HasPrefix(uri, "/") {
		return "", uri, nil
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", "", errTarget
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if end == 0 {
		return "", "", errTarget
	}
	authority, target = rest[:end], rest[end:]
	if !strings.HasPrefix(target, "/") {
		target = "/" + target // RFC 9110 §4.2.3: an empty path is "/"
	}
	return authority, target, nil
}

func read(method, host, target, scheme string) (Request, error) {
	if method == http.MethodConnect || !isToken(method) {
		return Request{}, malformed(errMethod)
	}
	host, err := readHost(host, scheme)
	if err != nil {
		return Request{}, malformed(err)
	}
	raw, query, hasQuery := strings.Cut(target, "?")
	path, err := readPath(raw)
	if err != nil {
		return Request{}, malformed(err)
	}
	for i := range len(query) {
		// The query is not judged, only carried. These bytes would end it, or the
		// request line, at some server.
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return Request{}, malformed(errQuery)
		}
	}
	return Request{
		Method:     method,
		Host:       host,
		Path:       path,
		RawPath:    raw,
		RawQuery:   query,
		ForceQuery: hasQuery && query == "",
	}, nil
}

// isToken tells whether s consists of tchar (RFC 9110 §5.6.2). The empty string does.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isAlnum(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
