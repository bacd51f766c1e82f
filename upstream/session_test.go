package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/upstream"
)

// A watched is a session that hands a test what an open stream gives to a session.
type watched struct {
	over     error // not nil: the session has ended already
	watches  atomic.Int32
	releases atomic.Int32
	watch    func()           // called by Watch; may be nil
	ended    chan func(error) // gets what Watch was called with
}

func newWatched() *watched { return &watched{ended: make(chan func(error), 8)} }

func (w *watched) Watch(ended func(error)) func() {
	w.watches.Add(1)
	if w.watch != nil {
		w.watch()
	}
	if w.over != nil {
		ended(w.over)
	}
	w.ended <- ended
	return func() { w.releases.Add(1) }
}

func (w *watched) call(_ *http.Request, c *upstream.Call) { c.Session = w }

// waitReleased waits until n streams have ended and released the session.
func (w *watched) waitReleased(t *testing.T, r *rig, n int32) {
	t.Helper()
	for end := time.Now().Add(time.Minute); w.releases.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("released %d times, want %d", w.releases.Load(), n)
		}
	}
	r.Close() // waits for what is left of the handlers, but for WebSockets
	waitNone(t, r)
	if got := w.releases.Load(); got != n || w.watches.Load() != n {
		t.Errorf("watched %d times, released %d times, want %d", w.watches.Load(), got, n)
	}
}

// events is an app that sends one event and then waits for the client's end.
func events(t *testing.T) string {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
	}))
	t.Cleanup(app.Close)
	return app.URL
}

var errOver = errors.New("over")

var sessionEnds = map[string]struct {
	err    error
	status websocket.StatusCode
	reason string
}{
	"over":    {errOver, websocket.StatusPolicyViolation, "session_ended"},
	"unknown": {coatcheck.E(coatcheck.CodeUnknown, "test", errors.New("the store is down")), websocket.StatusTryAgainLater, "session_unknown"},
}

func wantClose(t *testing.T, c *websocket.Conn, status websocket.StatusCode, reason string) {
	t.Helper()
	_, _, err := c.Read(t.Context())
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != status || closed.Reason != reason {
		t.Errorf("the client sees %v, want %d %q", err, status, reason)
	}
}

// A-C15, A-L1: an open WebSocket ends with its session. The client is told why, to the app
// it has gone away.
func TestSessionEndsWebSocket(t *testing.T) {
	for name, tt := range sessionEnds {
		t.Run(name, func(t *testing.T) {
			appClosed := make(chan websocket.StatusCode, 1)
			app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
				if err != nil {
					return
				}
				defer c.CloseNow()
				for err == nil {
					_, _, err = c.Read(context.Background())
				}
				appClosed <- websocket.CloseStatus(err)
			}))
			defer app.Close()
			s := newWatched()
			r := newRig(t, app.URL, nil, s.call)
			c := dial(t, r)
			ended := <-s.ended
			if s.releases.Load() != 0 {
				t.Error("released while the WebSocket is open")
			}
			ended(tt.err)
			ended(context.Canceled) // only the first one counts
			wantClose(t, c, tt.status, tt.reason)
			if code := <-appClosed; code != websocket.StatusGoingAway {
				t.Errorf("the app sees %v", code)
			}
			s.waitReleased(t, r, 1)
			ended(tt.err) // the stream has ended: nothing happens
		})
	}
}

// A session that is over by the time of the handshake ends the WebSocket, and the event
// stream, as soon as it is open.
func TestSessionOverBefore(t *testing.T) {
	for name, tt := range sessionEnds {
		t.Run(name, func(t *testing.T) {
			s := newWatched()
			s.over = tt.err
			r := newRig(t, echo(t), nil, s.call)
			wantClose(t, dial(t, r), tt.status, tt.reason)
			s.waitReleased(t, r, 1)

			s = newWatched()
			s.over = tt.err
			r = newRig(t, events(t), nil, s.call)
			res, err := http.Get(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > len("data: 1\n\n") {
				t.Errorf("the event stream: %q, %v", rest, err)
			}
			s.waitReleased(t, r, 1)
		})
	}
}

// The answer ends like a whole one: the browser connects again, and learns what there is
// to learn from the answer to that.
func TestSessionEndsEventStream(t *testing.T) {
	for name, tt := range sessionEnds {
		t.Run(name, func(t *testing.T) {
			s := newWatched()
			r := newRig(t, events(t), nil, s.call)
			res, err := http.Get(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			event := make([]byte, 9)
			if _, err := io.ReadFull(res.Body, event); err != nil || string(event) != "data: 1\n\n" {
				t.Fatalf("event = %q, %v", event, err)
			}
			(<-s.ended)(tt.err)
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("rest = %q, %v", rest, err)
			}
			s.waitReleased(t, r, 1)
			if r.broken.Load() != 0 {
				t.Error("an end of ours counts as broken")
			}
		})
	}
}

// A stream that ends by itself releases the session, and what the session does later
// concerns nobody.
func TestStreamEndsBeforeSession(t *testing.T) {
	s := newWatched()
	r := newRig(t, echo(t), nil, s.call)
	c := dial(t, r)
	roundTrip(t, c, []byte("hello"))
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	s.waitReleased(t, r, 1)
	(<-s.ended)(errOver)

	s = newWatched()
	r = newRig(t, events(t), nil, s.call)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cancel()
	s.waitReleased(t, r, 1)
	(<-s.ended)(errOver)
}

// What is no stream asks nothing of its session.
func TestSessionNotWatched(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	s := newWatched()
	r := newRig(t, rec.URL, nil, s.call)
	exchange(t, r, rec, get("/"))
	exchange(t, r, rec, strings.Replace(wsHandshake(wsVersion, wsNonce), "keep-alive,", "close,", 1)) // declined
	bad := testenv.Record(t, testenv.Answer(strings.Replace(switching, wsAccept, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1)))
	r2 := newRig(t, bad.URL, nil, s.call)
	exchange(t, r2, bad, strings.Replace(wsHandshake(wsVersion, wsNonce), "keep-alive,", "close,", 1))
	if n := s.watches.Load(); n != 0 {
		t.Errorf("watched %d times", n)
	}
}

// TestSessionCostsNothing: a request that is no stream pays nothing for having a session.
func TestSessionCostsNothing(t *testing.T) {
	cost := func(s upstream.Session) float64 {
		transport := roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
		})
		u := upstream.New(upstream.Options{
			URL: &url.URL{Scheme: "http", Host: "app.test"}, Jar: cookie.New("coatcheck", "", false), Transport: transport, Streams: new(upstream.Streams),
		})
		req := httptest.NewRequest("GET", "/", nil)
		c := upstream.Call{RawPath: "/", Session: s}
		return testing.AllocsPerRun(100, func() {
			if err := u.Forward(newSink(), req, &c); err != nil {
				t.Fatal(err)
			}
		})
	}
	if with, without := cost(newWatched()), cost(nil); with > without {
		t.Errorf("%v allocations with a session, %v without", with, without)
	}
}

// A firstByte notes whether anything has gone out to the client.
type firstByte struct {
	http.ResponseWriter
	out *atomic.Bool
}

func (w firstByte) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w firstByte) WriteHeader(code int) {
	w.out.Store(true)
	w.ResponseWriter.WriteHeader(code)
}

func (w firstByte) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return conn, bufio.NewReadWriter(buf.Reader, bufio.NewWriter(writerFunc(func(p []byte) (int, error) {
		w.out.Store(true)
		return conn.Write(p)
	}))), nil
}

// The session is watched before the client gets a byte, so none passes unwatched.
func TestSessionWatchedFirst(t *testing.T) {
	for name, app := range map[string]string{"WebSocket": echo(t), "event stream": events(t)} {
		t.Run(name, func(t *testing.T) {
			var out atomic.Bool
			s := newWatched()
			s.watch = func() {
				if out.Load() {
					t.Error("something went out before")
				}
			}
			r := newRig(t, app, nil, s.call)
			next := r.Config.Handler
			r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				next.ServeHTTP(firstByte{w, &out}, req)
			})
			if name == "WebSocket" {
				_ = dial(t, r).CloseNow()
			} else {
				res, err := http.Get(r.URL)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
			}
			s.waitReleased(t, r, 1)
			if !out.Load() {
				t.Error("nothing went out")
			}
		})
	}
}

// A client that neither answers nor reads is cut off soon after its session has ended.
func TestSessionEndsDeafClient(t *testing.T) {
	event := "data: " + strings.Repeat("x", 64<<10) + "\n\n"
	frame := "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + strings.Repeat("x", 64<<10)
	for name, tt := range map[string]struct{ request, answer, more string }{
		"WebSocket that is silent": {wsHandshake(wsVersion, wsNonce), switching, ""},
		"WebSocket":                {wsHandshake(wsVersion, wsNonce), switching, frame},
		"event stream":             {"GET /events HTTP/1.1\r\nHost: app.example.com\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", event},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stuck := make(chan struct{})
			rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
				_, _ = io.WriteString(conn, tt.answer)
				if tt.more == "" {
					close(stuck)
					_, _ = io.Copy(io.Discard, conn)
					return false
				}
				fill(conn, tt.more, stuck)
				return false
			})
			s := newWatched()
			r := newRig(t, rec.URL, nil, s.call)
			conn, err := net.Dial("tcp", r.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, tt.request)
			<-stuck
			(<-s.ended)(errOver)
			s.waitReleased(t, r, 1)
		})
	}
}

// Whatever ends first, the session, the node or the client: each stream releases its
// session once.
func TestSessionEndRaces(t *testing.T) {
	const streams = 20
	for name, app := range map[string]string{"WebSocket": echo(t), "event stream": events(t)} {
		t.Run(name, func(t *testing.T) {
			s := newWatched()
			r := newRig(t, app, nil, s.call)
			var wg sync.WaitGroup
			for i := range streams {
				wg.Go(func() {
					if name == "WebSocket" {
						c, _, err := websocket.Dial(t.Context(), r.URL+"/ws", nil)
						if err != nil {
							t.Error(err)
							return
						}
						defer c.CloseNow()
						if i%3 > 0 {
							_, _, _ = c.Read(t.Context())
						}
						return
					}
					res, err := http.Get(r.URL)
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					if i%3 > 0 {
						_, _ = io.Copy(io.Discard, res.Body)
					}
				})
				if i == streams/2 {
					wg.Go(func() { r.streams.Drain(t.Context()) })
				}
				wg.Go(func() {
					ended := <-s.ended
					for range 2 {
						wg.Go(func() { ended(errOver) })
					}
				})
			}
			wg.Wait()
			s.waitReleased(t, r, streams)
		})
	}
}
