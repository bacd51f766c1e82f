package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// TestHostileStore is a store that holds what nobody put there, that stops to answer,
// and that two sites share.
func TestHostileStore(t *testing.T) {
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	rec := testenv.Record(t, testenv.OK)
	store := fmt.Sprintf("{driver: redis, redis: {url: %s, timeout: 2s}}", redis.URL())
	keys := newKeys(t)
	routes := strings.ReplaceAll("- {path: /, upstream: REC}\n- {path: /public/, require: anonymous, upstream: REC}", "REC", rec.URL)
	// Every request asks the store.
	const more = "cache: {size_bytes: 0}\n"
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, nodeOptions{store: store, keys: keys, routes: routes, more: more})

	t.Run("a record that does not open", func(t *testing.T) {
		alice, bob := s.signIn(t, "alice"), s.signIn(t, "bob")
		key, other := recordKey(alice.value(s.cookie)), recordKey(bob.value(s.cookie))
		sealed := redisDo(t, redis.Addr(), "GET", key)
		for name, junk := range map[string]string{
			"words":              "revision, and then words that nobody sealed",
			"a revision alone":   "12345678",
			"short":              "junk",
			"empty":              "",
			"cut":                sealed[:len(sealed)-1],
			"longer":             sealed + "x",
			"a bit":              sealed[:len(sealed)-9] + string(sealed[len(sealed)-9]^1) + sealed[len(sealed)-8:],
			"another's":          redisDo(t, redis.Addr(), "GET", other),
			"a format of others": sealed[:8] + "\xff" + sealed[9:],
		} {
			t.Run(name, func(t *testing.T) {
				redisDo(t, redis.Addr(), "SET", key, junk, "PX", "600000")
				for _, line := range []string{browserPage, "Accept: application/json"} {
					a := s.get(t, "/admin", alice.line(), line)
					if a.StatusCode == http.StatusServiceUnavailable {
						s.unknown(t, a)
					} else {
						s.denied(t, a, line == browserPage)
					}
					if a := s.get(t, "/oauth2/auth", alice.line()); a.StatusCode < 400 {
						t.Errorf("forward-auth: %s", a.Status)
					}
				}
				if got := redisDo(t, redis.Addr(), "GET", key); got != junk {
					t.Errorf("the record was changed to %q", got)
				}
				if ttl, err := strconv.Atoi(redisDo(t, redis.Addr(), "PTTL", key)); err != nil || ttl < 500_000 || ttl > 600_000 {
					t.Errorf("the record's life is %d ms", ttl)
				}
			})
		}
		redisDo(t, redis.Addr(), "SET", key, sealed, "PX", "600000")
		s.served(t, s.get(t, "/admin", alice.line()), "alice")

		redisDo(t, redis.Addr(), "DEL", key)
		redisDo(t, redis.Addr(), "LPUSH", key, "a list")
		s.unknown(t, s.get(t, "/admin", alice.line()))
	})

	t.Run("A-C5: another app's cookie name", func(t *testing.T) {
		// Same keys, same store, same provider; only the name is another.
		o := startSite(t, "https://app.t1.test", "__Host-coatcheck2", rec, nodeOptions{
			store: store, keys: keys, routes: routes, more: more + "session: {cookie: {name: coatcheck2}}\n",
		})
		value := s.signIn(t, "alice").value(s.cookie)
		renamed := strings.Replace(value, s.cookie, o.cookie, 1)
		for _, v := range []string{value, renamed} {
			o.denied(t, o.get(t, "/admin", "Cookie: "+o.cookie+"="+v), true)
		}
		// The record itself, carried over to where the other app would look.
		for _, key := range []func(string) string{recordKey, deadlineKey} {
			if copied := redisDo(t, redis.Addr(), "COPY", key(value), key(renamed)); copied != "1" {
				t.Errorf("%s: %s keys were copied", key(value), copied)
			}
		}
		o.denied(t, o.get(t, "/admin", "Cookie: "+o.cookie+"="+renamed), true)

		c := new(cookies)
		location := s.start(t, c, "")
		name := c.names(s.cookie + "-login-")[0]
		a := o.get(t, "/oauth2/callback?code=x&iss="+s.provider.issuer+"&state="+stateOf(t, location),
			"Cookie: "+strings.Replace(name, s.cookie, o.cookie, 1)+"="+c.value(name))
		if a.StatusCode != http.StatusBadRequest || o.provider.tokens.Load() != 0 {
			t.Errorf("a pre-login cookie under another app's name: %s", a.Status)
		}
		s.served(t, s.get(t, "/admin", "Cookie: "+s.cookie+"="+value), "alice")
	})

	t.Run("A-D5", func(t *testing.T) { s.hidesSessions(t) })

	t.Run("A-F2: the store is down", func(t *testing.T) {
		alice := s.signIn(t, "alice").line()
		c := new(cookies)
		callback := s.provider.authorize(t, s.start(t, c, ""), "bob")
		redis.Pause()
		t.Cleanup(redis.Resume)
		for _, lines := range [][]string{{browserPage}, {"Accept: application/json"}} {
			s.unknown(t, s.get(t, "/admin", append(lines, alice)...))
			s.unknown(t, s.get(t, "/oauth2/auth", append(lines, alice)...))
			s.unknown(t, s.get(t, "/public/x", append(lines, alice)...))
			s.unknown(t, s.get(t, "/oauth2/sign_out", append(lines, alice, "Sec-Fetch-Site: same-origin")...))
		}
		s.unknown(t, s.get(t, callback, c.line()))
		// Who has no session needs no store.
		s.served(t, s.get(t, "/public/x"), "")
		s.denied(t, s.get(t, "/admin"), true)
		if a := s.get(t, "/oauth2/auth"); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("forward-auth without a cookie: %s", a.Status)
		}
		redis.Resume()
		await(t, "the store to answer again", func() bool {
			return s.get(t, "/oauth2/auth", alice).StatusCode == http.StatusAccepted
		})
		// The sign-in that was interrupted is completed by asking again, unless it is
		// unknown whether it was claimed.
		a := s.get(t, callback, c.line())
		if a.StatusCode != http.StatusSeeOther && a.StatusCode != http.StatusBadRequest {
			t.Errorf("the callback afterwards: %s", a.Status)
		}
		s.served(t, s.get(t, "/admin", alice), "alice")
	})
}

// unknown checks the answer to a question that the store can't answer: neither access
// nor a logout.
func (s *site) unknown(t *testing.T, a *answer) {
	t.Helper()
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" || len(a.reached) > 0 {
		t.Errorf("%s, Retry-After %q, %d requests reached the app", a.Status, a.Header.Get("Retry-After"), len(a.reached))
	}
	if slices.ContainsFunc(a.Cookies(), func(c *http.Cookie) bool { return c.Name == s.cookie }) {
		t.Errorf("the session cookie is touched: %q", a.Header["Set-Cookie"])
	}
}

// A record of a ticket is two keys in Redis.
func recordKey(ticket string) string   { return "r:{" + handle(ticket) + "}" }
func deadlineKey(ticket string) string { return "t:{" + handle(ticket) + "}" }

// handle is the store key in a ticket.
func handle(ticket string) string {
	key, _, _ := strings.Cut(ticket, ".")
	return key
}

// redisDo sends one command and returns the text of its reply.
func redisDo(t *testing.T, addr string, args ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(arg), arg)
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil || line[0] == '-' {
		t.Fatalf("%s: %q, %v", args[0], line, err)
	}
	line = strings.TrimSpace(line)
	if line[0] != '$' {
		return line[1:]
	}
	size, err := strconv.Atoi(line[1:])
	if err != nil || size < 0 {
		t.Fatalf("%s: %q", args[0], line)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		t.Fatal(err)
	}
	return string(text)
}
