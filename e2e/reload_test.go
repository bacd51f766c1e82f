package e2e

import (
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// What a node logs when it goes by another configuration, and when it can't.
const (
	reloaded     = "going by another configuration"
	reloadFailed = "the configuration can't be used"
)

// A revision of a configuration differs from the one before in the app, in the names of the
// identity headers, in who may see /closed, and in times and limits.
type revision int

// closedTo is the group that /closed is for, by a revision's parity.
var closedTo = [2]string{"staff", "admins"}

func (r revision) routes(apps [2]string) string {
	return fmt.Sprintf("- {path: /, upstream: %[1]s}\n- {path: /closed, upstream: %[1]s, allow: {groups: [%[2]s]}}", apps[r%2], closedTo[r%2])
}

func (r revision) more() string {
	return fmt.Sprintf("headers: {user: X-R%[1]d-User, email: X-R%[1]d-Email, groups: X-R%[1]d-Groups, preferred_username: X-R%[1]d-Preferred-Username}\n"+
		"session: {idle_timeout: %[2]ds, absolute_timeout: 1h, limits: {per_user: %[3]d, on_limit: evict_oldest}}\n"+
		"limits: {uri_bytes: %[4]d, upstream_requests: %[3]d}\n", r, 60+r%7, 500+r, 4096+r)
}

var revisedHeader = regexp.MustCompile(`^X-R([0-9]+)-(.*)$`)

// startRevised serves the sample app to which the revisions of one parity lead. It says which
// revision a request has come by, or 500 if it can't have been one alone (invariant 14).
func startRevised(t *testing.T, parity revision) string {
	t.Helper()
	app := sampleapp.New(sampleapp.Options{Name: "app"})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by := map[string]bool{}
		for name, values := range maps.Clone(r.Header) {
			if m := revisedHeader.FindStringSubmatch(name); m != nil {
				by[m[1]] = true
				w.Header().Set("X-Revision", m[1])
				r.Header["X-Forwarded-"+m[2]] = values
			}
		}
		n, err := strconv.Atoi(w.Header().Get("X-Revision"))
		admitted := r.URL.Path != "/closed" || strings.Contains(r.Header.Get("X-Forwarded-Groups"), closedTo[parity])
		if err != nil || len(by) != 1 || revision(n)%2 != parity || !admitted {
			http.Error(w, fmt.Sprintf("%s at app %d: %v", r.URL.Path, parity, r.Header), http.StatusInternalServerError)
			return
		}
		app.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A revisedCluster is three nodes, each with a revision of its own.
type revisedCluster struct {
	*cluster
	apps  [2]string
	first map[string]string // each node's file in revision 0
	asks  *sender
}

func startRevisedCluster(t *testing.T) *revisedCluster {
	t.Helper()
	c := &revisedCluster{apps: [2]string{startRevised(t, 0), startRevised(t, 1)}, first: map[string]string{}, asks: newSender(t)}
	c.cluster = startCluster(t, clusterOptions{third: true, routes: revision(0).routes(c.apps), more: revision(0).more()})
	for name, n := range c.nodes {
		text, err := os.ReadFile(n.config)
		if err != nil {
			t.Fatal(err)
		}
		c.first[name] = string(text)
	}
	return c
}

// text is what a node's file has in a revision.
func (c *revisedCluster) text(name string, r revision) string {
	return strings.NewReplacer(revision(0).routes(c.apps), r.routes(c.apps), revision(0).more(), r.more()).Replace(c.first[name])
}

// goesBy tells which revision a node goes by.
func (c *revisedCluster) goesBy(name string, g guest) revision {
	c.t.Helper()
	page := c.asks.mustSend(c.t, c.at(c.nodes[name], request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
	if err := g.isServed(page); err != nil {
		c.t.Fatalf("at %s: %v", name, err)
	}
	n, err := strconv.Atoi(page.Header.Get("X-Revision"))
	if err != nil {
		c.t.Fatal(err)
	}
	return revision(n)
}

func (c *revisedCluster) awaitRevision(name string, g guest, r revision) {
	c.t.Helper()
	await(c.t, fmt.Sprintf("%s to go by revision %d", name, r), func() bool { return c.goesBy(name, g) == r })
}

// writeInto is how an editor may save a file.
func writeInto(t *testing.T, n *node, text string) { writeFile(t, n.config, text) }

// replace is how a file is best changed.
func replace(t *testing.T, n *node, text string) {
	t.Helper()
	writeFile(t, n.config+".new", text)
	if err := os.Rename(n.config+".new", n.config); err != nil {
		t.Fatal(err)
	}
}

// hangUp changes a file that is a link into another folder, of which nobody is told, and asks
// the node to read it.
func hangUp(t *testing.T, n *node, text string) {
	t.Helper()
	target, err := filepath.EvalSymlinks(n.config)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, target, text)
	n.Signal(syscall.SIGHUP)
}

// moveAway puts a node's file into another folder, and a link in its place.
func moveAway(t *testing.T, n *node) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "coatcheck.yaml")
	if err := os.Rename(n.config, target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, n.config); err != nil {
		t.Fatal(err)
	}
}

// A slowUpload is a request whose body comes bit by bit.
type slowUpload struct {
	body   *io.PipeWriter
	sent   int64
	answer chan *http.Response // nil if there was none
}

func (c *revisedCluster) startUpload(name string, g guest) *slowUpload {
	c.t.Helper()
	body, in := io.Pipe()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.nodes[name].url+"/upload", body)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Host = c.host
	req.Header.Set("Cookie", g.asCookie())
	u := &slowUpload{body: in, answer: make(chan *http.Response, 1)}
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			c.t.Logf("the upload to %s: %v", name, err)
			in.CloseWithError(err)
		}
		u.answer <- resp
	}()
	return u
}

func (u *slowUpload) send(t *testing.T) {
	t.Helper()
	n, err := u.body.Write(make([]byte, 10<<10))
	if u.sent += int64(n); err != nil {
		t.Fatalf("an upload broke off after %d bytes: %v", u.sent, err)
	}
}

// finish checks that all has arrived, at the app to which the upload was begun.
func (u *slowUpload) finish(t *testing.T) {
	t.Helper()
	if err := u.body.Close(); err != nil {
		t.Error(err)
	}
	resp := <-u.answer
	if resp == nil {
		t.Error("an upload was not answered")
		return
	}
	defer resp.Body.Close()
	var arrived struct{ Bytes int64 }
	err := json.NewDecoder(resp.Body).Decode(&arrived)
	if err != nil || resp.StatusCode != http.StatusOK || arrived.Bytes != u.sent || resp.Header.Get("X-Revision") != "0" {
		t.Errorf("an upload of %d bytes: %s, %+v, %v, revision %q", u.sent, resp.Status, arrived, err, resp.Header.Get("X-Revision"))
	}
}

// startVisits has somebody in staff ask for /closed, which is theirs in every other revision
// and of which they are served nothing in the others, until stop is called.
func (c *revisedCluster) startVisits(t *testing.T, g guest) (stop func() map[int]int) {
	t.Helper()
	s, quit, count := newSender(t), make(chan struct{}), map[int]int{}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-quit:
				return
			case <-time.After(10 * time.Millisecond):
			}
			page, err := s.send(request{url: c.url + "/closed", cookie: g.asCookie(), header: asScript})
			switch {
			case err != nil:
				t.Error(err)
			case page.Status != http.StatusOK && page.Status != http.StatusForbidden:
				t.Errorf("/closed: %d %s", page.Status, firstLine(page.Body))
			default:
				count[page.Status]++
			}
		}
	})
	stop = sync.OnceValue(func() map[int]int { close(quit); done.Wait(); return count })
	t.Cleanup(func() { stop() })
	return stop
}

// A-Z9: three nodes go by fifty other configurations while people sign in and use their
// sessions. No request fails, each goes by one configuration, and what is under way goes on.
// Then they are given files that can't be used.
func TestReloadUnderLoad(t *testing.T) {
	const reloads = 50
	c := startRevisedCluster(t)
	guests := signInGuests(t, c.url, 20)
	moveAway(t, c.nodes["node-c"])
	ways := map[string]func(*testing.T, *node, string){"node-a": writeInto, "node-b": replace, "node-c": hangUp}

	sockets, uploads := map[string]*websocket.Conn{}, map[string]*slowUpload{}
	for range c.nodes {
		name, conn := c.dial(guests[0])
		sockets[name] = conn
	}
	if len(sockets) != len(c.nodes) {
		t.Fatalf("not one WebSocket for each node: %v", sockets)
	}
	for name := range c.nodes {
		uploads[name] = c.startUpload(name, guests[1])
		uploads[name].send(t)
	}
	l := startLoad(t, c.url, guests)
	stopVisits := c.startVisits(t, guests[2])
	l.awaitMore(t, http.StatusOK, len(guests))
	began, served := time.Now(), l.count(http.StatusOK)
	stopSignIns := startSignIns(t, c.url)

	names := c.names()
	for r := revision(1); r <= reloads; r++ {
		name := names[int(r)%len(names)]
		ways[name](t, c.nodes[name], c.text(name, r))
		c.awaitRevision(name, guests[0], r)
		uploads[name].send(t)
	}
	took := time.Since(began)
	rate := float64(l.count(http.StatusOK)-served) / took.Seconds()
	for name, conn := range sockets {
		echo := "still at " + name
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(echo)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != echo {
			t.Errorf("the WebSocket at %s answers %q, %v", name, got, err)
		}
		uploads[name].finish(t)
	}
	for name, n := range c.nodes {
		await(t, "the log of "+name, func() bool { return n.says(reloaded) >= reloads/len(names) })
	}
	signIns := stopSignIns()

	c.checkBadFiles(t, "node-b", guests[0], reloads+1)

	visits := stopVisits()
	t.Logf("%d people signed in meanwhile; /closed: %v", signIns, visits)
	if visits[http.StatusOK] == 0 || visits[http.StatusForbidden] == 0 {
		t.Error("/closed was not sometimes theirs and sometimes not")
	}
	l.stop(t, fmt.Sprintf("%d reloads in %v, %.0f requests a second", reloads, took.Round(time.Second), rate))
	checkServed(t, c.url, guests)
	c.checkLogs(t, `"event":"session.ended"`)
}

// checkBadFiles gives a node files that can't be used, each followed by a good one, which is
// of the next revision.
func (c *revisedCluster) checkBadFiles(t *testing.T, name string, g guest, next revision) {
	t.Helper()
	n := c.nodes[name]
	for _, bad := range []struct {
		name string
		file func(good string) string
		says []string // in the log
	}{
		{"no YAML", func(good string) string { return good + "routes: [\n" }, []string{"not valid YAML"}},
		{"an unknown key", func(good string) string { return "colour: red\n" + good }, []string{"1:1: colour: unknown key"}},
		{
			"a setting that stays", func(good string) string {
				return strings.NewReplacer("listen: "+n.addr, "listen: "+testenv.Loopback(1), c.redis.URL(), "redis://"+testenv.Loopback(1)+"/0").Replace(good)
			},
			[]string{"can't change listen, store.redis.url: restart it"},
		},
		{
			"a provider that nobody can reach", func(good string) string {
				return strings.Replace(good, c.provider.Issuer, "http://"+testenv.Loopback(1), 1)
			},
			[]string{"discovery of http://" + testenv.Loopback(1), "connection refused"},
		},
	} {
		failed := n.says(reloadFailed)
		replace(t, n, bad.file(c.text(name, next)))
		await(t, "the alarm: "+bad.name, func() bool { return n.metric("coatcheck_config_reload_failed") == 1 })
		var line string
		await(t, "the log to say so", func() bool {
			line = n.lastLine(reloadFailed)
			return n.says(reloadFailed) == failed+1
		})
		var entry struct{ Level, File, Error string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Level != "ERROR" || entry.File != n.config {
			t.Errorf("%s: %v: %s", bad.name, err, line)
		}
		for _, want := range bad.says {
			if !strings.Contains(entry.Error, want) {
				t.Errorf("%s: the log does not say %q: %s", bad.name, want, line)
			}
		}
		if by := c.goesBy(name, g); by == next {
			t.Errorf("%s: and yet the node goes by it", bad.name)
		}
		replace(t, n, c.text(name, next))
		c.awaitRevision(name, g, next)
		await(t, "the alarm to end", func() bool { return n.metric("coatcheck_config_reload_failed") == 0 })
		next++
	}
}

// lastLine returns the last line of a node's log with that message.
func (n *node) lastLine(msg string) (last string) {
	for line := range strings.Lines(n.Output()) {
		if strings.Contains(line, `"msg":"`+msg) {
			last = line
		}
	}
	return last
}

// A rotatingProvider is our own provider, where a client's secret can be changed. Its tokens
// are short-lived.
type rotatingProvider struct {
	client
	mu        sync.Mutex
	secrets   map[string]bool // the client's
	refreshes map[string]int  // that were granted, by the secret
}

func startRotatingProvider(t *testing.T, life time.Duration, origin string) *rotatingProvider {
	t.Helper()
	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &rotatingProvider{
		client:    client{issuer: "http://" + l.Addr().String(), id: "test", secret: "secret-one"},
		secrets:   map[string]bool{"secret-one": true},
		refreshes: map[string]int{},
	}
	provider, err := devprovider.New(devprovider.Options{
		Issuer:        p.issuer,
		Clients:       []devprovider.Client{{ID: p.id, Secret: coatcheck.Secret(p.secret), RedirectURIs: []string{origin + "/oauth2/callback"}}},
		TokenLifetime: life,
		Logger:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			id, secret, _ := r.BasicAuth()
			p.mu.Lock()
			defer p.mu.Unlock()
			if !p.secrets[secret] {
				secret = "none of theirs"
			} else if r.PostFormValue("grant_type") == "refresh_token" {
				p.refreshes[secret]++
			}
			if p.secrets[secret] {
				secret = p.secret
			}
			r.SetBasicAuth(id, secret)
		}
		provider.ServeHTTP(w, r)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return p
}

// accept makes these the client's secrets.
func (p *rotatingProvider) accept(secrets ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.secrets)
	for _, s := range secrets {
		p.secrets[s] = true
	}
}

// refreshed returns how many refreshes were granted by a secret.
func (p *rotatingProvider) refreshed(secret string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refreshes[secret]
}

// What is changed while nodes run holds for whoever comes next, and for whoever is there.
func TestReloadTakesEffect(t *testing.T) {
	t.Parallel() // it waits, most of the time
	port := testenv.FreePort(t)
	p := startRotatingProvider(t, 2*time.Second, "http://"+testenv.Loopback(port))
	app, other := startApp(t, "app"), startApp(t, "other")
	c := startCluster(t, clusterOptions{
		port:     port,
		client:   p.client,
		upstream: app,
		more:     "session: {limits: {per_user: 3, on_limit: evict_oldest}}\nshutdown: {delay: 5s, grace: 5s}\n",
	})
	s := newSender(t)
	whoami := func(g guest) request { return request{url: c.url + "/whoami", cookie: g.asCookie(), header: asScript} }
	// awaitChanged waits until all nodes have gone by so many other configurations.
	awaitChanged := func(times int, setting string) {
		t.Helper()
		for name, n := range c.nodes {
			await(t, name+" to go by another configuration", func() bool { return n.says(reloaded) == times })
			if line := n.lastLine(reloaded); !strings.Contains(line, `"changed":["`+setting+`"]`) {
				t.Errorf("%s changed, and the log says %s", setting, line)
			}
		}
	}

	t.Run("a client secret is rotated", func(t *testing.T) {
		guests := []guest{signInGuest(t, c.url, "alice"), signInGuest(t, c.url, "bob")}
		awaitRefreshes := func(secret string) {
			t.Helper()
			want := p.refreshed(secret) + 2*len(guests)
			await(t, "refreshes by "+secret, func() bool {
				for _, g := range guests {
					if err := g.isServed(s.mustSend(t, whoami(g))); err != nil {
						t.Fatal(err)
					}
				}
				return p.refreshed(secret) >= want
			})
		}
		awaitRefreshes("secret-one")
		p.accept("secret-one", "secret-two")
		for _, n := range c.nodes {
			writeFile(t, filepath.Join(n.dir, "client-secret"), "secret-two")
			n.Signal(syscall.SIGHUP)
		}
		awaitChanged(1, "providers[0].client_secret_file")
		p.accept("secret-two")
		awaitRefreshes("secret-two")
		signInGuest(t, c.url, "carol")
		checkServed(t, c.url, guests)
		c.checkLogs(t, `"msg":"no new tokens"`, "secret-two")
	})

	t.Run("a limit is lowered", func(t *testing.T) {
		devices := []guest{signInGuest(t, c.url, "carol"), signInGuest(t, c.url, "carol"), signInGuest(t, c.url, "carol")}
		for _, n := range c.nodes {
			text, err := os.ReadFile(n.config)
			if err != nil {
				t.Fatal(err)
			}
			replace(t, n, strings.Replace(string(text), "per_user: 3", "per_user: 2", 1))
		}
		awaitChanged(2, "session.limits.per_user")
		checkServed(t, c.url, devices)
		fourth := signInGuest(t, c.url, "carol")
		for _, g := range devices[:2] {
			checkEnded(t, s, request{url: c.url + "/whoami"}, g, coatcheck.ReasonEvicted)
		}
		checkServed(t, c.url, []guest{devices[2], fourth})
	})

	t.Run("a node that leaves stays as it is", func(t *testing.T) {
		alice, leaving := signInGuest(t, c.url, "alice"), c.nodes["node-a"]
		leaving.Signal(syscall.SIGTERM)
		await(t, "the node to drain", func() bool { return leaving.says("draining") == 1 })
		text, err := os.ReadFile(leaving.config)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, leaving, strings.Replace(string(text), app, other, 1))
		leaving.Signal(syscall.SIGHUP)
		answers := 0
		for ; ; answers++ {
			page, err := s.send(c.at(leaving, request{url: "/whoami", cookie: alice.asCookie(), header: asScript}))
			if err != nil {
				break // it does not listen any more
			}
			var w who
			if err := json.Unmarshal([]byte(page.Body), &w); err != nil || w.Node != "app" {
				t.Fatalf("served by %q, %v: %d %s", w.Node, err, page.Status, firstLine(page.Body))
			}
			time.Sleep(10 * time.Millisecond)
		}
		if code := leaving.ExitCode(); code != 0 || answers < 20 || leaving.says(reloaded) != 2 {
			t.Errorf("%d answers, exit code %d; the log says %s", answers, code, leaving.lastLine(reloaded))
		}
		if err := alice.isServed(s.mustSend(t, whoami(alice))); err != nil {
			t.Error(err)
		}
	})
}
