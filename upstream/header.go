package upstream

import (
	"iter"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"github.com/coatcheck/coatcheck"
)

// IdentityHeaders name the fields that tell an app who the user is. A field without a
// name is not sent.
type IdentityHeaders struct {
	User              string // the subject
	Email             string // only an address that the provider vouches for
	Groups            string // joined by commas; see Fields
	PreferredUsername string
}

// DefaultIdentityHeaders are the names most apps know. Whatever is configured, a client's
// fields of these names never reach an app.
var DefaultIdentityHeaders = IdentityHeaders{
	User:              "X-Forwarded-User",
	Email:             "X-Forwarded-Email",
	Groups:            "X-Forwarded-Groups",
	PreferredUsername: "X-Forwarded-Preferred-Username",
}

func (h IdentityHeaders) canonical() IdentityHeaders {
	for _, name := range []*string{&h.User, &h.Email, &h.Groups, &h.PreferredUsername} {
		*name = http.CanonicalHeaderKey(*name)
	}
	return h
}

// Fields yields every named field once, with its value for id. The value is "" where id
// is nil or has none, and where it holds what a field can't carry or a reader may trim:
// control characters, invalid UTF-8, white space at an end.
//
// In the list of groups, commas, percent signs and all such bytes are percent-encoded
// (RFC 3986 §2.1), so that no group's name can pass for another or for two.
func (h IdentityHeaders) Fields(id *coatcheck.Identity) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		if id == nil {
			id = &coatcheck.Identity{}
		}
		for _, field := range [...]struct{ name, value string }{
			{h.User, clean(id.Subject)},
			{h.Email, clean(id.VerifiedEmail())},
			{h.Groups, joinGroups(id.Groups)},
			{h.PreferredUsername, clean(id.PreferredUsername)},
		} {
			if field.name != "" && !yield(field.name, field.value) {
				return
			}
		}
	}
}

// clean returns s, or "" if it can't stand in a field as it is.
func clean(s string) string {
	if plain(s) {
		return s
	}
	if strings.TrimSpace(s) != s || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return ""
	}
	return s
}

// plain tells whether s is printable ASCII without white space at an end, as nearly all is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s == "" || s[0] != ' ' && s[len(s)-1] != ' '
}

func joinGroups(groups []string) string {
	if !slices.ContainsFunc(groups, func(g string) bool { return g == "" || strings.ContainsAny(g, ",%") || !plain(g) }) {
		return strings.Join(groups, ",")
	}
	var b strings.Builder
	for _, g := range groups {
		if g == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		// White space counts at the ends only.
		first := len(g) - len(strings.TrimLeftFunc(g, unicode.IsSpace))
		last := len(strings.TrimRightFunc(g, unicode.IsSpace))
		for i, r := range g {
			size := utf8.RuneLen(r)
			asIs := r != ',' && r != '%' && !unicode.IsControl(r) && i >= first && i < last
			if r == utf8.RuneError { // perhaps an invalid byte
				_, size = utf8.DecodeRuneInString(g[i:])
				asIs = asIs && size > 1
			}
			if asIs {
				b.WriteString(g[i : i+size])
				continue
			}
			for _, c := range []byte(g[i : i+size]) {
				b.WriteByte('%')
				b.WriteByte("0123456789ABCDEF"[c>>4])
				b.WriteByte("0123456789ABCDEF"[c&15])
			}
		}
	}
	return b.String()
}

// HeaderUnverified tells an app for how many seconds nobody could ask whether the session
// that it serves still lives.
const HeaderUnverified = "Coatcheck-Unverified"

// Fields of ours that the app reads.
const (
	headerState     = "Coatcheck-State"
	headerRequestID = "X-Request-Id"
	headerFor       = "X-Forwarded-For"
	headerHost      = "X-Forwarded-Host"
	headerProto     = "X-Forwarded-Proto"
	headerRealIP    = "X-Real-Ip"
	usualFields     = 8  // how many of them there mostly are
	maxFields       = 14 // the six above, HeaderUnverified, the four of IdentityHeaders, and three of HTTP's
)

// guard returns the names of the fields that a client may not send on.
func guard(h IdentityHeaders) names {
	exact := []string{
		"forwarded", // RFC 7239
		"x-real-ip",
		"x-request-id",
		"x-rewrite-url",
		"x-envoy-original-path",
		"proxy", // becomes HTTP_PROXY in CGI
	}
	for _, name := range []string{h.User, h.Email, h.Groups, h.PreferredUsername} {
		if name != "" {
			exact = append(exact, foldName(name))
		}
	}
	return newNames([]string{
		"coatcheck-",
		"x-auth-request-",
		"x-forwarded-",
		"x-original-", // -url, -uri, -method: some frameworks route by them
	}, exact...)
}

var (
	// overrides ask an app to take a request for one of another method.
	overrides = newNames(nil, "x-http-method-override", "x-http-method", "x-method-override")
	reserved  = newNames([]string{"coatcheck-"})
)

// names is a set of field names that are compared folded.
type names struct {
	exact, prefixes []string // folded
	first           [256]bool
}

// newNames returns the set of folded names.
func newNames(prefixes []string, exact ...string) names {
	n := names{exact: exact, prefixes: prefixes}
	for _, list := range [][]string{prefixes, exact} {
		for _, name := range list {
			n.first[name[0]] = true
		}
	}
	return n
}

// has tells whether name folds to one in the set.
func (n *names) has(name string) bool {
	if name == "" || !n.first[fold[name[0]]] {
		return false
	}
	for _, p := range n.prefixes {
		if len(name) >= len(p) && folds(name[:len(p)], p) {
			return true
		}
	}
	for _, e := range n.exact {
		if len(name) == len(e) && folds(name, e) {
			return true
		}
	}
	return false
}

func folds(name, folded string) bool {
	for i := range len(name) {
		if fold[name[i]] != folded[i] {
			return false
		}
	}
	return true
}

// fold maps the bytes of a field name. Behind CGI and its heirs (RFC 3875 §4.1.18) a
// name becomes a variable's, where case and "-" or "_" are one; some servers turn every
// other byte into "_" too.
var fold = func() (t [256]byte) {
	for c := range t {
		switch b := byte(c); {
		case 'A' <= b && b <= 'Z':
			t[c] = b + 'a' - 'A'
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9':
			t[c] = b
		default:
			t[c] = '-'
		}
	}
	return t
}()

func foldName(name string) string {
	b := []byte(name)
	for i, c := range b {
		b[i] = fold[c]
	}
	return string(b)
}

// header makes the header of the outgoing request from the incoming one: its fields, less
// those between the client and us and those that are ours to set, and then ours.
func (ex *exchange) header(in http.Header) http.Header {
	u, c := ex.up, ex.call
	out := make(http.Header, len(in)+usualFields)
	for name, values := range in {
		if hopByHop(name) || u.guard.has(name) || c.MethodGuarded && overrides.has(name) {
			continue
		}
		out[name] = values
	}
	cutNamed(in["Connection"], out)
	if !u.options.ForwardAuthorization {
		delete(out, "Authorization")
	}
	u.options.Jar.Strip(out)
	if httpguts.HeaderValuesContainsToken(in["Te"], "trailers") {
		ex.set(out, "Te", "trailers") // trailers of answers pass
	}
	if ex.websocket != "" {
		ex.set(out, "Connection", "Upgrade")
		ex.set(out, "Upgrade", "websocket")
	}

	if c.Identity != nil {
		for name, value := range u.identity.Fields(c.Identity) {
			ex.set(out, name, value)
		}
	}
	ex.set(out, headerState, c.State.String())
	if c.Unverified > 0 {
		ex.set(out, HeaderUnverified, strconv.Itoa(c.Unverified))
	}
	ex.set(out, headerFor, c.ClientIP)
	ex.set(out, headerRealIP, c.ClientIP)
	ex.set(out, headerHost, c.Host)
	ex.set(out, headerProto, c.Scheme)
	ex.set(out, headerRequestID, c.RequestID)
	return out
}

// hopByHop tells whether a field, by its canonical name, is meant for us alone
// (RFC 9110 §7.6.1). Http2-Settings belongs to h2c (RFC 7540 §3.2), which would carry
// requests past us.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return false
}

// cutNamed removes the fields that Connection names, but those it must not name, being
// meant for all recipients (RFC 9110 §7.6.1). Fields of ours are set later.
func cutNamed(connection []string, out http.Header) {
	for _, line := range connection {
		for token := range strings.SplitSeq(line, ",") {
			name := http.CanonicalHeaderKey(textproto.TrimString(token))
			if name != "Cookie" && name != "Authorization" && !strings.HasPrefix(name, "Content-") {
				delete(out, name)
			}
		}
	}
}

// set makes value the only one of the field. An empty value is no field.
func (ex *exchange) set(h http.Header, name, value string) {
	if value == "" {
		return
	}
	i := ex.used
	ex.used++
	ex.values[i] = value
	h[name] = ex.values[i : i+1 : i+1]
}

// removeReserved removes an app's fields that only we may send to a browser.
func removeReserved(h http.Header) {
	for name := range h {
		if reserved.has(name) {
			delete(h, name)
		}
	}
}

// cleanTrailer does the same for trailers, where nothing sets a cookie by right
// (RFC 9110 §6.5.1).
func cleanTrailer(h http.Header) {
	delete(h, "Set-Cookie")
	removeReserved(h)
}

func isEventStream(h http.Header) bool {
	media, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(media), "text/event-stream")
}
