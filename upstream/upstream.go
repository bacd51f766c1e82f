// Package upstream forwards judged requests to the apps behind us.
//
// Header fields that say who the user is come from us alone, the bytes of the request
// target leave as they were judged, our cookies stay here, a tunnel opens only for a
// WebSocket handshake that both sides completed, and what is open for long can be ended
// politely. Connections to apps, and the framing of messages on them, are net/http's.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
)

// Options describe one app.
type Options struct {
	URL         *url.URL // http or https, host, and perhaps a path that goes before every request's
	StripPrefix string   // decoded path prefix to remove, on a segment boundary; "" for none
	// PreserveHost sends the request's own Host instead of the URL's.
	PreserveHost bool
	// ForwardAuthorization lets the client's Authorization field through.
	ForwardAuthorization bool
	// Origins may open WebSockets besides the site itself, as browsers write them:
	// "https://other.example.com".
	Origins   []string
	Headers   IdentityHeaders
	Jar       *cookie.Jar       // whose cookies never pass, either way
	Transport http.RoundTripper // shared between upstreams of the same timeout; see NewTransport
	Streams   *Streams          // shared; where open WebSockets and event streams are kept
	Bulkhead  *Bulkhead         // shared between upstreams of the same app; nil: no bound
	Broken    func()            // is called when the app breaks off an answer in mid-body; nil: nobody counts
	// UploadPatience bounds how long the client may keep the app waiting for a request's
	// body, at a stretch or by sending fewer than 240 bytes a second; zero is no bound.
	UploadPatience time.Duration
}

// NewTransport returns a transport for plain HTTP/1.1 between a proxy and few busy
// hosts. The timeout bounds the wait for an answer's header once the request is
// written; zero is no bound. Proxies named by the environment are not used.
func NewTransport(responseHeaderTimeout time.Duration) *http.Transport {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ResponseHeaderTimeout:  responseHeaderTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxIdleConns:           4096,
		MaxIdleConnsPerHost:    512,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // bodies pass as they are
	}
}

// An Upstream forwards requests to one app. It is safe for concurrent use.
type Upstream struct {
	scheme, host string
	base         string // escaped path of the URL, without the last slash
	strip        string // without the last slash
	options      Options
	identity     IdentityHeaders // canonical names
	guard        names           // fields of ours
}

// New returns the upstream that o describes.
func New(o Options) *Upstream {
	return &Upstream{
		scheme:   o.URL.Scheme,
		host:     o.URL.Host,
		base:     strings.TrimSuffix(o.URL.EscapedPath(), "/"),
		strip:    strings.TrimSuffix(o.StripPrefix, "/"),
		options:  o,
		identity: o.Headers.canonical(),
		guard:    guard(o.Headers),
	}
}

// A Call is what the request line knows of a request by the time it is forwarded.
type Call struct {
	// RawPath, RawQuery and ForceQuery are the target as it was judged. Its bytes go
	// out as they are, but for StripPrefix and the path of the upstream's URL.
	RawPath, RawQuery string
	ForceQuery        bool

	Identity *coatcheck.Identity // nil: nobody is signed in
	State    coatcheck.State
	Session  Session // nil: no open stream depends on a session
	// Unverified is for how many seconds nobody could ask whether the session still lives.
	// Above 0 the app is told, in HeaderUnverified.
	Unverified int

	ClientIP  string // of the browser
	Scheme    string // of the site, as the browser sees it
	Host      string // canonical host of the request
	RequestID string
	// MethodGuarded says that the route was chosen by method too. Fields that ask an app
	// to take the request for one of another method are removed then.
	MethodGuarded bool
}

// A Session is what an open stream depends on.
type Session interface {
	// Watch is called once an answer turns into a stream, a 101 or a text/event-stream,
	// before its first byte reaches the client; for any other answer it is not called.
	//
	// The function ended is called when the session can't be used any more; at once where
	// that is so already. The error says why: one with CodeUnknown, that nobody can tell
	// any longer whether the session lives, every other, that it is over. It ends the
	// stream, and does not wait for that. It may be called at any time and by any
	// goroutine; only the first call counts.
	//
	// The function release is called exactly once, when the stream has ended, for
	// whatever reason.
	Watch(ended func(error)) (release func())
}

// Forward sends r to the app and its answer to w. A nil error means that an answer was
// written. An error is a *coatcheck.Error, and nothing was written to w, its header
// included:
//
//   - CodeForbiddenOrigin, CodeUpgradeRequired: a WebSocket handshake that is refused;
//     the app was not asked. An answer to the second names the version, 13.
//   - CodeMalformed: a broken handshake, or a request body that can't be read, or does not
//     come in time.
//   - CodeUpstreamBusy: Options.Bulkhead has no place; the app was not asked.
//   - CodeUpstreamFailed, CodeUpstreamTimeout: the app can't be reached, talks nonsense,
//     or does not answer in time.
//   - CodeUnknown: the client went away.
//
// Where the app breaks off in mid-body, Forward panics with http.ErrAbortHandler, so
// that the client sees a connection break off too and not a complete answer.
//
// Fields already set on w's header win over the app's of the same name; Set-Cookie
// and Vary are added up.
func (u *Upstream) Forward(w http.ResponseWriter, r *http.Request, c *Call) error {
	ex := &exchange{ResponseWriter: w, up: u, in: r, call: c}
	if err := ex.handshake(); err != nil {
		return err
	}
	if b := u.options.Bulkhead; b != nil {
		if !b.enter() {
			return coatcheck.E(coatcheck.CodeUpstreamBusy, "upstream.forward", fmt.Errorf("%d requests to %s are under way", b.UnderWay(), u.host))
		}
		ex.place = b
	}
	defer ex.end()
	if r.ContentLength != 0 {
		// Otherwise net/http reads what is left of the body itself when the answer
		// begins, and an app that answers while it reads loses bytes. Other protocols
		// than HTTP/1 have nothing to enable.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	if ex.websocket != "" {
		ex.upgrade()
	} else {
		ex.forward()
	}
	return ex.err
}

// request returns the request that the app gets, without its header. Trailers end here: they
// must not be merged (RFC 9110 §6.5.1), and an app might find names of ours in them.
func (ex *exchange) request() *http.Request {
	u, c := ex.up, ex.call
	out := ex.in.WithContext(ex.in.Context())
	// Opaque is what net/url writes without touching it.
	ex.url = url.URL{
		Scheme: u.scheme, Host: u.host, Opaque: u.base + cutPrefix(c.RawPath, u.strip),
		RawQuery: c.RawQuery, ForceQuery: c.ForceQuery,
	}
	out.URL = &ex.url
	out.Host = ""
	if u.options.PreserveHost {
		out.Host = c.Host
	}
	out.Header, out.Trailer = nil, nil
	out.Close = false // that is between the client and us
	return out
}

// An exchange is one request and its answer.
type exchange struct {
	http.ResponseWriter
	up   *Upstream
	in   *http.Request
	call *Call

	url       url.URL       // of the request that the app gets
	websocket string        // Sec-WebSocket-Accept to be expected; "" if no tunnel is asked for
	upload    *requestBody  // nil: there is none
	body      answerBody    // the answer's body
	tunnel    *tunnel       // after a 101
	place     *Bulkhead     // where a place is to be given back; nil: nowhere, or not any more
	stream    stream        // what is kept in Streams
	release   func()        // of Call.Session
	mu        sync.Mutex    // held to close done
	done      chan struct{} // closed at the end of what is kept in Streams
	err       error         // of Forward
	values    [maxFields]string
	used      int
}

// modify makes the answer that the client gets.
func (ex *exchange) modify(res *http.Response) error {
	if res.StatusCode == http.StatusSwitchingProtocols {
		if err := ex.accept(res); err != nil {
			return err
		}
	} else {
		ex.body = answerBody{ReadCloser: res.Body, ex: ex, res: res}
		res.Body = &ex.body
		if isEventStream(res.Header) {
			ex.open(&ex.body)
		}
	}
	ex.up.options.Jar.StripSet(res.Header)
	removeReserved(res.Header)
	cleanTrailer(res.Trailer)
	for name := range ex.ResponseWriter.Header() {
		if name != "Set-Cookie" && name != "Vary" {
			delete(res.Header, name)
		}
	}
	return nil
}

// fail keeps the error for Forward to return.
func (ex *exchange) fail(err error) {
	const op = "upstream.forward"
	code := coatcheck.CodeUpstreamFailed
	var timeout net.Error
	switch upload := ex.upload.failure(); {
	case errors.Is(upload, errLate):
		code, err = coatcheck.CodeMalformed, upload
	case errors.Is(ex.in.Context().Err(), context.Canceled): // net/http does so when the client hangs up
		code = coatcheck.CodeUnknown
	case upload != nil:
		code, err = coatcheck.CodeMalformed, upload
	case errors.As(err, &timeout) && timeout.Timeout():
		code = coatcheck.CodeUpstreamTimeout
	}
	ex.err = coatcheck.E(code, op, err)
}

// open keeps s in Streams until the exchange ends, and ends it with its session.
func (ex *exchange) open(s stream) {
	ex.leave()
	ex.stream, ex.done = s, make(chan struct{})
	ex.up.options.Streams.add(s)
	if ex.call.Session == nil {
		return
	}
	var once sync.Once
	ex.release = ex.call.Session.Watch(func(err error) {
		once.Do(func() {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), sessionEndPatience)
				defer cancel()
				s.leave(ctx, sessionEnd(err))
			}()
		})
	})
}

// leave gives back the exchange's place in the bulkhead.
func (ex *exchange) leave() {
	if ex.place != nil {
		ex.place.leave()
		ex.place = nil
	}
}

func (ex *exchange) end() {
	ex.leave()
	if ex.stream != nil {
		ex.up.options.Streams.remove(ex.stream)
		ex.mu.Lock()
		close(ex.done)
		ex.mu.Unlock()
	}
	if ex.release != nil {
		ex.release()
	}
	if ex.tunnel != nil {
		_ = ex.tunnel.app.Close() // where w could not be hijacked
	}
}

// Unwrap is for http.ResponseController.
func (ex *exchange) Unwrap() http.ResponseWriter { return ex.ResponseWriter }

// An answerBody is the body of the app's answer. As a stream it is an event stream.
type answerBody struct {
	io.ReadCloser
	ex   *exchange
	res  *http.Response
	left atomic.Bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		if b.left.Load() {
			return n, io.EOF // an end, not a break: the browser connects again
		}
		if told := b.ex.up.options.Broken; told != nil && b.ex.in.Context().Err() == nil {
			told()
		}
	}
	return n, err
}

// Close also cleans the answer's trailers, which are known by now.
func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	cleanTrailer(b.res.Trailer)
	return err
}

func (b *answerBody) leave(ctx context.Context, _ closing) {
	b.left.Store(true)
	_ = b.ReadCloser.Close() // wakes the Read that waits for the next event
	select {
	case <-b.ex.done:
	case <-ctx.Done():
		b.ex.cutAnswer()
		<-b.ex.done
	}
}

// cutAnswer breaks off an answer that the client does not read.
func (ex *exchange) cutAnswer() {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	select {
	case <-ex.done: // the connection may have another answer on it by now
	default:
		_ = http.NewResponseController(ex.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// cutPrefix removes prefix, which is decoded, from a raw path on a segment boundary. A
// judged path has no encoded slashes, so that its raw form has the same segments.
func cutPrefix(raw, prefix string) string {
	if prefix == "" {
		return raw
	}
	end := 0
	for range strings.Count(prefix, "/") {
		if end == len(raw) {
			return raw
		}
		if i := strings.IndexByte(raw[end+1:], '/'); i >= 0 {
			end += 1 + i
		} else {
			end = len(raw)
		}
	}
	head := raw[:end]
	if strings.IndexByte(head, '%') >= 0 {
		head, _ = url.PathUnescape(head)
	}
	if head != prefix {
		return raw
	}
	if end == len(raw) {
		return "/"
	}
	return raw[end:]
}
