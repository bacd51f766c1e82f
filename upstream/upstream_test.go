package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alice = coatcheck.Identity{
	Issuer: "https://idp.example.com", Subject: "alice", Email: "alice@corp.example", EmailVerified: true,
	PreferredUsername: "al", Groups: []string{"admins", "staff"},
}

// A rig is a server that forwards everything to one app.
type rig struct {
	*httptest.Server
	up      *upstream.Upstream
	streams *upstream.Streams
	broken  atomic.Int64 // answers that the app broke off
	addr    string
}

// newRig starts the server. The functions change the options and each call; both may be
// nil. An error of Forward is answered with 418, the code in the body.
func newRig(t testing.TB, app string, options func(*upstream.Options), call func(*http.Request, *upstream.Call)) *rig {
	t.Helper()
	u, err := url.Parse(app)
	if err != nil {
		t.Fatal(err)
	}
	transport := upstream.NewTransport(time.Minute)
	t.Cleanup(transport.CloseIdleConnections)
	r := &rig{streams: new(upstream.Streams)}
	o := upstream.Options{
		URL: u, Headers: upstream.DefaultIdentityHeaders, Jar: cookie.New("coatcheck", "", false),
		Transport: transport, Streams: r.streams, Broken: func() { r.broken.Add(1) },
	}
	if options != nil {
		options(&o)
	}
	r.up = upstream.New(o)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		path, query, found := strings.Cut(req.RequestURI, "?")
		c := &upstream.Call{
			RawPath: path, RawQuery: query, ForceQuery: found && query == "",
			ClientIP: "192.0.2.7", Scheme: "https", Host: "app.example.com", RequestID: "r-1",
		}
		if call != nil {
			call(req, c)
		}
		if err := r.up.Forward(w, req, c); err != nil {
			if len(w.Header()) > 0 {
				t.Errorf("an error left a header behind: %v", w.Header())
			}
			var e *coatcheck.Error
			if !errors.As(err, &e) {
				t.Errorf("an error without a code: %v", err)
			}
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, string(coatcheck.CodeOf(err)))
		}
	}))
	r.addr = r.Listener.Addr().String()
	t.Cleanup(r.Close)
	return r
}

func as(id coatcheck.Identity) func(*http.Request, *upstream.Call) {
	return func(_ *http.Request, c *upstream.Call) {
		c.Identity, c.State = &id, coatcheck.Authenticated
	}
}

// exchange sends one request and returns what the app got and the client's answer.
func exchange(t *testing.T, r *rig, rec *testenv.Recorder, request string) (got, answer string) {
	t.Helper()
	before := len(rec.Requests())
	answer = testenv.Send(t, r.addr, request)
	requests := rec.Requests()
	if len(requests) != before+1 {
		t.Fatalf("the app got %d requests, want 1; the client got %q", len(requests)-before, answer)
	}
	return requests[before], answer
}

// get writes a GET with the given header lines.
func get(target string, lines ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

// refused expects an error with code, and that the app heard nothing.
func refused(t *testing.T, r *rig, rec *testenv.Recorder, request string, code coatcheck.Code) {
	t.Helper()
	answer := testenv.Send(t, r.addr, request)
	if !strings.HasPrefix(answer, "HTTP/1.1 418 ") || !strings.HasSuffix(answer, string(code)) {
		t.Errorf("answer = %q, want %s", answer, code)
	}
	if n := rec.Opened(); n != 0 {
		t.Errorf("the app was dialled %d times", n)
	}
}

// A-P15: the bytes that were judged are the bytes that go out.
func TestForwardTarget(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	tests := []struct{ base, strip, target, want string }{
		{"", "", "/", "/"},
		{"", "", "/a/b/?", "/a/b/?"},
		{"", "", `/a|b^c"<>{}[]` + "`" + `/%7e/%41?x=%zz;y&&z=|`, `/a|b^c"<>{}[]` + "`" + `/%7e/%41?x=%zz;y&&z=|`},
		{"", "", "/a%20b/%E2%82%ac;v=1?a=b;c=d", "/a%20b/%E2%82%ac;v=1?a=b;c=d"},
		{"", "", "/x?" + strings.Repeat("a&", 3000), "/x?" + strings.Repeat("a&", 3000)},
		{"/base", "", "/a", "/base/a"},
		{"/base/", "", "/", "/base/"},
		{"/b%20c", "", "/a", "/b%20c/a"},
		{"", "/shop", "/shop/cart?x", "/cart?x"},
		{"", "/shop/", "/shop", "/"},
		{"", "/shop/", "/shop?x", "/?x"},
		{"", "/shop", "/shop/", "/"},
		{"", "/shop", "/shopping", "/shopping"},
		{"", "/shop", "/other/shop", "/other/shop"},
		{"", "/shop", "/sh%6Fp/c%61rt", "/c%61rt"},
		{"", "/shop/eu", "/shop/eu/a", "/a"},
		{"", "/shop/eu", "/shop", "/shop"},
		{"/base", "/shop", "/shop/a", "/base/a"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s-%s%.20s", tt.base, tt.strip, tt.target), func(t *testing.T) {
			r := newRig(t, rec.URL+tt.base, func(o *upstream.Options) { o.StripPrefix = tt.strip }, nil)
			// net/http refuses some targets before a handler sees them, so the call
			// carries the bytes.
			r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				path, query, found := strings.Cut(tt.target, "?")
				c := &upstream.Call{RawPath: path, RawQuery: query, ForceQuery: found && query == ""}
				if err := r.up.Forward(w, req, c); err != nil {
					t.Error(err)
				}
			})
			got, _ := exchange(t, r, rec, get("/ignored?x=1"))
			if testenv.Target(got) != tt.want {
				t.Errorf("target = %s, want %s", testenv.Target(got), tt.want)
			}
		})
	}
}

func TestForwardHost(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	for _, preserve := range []bool{false, true} {
		r := newRig(t, rec.URL, func(o *upstream.Options) { o.PreserveHost = preserve }, nil)
		got, _ := exchange(t, r, rec, strings.Replace(get("/"), "Host: app", "Host: APP", 1))
		want := []string{strings.TrimPrefix(rec.URL, "http://")}
		if preserve {
			want = []string{"app.example.com"} // as judged
		}
		if diff := cmp.Diff(want, testenv.Fields(got, "host")); diff != "" {
			t.Errorf("Host, preserve %v (-want +got):\n%s", preserve, diff)
		}
	}
}

func TestForwardFailures(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	hang := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = conn.Read(make([]byte, 1)) // until the other side gives up
		return false
	})
	drop := testenv.Record(t, func(net.Conn, string) bool { return false })
	nonsense := testenv.Record(t, testenv.Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n"))
	flood := testenv.Record(t, testenv.Answer("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 300<<10)+"\r\n\r\n"))
	tests := map[string]struct {
		app  string
		want coatcheck.Code
	}{
		"down":            {gone.URL, coatcheck.CodeUpstreamFailed},
		"hangs":           {hang.URL, coatcheck.CodeUpstreamTimeout},
		"hangs up":        {drop.URL, coatcheck.CodeUpstreamFailed},
		"speaks nonsense": {nonsense.URL, coatcheck.CodeUpstreamFailed},
		"endless header":  {flood.URL, coatcheck.CodeUpstreamFailed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tt.app, func(o *upstream.Options) {
				patience := time.Minute
				if tt.want == coatcheck.CodeUpstreamTimeout {
					patience = 100 * time.Millisecond
				}
				transport := upstream.NewTransport(patience)
				t.Cleanup(transport.CloseIdleConnections)
				o.Transport = transport
			}, nil)
			answer := testenv.Send(t, r.addr, get("/"))
			if !strings.HasPrefix(answer, "HTTP/1.1 418 ") || !strings.HasSuffix(answer, string(tt.want)) {
				t.Errorf("answer = %q, want %s", answer, tt.want)
			}
		})
	}
}

// An answer that breaks off must not look complete.
func TestForwardBrokenAnswer(t *testing.T) {
	for name, head := range map[string]string{
		"sized":   "Content-Length: 100\r\n\r\nhalf",
		"chunked": "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+head)
				return false
			})
			r := newRig(t, rec.URL, nil, nil)
			res, err := http.Get(r.URL)
			if err == nil {
				defer res.Body.Close()
				_, err = io.ReadAll(res.Body)
			}
			if err == nil {
				t.Error("the client took the answer for complete")
			}
			if n := r.broken.Load(); n != 1 {
				t.Errorf("broken answers: %d, want 1", n)
			}
		})
	}
}

func TestForwardClientGone(t *testing.T) {
	cancelled := make(chan struct{})
	arrived := make(chan struct{})
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		close(arrived)
		_, _ = conn.Read(make([]byte, 1)) // returns when the proxy gives up
		close(cancelled)
		return false
	})
	code := make(chan coatcheck.Code, 1)
	r := newRig(t, rec.URL, nil, nil)
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		code <- coatcheck.CodeOf(r.up.Forward(w, req, &upstream.Call{RawPath: "/"}))
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", r.URL, nil)
	go func() {
		<-arrived
		cancel()
	}()
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
	}
	<-cancelled
	if got := <-code; got != coatcheck.CodeUnknown {
		t.Errorf("code = %s, want %s", got, coatcheck.CodeUnknown)
	}
}

// An answer that the client does not want to the end is not the app's fault.
func TestForwardClientGoneInAnswer(t *testing.T) {
	rec := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		_, _ = conn.Read(make([]byte, 1)) // returns when the proxy gives up
		return false
	})
	r := newRig(t, rec.URL, nil, nil)
	next := r.Config.Handler
	ended := make(chan struct{})
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer close(ended)
		next.ServeHTTP(w, req)
	})
	res, err := http.Get(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(res.Body, make([]byte, 4))
	res.Body.Close()
	<-ended
	if n := r.broken.Load(); n != 0 {
		t.Errorf("broken answers: %d, want 0", n)
	}
}

// A client that stops in mid-body has gone.
func TestForwardHalfBody(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(conn)
	if !bytes.HasSuffix(answer, []byte(coatcheck.CodeUnknown)) {
		t.Errorf("answer = %q, want %s", answer, coatcheck.CodeUnknown)
	}
}

// A body that can't be read is the client's fault (A-W5).
func TestForwardBadBody(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	answer := testenv.Send(t, r.addr, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n")
	if !strings.HasSuffix(answer, string(coatcheck.CodeMalformed)) {
		t.Errorf("answer = %q, want %s", answer, coatcheck.CodeMalformed)
	}
}

// A body that does not come is the client's fault too (A-W10), and only that: an app may take
// its time to read it, and to answer.
func TestForwardSlowBody(t *testing.T) {
	patience := func(d time.Duration) func(*upstream.Options) {
		return func(o *upstream.Options) { o.UploadPatience = d }
	}
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, patience(200*time.Millisecond), nil)
	for _, framing := range []string{"Content-Length: 10\r\n\r\nab", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"} {
		answer := testenv.Send(t, r.addr, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+framing)
		if !strings.HasSuffix(answer, string(coatcheck.CodeMalformed)) {
			t.Errorf("answer = %q, want %s", answer, coatcheck.CodeMalformed)
		}
	}

	const size = 8 << 20 // more than the buffers on the way hold
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		time.Sleep(3 * time.Second)
		if n, err := io.Copy(io.Discard, req.Body); n != size || err != nil {
			t.Errorf("the app got %d bytes, %v", n, err)
		}
		time.Sleep(3 * time.Second)
	}))
	t.Cleanup(app.Close)
	r = newRig(t, app.URL, patience(2*time.Second), nil)
	resp, err := http.Post(r.URL, "", strings.NewReader(strings.Repeat("x", size)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}

// Bodies pass in both directions while they are made.
func TestForwardStreams(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		lines := bufio.NewScanner(req.Body)
		for lines.Scan() {
			_, _ = fmt.Fprintf(w, "got %s\n", lines.Text())
			_ = rc.Flush()
		}
	}))
	defer app.Close()
	r := newRig(t, app.URL, nil, nil)
	body, input := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", r.URL, body)
	go func() { _, _ = io.WriteString(input, "first\n") }()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for _, word := range []string{"first", "second", "third"} {
		if word != "first" {
			_, _ = io.WriteString(input, word+"\n")
		}
		if !lines.Scan() || lines.Text() != "got "+word {
			t.Fatalf("line = %q, want got %s", lines.Text(), word)
		}
	}
	input.Close()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("the answer goes on with %q, %v", lines.Text(), lines.Err())
	}
}

// An app that answers while it reads gets all of the body.
func TestForwardBody(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, req.Body)
	}))
	defer app.Close()
	r := newRig(t, app.URL, nil, nil)
	res, err := http.Post(r.URL, "application/octet-stream", bytes.NewReader(large))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || !slices.Equal(got, large) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// Informational answers stay here, and what the request line has set survives them.
func TestForwardInformational(t *testing.T) {
	rec := testenv.Record(t, testenv.Answer("HTTP/1.1 103 Early Hints\r\nSet-Cookie: __Host-coatcheck=evil\r\nLink: </x>\r\n\r\n"+
		"HTTP/1.1 200 OK\r\nX-App: 1\r\nContent-Length: 2\r\n\r\nok"))
	r := newRig(t, rec.URL, nil, nil)
	next := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Ours", "1")
		next.ServeHTTP(w, req)
	})
	_, answer := exchange(t, r, rec, get("/"))
	if !strings.HasPrefix(answer, "HTTP/1.1 200 OK\r\n") || !strings.Contains(answer, "X-Ours: 1\r\n") ||
		!strings.Contains(answer, "X-App: 1\r\n") || strings.Contains(answer, "evil") {
		t.Errorf("answer = %q", answer)
	}
}

// A-W14: whether the app says 100 or at once what it thinks, client and app stay in step.
func TestForwardExpectContinue(t *testing.T) {
	for name, first := range map[string]string{
		"continue": "HTTP/1.1 100 Continue\r\n\r\n",
		"final":    "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno",
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() { // the recorder waits for bodies, this app does not
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						br := bufio.NewReader(conn)
						for {
							head := ""
							for !strings.HasSuffix(head, "\r\n\r\n") {
								line, err := br.ReadString('\n')
								if err != nil {
									return
								}
								head += line
							}
							if testenv.Target(head) == "/next" {
								_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
								continue
							}
							_, _ = io.WriteString(conn, first)
							if name == "continue" {
								body := make([]byte, 5)
								_, _ = io.ReadFull(br, body)
								_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", body)
							}
						}
					}()
				}
			}()
			r := newRig(t, "http://"+ln.Addr().String(), nil, nil)
			conn, err := net.Dial("tcp", r.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.WriteString(conn, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
			br := bufio.NewReader(conn)
			line, _ := br.ReadString('\n')
			want := "HTTP/1.1 417 Expectation Failed\r\n"
			const proceed = "HTTP/1.1 100 Continue\r\n"
			switch {
			case name == "continue":
				if want = proceed; line == want {
					_, _ = io.WriteString(conn, "hello")
					rest, _ := br.ReadString('o') // the empty line, the answer's head and body
					for !strings.HasSuffix(rest, "hello") {
						more, err := br.ReadString('o')
						if rest += more; err != nil {
							t.Fatalf("after 100: %q, %v", rest, err)
						}
					}
				}
			case line == proceed:
				// To keep its connection, the transport sends the body even after a final
				// answer, and may ask for it before the answer is passed on. That is no
				// promise of success (RFC 9110 §10.1.1).
				_, _ = io.WriteString(conn, "hello")
				_, _ = br.ReadString('\n') // the empty line
				line, _ = br.ReadString('\n')
			}
			if line != want {
				t.Errorf("first line = %q, want %q", line, want)
			}
			if answer := testenv.Send(t, r.addr, get("/next")); !strings.HasSuffix(answer, "\r\n\r\nnext") {
				t.Errorf("next answer = %q", answer)
			}
		})
	}
}

// A client that has not sent its body yet is answered all the same when the app can't be
// reached, whether or not it waits to be asked for the body.
func TestForwardAnswersBeforeTheBody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := "http://" + ln.Addr().String()
	ln.Close()
	r := newRig(t, app, nil, nil)
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		conn, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(conn, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"+expect+"\r\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 418 ") {
			t.Errorf("%q: first line = %q, %v; want the rig's answer to an error", expect, line, err)
		}
	}
}
