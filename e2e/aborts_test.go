package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-S12: a client goes away ten thousand times, at every stage of a request. Its session
// lives, the cookie stays, and the nodes don't take it for a fault of the store's.
func TestClientsGoAway(t *testing.T) {
	const times = 10_000
	port := testenv.FreePort(t)
	c := startCluster(t, clusterOptions{
		port:   port,
		third:  true,
		client: startDevProvider(t, "http://"+testenv.Loopback(port)),
		more:   "session: {idle_timeout: 20s}\n", // a use is written down every second
		each: func(name string, o *nodeOptions) {
			if name != "node-a" {
				o.more += "cache: {size_bytes: 0}\n" // every request reads the store
			}
		},
	})
	alice := signInGuest(t, c.url, "alice")
	before := map[string]float64{}
	for name, n := range c.nodes {
		before[name] = n.goroutines()
	}

	head := func(method, target string, lines ...string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\nSec-Fetch-Mode: navigate\r\n%s\r\n", method, target, c.host, alice.asCookie(),
			strings.Join(append(lines, ""), "\r\n"))
	}
	whole := head("GET", "/whoami")
	stages := []func(net.Conn) error{
		func(conn net.Conn) error { return send(conn, whole[:len(whole)/2]) },
		func(conn net.Conn) error { return send(conn, whole) },
		func(conn net.Conn) error { return send(conn, whole+whole) },
		func(conn net.Conn) error { return send(conn, head("GET", "/slow?ms=60000")) },
		func(conn net.Conn) error { return send(conn, head("POST", "/upload", "Content-Length: 100")+"half") },
		func(conn net.Conn) error { return send(conn, head("GET", "/oauth2/auth")) },
		func(conn net.Conn) error {
			if err := send(conn, head("GET", "/events")); err != nil {
				return err
			}
			line, err := bufio.NewReader(conn).ReadString('\n') // and then in mid-body
			if err == nil && !strings.HasPrefix(line, "HTTP/1.1 200 ") {
				err = fmt.Errorf("an event stream: %q", line)
			}
			return err
		},
	}
	names := c.names()
	began := time.Now()
	var all errgroup.Group
	for worker := range workers {
		all.Go(func() error {
			for i := worker; i < times; i += workers {
				conn, err := net.Dial("tcp", c.nodes[names[i%len(names)]].addr)
				if err != nil {
					return err
				}
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				err = stages[i/len(names)%len(stages)](conn)
				if i%2 == 0 { // a reset, in contrast to an end
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
				_ = conn.Close()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d times in %v", times, time.Since(began).Round(time.Millisecond))

	s := newSender(t)
	for _, name := range names {
		n := c.nodes[name]
		page := s.mustSend(t, c.at(n, request{url: "/whoami", cookie: alice.asCookie(), header: asNavigation}))
		if err := alice.isServed(page); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if set := page.Header.Values("Set-Cookie"); len(set) > 0 {
			t.Errorf("%s sets %q", name, set)
		}
		for _, calls := range []string{"read", "write"} {
			if state := n.metric(fmt.Sprintf("coatcheck_store_breaker_state{calls=%q}", calls)); state != 0 {
				t.Errorf("%s: the breaker of calls that %s is in state %v", name, calls, state)
			}
		}
		if invalid := n.metric(`coatcheck_session_loads_total{result="invalid"}`); invalid != 0 {
			t.Errorf("%s: %v times the session was not valid", name, invalid)
		}
	}
	const kept = 20 * workers // connections to the app that wait for the next request have some
	for name, n := range c.nodes {
		await(t, "the goroutines of "+name+" to end", func() bool { return n.goroutines() <= before[name]+kept })
	}
	if list := sessionsOf(t, c.operator(), "alice"); len(list) != 1 || list[0].Ref != refOfGuest(alice) {
		t.Errorf("these sessions are listed: %v", list)
	}
	if page := s.mustSend(t, request{method: http.MethodPost, url: c.url + "/oauth2/sign_out", cookie: alice.asCookie(), header: asScript}); page.Status >= 500 {
		t.Errorf("signing out: %d", page.Status)
	}
}

func send(conn net.Conn, text string) error {
	_, err := io.WriteString(conn, text)
	return err
}
