package oidc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
)

// listen serves connections one after the other until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// hear reads a whole request, and counts it.
func hear(conn net.Conn, heard *atomic.Int64) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	if body, err := io.ReadAll(req.Body); err == nil && strings.Contains(string(body), "refresh_token=") {
		heard.Add(1)
	}
}

// A-S7: what became of a refresh token is known by how far its request came, and it is
// never sent a second time.
func TestOutcomeOfTheWire(t *testing.T) {
	var heard atomic.Int64
	answer := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			hear(conn, &heard)
			_, _ = io.WriteString(conn, text)
		}
	}
	closed := listen(t, func(net.Conn) {})
	open := listen(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	https := httptest.NewUnstartedServer(http.NotFoundHandler())
	https.Config.ErrorLog = log.New(io.Discard, "", 0)
	https.StartTLS()
	t.Cleanup(https.Close)
	given := make(chan struct{})
	defer close(given)
	for _, c := range []struct {
		name     string
		endpoint string
		serve    func(net.Conn)
		change   func(*RelyingParty)
		want     coatcheck.Outcome
		heard    int64
	}{
		{name: "refused", endpoint: "http://127.0.0.1:1/", want: coatcheck.OutcomeNone},
		{name: "closed in the handshake", endpoint: "https://" + closed + "/", want: coatcheck.OutcomeNone},
		{name: "certificate of nobody", endpoint: https.URL, want: coatcheck.OutcomeNone},
		{
			name: "time-out while dialling", endpoint: "http://" + open + "/", want: coatcheck.OutcomeNone,
			change: func(p *RelyingParty) {
				dial(p, func(context.Context, string, string) (net.Conn, error) {
					<-given // net/http goes on dialling for others who might come
					return nil, errors.New("given up")
				})
				p.once.Timeout = 50 * time.Millisecond
			},
		},
		{
			name: "nothing written", endpoint: "http://" + open + "/", want: coatcheck.OutcomeNone,
			change: func(p *RelyingParty) { dialBroken(p, 0, func() bool { return true }) },
		},
		{
			name: "a byte written", endpoint: "http://" + open + "/", want: coatcheck.OutcomeUnknown,
			change: func(p *RelyingParty) { dialBroken(p, 1, func() bool { return true }) },
		},
		{name: "closed after the request", serve: answer(""), want: coatcheck.OutcomeUnknown, heard: 1},
		{
			name: "writes that nobody counts", serve: answer(""), want: coatcheck.OutcomeUnknown, heard: 1,
			change: func(p *RelyingParty) { dial(p, new(net.Dialer).DialContext) },
		},
		{
			name: "reset after the request", want: coatcheck.OutcomeUnknown, heard: 1,
			serve: func(conn net.Conn) {
				hear(conn, &heard)
				_ = conn.(*net.TCPConn).SetLinger(0)
			},
		},
		{
			// Time enough for a busy machine to send the request first.
			name: "silence", want: coatcheck.OutcomeUnknown, heard: 1,
			change: func(p *RelyingParty) { p.once.Timeout = 3 * time.Second },
			serve: func(conn net.Conn) {
				hear(conn, &heard)
				_, _ = conn.Read(make([]byte, 1)) // until the other side gives up
			},
		},
		{name: "no HTTP", serve: answer("hello\r\n\r\n"), want: coatcheck.OutcomeUnknown, heard: 1},
		{name: "granted and cut", serve: answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), want: coatcheck.OutcomeUnknown, heard: 1},
		{name: "unavailable and cut", serve: answer("HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\n{"), want: coatcheck.OutcomeNone, heard: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			heard.Store(0)
			endpoint := c.endpoint
			if endpoint == "" {
				endpoint = "http://" + listen(t, c.serve) + "/"
			}
			_, p, s := signedIn(t, nil)
			redirectTokens(p, endpoint)
			if c.change != nil {
				c.change(p)
			}
			_, err := p.Refresh(t.Context(), s)
			wantOutcome(t, err, c.want)
			if got := heard.Load(); got != c.heard {
				t.Errorf("the refresh token arrived %d times, want %d", got, c.heard)
			}
		})
	}
}

// The writes of a handshake are not those of the request.
func TestOutcomeAfterHandshake(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	for accepted, want := range map[int]coatcheck.Outcome{0: coatcheck.OutcomeNone, 1: coatcheck.OutcomeUnknown} {
		_, p, s := signedIn(t, nil)
		redirectTokens(p, server.URL)
		trust(p, server)
		var broken atomic.Bool
		dialBroken(p, accepted, broken.Load)
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { broken.Store(true) },
		})
		_, err := p.Refresh(ctx, s)
		wantOutcome(t, err, want)
	}
}

// Each refresh has a connection of its own, by HTTP/1.1.
func TestOwnConnection(t *testing.T) {
	var connections atomic.Int64
	i, p, s := signedIn(t, nil)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("%s", r.Proto)
		}
		i.serveToken(w, r)
	}))
	server.EnableHTTP2 = true
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	redirectTokens(p, server.URL)
	trust(p, server)
	for range 3 {
		if _, err := p.Refresh(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if connections.Load() != 3 {
		t.Errorf("%d connections for 3 refreshes", connections.Load())
	}
}

// A person waits for a sign-in, and nobody for a refresh.
func TestTimeouts(t *testing.T) {
	i, p, s := signedIn(t, nil)
	next := p.once.Transport
	var left time.Duration
	p.once.Transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
		deadline, _ := r.Context().Deadline()
		left = time.Until(deadline)
		return next.RoundTrip(r)
	})
	for _, c := range []struct {
		name string
		most time.Duration
		send func() error
	}{
		{"refresh", renewalTimeout, func() error { _, err := p.Refresh(t.Context(), s); return err }},
		{"sign-in", requestTimeout, func() error { _, err := newBrowser(t).signIn(i, p, "/"); return err }},
		{"revocation", requestTimeout, func() error { return p.Revoke(t.Context(), "x", coatcheck.AccessToken) }},
	} {
		if err := c.send(); err != nil {
			t.Fatal(err)
		}
		if left > c.most || left < c.most/2 {
			t.Errorf("%s: %v left, want at most %v", c.name, left, c.most)
		}
	}
}

// Whoever asked may stop to wait; that says nothing of what was sent.
func TestRefreshCancelled(t *testing.T) {
	i, p, s := signedIn(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	i.set(func() {
		i.onToken = func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		}
	})
	_, err := p.Refresh(ctx, s)
	wantOutcome(t, err, coatcheck.OutcomeUnknown)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	_, err = p.Refresh(ctx, s)
	wantOutcome(t, err, coatcheck.OutcomeNone)
	if i.redeemed() != 2 {
		t.Errorf("%d token requests, want 1 beside the sign-in's", i.redeemed())
	}
}

// redirectTokens makes another server the provider's token endpoint.
func redirectTokens(p *RelyingParty, endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	current := *p.current
	current.TokenEndpoint = endpoint
	p.current = &current
}

// trust makes p take the server's certificate.
func trust(p *RelyingParty, server *httptest.Server) {
	p.once.Transport.(*http.Transport).TLSClientConfig.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
}

func dial(p *RelyingParty, f func(ctx context.Context, network, address string) (net.Conn, error)) {
	p.once.Transport.(*http.Transport).DialContext = f
}

// dialBroken makes writes fail once broken says so, after this many bytes of them.
func dialBroken(p *RelyingParty, accepted int, broken func() bool) {
	dial(p, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &wire{Conn: &brokenConn{conn, accepted, broken}}, nil
	})
}

type brokenConn struct {
	net.Conn
	accepted int
	broken   func() bool
}

func (c *brokenConn) Write(b []byte) (int, error) {
	if c.broken() {
		return min(c.accepted, len(b)), syscall.ECONNRESET
	}
	return c.Conn.Write(b)
}

// signedIn returns a session as a sign-in leaves it, kept for a while.
func signedIn(t *testing.T, change func(*Config)) (*hostile, *RelyingParty, *coatcheck.Session) {
	t.Helper()
	i, p, clock := newPair(t, change)
	login, err := newBrowser(t).signIn(i, p, "/")
	if err != nil {
		t.Fatal(err)
	}
	s := login.Session
	s.Created, s.Deadline = now, now.Add(12*time.Hour)
	s.Origin = coatcheck.Origin{App: "app.t1.test", IP: "192.0.2.1"}
	s.Tokens.Refresh = "refresh-canary"
	clock.add(time.Minute)
	return i, p, s
}

// wantOutcome fails the test unless err is a renewal error with this outcome, fit for a log.
func wantOutcome(t *testing.T, err error, want coatcheck.Outcome) {
	t.Helper()
	var renewal *coatcheck.RenewalError
	if !errors.As(err, &renewal) {
		t.Fatalf("%v (%T), want a renewal error", err, err)
	}
	if renewal.Outcome != want {
		t.Errorf("%v, want outcome %v", err, want)
	}
	for _, secret := range []string{"canary", "access-", url.QueryEscape("s3cr&t canary"), "\x1b"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows %q: %v", secret, err)
		}
	}
	if len(err.Error()) > 1000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}
