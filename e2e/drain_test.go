package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z8: a node that is told to go says so first, finishes what it has begun, and no
// client notices.
func TestDrain(t *testing.T) {
	const delay, grace = 6 * time.Second, 20 * time.Second
	var slow atomic.Int32
	app := sampleapp.New(sampleapp.Options{Name: "app"})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slow.Add(1)
		}
		app.ServeHTTP(w, r)
	}))
	t.Cleanup(upstream.Close)
	port := testenv.FreePort(t)
	c := startCluster(t, clusterOptions{
		port:     port,
		client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
		upstream: upstream.URL,
		more:     fmt.Sprintf("shutdown: {delay: %s, grace: %s}\n", delay, grace),
	})
	guests := []guest{signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "bob"), signInGuest(t, c.url, "carol")}
	leaving, s := c.nodes["node-a"], newSender(t)

	// Two of each kind, so that each node has one.
	sockets := map[string]*websocket.Conn{}
	events := map[string]*http.Response{}
	for range 2 {
		name, conn := c.dial(guests[0])
		sockets[name] = conn
	}
	for range 2 {
		name, stream := c.events(guests[1])
		events[name] = stream
	}
	if len(sockets) != 2 || len(events) != 2 {
		t.Fatalf("not one stream for each node: %v, %v", sockets, events)
	}
	finished := make(chan error, 2)
	for range cap(finished) {
		go func() {
			page, err := s.send(request{url: c.url + "/slow?ms=9000", cookie: guests[2].asCookie(), header: asScript})
			if err == nil && page.Status != http.StatusOK {
				err = fmt.Errorf("a slow answer: %d %s", page.Status, firstLine(page.Body))
			}
			finished <- err
		}()
	}
	await(t, "the slow requests to reach the app", func() bool { return slow.Load() == 2 })

	l := startLoad(t, c.url, guests)
	uploads := startUploads(t, c.url, guests[0])
	l.awaitMore(t, http.StatusOK, 50)
	idle := openIdle(t, leaving.addr)
	start := time.Now()
	leaving.Signal(syscall.SIGTERM)
	await(t, "/ready to fail", func() bool {
		page, err := s.send(c.at(leaving, request{url: "/ready"}))
		return err == nil && page.Status == http.StatusServiceUnavailable && strings.Contains(page.Body, `"draining":true`)
	})
	// It is not ready, and serves. A connection that was kept ends with an answer, not
	// before one: HAProxy may have a request on its way there.
	page := newSender(t).mustSend(t, c.at(leaving, request{url: "/whoami", cookie: guests[0].asCookie(), header: asScript}))
	if err := guests[0].isServed(page); err != nil {
		t.Errorf("during the delay: %v", err)
	}
	if resp := idle(); resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("on a kept connection: %s, the connection ends: %t", resp.Status, resp.Close)
	}
	c.awaitNodes("node-b")

	// Then the node ends its streams: a WebSocket with a close frame, and the answer of an
	// event stream as a whole one.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, _, err := sockets["node-a"].Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ended with %v, not with 1001", err)
	}
	if _, err := io.Copy(io.Discard, events["node-a"].Body); err != nil {
		t.Errorf("the event stream broke off: %v", err)
	}
	for range cap(finished) {
		if err := <-finished; err != nil {
			t.Error(err)
		}
	}
	select {
	case <-leaving.Done():
	case <-time.After(time.Minute):
		t.Fatalf("still there after %v", time.Since(start))
	}
	took := time.Since(start)
	if code := leaving.ExitCode(); code != 0 {
		t.Errorf("exit code = %d", code)
	}
	if took < delay {
		t.Errorf("left after %v, before its delay was over", took)
	}
	t.Logf("drained in %v", took.Round(time.Millisecond))
	l.awaitMore(t, http.StatusOK, 50)
	l.stop(t, "a node leaves")
	uploads(t)

	var switched []any
	for _, e := range leaving.entries() {
		if e["path"] == "/ws" {
			switched = append(switched, e["status"])
		}
	}
	if !slices.Equal(switched, []any{float64(http.StatusSwitchingProtocols)}) {
		t.Errorf("the log has WebSockets with %v, want one with 101", switched)
	}

	// What the other node carries goes on.
	for _, message := range []string{"still", "there"} {
		if err := sockets["node-b"].Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := sockets["node-b"].Read(ctx); err != nil || string(got) != message {
			t.Errorf("the other WebSocket answers %q, %v", got, err)
		}
	}
	if n, err := events["node-b"].Body.Read(make([]byte, 100)); n == 0 || err != nil {
		t.Errorf("the other event stream: %d bytes, %v", n, err)
	}
}

// dial opens a WebSocket and returns the name of the node that carries it.
func (c *cluster) dial(g guest) (string, *websocket.Conn) {
	c.t.Helper()
	conn, resp, err := websocket.Dial(c.t.Context(), c.url+"/ws", &websocket.DialOptions{
		HTTPHeader: http.Header{"Cookie": {g.asCookie()}, "Origin": {c.url}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.CloseNow() })
	return resp.Header.Get("X-Served-By"), conn
}

// events opens an event stream and waits for its first event.
func (c *cluster) events(g guest) (string, *http.Response) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+"/events", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Cookie", g.asCookie())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = resp.Body.Close() })
	first := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "id: 1" {
		c.t.Fatalf("the first event is %q, %v", first, err)
	}
	return resp.Header.Get("X-Served-By"), resp
}

// openIdle makes a connection that has had one request and waits for the next, which the
// function that it returns sends.
func openIdle(t *testing.T, addr string) (ask func() *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	in := bufio.NewReader(conn)
	ask = func() *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, "GET /ping HTTP/1.1\r\nHost: any\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("no answer on a kept connection: %v", err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := ask(); resp.Close {
		t.Fatal("the connection is not kept")
	}
	return ask
}

// startUploads sends bodies, which HAProxy can't send again to another node, until the
// function that it returns is called. That one reports what was lost.
func startUploads(t *testing.T, site string, g guest) (stop func(*testing.T)) {
	t.Helper()
	s := newSender(t)
	quit, done := make(chan struct{}), make(chan error)
	sent := 0
	go func() {
		body := strings.Repeat("x", 64<<10)
		var failed error
		for {
			select {
			case <-quit:
				done <- failed
				return
			case <-time.After(5 * time.Millisecond):
			}
			page, err := s.send(request{
				method: http.MethodPost, url: site + "/upload", cookie: g.asCookie(), body: body, header: asScript,
			})
			var answer struct{ Bytes int }
			switch {
			case err != nil:
			case page.Status != http.StatusOK:
				err = fmt.Errorf("%d: %s", page.Status, firstLine(page.Body))
			default:
				if err = json.Unmarshal([]byte(page.Body), &answer); err == nil && answer.Bytes != len(body) {
					err = fmt.Errorf("%d of %d bytes arrived", answer.Bytes, len(body))
				}
			}
			failed = errors.Join(failed, err)
			sent++
		}
	}()
	return func(t *testing.T) {
		t.Helper()
		close(quit)
		if err := <-done; err != nil {
			t.Errorf("of %d uploads: %v", sent, err)
		}
		t.Logf("%d uploads", sent)
	}
}
