package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

// A staffed site is two nodes at one Redis, and what somebody types who runs them.
type staffedSite struct {
	t     *testing.T
	redis *testenv.Redis
	idp   *revocable
	file  string   // the configuration of the first node
	url   string   // of the site, which is the first node's
	nodes []string // their addresses
	logs  []*journal
}

func newStaffedSite(t *testing.T) *staffedSite {
	t.Helper()
	s := &staffedSite{t: t, redis: testenv.StartRedis(t, testenv.RedisOptions{})}
	for range 2 {
		s.nodes = append(s.nodes, testenv.Loopback(testenv.FreePort(t)))
		s.logs = append(s.logs, &journal{})
	}
	s.url = "http://" + s.nodes[0]
	s.idp = newRevocable(t, s.url)
	app := httptest.NewServer(sampleapp.New(sampleapp.Options{Name: "app"}))
	t.Cleanup(app.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{"keys.json": string(seal.NewRing().Marshal()), "secret": "a secret of the tests"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	for i, addr := range s.nodes {
		file := filepath.Join(dir, fmt.Sprintf("node-%d.yaml", i))
		text := fmt.Sprintf(`
node: node-%d
listen: %s
public_url: %s
insecure_http: true
keys: {file: keys.json}
store: {driver: redis, redis: {url: %q, timeout: 10s}}
session: {escrow: true}
providers: [{name: dev, issuer: %q, client_id: test, client_secret_file: secret, scopes: [openid, email, offline_access]}]
routes: [{path: /, upstream: %q}]
shutdown: {delay: 0s, grace: 5s}
`, i, addr, s.url, s.redis.URL(), s.idp.URL, app.URL)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if code := run(ctx, []string{"serve", "--config", file}, console{io.Discard, s.logs[i]}); code != exitOK {
				t.Errorf("node %d ends with %d", i, code)
			}
		})
		await(t, "the provider to be discovered", func() bool { return s.logs[i].count("provider discovered") == 1 })
	}
	s.file = filepath.Join(dir, "node-0.yaml")
	return s
}

// A revocable is the development provider, at which tokens can be revoked too.
type revocable struct {
	*httptest.Server
	mu      sync.Mutex
	revoked []string // token_type_hints
}

func newRevocable(t *testing.T, site string) *revocable {
	t.Helper()
	p := new(revocable)
	var dev http.Handler
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			known := httptest.NewRecorder()
			dev.ServeHTTP(known, r)
			var metadata map[string]any
			if err := json.Unmarshal(known.Body.Bytes(), &metadata); err != nil {
				t.Error(err)
			}
			metadata["revocation_endpoint"] = p.URL + "/revoke"
			maps.Copy(w.Header(), known.Header())
			w.Header().Del("Content-Length")
			_ = json.NewEncoder(w).Encode(metadata)
		case "/revoke":
			p.mu.Lock()
			defer p.mu.Unlock()
			p.revoked = append(p.revoked, r.FormValue("token_type_hint"))
		default:
			dev.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(p.Close)
	var err error
	dev, err = devprovider.New(devprovider.Options{Issuer: p.URL, Clients: []devprovider.Client{{
		ID: "test", Secret: "a secret of the tests", RedirectURIs: []string{site + "/oauth2/callback"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// take returns how many refresh tokens were revoked so far, and forgets them.
func (p *revocable) take() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, hint := range p.revoked {
		if hint == "refresh_token" {
			n++
		}
	}
	p.revoked = nil
	return n
}

func (s *staffedSite) signIn(user string) *testenv.Browser {
	s.t.Helper()
	b := testenv.NewBrowser(s.t)
	if page, err := b.SignIn(s.t.Context(), s.url+"/whoami", user); err != nil || page.Status != http.StatusOK {
		s.t.Fatalf("%s can't sign in: %+v, %v", user, page, err)
	}
	s.wantServed(b)
	return b
}

// ask sends a script's request with a browser's cookies to each node.
func (s *staffedSite) ask(b *testenv.Browser) (pages []*testenv.Page) {
	s.t.Helper()
	for _, addr := range s.nodes {
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+addr+"/whoami", nil)
		if err != nil {
			s.t.Fatal(err)
		}
		req.Host = s.nodes[0]
		req.Header.Set("Accept", "application/json")
		page, err := b.Fetch(req)
		if err != nil {
			s.t.Fatal(err)
		}
		pages = append(pages, page)
	}
	return pages
}

func (s *staffedSite) wantServed(b *testenv.Browser) {
	s.t.Helper()
	for i, page := range s.ask(b) {
		if page.Status != http.StatusOK {
			s.t.Errorf("node %d answers %d %s", i, page.Status, page.Body)
		}
	}
}

// wantRevoked waits until no node serves a browser, which the nodes' feeds tell them.
func (s *staffedSite) wantRevoked(b *testenv.Browser) {
	s.t.Helper()
	await(s.t, "the browser to be refused", func() bool {
		for _, page := range s.ask(b) {
			if page.Status != http.StatusUnauthorized {
				return false
			}
		}
		return true
	})
	for i, page := range s.ask(b) {
		if !strings.Contains(page.Body, `"reason":"revoked"`) {
			s.t.Errorf("node %d says %s", i, page.Body)
		}
	}
}

// type runs a command with the configuration, and returns what it says.
func (s *staffedSite) command(args ...string) (code int, out, err string) {
	var stdout, stderr bytes.Buffer
	code = run(s.t.Context(), append(args, "--config", s.file), console{&stdout, &stderr})
	return code, stdout.String(), stderr.String()
}

// want runs a command, which is to succeed without a word of trouble and say what matches.
func (s *staffedSite) want(pattern string, args ...string) string {
	s.t.Helper()
	code, out, stderr := s.command(args...)
	if code != exitOK || stderr != "" || !regexp.MustCompile(pattern).MatchString(out) {
		s.t.Errorf("%q: exit status %d, says %q and %q; want %s", args, code, out, stderr, pattern)
	}
	return out
}

// wantFailed runs a command, which is to fail, claim nothing, and say why.
func (s *staffedSite) wantFailed(pattern string, args ...string) {
	s.t.Helper()
	code, out, stderr := s.command(args...)
	if code != exitFailed || out != "" || !regexp.MustCompile(pattern).MatchString(stderr) {
		s.t.Errorf("%q: exit status %d, says %q and %q; want %s", args, code, out, stderr, pattern)
	}
}

// shownSessions is what session list --json writes.
type shownSessions struct {
	Sessions []map[string]any `json:"sessions"`
	Total    int              `json:"total"`
	More     int              `json:"more"`
}

func (s *staffedSite) list(args ...string) (list shownSessions) {
	s.t.Helper()
	text := s.want(".", append([]string{"session", "list", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		s.t.Fatal(err)
	}
	return list
}

// Somebody who runs the site sees who is signed in and signs people out, on every node at once,
// while others go on.
func TestSessions(t *testing.T) {
	s := newStaffedSite(t)
	s.want("^no session is listed. If people are signed in, the nodes have another key ring or another store\n$", "session", "list")
	s.wantFailed("^coatcheck: no session is listed", "session", "end", "--all", "--yes")

	alices := []*testenv.Browser{s.signIn("alice"), s.signIn("alice")}
	bob, carol := s.signIn("bob"), s.signIn("carol")

	list := s.list()
	if list.Total != 4 || list.More != 0 || len(list.Sessions) != 4 {
		t.Fatalf("listed %+v", list)
	}
	var users []any
	for _, e := range list.Sessions { // those that began last come first
		users = append(users, e["user"])
	}
	subjects := map[string]string{"carol": users[0].(string), "bob": users[1].(string), "alice": users[2].(string)}
	if users[3] != users[2] || subjects["bob"] == subjects["carol"] {
		t.Errorf("listed in the order %v", users)
	}
	for key, want := range map[string]any{
		"issuer": s.idp.URL, "provider": "dev", "state": "authenticated", "ip": "127.0.0.1", "node": "node-0", "app": s.nodes[0],
	} {
		if got := list.Sessions[0][key]; got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
	for _, key := range []string{"session", "started", "seen", "expires", "deadline", "device"} {
		if list.Sessions[0][key] == nil {
			t.Errorf("%s is missing", key)
		}
	}
	if page := s.list("--limit", "1"); page.Total != 4 || page.More != 3 || len(page.Sessions) != 1 || page.Sessions[0]["user"] != subjects["carol"] {
		t.Errorf("a list of one is %+v", page)
	}
	if page := s.list("--limit", "0"); len(page.Sessions) != 4 {
		t.Errorf("a list without limit has %d", len(page.Sessions))
	}
	if page := s.list("--user", subjects["alice"]); page.Total != 2 || page.Sessions[0]["user"] != subjects["alice"] {
		t.Errorf("alice's list is %+v", page)
	}
	if page := s.list("--user", subjects["alice"], "--issuer", "https://other.example.com"); page.Total != 0 || page.Sessions == nil {
		t.Errorf("another alice's list is %+v", page)
	}
	s.want(`^SESSION +USER +STATE +STARTED +LAST SEEN +EXPIRES +IP +DEVICE +APP +NODE\n`+
		`[0-9a-f]{24}  `+subjects["carol"]+` +authenticated  20..-..-.. ..:..:..Z  20..-..-.. ..:..:..Z  20..-..-.. ..:..:..Z  127\.0\.0\.1  .*  node-0\n`+
		`sessions: 4\n3 that began earlier are not shown: --limit 0 shows all\n$`, "session", "list", "--limit", "1")

	// Who is not there.
	s.wantFailed(`^coatcheck: "alice@example.com" of `+s.idp.URL+` has no session. A user is what the provider calls them \(sub\), not an e-mail address; `+
		`coatcheck session list shows them\n$`, "session", "end", "--user", "alice@example.com")
	s.want(`^"nobody" of .* has no session`, "session", "list", "--user", "nobody")
	s.wantFailed(`^coatcheck: there is no session 0{24}: it has ended, or never was\n$`, "session", "end", "--session", strings.Repeat("0", 24))

	// One person.
	s.want(`^sessions ended: 2\n$`, "session", "end", "--user", subjects["alice"])
	for _, b := range alices {
		s.wantRevoked(b)
	}
	s.wantServed(bob)
	s.wantServed(carol)
	if n := s.idp.take(); n != 2 {
		t.Errorf("%d refresh tokens were revoked, want alice's 2", n)
	}
	for i, log := range s.logs {
		await(t, fmt.Sprintf("node %d to hear of it", i), func() bool {
			return log.count(`"level":"INFO","msg":"session event","event":"session.ended"`) == 2 && log.count(`"node":"operator@node-0"`) == 2
		})
	}
	s.wantFailed("has no session", "session", "end", "--user", subjects["alice"])

	// One session, which a node of another version has described; what it says is unknown.
	ref := list.Sessions[1]["session"].(string)
	s.redescribe(coatcheck.Ref(ref))
	s.want(ref+`  -  +of another version  20`, "session", "list")
	if page := s.list("--user", subjects["bob"]); page.Total != 1 || page.Sessions[0]["undescribed"] != true || page.Sessions[0]["state"] != nil {
		t.Errorf("bob's list is %+v", page)
	}
	s.want(`^sessions ended: 1\n$`, "session", "end", "--session", ref)
	await(t, "bob to be refused", func() bool { return s.ask(bob)[0].Status != http.StatusOK && s.ask(bob)[1].Status != http.StatusOK })
	s.wantServed(carol)

	// Everybody.
	bob = s.signIn("bob")
	s.wantFailed(`^coatcheck: nothing was done: 2 sessions would end, and everybody be signed out. With --yes they do\n$`, "session", "end", "--all")
	s.wantServed(bob)
	s.idp.Close() // the provider is away: people are signed out all the same
	code, out, stderr := s.command("session", "end", "--all", "--yes")
	if code != exitOK || out != "sessions ended: 2\n" || !strings.HasPrefix(stderr, "note: refresh tokens are left to expire at the provider, which can't be discovered: ") {
		t.Errorf("exit status %d, says %q and %q", code, out, stderr)
	}
	s.wantRevoked(bob)
	s.wantRevoked(carol)

	// Somebody who stops it is not told that all went well.
	stopped, stop := context.WithCancel(t.Context())
	stop()
	var said bytes.Buffer
	if code := run(stopped, []string{"session", "end", "--all", "--yes", "--config", s.file}, console{&said, io.Discard}); code != exitFailed || said.Len() > 0 {
		t.Errorf("stopped: exit status %d, says %q", code, &said)
	}

	// A store that does not answer: nothing is known, and nothing is claimed.
	s.redis.Stop()
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"end", "--all", "--yes"}, {"end", "--user", "alice"}, {"end", "--session", ref}} {
		s.wantFailed(`^coatcheck: store.redis.url: .*\n$`, append([]string{"session"}, args...)...)
	}
	s.wantFailed(`^coatcheck: store.redis.url: .*\n$`, "store", "audit")
}

// redescribe has another version describe a session that is listed.
func (s *staffedSite) redescribe(ref coatcheck.Ref) {
	s.t.Helper()
	cfg, err := config.Load(s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	ring, err := readRing(cfg.Keys)
	if err != nil {
		s.t.Fatal(err)
	}
	kept, err := openStore(s.t.Context(), cfg.Store, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	defer kept.Close()
	name := ring.Index("tenant", tenant)
	for e, err := range kept.Find(s.t.Context(), store.Query{Tenant: hex.EncodeToString(name[:16]), ID: string(ref)}) {
		if err != nil {
			s.t.Fatal(err)
		}
		e.Data = []byte("of another version")
		if _, err := kept.Admit(s.t.Context(), e, time.Hour, store.Limits{}, ""); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	s.t.Fatalf("%s is not listed", ref)
}

// However many there are, no more than twice as many are kept as are shown, and each is counted
// once.
func TestSessionList(t *testing.T) {
	list := sessionList{limit: 10, seen: map[coatcheck.Ref]bool{}}
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 1000 {
		e := listed{Entry: session.Entry{Ref: coatcheck.MakeRef(fmt.Sprint(i)), Started: begun.Add(time.Duration(i*389%1000) * time.Second)}}
		list.add(e)
		list.add(e) // it was used meanwhile
		if len(list.shown) > 20 {
			t.Fatalf("%d are kept", len(list.shown))
		}
	}
	list.trim()
	for i, e := range list.shown {
		if want := begun.Add(time.Duration(999-i) * time.Second); !e.Started.Equal(want) {
			t.Errorf("place %d began %v, want %v", i, e.Started, want)
		}
	}
	if len(list.shown) != 10 || len(list.seen) != 1000 || list.more() != 990 {
		t.Errorf("%d shown, %d in all, %d more", len(list.shown), len(list.seen), list.more())
	}
}

// What a browser or a provider has written is shown on a terminal, and is no command to it.
func TestSessionListIsPrintable(t *testing.T) {
	e := listed{Entry: session.Entry{Ref: "0123", Subject: "a\x1b[2J\u009bé\u202e\n"}}
	e.Origin.UserAgent = "\x1b]0;\a"
	list := sessionList{seen: map[coatcheck.Ref]bool{}}
	list.add(e)
	var out bytes.Buffer
	if err := list.write(&out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "a\ufffd[2J\ufffdé\ufffd\ufffd ") || strings.ContainsAny(got, "\x1b\a") || strings.Count(got, "\n") != 3 {
		t.Errorf("%q", got)
	}
}

// A-D2: nor in JSON, where it stays what it was.
func TestListInJSONIsLegible(t *testing.T) {
	const hostile = "a\x1b[2J\u009b31mé\u202e\n\U000e0001"
	list := sessionList{seen: map[coatcheck.Ref]bool{}}
	list.add(listed{Entry: session.Entry{Ref: "0123", Subject: hostile, Origin: coatcheck.Origin{UserAgent: hostile}}})
	var out bytes.Buffer
	if err := list.writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%U in %q", r, &out)
		}
	}
	var doc struct {
		Sessions []struct {
			User      string `json:"user"`
			UserAgent string `json:"user_agent"`
		} `json:"sessions"`
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if got := doc.Sessions[0]; got.User != hostile || got.UserAgent != hostile {
		t.Errorf("%q", got)
	}
}
