package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-C6: two installations share a Redis and a provider, each with a key prefix and a key
// ring of its own. A cookie of one is worth nothing at the other, and what it does there
// touches no key of the installation whose it is.
func TestInstallationsShareARedis(t *testing.T) {
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	ports := []int{testenv.FreePort(t), testenv.FreePort(t)}
	provider := startDevProvider(t, "http://"+testenv.Loopback(ports[0]), "http://"+testenv.Loopback(ports[1]))
	var nodes []*node
	var guests []guest
	prefixes := []string{"one:", "two:"}
	for i, prefix := range prefixes {
		n := startNode(t, nodeOptions{
			port:     ports[i],
			client:   provider,
			upstream: startApp(t, "app"),
			store:    fmt.Sprintf("{driver: redis, redis: {url: %s, key_prefix: %q, timeout: %s}}", redis.URL(), prefix, patient),
			keys:     newKeys(t),
		})
		n.awaitSignIn()
		nodes, guests = append(nodes, n), append(guests, signInGuest(t, n.url, "alice"))
	}
	s := newSender(t)
	for i, n := range nodes {
		other, foreign := prefixes[1-i], guests[1-i]
		before := keySpace(t, redis, other)
		if len(before) < 4 { // value, deadline and entry of a session at least
			t.Fatalf("%s keeps only %d keys", other, len(before))
		}
		monitor := startMonitor(t, redis)
		for _, r := range []request{
			{url: "/whoami", header: asScript},
			{url: "/whoami", header: asNavigation},
			{url: "/oauth2/auth", header: asScript},
			{url: "/oauth2/userinfo", header: asScript},
			{url: "/oauth2/sign_out", method: http.MethodPost, header: asScript},
			{url: "/oauth2/start", header: asNavigation},
		} {
			r.url, r.cookie = n.url+r.url, foreign.asCookie()
			page := s.mustSend(t, r)
			switch {
			case strings.HasSuffix(r.url, "/start"), strings.HasSuffix(r.url, "/sign_out"):
				if page.Status >= 500 {
					t.Errorf("%s: %d", r.url, page.Status)
				}
			case page.Status != http.StatusUnauthorized && page.Status != http.StatusSeeOther:
				t.Errorf("%s: %d %s", r.url, page.Status, firstLine(page.Body))
			}
			if strings.Contains(page.Body, "session_ended") {
				t.Errorf("%s tells how another installation's session ended: %s", r.url, page.Body)
			}
		}
		// Somebody signs in who carries it: it is not what they replace.
		b := testenv.NewBrowser(t)
		site, err := url.Parse(n.url)
		if err != nil {
			t.Fatal(err)
		}
		b.Jar.SetCookies(site, []*http.Cookie{{Name: sessionCookie, Value: foreign.cookie, Path: "/"}})
		if _, err := newGuest(t, b, n.url, "bob"); err != nil {
			t.Error(err)
		}
		asked := monitor()
		if len(asked) == 0 {
			t.Fatal("the monitor has seen nothing")
		}
		for _, command := range asked {
			if strings.Contains(command, handle(foreign.cookie)) && strings.Contains(command, other) {
				t.Errorf("%s asks for a key of %s: %s", prefixes[i], other, command)
			}
		}
		if diff := cmp.Diff(before, keySpace(t, redis, other)); diff != "" {
			t.Errorf("the keys of %s (-before +after):\n%s", other, diff)
		}
		checkServed(t, nodes[1-i].url, []guest{foreign})
	}
}

// keySpace returns what an installation keeps, as Redis writes it down, but for the list of
// its live nodes: they report to it all the time.
func keySpace(t *testing.T, r *testenv.Redis, prefix string) map[string]string {
	t.Helper()
	keys, err := r.Do("KEYS", prefix+"*").AsStrSlice()
	if err != nil {
		t.Fatal(err)
	}
	space := map[string]string{}
	for _, key := range keys {
		if strings.Contains(key, "{nodes:") {
			continue
		}
		dump, err := r.Do("DUMP", key).ToString()
		if err != nil {
			t.Fatal(err)
		}
		space[key] = dump
	}
	return space
}

// startMonitor has a Redis say what commands it gets. The function that it returns ends that
// and returns them.
func startMonitor(t *testing.T, r *testenv.Redis) (commands func() []string) {
	t.Helper()
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	lines := bufio.NewScanner(conn)
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil || !lines.Scan() || lines.Text() != "+OK" {
		t.Fatalf("MONITOR: %q, %v", lines.Text(), err)
	}
	return func() (list []string) {
		t.Helper()
		const last = "that is all"
		r.Must("ECHO", last)
		for lines.Scan() && !strings.Contains(lines.Text(), last) {
			list = append(list, lines.Text())
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
		return list
	}
}
