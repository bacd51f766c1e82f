package upstream

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"

	"github.com/coatcheck/coatcheck"
)

// handshake looks for a WebSocket handshake in the request (RFC 6455 §4.2.1) and checks
// it. What asks for another protocol, or not with GET over HTTP/1.1, is forwarded as an
// ordinary request without the question (RFC 9110 §7.8 allows to ignore it).
func (ex *exchange) handshake() error {
	r := ex.in
	upgrade := r.Header["Upgrade"]
	if len(upgrade) == 0 {
		return nil
	}
	const op = "upstream.websocket"
	for _, v := range upgrade {
		if strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
			return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("no protocol in Upgrade"))
		}
	}
	if len(upgrade) > 1 || !strings.EqualFold(upgrade[0], "websocket") || r.Method != http.MethodGet ||
		r.ProtoMajor != 1 || r.ProtoMinor < 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return nil
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		return coatcheck.E(coatcheck.CodeUpgradeRequired, op, fmt.Errorf("Sec-WebSocket-Version %q", v))
	}
	key := r.Header["Sec-Websocket-Key"]
	if len(key) != 1 {
		return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("not one Sec-WebSocket-Key"))
	}
	if nonce, err := base64.StdEncoding.DecodeString(key[0]); err != nil || len(nonce) != 16 {
		return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("no nonce in Sec-WebSocket-Key"))
	}
	if r.ContentLength != 0 {
		return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("handshake with a body"))
	}
	// Browsers let every site open WebSockets to every other and send the cookies
	// along; Origin is all there is to tell them apart (RFC 6455 §10.2). Without one
	// the client is no browser.
	for _, origin := range r.Header["Origin"] {
		if !ex.allows(origin) {
			return coatcheck.E(coatcheck.CodeForbiddenOrigin, op, fmt.Errorf("origin %q", origin))
		}
	}
	ex.websocket = acceptKey(key[0])
	return nil
}

// upgrade forwards a WebSocket handshake. A httputil.ReverseProxy carries the tunnel, or the
// app's answer if it opens none.
func (ex *exchange) upgrade() {
	h := &upgrade{exchange: ex}
	proxy := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.RawQuery, pr.Out.URL.ForceQuery = ex.call.RawQuery, ex.call.ForceQuery
			pr.Out.Header = ex.header(ex.in.Header)
		},
		ModifyResponse: func(res *http.Response) error {
			err := ex.modify(res)
			h.answered = err == nil
			return err
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			// Once the connection is no longer HTTP's there is nobody to tell.
			if ex.tunnel == nil || ex.tunnel.client == nil {
				ex.fail(err)
			}
		},
		Transport:  ex.up.options.Transport,
		BufferPool: buffers{},
		ErrorLog:   silence,
	}
	in := ex.request()
	in.Header = handshakeHeader
	proxy.ServeHTTP(h, in)
}

// handshakeHeader is all that the reverse proxy sees of a handshake. It copies it.
var handshakeHeader = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}

// An upgrade is the ResponseWriter that the reverse proxy writes to.
type upgrade struct {
	*exchange
	answered bool        // the final answer is being written
	early    http.Header // header of informational answers, which go nowhere
}

// Header returns the header of the answer being made. Informational answers get one of
// their own: the reverse proxy clears it afterwards, and what the request line has
// already set must survive.
func (h *upgrade) Header() http.Header {
	if h.answered {
		return h.ResponseWriter.Header()
	}
	if h.early == nil {
		h.early = make(http.Header)
	}
	return h.early
}

// WriteHeader drops informational answers: towards the client we are the origin server
// (RFC 9110 §3.7), and net/http sends its own 100 Continue.
func (h *upgrade) WriteHeader(code int) {
	if h.answered {
		h.ResponseWriter.WriteHeader(code)
	}
}

// silence takes the reverse proxy's complaints about broken bodies; Options.Broken hears of them.
var silence = log.New(io.Discard, "", 0)

// buffers is the reverse proxy's view of the pool.
type buffers struct{}

func (buffers) Get() []byte  { return pool.Get().(*[32 << 10]byte)[:] }
func (buffers) Put(b []byte) { pool.Put((*[32 << 10]byte)(b)) }

func (ex *exchange) allows(origin string) bool {
	if strings.EqualFold(origin, ex.call.Scheme+"://"+ex.call.Host) {
		return true
	}
	for _, o := range ex.up.options.Origins {
		if strings.EqualFold(origin, o) {
			return true
		}
	}
	return false
}

// acceptKey returns the Sec-WebSocket-Accept that proves that a server has read the key
// (RFC 6455 §4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// accept checks the app's 101. Bytes may pass unread by HTTP only when the app has
// switched to the protocol that was asked for (RFC 6455 §4.1); otherwise a client could
// smuggle requests through. That both name the same protocol is for the reverse proxy to
// compare.
func (ex *exchange) accept(res *http.Response) error {
	conn, ok := res.Body.(io.ReadWriteCloser)
	accept := res.Header["Sec-Websocket-Accept"]
	if !ok || len(accept) != 1 || accept[0] != ex.websocket {
		return errors.New("101 without a WebSocket handshake")
	}
	ex.tunnel = &tunnel{ex: ex, app: conn, started: make(chan struct{})}
	ex.tunnel.up = half{to: conn, closed: make(chan struct{})}
	res.Body = appSide{ex.tunnel}
	return nil
}

// Hijack is called by the reverse proxy once it has the app's 101.
func (ex *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(ex.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	t := ex.tunnel
	t.client = conn
	t.down = half{to: conn, closed: make(chan struct{})}
	ex.open(t)
	return &clientSide{Conn: conn, tunnel: t, buffered: buf.Reader}, buf, nil
}

// A tunnel is an open WebSocket.
type tunnel struct {
	ex      *exchange
	client  net.Conn
	app     io.ReadWriteCloser
	started chan struct{} // closed when the 101 has gone out; no frame may go before
	down    half          // app to client
	up      half          // client to app
}

// leave ends the WebSocket: both sides get a close frame, and the connections are closed
// once both have answered it (RFC 6455 §7.1.1), or when ctx ends. Why is between us and
// the client; the app sees a client that is going away.
func (t *tunnel) leave(ctx context.Context, why closing) {
	stop := context.AfterFunc(ctx, t.cut)
	defer stop()
	select {
	case <-t.started:
	case <-t.ex.done:
		return
	}
	// Both before either is sent: the answer to one must not overtake the other.
	t.down.prepare(why.frame())
	t.up.prepare(masked(goingAway.frame()))
	var wg sync.WaitGroup
	wg.Go(t.down.leave)
	wg.Go(t.up.leave)
	wg.Wait()
	for _, closed := range []chan struct{}{t.up.closed, t.down.closed} {
		select {
		case <-closed:
		case <-t.ex.done:
		case <-ctx.Done():
		}
	}
	t.cut()
	<-t.ex.done
}

func (t *tunnel) cut() {
	_ = t.client.Close()
	_ = t.app.Close()
}

// frame returns the close frame.
func (c closing) frame() []byte {
	frame := []byte{0x80 | opcodeClose, byte(2 + len(c.reason)), byte(c.status >> 8), byte(c.status)}
	return append(frame, c.reason...)
}

// masked returns a short frame as a client must send it (RFC 6455 §5.3).
func masked(frame []byte) []byte {
	var mask [4]byte
	_, _ = rand.Read(mask[:]) // never fails
	out := append([]byte{frame[0], 0x80 | frame[1]}, mask[:]...)
	for i, c := range frame[2:] {
		out = append(out, c^mask[i%4])
	}
	return out
}

// A half is one direction of a tunnel. All bytes pass through Write, so that a frame of
// ours never lands inside another.
type half struct {
	goodbye  atomic.Pointer[[]byte] // our close frame, when it is to be sent
	mu       sync.Mutex
	to       io.Writer
	frames   frames
	left     bool          // our close frame went out; nothing may follow (RFC 6455 §5.5.1)
	closed   chan struct{} // closed when the sender's close frame was seen
	isClosed bool
}

// Write passes p on, to the end of the current frame if the WebSocket is to end.
func (h *half) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	pass, leaving := p, false
	switch {
	case h.left:
		pass = nil
	case h.canLeave():
		pass, leaving, h.left = nil, true, true
	}
	for i := 0; i < len(p); {
		n, opcode, ended := h.frames.next(p[i:])
		i += n
		if ended && opcode == opcodeClose && !h.isClosed {
			h.isClosed = true
			close(h.closed)
		}
		if h.canLeave() {
			pass, leaving, h.left = p[:i], true, true
		}
	}
	if len(pass) > 0 {
		if n, err := h.to.Write(pass); err != nil {
			return n, err
		}
	}
	if leaving {
		if _, err := h.to.Write(*h.goodbye.Load()); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// canLeave tells whether our close frame is due and may stand here.
func (h *half) canLeave() bool {
	return h.goodbye.Load() != nil && !h.left && !h.isClosed && h.frames.boundary()
}

// prepare says that the half is to end with this close frame: nothing passes from the next
// boundary on. It does not wait for a Write that is stuck. Of two frames the first one counts.
func (h *half) prepare(goodbye []byte) { h.goodbye.CompareAndSwap(nil, &goodbye) }

// leave sends the close frame that was prepared, at once or behind the current frame.
func (h *half) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.canLeave() {
		h.left = true
		_, _ = h.to.Write(*h.goodbye.Load()) // an error ends the tunnel elsewhere
	}
}

// clientSide is the client's connection as the reverse proxy sees it.
type clientSide struct {
	net.Conn
	tunnel   *tunnel
	buffered *bufio.Reader // holds what the client sent early
	once     sync.Once
}

// Read also starts the tunnel: the reverse proxy reads for the first time when its 101
// has gone out.
func (c *clientSide) Read(p []byte) (int, error) {
	c.once.Do(func() { close(c.tunnel.started) })
	return c.buffered.Read(p)
}

func (c *clientSide) Write(p []byte) (int, error) { return c.tunnel.down.Write(p) }

func (c *clientSide) CloseWrite() error { return closeWrite(c.Conn) }

// appSide is the app's connection as the reverse proxy sees it.
type appSide struct{ *tunnel }

func (a appSide) Read(p []byte) (int, error)  { return a.app.Read(p) }
func (a appSide) Write(p []byte) (int, error) { return a.up.Write(p) }
func (a appSide) Close() error                { return a.app.Close() }
func (a appSide) CloseWrite() error           { return closeWrite(a.app) }

// closeWrite ends one direction, or all where that is not possible.
func closeWrite(conn io.Closer) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return conn.Close()
}
