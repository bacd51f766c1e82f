package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/upstream"
)

// The key and its proof are the example of RFC 6455 §1.3.
const (
	wsKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	wsAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func wsHandshake(lines ...string) string {
	return "GET /ws HTTP/1.1\r\nHost: app.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
		strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

var (
	wsVersion = "Sec-WebSocket-Version: 13"
	wsNonce   = "Sec-WebSocket-Key: " + wsKey
)

const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + wsAccept + "\r\n\r\n"

// echo is an app that sends back what comes over a WebSocket.
func echo(t testing.TB) string {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, p, err := c.Read(context.Background())
			if err != nil {
				return
			}
			if err := c.Write(context.Background(), kind, p); err != nil {
				return
			}
		}
	}))
	t.Cleanup(app.Close)
	return app.URL
}

func dial(t *testing.T, r *rig) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), r.URL+"/ws", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://app.example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	c.SetReadLimit(-1)
	return c
}

func roundTrip(t *testing.T, c *websocket.Conn, message []byte) {
	t.Helper()
	if err := c.Write(t.Context(), websocket.MessageBinary, message); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, message) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
}

func TestWebSocketEcho(t *testing.T) {
	r := newRig(t, echo(t), nil, as(alice))
	c := dial(t, r)
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
		roundTrip(t, c, bytes.Repeat([]byte("x"), size))
	}
	if n := r.streams.Count(); n != 1 {
		t.Errorf("Count() = %d, want 1", n)
	}
	if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Error(err)
	}
	waitNone(t, r)
}

// waitNone waits until the handlers of all streams have ended.
func waitNone(t *testing.T, r *rig) {
	t.Helper()
	for end := time.Now().Add(time.Minute); r.streams.Count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("Count() = %d, want 0", r.streams.Count())
		}
	}
}

// The header of a handshake is cleaned like any other.
func TestWebSocketHeader(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, withHeaders(custom), as(alice))
	got, answer := exchange(t, r, rec, strings.Replace(
		wsHandshake(wsVersion, wsNonce, "Origin: https://app.example.com", "x_auth_user: admin", "Cookie: __Host-coatcheck=T; a=1", "Sec-WebSocket-Protocol: chat"),
		"keep-alive, Upgrade", "close, Upgrade, X-Auth-User, Cookie", 1))
	wantFields(t, got, map[string][]string{
		"connection": {"Upgrade"}, "upgrade": {"websocket"}, "sec-websocket-key": {wsKey}, "sec-websocket-version": {"13"}, "sec-websocket-protocol": {"chat"},
		"x-auth-user": {"alice"}, "cookie": {"a=1"}, "origin": {"https://app.example.com"},
	})
	if !strings.HasPrefix(answer, "HTTP/1.1 200 OK\r\n") { // an app may decline
		t.Errorf("answer = %q", answer)
	}
}

// A-W6, A-W7: what is refused never reaches the app.
func TestWebSocketRefused(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, func(o *upstream.Options) { o.Origins = []string{"https://other.example.com"} }, nil)
	tests := map[string]struct {
		lines []string
		want  coatcheck.Code
	}{
		"version 777":        {[]string{"Sec-WebSocket-Version: 777", wsNonce}, coatcheck.CodeUpgradeRequired},
		"no version":         {[]string{wsNonce}, coatcheck.CodeUpgradeRequired},
		"two versions":       {[]string{wsVersion, wsVersion, wsNonce}, coatcheck.CodeUpgradeRequired},
		"no key":             {[]string{wsVersion}, coatcheck.CodeMalformed},
		"two keys":           {[]string{wsVersion, wsNonce, wsNonce}, coatcheck.CodeMalformed},
		"short key":          {[]string{wsVersion, "Sec-WebSocket-Key: c2hvcnQ="}, coatcheck.CodeMalformed},
		"key without base64": {[]string{wsVersion, "Sec-WebSocket-Key: !!!"}, coatcheck.CodeMalformed},
		"body":               {[]string{wsVersion, wsNonce, "Content-Length: 3"}, coatcheck.CodeMalformed},
		"foreign origin":     {[]string{wsVersion, wsNonce, "Origin: https://evil.example"}, coatcheck.CodeForbiddenOrigin},
		"origin null":        {[]string{wsVersion, wsNonce, "Origin: null"}, coatcheck.CodeForbiddenOrigin},
		"other scheme":       {[]string{wsVersion, wsNonce, "Origin: http://app.example.com"}, coatcheck.CodeForbiddenOrigin},
		"other port":         {[]string{wsVersion, wsNonce, "Origin: https://app.example.com:8443"}, coatcheck.CodeForbiddenOrigin},
		"prefix of origin":   {[]string{wsVersion, wsNonce, "Origin: https://app.example.com.evil.example"}, coatcheck.CodeForbiddenOrigin},
		"second origin":      {[]string{wsVersion, wsNonce, "Origin: https://app.example.com", "Origin: https://evil.example"}, coatcheck.CodeForbiddenOrigin},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			request := strings.Replace(wsHandshake(tt.lines...), "keep-alive,", "close,", 1)
			if name == "body" {
				request += "abc"
			}
			refused(t, r, rec, request, tt.want)
		})
	}
	for _, origin := range []string{"https://app.example.com", "https://APP.example.com", "https://other.example.com"} {
		exchange(t, r, rec, strings.Replace(wsHandshake(wsVersion, wsNonce, "Origin: "+origin), "keep-alive,", "close,", 1))
	}
}

// Another method, or HTTP/1.0, makes it an ordinary request.
func TestWebSocketNotAsked(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	for _, line := range []string{"POST /ws HTTP/1.1", "GET /ws HTTP/1.0"} {
		request := strings.Replace(wsHandshake(wsVersion, wsNonce), "keep-alive,", "close,", 1)
		got, _ := exchange(t, r, rec, strings.Replace(request, "GET /ws HTTP/1.1", line, 1))
		wantFields(t, got, map[string][]string{"upgrade": nil, "connection": nil})
	}
}

// A-W6: no tunnel without a handshake that both sides completed; the bytes that follow
// are a request of their own.
func TestWebSocketNoTunnel(t *testing.T) {
	plain := "GET /plain HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
	tests := map[string]struct {
		request, answer string
		code            coatcheck.Code // "": the app's answer passes
	}{
		"declined, 426":    {wsHandshake(wsVersion, wsNonce), "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8\r\nContent-Length: 2\r\n\r\nno", ""},
		"declined, 200":    {wsHandshake(wsVersion, wsNonce), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", ""},
		"no proof":         {wsHandshake(wsVersion, wsNonce), "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", coatcheck.CodeUpstreamFailed},
		"wrong proof":      {wsHandshake(wsVersion, wsNonce), strings.Replace(switching, wsAccept, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1), coatcheck.CodeUpstreamFailed},
		"two proofs":       {wsHandshake(wsVersion, wsNonce), strings.Replace(switching, "\r\n\r\n", "\r\nSec-WebSocket-Accept: "+wsAccept+"\r\n\r\n", 1), coatcheck.CodeUpstreamFailed},
		"other protocol":   {wsHandshake(wsVersion, wsNonce), strings.Replace(switching, "Upgrade: websocket", "Upgrade: h2c", 1), coatcheck.CodeUpstreamFailed},
		"no Connection":    {wsHandshake(wsVersion, wsNonce), strings.Replace(switching, "Connection: Upgrade\r\n", "", 1), coatcheck.CodeUpstreamFailed},
		"nobody asked":     {plain, switching, coatcheck.CodeUpstreamFailed},
		"nobody asked, -":  {plain, "HTTP/1.1 101 Switching Protocols\r\n\r\n", coatcheck.CodeUpstreamFailed},
		"nobody asked, ''": {plain, strings.Replace(switching, wsAccept, "", 1), coatcheck.CodeUpstreamFailed},
		"asked for h2c":    {strings.Replace(wsHandshake(wsVersion, wsNonce), "WebSocket", "h2c", 1), strings.Replace(switching, "Upgrade: websocket", "Upgrade: h2c", 1), coatcheck.CodeUpstreamFailed},
		"101, not by POST": {strings.Replace(wsHandshake(wsVersion, wsNonce), "GET", "POST", 1), switching, coatcheck.CodeUpstreamFailed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rec := testenv.Record(t, func(conn net.Conn, request string) bool {
				if testenv.Target(request) == "/next" {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
				} else {
					_, _ = io.WriteString(conn, tt.answer)
				}
				return true
			})
			r := newRig(t, rec.URL, nil, nil)
			answer := testenv.Send(t, r.addr, tt.request+get("/next"))
			if tt.code != "" && !strings.Contains(answer, string(tt.code)) {
				t.Errorf("answer = %q, want %s", answer, tt.code)
			}
			if tt.code == "" && !strings.HasPrefix(answer, tt.answer[:16]) {
				t.Errorf("answer = %q, want the app's", answer)
			}
			if !strings.HasSuffix(answer, "\r\n\r\nnext") {
				t.Errorf("answer = %q, want one to the next request too", answer)
			}
			requests := rec.Requests()
			if len(requests) != 2 || len(testenv.Fields(requests[1], "x-forwarded-for")) != 1 {
				t.Errorf("the app got %q, want two requests through us", requests)
			}
		})
	}
}

// Behind a ResponseWriter that can't be taken over there is no tunnel, and none is left
// half open.
func TestWebSocketWithoutHijacker(t *testing.T) {
	hungUp := make(chan struct{})
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, switching)
		_, _ = io.Copy(io.Discard, conn)
		close(hungUp)
		return false
	})
	r := newRig(t, rec.URL, nil, nil)
	next := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		next.ServeHTTP(struct{ http.ResponseWriter }{w}, req)
	})
	answer := testenv.Send(t, r.addr, strings.Replace(wsHandshake(wsVersion, wsNonce), "keep-alive,", "close,", 1))
	if !strings.HasSuffix(answer, string(coatcheck.CodeUpstreamFailed)) {
		t.Errorf("answer = %q, want %s", answer, coatcheck.CodeUpstreamFailed)
	}
	<-hungUp
}

// A hijacker lets a test into the moment between taking a connection over and the 101.
type hijacker struct {
	http.ResponseWriter
	between func(net.Conn, *bufio.ReadWriter) *bufio.ReadWriter
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return conn, h.between(conn, buf), nil
}

// A client that has left by the time of its 101 gets no answer in HTTP.
func TestWebSocketClientGone(t *testing.T) {
	rec := testenv.Record(t, testenv.Answer(switching))
	r := newRig(t, rec.URL, nil, nil)
	forwarded := make(chan error, 1)
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := hijacker{w, func(conn net.Conn, buf *bufio.ReadWriter) *bufio.ReadWriter {
			_ = conn.Close()
			return buf
		}}
		forwarded <- r.up.Forward(h, req, &upstream.Call{RawPath: "/ws", Scheme: "https", Host: "app.example.com"})
	})
	testenv.Send(t, r.addr, wsHandshake(wsVersion, wsNonce))
	if err := <-forwarded; err != nil {
		t.Errorf("Forward = %v on a connection that is not HTTP's", err)
	}
	if n := r.streams.Count(); n != 0 {
		t.Errorf("Count() = %d", n)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A drain in the middle of a handshake does not speak before the 101 has.
func TestDrainDuringHandshake(t *testing.T) {
	r := newRig(t, echo(t), nil, nil)
	next := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		next.ServeHTTP(hijacker{w, func(conn net.Conn, buf *bufio.ReadWriter) *bufio.ReadWriter {
			var once sync.Once
			return bufio.NewReadWriter(buf.Reader, bufio.NewWriter(writerFunc(func(p []byte) (int, error) {
				once.Do(func() {
					go r.streams.Drain(context.Background())
					time.Sleep(20 * time.Millisecond) // time to do it wrong
				})
				return conn.Write(p)
			})))
		}}, req)
	})
	c := dial(t, r)
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the client sees %v", err)
	}
	waitNone(t, r)
}

// A client may not wait for the 101; nothing it sends is lost.
func TestWebSocketEarlyFrame(t *testing.T) {
	frame := "\x81\x82\x00\x00\x00\x00hi"
	got := make(chan string, 1)
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, switching)
		buf := make([]byte, len(frame))
		_, _ = io.ReadFull(conn, buf)
		got <- string(buf)
		return false
	})
	r := newRig(t, rec.URL, nil, nil)
	answer := testenv.Send(t, r.addr, wsHandshake(wsVersion, wsNonce)+frame)
	if !strings.HasPrefix(answer, "HTTP/1.1 101 ") {
		t.Fatalf("answer = %q", answer)
	}
	if g := <-got; g != frame {
		t.Errorf("the app got %q, want %q", g, frame)
	}
}

// A-Z8: going away is said to both sides, and the connections end when both have
// answered.
func TestDrainWebSocket(t *testing.T) {
	appClosed := make(chan websocket.StatusCode, 1)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		_, _, err = c.Read(context.Background())
		appClosed <- websocket.CloseStatus(err)
	}))
	defer app.Close()
	r := newRig(t, app.URL, nil, nil)
	c := dial(t, r)
	clientClosed := make(chan error, 1)
	go func() {
		_, _, err := c.Read(context.Background())
		clientClosed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r.streams.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("the drain ran into its end")
	}
	if r.streams.Count() != 0 {
		t.Errorf("Count() = %d after Drain", r.streams.Count())
	}
	if err := <-clientClosed; websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the client sees %v", err)
	}
	if code := <-appClosed; code != websocket.StatusGoingAway {
		t.Errorf("the app sees %v", code)
	}
	// What opens afterwards leaves at once.
	late := dial(t, r)
	if _, _, err := late.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("a late client sees %v", err)
	}
	waitNone(t, r)
}

// Our close frame stands between frames, never inside one, while the app talks on.
func TestDrainAtFrameBoundary(t *testing.T) {
	const frame = "\x82\x7e\x00\x80"
	payload := strings.Repeat("\x88\x02", 64) // what a close frame begins with
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, switching)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_, _ = io.ReadFull(conn, make([]byte, 8)) // our close frame, masked
		}()
		for {
			for s := range strings.SplitAfterSeq(frame+payload, "\x02") {
				_, _ = io.WriteString(conn, s)
			}
			select {
			case <-closed:
				_, _ = io.WriteString(conn, "\x88\x02\x03\xe9")
				_, _ = io.Copy(io.Discard, conn)
				return false
			default:
			}
		}
	})
	r := newRig(t, rec.URL, nil, nil)
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, wsHandshake(wsVersion, wsNonce))
	br := bufio.NewReader(conn)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	for n := 0; ; n++ {
		head := make([]byte, 4)
		if _, err := io.ReadFull(br, head); err != nil {
			t.Fatal(err)
		}
		if string(head) == "\x88\x02\x03\xe9" {
			break
		}
		body := make([]byte, len(payload))
		if _, err := io.ReadFull(br, body); err != nil || string(head) != frame || string(body) != payload {
			t.Fatalf("frame %d is %q %q, %v", n, head, body, err)
		}
		if n == 10 {
			go func() {
				defer close(drained)
				r.streams.Drain(t.Context())
			}()
		}
	}
	select {
	case <-drained:
		t.Error("the drain did not wait for the client's answer")
	case <-time.After(20 * time.Millisecond):
	}
	_, _ = io.WriteString(conn, "\x88\x82\x00\x00\x00\x00\x03\xe9")
	<-drained
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("behind the close frame: %q", rest)
	}
}

// A close frame that is already under way is not followed by another.
func TestDrainClosingWebSocket(t *testing.T) {
	ready := make(chan struct{})
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, switching+"\x88\x02\x03\xe8")
		<-ready
		_, _ = io.Copy(io.Discard, conn)
		return false
	})
	r := newRig(t, rec.URL, nil, nil)
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, wsHandshake(wsVersion, wsNonce))
	br := bufio.NewReader(conn)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "\x88\x02\x03\xe8" {
		t.Fatalf("the client got %q, %v", got, err)
	}
	close(ready)
	_, _ = io.WriteString(conn, "\x88\x82\x00\x00\x00\x00\x03\xe8")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r.streams.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("the drain waited though both sides had closed")
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("behind the app's close frame: %q", rest)
	}
}

// A client that does not answer is cut off when the time is up.
func TestDrainDeafClient(t *testing.T) {
	r := newRig(t, echo(t), nil, nil)
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, wsHandshake(wsVersion, wsNonce))
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	r.streams.Drain(ctx)
	if n := r.streams.Count(); n != 0 {
		t.Errorf("Count() = %d", n)
	}
}

// fill sends message again and again until the connection ends, and closes stuck when all
// buffers between here and the client are full.
func fill(conn net.Conn, message string, stuck chan struct{}) {
	var once sync.Once
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := io.WriteString(conn, message)
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		once.Do(func() { close(stuck) })
		message = message[n:] + message[:n]
	}
}

// A client that does not even read can't hold up the drain.
func TestDrainStuckClient(t *testing.T) {
	const size = 64 << 10
	stuck := make(chan struct{})
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, switching)
		fill(conn, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"+strings.Repeat("a", size), stuck)
		return false
	})
	r := newRig(t, rec.URL, nil, nil)
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, wsHandshake(wsVersion, wsNonce))
	<-stuck
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	r.streams.Drain(ctx)
	if n := r.streams.Count(); n != 0 {
		t.Errorf("Count() = %d", n)
	}
}

// Events arrive as they are made; a drain ends the answer like a whole one.
func TestEventStream(t *testing.T) {
	for name, size := range map[string]string{"chunked": "", "sized": "1000"} {
		t.Run(name, func(t *testing.T) {
			app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", "Text/Event-Stream ; charset=utf-8")
				if size != "" {
					w.Header().Set("Content-Length", size)
				}
				_, _ = io.WriteString(w, "data: 1\n\n")
				_ = http.NewResponseController(w).Flush()
				<-req.Context().Done() // the drain reaches the app
			}))
			defer app.Close()
			r := newRig(t, app.URL, nil, nil)
			res, err := http.Get(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			event := make([]byte, 9)
			if _, err := io.ReadFull(res.Body, event); err != nil || string(event) != "data: 1\n\n" {
				t.Fatalf("event = %q, %v", event, err)
			}
			if n := r.streams.Count(); n != 1 {
				t.Errorf("Count() = %d, want 1", n)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r.streams.Drain(ctx)
			if ctx.Err() != nil || r.streams.Count() != 0 {
				t.Errorf("after the drain: %v, Count() = %d", ctx.Err(), r.streams.Count())
			}
			rest, err := io.ReadAll(res.Body)
			if len(rest) > 0 || (err == nil) != (size == "") {
				t.Errorf("rest = %q, %v", rest, err)
			}
			if r.broken.Load() != 0 {
				t.Error("an end of ours counts as broken")
			}
		})
	}
}
