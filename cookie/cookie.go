// Package cookie names, finds, sets and clears the cookies that are ours, and keeps
// them away from the apps behind us.
//
// It reads the Cookie header in place instead of through net/http: the header is
// scanned on every request, other cookies must pass through byte for byte, and a
// name is ours only if it matches exactly. Browsers match the __Host- prefix without
// regard to case (RFC 6265bis §5.4); a server must not.
package cookie

import (
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Limits of RFC 6265bis §5.6 and §5.5; a browser drops what is over them.
const (
	MaxSize = 4096                 // bytes of name and value together
	MaxAge  = 400 * 24 * time.Hour // the longest lifetime a browser keeps
)

// MaxParts is the number of parts that a cookie split over several may have. Parts
// are named NAME.0, NAME.1 and so on.
const MaxParts = 16

// A Jar describes our cookies at one place: their names and attributes. The zero
// value is not usable; call New.
type Jar struct {
	base   string // configured name, as in "coatcheck"
	prefix string // "__Host-", "__Secure-" or ""
	attrs  string // everything behind NAME=VALUE but Max-Age
}

// New returns the jar for cookies called base. With a domain they are shared by its
// sub-domains and named __Secure-base; without one they belong to one host alone and
// are named __Host-base. With insecureHTTP, for sites on plain http, neither prefix
// nor Secure is possible and the name is base itself.
//
// The caller has checked that base is a token and domain a host name.
func New(base, domain string, insecureHTTP bool) *Jar {
	j := &Jar{base: base, attrs: "; Path=/; HttpOnly; SameSite=Lax"}
	switch {
	case insecureHTTP:
	case domain != "":
		j.prefix = "__Secure-"
		j.attrs += "; Secure"
	default:
		j.prefix = "__Host-"
		j.attrs += "; Secure"
	}
	if domain != "" {
		j.attrs += "; Domain=" + domain
	}
	return j
}

// Session returns the name of the session cookie.
func (j *Jar) Session() string { return j.prefix + j.base }

// Name returns the name of our cookie for another purpose, as in
// __Host-coatcheck-login.
func (j *Jar) Name(purpose string) string { return j.prefix + j.base + "-" + purpose }

// Set adds a Set-Cookie to a response's header and forbids caches to keep that
// response. maxAge is cut to MaxAge; zero makes a cookie that ends with the browser.
// The value must consist of cookie-octets (RFC 6265 §4.1.1); ours are hex, base64url
// and the separators - and dot.
func (j *Jar) Set(h http.Header, name, value string, maxAge time.Duration) {
	line := name + "=" + value + j.attrs
	if maxAge > 0 {
		// Rounded up, since Max-Age=0 would delete the cookie.
		seconds := (min(maxAge, MaxAge) + time.Second - 1) / time.Second
		line += "; Max-Age=" + strconv.Itoa(int(seconds))
	}
	h.Add("Set-Cookie", line)
	h.Set("Cache-Control", "no-store")
}

// Expire adds a Set-Cookie that deletes the cookie. A browser matches a deletion by
// name, domain and path, so these are the ones that Set used.
func (j *Jar) Expire(h http.Header, name string) {
	h.Add("Set-Cookie", name+"="+j.attrs+"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT")
	h.Set("Cache-Control", "no-store")
}

// Each yields the name and value of every cookie in the request header h, in order,
// without decoding. A pair without "=" yields its text as the name. Quotes stay.
func Each(h http.Header) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for _, line := range h["Cookie"] {
			for line != "" {
				var pair string
				pair, line, _ = strings.Cut(line, ";")
				pair = strings.Trim(pair, " \t")
				if pair == "" {
					continue
				}
				name, value, _ := strings.Cut(pair, "=")
				if !yield(name, value) {
					return
				}
			}
		}
	}
}

// Count returns the number of cookies in h, without looking at them.
func Count(h http.Header) int {
	n := 0
	for _, line := range h["Cookie"] {
		n += strings.Count(line, ";") + 1
	}
	return n
}

// Part tells whether name is a part of the session cookie, NAME.N, and which. It
// reports ok = false for a name that is none, and index = -1 for one that starts like
// a part and is none: not canonical decimal, or not below MaxParts.
func (j *Jar) Part(name string) (index int, ok bool) {
	rest, ok := strings.CutPrefix(name, j.prefix)
	if !ok {
		return 0, false
	}
	if rest, ok = strings.CutPrefix(rest, j.base); !ok {
		return 0, false
	}
	if rest, ok = strings.CutPrefix(rest, "."); !ok {
		return 0, false
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 || n >= MaxParts || strconv.Itoa(n) != rest {
		return -1, true
	}
	return n, true
}

// Ours tells whether a cookie of this name belongs to coatcheck: with any prefix, in
// any case and with white space around it, the base name alone or followed by "-" or
// ".". It is wider than what we read, so that nothing that a browser or an app might
// take for ours slips by.
func (j *Jar) Ours(name string) bool {
	name = strings.Trim(name, " \t")
	for _, p := range [...]string{"__Host-Http-", "__Host-", "__Secure-", "__Http-"} {
		if len(name) > len(p) && strings.EqualFold(name[:len(p)], p) {
			name = name[len(p):]
			break
		}
	}
	if len(name) < len(j.base) || !strings.EqualFold(name[:len(j.base)], j.base) {
		return false
	}
	return len(name) == len(j.base) || name[len(j.base)] == '-' || name[len(j.base)] == '.'
}

// Strip removes our cookies from the request header h. All other cookies stay as
// they were, byte for byte and in order; a header without cookies of ours is not
// touched.
func (j *Jar) Strip(h http.Header) {
	lines := h["Cookie"]
	dirty := false
	for name := range Each(h) {
		if j.Ours(name) {
			dirty = true
			break
		}
	}
	if !dirty {
		return
	}
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		if line = j.stripLine(line); line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = kept
}

func (j *Jar) stripLine(line string) string {
	var b strings.Builder
	b.Grow(len(line))
	for rest, more := line, true; more; {
		var pair string
		pair, rest, more = strings.Cut(rest, ";")
		name, _, _ := strings.Cut(pair, "=")
		if j.Ours(name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(';')
		} else {
			pair = strings.TrimLeft(pair, " \t")
		}
		b.WriteString(pair)
	}
	return b.String()
}

// StripSet removes every Set-Cookie from the response header h that would set one of
// our cookies: an app can neither sign a person in nor out by a cookie of its own. A
// cookie with an empty name counts by its value, since a browser sends "=a=b" back as
// "a=b" (RFC 6265bis §5.8.3).
func (j *Jar) StripSet(h http.Header) {
	lines := h["Set-Cookie"]
	var kept []string
	for i, line := range lines {
		pair, _, _ := strings.Cut(line, ";")
		name, _, _ := strings.Cut(strings.TrimLeft(pair, "= \t"), "=")
		if j.Ours(name) {
			if kept == nil {
				kept = append(make([]string, 0, len(lines)), lines[:i]...)
			}
			continue
		}
		if kept != nil {
			kept = append(kept, line)
		}
	}
	if kept == nil {
		return
	}
	if len(kept) == 0 {
		delete(h, "Set-Cookie")
		return
	}
	h["Set-Cookie"] = kept
}
