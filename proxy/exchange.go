package proxy

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/session"
)

// An exchange is one request on its way through, and what has been found out about it.
type exchange struct {
	w      response
	r      *http.Request
	start  time.Time
	id     string
	client peer
	req    route.Request // zero until the request was parsed
	route  string        // name of the route or endpoint; "" until one was found
	live   *session.Live // nil while nobody is known to be signed in
	// unverified is for how many seconds nobody could ask whether live still lives.
	unverified int
	returnTo   string         // where a sign-in that is being completed leads; "" for other requests
	code       coatcheck.Code // why the request was refused; "" if it was not
	// script forces the answers that scripts get, for requests that never are a
	// person's own.
	script bool
}

func (x *exchange) session() *coatcheck.Session {
	if x.live == nil {
		return nil
	}
	return x.live.Session
}

func (x *exchange) ref() string {
	if x.live == nil {
		return ""
	}
	return string(x.live.Ref)
}

// user is the subject of the session, "" while nobody is known to be signed in.
func (x *exchange) user() string {
	if x.live == nil {
		return ""
	}
	return x.live.Identity.Subject
}

func (x *exchange) routeName() string {
	if x.route == "" {
		return "none"
	}
	return x.route
}

// target is the path and query of the request, as they came.
func (x *exchange) target() string {
	if x.req.RawQuery == "" && !x.req.ForceQuery {
		return x.req.RawPath
	}
	return x.req.RawPath + "?" + x.req.RawQuery
}

// bodyUntil sets when the request's body must have come, never if t is zero. net/http
// reads what a handler leaves of a body, before it answers or after, and would wait for
// ever for one that does not come.
func (x *exchange) bodyUntil(t time.Time) {
	if x.r.ContentLength != 0 {
		// The connection's next request sets its own. An error means that it is gone.
		_ = http.NewResponseController(&x.w).SetReadDeadline(t)
	}
}

// navigation tells whether a person's browser asks for a page, so that a redirect to
// the provider ends where the person sees it. Everything that says it is a script, an
// upgrade or a form's submission is none: it could not follow, or would lose its body.
func (x *exchange) navigation() bool {
	h := x.r.Header
	if x.script || x.r.Method != http.MethodGet {
		return false
	}
	if mode := h.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false
	}
	if h.Get("X-Requested-With") != "" || h.Get("Upgrade") != "" {
		return false
	}
	return !x.accepts("application/json")
}

// wantsPage tells whether an error is shown to a person, as a page, or to a program,
// as JSON.
func (x *exchange) wantsPage() bool {
	if x.script || x.r.Header.Get("X-Requested-With") != "" {
		return false
	}
	if mode := x.r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return x.accepts("text/html")
}

// accepts tells whether the Accept header names the media type. Weights and wildcards
// don't matter here: browsers name text/html, scripts that want JSON name that.
func (x *exchange) accepts(mediaType string) bool {
	for _, line := range x.r.Header["Accept"] {
		for element := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(element, ";")
			if strings.EqualFold(strings.TrimSpace(name), mediaType) {
				return true
			}
		}
	}
	return false
}

// response counts what is written. http.ResponseController finds Flush through Unwrap.
type response struct {
	http.ResponseWriter
	status int // 0 until the header was written
	bytes  int64
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	// An informational answer (RFC 9110 §15.2) is followed by the real one; only 101
	// is final.
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Hijack implements http.Hijacker. Connections are taken over for WebSockets alone, and
// their 101 does not pass through WriteHeader.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buffered, err
}

// A peer is who sent a request.
type peer struct {
	ip      string // of the client, as far as it can be believed
	trusted bool   // the other end of the connection is one of Options.Trusted
}

// peer looks at the connection, and at X-Forwarded-For if the other end is trusted.
// Of its entries the right-most one that is not trusted itself was written by somebody
// we trust, and everything left of it by anybody.
func (p *Proxy) peer(r *http.Request) peer {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return peer{}
	}
	ip := addr.Addr().Unmap()
	if len(p.Trusted) == 0 || !p.trusts(ip) {
		return peer{ip: ip.String()}
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for line := lines[i]; ; {
			rest, last, more := cutLast(line)
			hop, err := netip.ParseAddr(last)
			if err != nil {
				return peer{ip: ip.String(), trusted: true} // nothing left of it can be believed
			}
			ip = hop.Unmap()
			if !p.trusts(ip) {
				return peer{ip: ip.String(), trusted: true}
			}
			if !more {
				break
			}
			line = rest
		}
	}
	return peer{ip: ip.String(), trusted: true}
}

// cutLast splits off the last element of a comma-separated list.
func cutLast(list string) (rest, last string, more bool) {
	i := strings.LastIndexByte(list, ',')
	if i < 0 {
		return "", strings.TrimSpace(list), false
	}
	return list[:i], strings.TrimSpace(list[i+1:]), true
}

func (p *Proxy) trusts(ip netip.Addr) bool {
	for _, prefix := range p.Trusted {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// requestID names the request in logs, pages and towards the app: the id that a
// trusted proxy gave it, else a new one.
func (c peer) requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); c.trusted && goodRequestID(id) {
		return id
	}
	// It names a request, and is no secret.
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64())
	binary.BigEndian.PutUint32(b[8:], rand.Uint32())
	var text [2 * len(b)]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

func goodRequestID(id string) bool {
	if len(id) < 8 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// panicType describes a panic without its text, which may quote a secret.
func panicType(v any) string { return fmt.Sprintf("%T", v) }

// legible returns s without characters that a terminal may obey when a log is looked at, or
// that turn round the order in which text is shown. JSON escapes those below U+0020 and
// leaves DEL, the C1 controls and the others as they are.
func legible(s string) string {
	for i := range len(s) {
		if s[i] >= 0x7f {
			return strings.Map(func(r rune) rune {
				if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
					return unicode.ReplacementChar
				}
				return r
			}, s)
		}
	}
	return s
}
