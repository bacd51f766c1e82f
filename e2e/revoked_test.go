package e2e

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store/redis"
)

// operator returns what somebody who runs the site has: the sessions of the cluster, for as
// long as the test runs.
func (c *cluster) operator() *session.Manager {
	c.t.Helper()
	ring, err := seal.ReadRing(c.nodes["node-a"].options.keys)
	if err != nil {
		c.t.Fatal(err)
	}
	kept, err := redis.Open(c.t.Context(), redis.Options{URL: c.redis.URL(), Timeout: patient})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = kept.Close() })
	return session.New(session.Options{
		Store: kept, Registry: kept, Events: audit.New(audit.Options{Journal: kept, Logger: slog.New(slog.DiscardHandler), Node: "operator"}),
		Ring: ring, Jar: cookie.New(sessionCookie, "", true), Tenant: "default", Node: "operator",
		Idle: 30 * time.Minute, Absolute: 12 * time.Hour, Tombstones: time.Hour,
	})
}

// sessionsOf returns the listed sessions of a person.
func sessionsOf(t *testing.T, m *session.Manager, user string) (list []session.Entry) {
	t.Helper()
	for e, err := range m.Find(t.Context(), session.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Subject == user {
			list = append(list, e)
		}
	}
	return list
}

// refOfGuest returns the name of a guest's session in lists.
func refOfGuest(g guest) coatcheck.Ref { return coatcheck.MakeRef(handle(g.cookie)) }

// revoke ends a guest's session as the people who run the site do.
func revoke(ctx context.Context, m *session.Manager, g guest) error {
	for e, err := range m.Find(ctx, session.Query{Ref: refOfGuest(g)}) {
		if err != nil {
			return err
		}
		return m.Revoke(ctx, e, coatcheck.ReasonRevoked)
	}
	return errors.New("the session of " + g.user + " is not listed")
}

// A-L1, A-C15, stored: two hundred people sign out, or are signed out, while every node has
// their sessions at hand. The cookies that they had are worth nothing at any node: at the
// latest when cache.lease is over, and, since all is well, much sooner (invariant 8).
func TestSavedCookiesAreWorthless(t *testing.T) {
	const lease = time.Second // the default of cache.lease
	c := startCluster(t, clusterOptions{third: true})
	operator := c.operator()
	guests := signInGuests(t, c.url, 200)
	names := c.names()
	s := newSender(t)

	var mu sync.Mutex
	var delays []time.Duration
	for i, g := range guests {
		at := func(name string) (*testenv.Page, error) {
			return s.send(c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
		}
		for _, name := range names { // each has it in its near cache
			if page, err := at(name); err != nil || g.isServed(page) != nil {
				t.Fatalf("%s at %s: %v, %v", g.user, name, err, g.isServed(page))
			}
		}
		reason := coatcheck.ReasonSignedOut
		if i%2 == 0 {
			c.signOut(t, s, c.nodes[names[i%len(names)]], g)
		} else {
			reason = coatcheck.ReasonRevoked
			if err := revoke(t.Context(), operator, g); err != nil {
				t.Fatal(err)
			}
		}
		ended := time.Now()
		var nodes sync.WaitGroup
		for _, name := range names {
			nodes.Go(func() {
				for {
					sent := time.Since(ended)
					page, err := at(name)
					switch {
					case err != nil:
						t.Error(err)
						return
					case page.Status == http.StatusUnauthorized:
						checkReason(t, g, page, reason)
						mu.Lock()
						delays = append(delays, sent)
						mu.Unlock()
						return
					case sent > lease:
						t.Errorf("%s is served at %s %v after the session has ended", g.user, name, sent)
						return
					}
					if err := g.isServed(page); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		nodes.Wait()
	}
	slices.Sort(delays)
	if n := len(delays); n > 0 {
		t.Logf("%d sessions, %d nodes: denied after %v in the middle, %v at the 99th percentile, %v at most", len(guests), len(names),
			delays[n/2].Round(time.Microsecond), delays[n*99/100].Round(time.Microsecond), delays[n-1].Round(time.Microsecond))
	}

	// Some time later, as a person would come back.
	for i, g := range guests[:6] {
		reason := coatcheck.ReasonSignedOut
		if i%2 == 1 {
			reason = coatcheck.ReasonRevoked
		}
		checkEnded(t, s, c.at(c.nodes[names[i%len(names)]], request{url: "/whoami"}), g, reason)
	}
}

// A-L1, A-C15: what is open ends with its session, on every node.
func TestStreamsEndWithTheirSession(t *testing.T) {
	port := testenv.FreePort(t)
	c := startCluster(t, clusterOptions{port: port, third: true, client: startDevProvider(t, "http://"+testenv.Loopback(port))})
	operator := c.operator()
	s := newSender(t)
	bob := signInGuest(t, c.url, "bob") // nobody ends this one
	_, bobs := c.dial(bob)
	for name, end := range map[string]func(guest){
		"signed out": func(g guest) { c.signOut(t, s, c.nodes["node-b"], g) },
		"revoked": func(g guest) {
			if err := revoke(t.Context(), operator, g); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			alice := signInGuest(t, c.url, "alice")
			sockets, streams := map[string]*websocket.Conn{}, map[string]*http.Response{}
			for range c.nodes {
				node, conn := c.dial(alice)
				sockets[node] = conn
			}
			for range c.nodes {
				node, stream := c.events(alice)
				streams[node] = stream
			}
			if len(sockets) != len(c.nodes) || len(streams) != len(c.nodes) {
				t.Fatalf("not one stream for each node: %v, %v", sockets, streams)
			}
			end(alice)
			ended := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for node, conn := range sockets {
				_, _, err := conn.Read(ctx)
				var closed websocket.CloseError
				if !errors.As(err, &closed) || closed.Code != websocket.StatusPolicyViolation || closed.Reason != "session_ended" {
					t.Errorf("%s: the WebSocket ended with %v", node, err)
				}
			}
			for node, stream := range streams {
				if _, err := io.Copy(io.Discard, stream.Body); err != nil {
					t.Errorf("%s: the event stream broke off: %v", node, err)
				}
			}
			t.Logf("all closed after %v", time.Since(ended).Round(time.Millisecond))
			if err := bobs.Write(ctx, websocket.MessageText, []byte("still here")); err != nil {
				t.Errorf("bob's WebSocket: %v", err)
			}
			if _, got, err := bobs.Read(ctx); err != nil || string(got) != "still here" {
				t.Errorf("bob's WebSocket answers %q, %v", got, err)
			}
		})
	}
}
