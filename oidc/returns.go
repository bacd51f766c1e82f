package oidc

import (
	"errors"
	"net/url"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// MaxReturnURL is the longest return URL, in bytes as delivered. It keeps a pre-login
// cookie below what a browser stores.
const MaxReturnURL = 2000

// Returns decides where a browser may be sent back to: to a path on the host it is
// on, or to one of the configured hosts under the public scheme. It judges with a
// browser's eyes (WHATWG URL), not with net/url's: browsers take a backslash for a
// slash and drop tabs and line ends.
type Returns struct {
	scheme string
	public string          // authority
	hosts  map[string]bool // authorities, public among them
}

// NewReturns returns the rules for a site at public that also answers under hosts,
// authorities as in "shop.example.com" or "shop.example.com:8443".
func NewReturns(public *url.URL, hosts ...string) *Returns {
	v := &Returns{scheme: public.Scheme}
	v.public = v.authority(public.Host)
	v.hosts = map[string]bool{v.public: true}
	for _, h := range hosts {
		v.hosts[v.authority(h)] = true
	}
	return v
}

// authority is the one form of an authority that is compared: lower case, and
// without the scheme's default port. Only ASCII letters are lowered; other scripts
// must come as xn-- labels.
func (v *Returns) authority(s string) string {
	lower := []byte(s)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	port := ":443"
	if v.scheme == "http" {
		port = ":80"
	}
	return strings.TrimSuffix(string(lower), port)
}

// Check returns raw as it may stand in a Location header: unchanged, but with spaces
// and non-ASCII bytes percent-encoded. It returns CodeBadReturnURL for everything
// that leads, or might lead, somewhere else.
func (v *Returns) Check(raw string) (string, error) {
	for i := range len(raw) {
		if raw[i] < ' ' || raw[i] == 0x7f {
			return "", badReturn("a control character in it")
		}
	}
	beforeQuery := raw
	if i := strings.IndexAny(raw, "?#"); i >= 0 {
		beforeQuery = raw[:i]
	}
	if strings.Contains(beforeQuery, `\`) {
		return "", badReturn("a backslash in it")
	}
	if !strings.HasPrefix(raw, "/") {
		rest, ok := strings.CutPrefix(beforeQuery, v.scheme+"://")
		if !ok {
			return "", badReturn("neither a path nor a URL of this site's scheme")
		}
		// What is compared is all up to the first slash, so a user name, a password
		// or another port makes it another authority.
		authority, _, _ := strings.Cut(rest, "/")
		if !v.hosts[v.authority(authority)] {
			return "", badReturn("not a host of this site")
		}
	} else if strings.HasPrefix(raw, "//") {
		return "", badReturn("a host without a scheme") // RFC 3986 §4.2
	}
	encoded := encode(raw)
	if len(encoded) > MaxReturnURL {
		return "", badReturn("too long")
	}
	return encoded, nil
}

func badReturn(why string) error {
	return coatcheck.E(coatcheck.CodeBadReturnURL, "oidc.return_url", errors.New(why))
}

// encode percent-encodes what must not stand in a URL, and nothing else.
func encode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FromQuery returns the checked rd parameter, "/" if it is absent or empty. Two of
// them are refused: whoever reads the other one would go elsewhere.
func (v *Returns) FromQuery(q url.Values) (string, error) {
	switch rd := q["rd"]; {
	case len(rd) > 1:
		return "", badReturn("more than one rd")
	case len(rd) == 0 || rd[0] == "":
		return "/", nil
	default:
		return v.Check(rd[0])
	}
}

// FromRequest returns the return URL for a request that needs a sign-in: relative on
// the public host, where the callback is, and absolute for another configured host. A
// request that can't be returned to as it is loses its query, and then its path.
func (v *Returns) FromRequest(host, requestURI string) string {
	base := ""
	if host = v.authority(host); host != v.public {
		if !v.hosts[host] {
			return "/"
		}
		base = v.scheme + "://" + host
	}
	path, _, _ := strings.Cut(requestURI, "?")
	for _, target := range [...]string{requestURI, path} {
		if !strings.HasPrefix(target, "/") {
			break
		}
		if u, err := v.Check(base + target); err == nil {
			return u
		}
	}
	return base + "/"
}
