package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
)

// A site is a node that runs, with its configuration in a file, in front of apps that say
// their names and the header that the test's client did not send.
type site struct {
	*node
	t    *testing.T
	dir  string
	url  string
	log  *journal
	idp  *issuer
	apps map[string]string // their URLs, by name
	slow chan struct{}     // lets one request for /slow end
	stop func()            // returns when the node has stopped
}

const siteConfig = `
listen: 127.0.0.1:0
public_url: http://app.example.com
insecure_http: true
session: {idle_timeout: 7m}
providers:
  - {name: corp, issuer: "ISSUER", client_id: web, client_secret_file: secret}
routes:
  - {path: /, require: anonymous, upstream: "APP"}
shutdown: {delay: 0s, grace: 5s}
`

// newSite starts a site.
func newSite(t *testing.T) *site {
	t.Helper()
	survive(t)
	s := &site{t: t, dir: t.TempDir(), log: &journal{}, idp: newIssuer(t), apps: map[string]string{}, slow: make(chan struct{})}
	for _, name := range []string{"one", "two"} {
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				select {
				case <-s.slow:
				case <-r.Context().Done():
				}
			}
			fmt.Fprint(w, name)
		}))
		t.Cleanup(app.Close)
		s.apps[name] = app.URL
	}
	s.write("secret", "a secret of the tests")
	s.write("coatcheck.yaml", s.config("one", s.idp.URL))
	file := filepath.Join(s.dir, "coatcheck.yaml")
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	level := new(slog.LevelVar)
	logger := slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: level}))
	if s.node, err = newNode(t.Context(), file, cfg, output{logger, level, s.log}); err != nil {
		t.Fatal(err)
	}
	public, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + public.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.run(ctx, public); err != nil {
			t.Error(err)
		}
	})
	s.stop = func() { cancel(); running.Wait() }
	t.Cleanup(s.stop)
	await(t, "the provider to be discovered", func() bool { return s.log.count("provider discovered") == 1 })
	await(t, "the configuration to be watched", func() bool { return s.page("/") == "one" })
	return s
}

// An issuer is a provider that can be discovered, and that notes the client secrets with which
// tokens are revoked.
type issuer struct {
	*httptest.Server
	secrets chan string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{secrets: make(chan string, 10)}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/r" {
			_, secret, _ := r.BasicAuth()
			i.secrets <- secret
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":"%[1]s/a","token_endpoint":"%[1]s/t","jwks_uri":"%[1]s/j","revocation_endpoint":"%[1]s/r"}`, i.URL)
	}))
	t.Cleanup(i.Close)
	return i
}

func (s *site) config(app, issuer string) string {
	return strings.NewReplacer("ISSUER", issuer, "APP", s.apps[app]).Replace(siteConfig)
}

// write replaces a file in the node's folder in one step.
func (s *site) write(name, text string) {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file+"~", []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(file+"~", file); err != nil {
		s.t.Fatal(err)
	}
}

// change replaces words of the configuration.
func (s *site) change(oldnew ...string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "coatcheck.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	next := strings.NewReplacer(oldnew...).Replace(string(text))
	if next == string(text) {
		s.t.Fatalf("nothing of %q is there to be changed", oldnew)
	}
	s.write("coatcheck.yaml", next)
}

func (s *site) page(path string) string {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Host = "app.example.com"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return body.String()
}

// wantRefused waits until the node has refused its file with that text, and checks that it
// goes on as before.
func (s *site) wantRefused(text string) {
	s.t.Helper()
	before := s.current.Load()
	await(s.t, "the alarm: "+text, func() bool { return s.trouble.failed.Load() && s.log.count(text) > 0 })
	if s.current.Load() != before {
		s.t.Error("the node goes by the configuration that it has refused")
	}
}

// wantTaken waits until the node goes by another configuration.
func (s *site) wantTaken(before *runtime) *runtime {
	s.t.Helper()
	await(s.t, "the other configuration", func() bool { return s.current.Load() != before && !s.trouble.failed.Load() })
	return s.current.Load()
}

// A request is served by the configuration that it began with, and the next one by the new
// one, which has all that the old one had come to know.
func TestReload(t *testing.T) {
	s := newSite(t)
	first, one := s.current.Load(), s.node.apps.bulkhead(s.apps["one"], 1)
	slow := make(chan string, 1)
	go func() { slow <- s.page("/slow") }()
	await(t, "the slow request", func() bool { return s.node.apps.list()[0].UnderWay == 1 })
	s.change(s.apps["one"], s.apps["two"], "7m", "9m", "require:", "timeout: 5s, require:")
	second := s.wantTaken(first)
	if page := s.page("/"); page != "two" {
		t.Errorf("the new request is served by %q", page)
	}
	s.slow <- struct{}{}
	if page := <-slow; page != "one" {
		t.Errorf("the old request is served by %q", page)
	}
	if got := [2]time.Duration{first.sessions.Idle, second.sessions.Idle}; got != [2]time.Duration{7 * time.Minute, 9 * time.Minute} {
		t.Errorf("idle timeouts: %v", got)
	}
	if second.front.Sessions != second.sessions || second.front.SignIn != second.signIn || second.sessions.Provider != second.signIn {
		t.Error("the new front has parts of the old one")
	}
	if err := second.signIn.Ready(); err != nil {
		t.Errorf("discovery was forgotten: %v", err)
	}
	await(t, "the log to say what has changed", func() bool {
		return s.log.count(`"changed":["session.idle_timeout","routes[0].upstream","routes[0].timeout"]`) == 1
	})
	if list := s.node.apps.list(); len(list) != 1 || list[0].URL != s.apps["two"] {
		t.Errorf("the apps are %v", list)
	}
	if s.node.apps.bulkhead(s.apps["one"], 1) != one {
		t.Error("an app that is configured again has a second set of places")
	}

	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await(t, "a word about nothing", func() bool { return s.log.count("the configuration has not changed") == 1 })
	s.write("secret", "another-secret")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	third := s.wantTaken(second)
	live, err := first.sessions.Begin(t.Context(), http.Header{}, http.Header{}, &coatcheck.Session{
		Provider: "corp", State: coatcheck.Authenticated, Identity: coatcheck.Identity{Issuer: s.idp.URL, Subject: "alice"}, Tokens: coatcheck.Tokens{Refresh: "a token"},
	}, first.sessions.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := third.sessions.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	if secret := <-s.idp.secrets; secret != "another-secret" {
		t.Errorf("a token is revoked with the secret %q", secret)
	}
	await(t, "the log to say so", func() bool { return s.log.count("going by another configuration") == 2 })
	s.idp.Close() // what was discovered is known
	s.change("shutdown:", "log: {level: warn}\nlimits: {upstream_requests: 1}\nshutdown:")
	if fourth := s.wantTaken(third); s.level.Level() != slog.LevelWarn || fourth.front.AccessLog != nil || fourth.signIn.Ready() != nil {
		t.Errorf("the log's level is %v, the provider: %v", s.level.Level(), fourth.signIn.Ready())
	}
	go func() { slow <- s.page("/slow") }()
	await(t, "the slow request", func() bool { return s.node.apps.list()[0].UnderWay == 1 })
	if page := s.page("/"); page == "two" {
		t.Error("two requests at once, and one is what the app may have")
	}
	s.slow <- struct{}{}
	if page := <-slow; page != "two" {
		t.Errorf("the one that it may have is served by %q", page)
	}
}

// What can't be used leaves everything as it was, and says so; what can be is used again.
func TestReloadRefused(t *testing.T) {
	s := newSite(t)
	good := s.config("one", s.idp.URL)
	for i, bad := range []struct{ name, text, says string }{
		{"no YAML", good + "\n\t:", `"error":"12:1: a tab`},
		{"a setting that there is not", good + "\nunknown: 1\n", "unknown"},
		{
			"settings of another node", strings.ReplaceAll(good, "listen: 127.0.0.1:0", "listen: 127.0.0.1:1\nnode: other"),
			"a running node can't change node, listen: restart it for that",
		},
		{"nobody there", strings.ReplaceAll(good, s.idp.URL, "http://"+testenv.Loopback(testenv.FreePort(t))), "discovery of"},
	} {
		s.write("coatcheck.yaml", bad.text)
		s.wantRefused(bad.says)
		if page := s.page("/"); page != "one" {
			t.Errorf("%s: served by %q", bad.name, page)
		}
		s.write("coatcheck.yaml", good)
		await(t, "the end of the alarm", func() bool {
			return !s.trouble.failed.Load() && s.log.count("the configuration is the one that the node goes by again") == i+1
		})
	}
	if err := os.Remove(filepath.Join(s.dir, "coatcheck.yaml")); err != nil {
		t.Fatal(err)
	}
	s.wantRefused("no such file")
	if s.log.count("going by another") != 0 {
		t.Error("the node has taken something over")
	}

	// Another issuer that does answer is another provider.
	before := s.current.Load()
	s.write("coatcheck.yaml", s.config("two", newIssuer(t).URL))
	if next := s.wantTaken(before); next.signIn.Ready() != nil || next.signIn.Issuer == before.signIn.Issuer {
		t.Errorf("the provider of %s: %v", next.signIn.Issuer, next.signIn.Ready())
	}
}

// The same trouble is told once, however often the file is read.
func TestReloadTellsOnce(t *testing.T) {
	n, log := wired(t, unusual), &journal{}
	n.logger = slog.New(slog.NewTextHandler(log, nil))
	if err := os.WriteFile(n.file, []byte("unknown: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(*runtime) { t.Error("it goes by what can't be used") }
	for range 3 {
		n.reload(t.Context(), false, start)
	}
	if told := log.count("the configuration can't be used"); told != 1 {
		t.Errorf("told %d times", told)
	}
	if n.reload(t.Context(), true, start); log.count("the configuration can't be used") != 2 {
		t.Error("who asks is told nothing")
	}
}

// What ran for the configuration of before ends, once the other one serves; and a node that
// leaves takes nothing over any more.
func TestTakeOver(t *testing.T) {
	n := wired(t, unusual)
	before := n.current.Load()
	var did []string
	before.stop = func() { did = append(did, "stopped") }
	start := func(r *runtime) {
		did = append(did, "started")
		r.stop = func() { t.Error("what serves is stopped") }
	}
	change := func(old, text string) {
		t.Helper()
		data, err := os.ReadFile(n.file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.file, []byte(strings.Replace(string(data), old, text, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time nothing has changed
		change("7m", "6m")
		if _, err := n.takeOver(t.Context(), start); err != nil {
			t.Fatal(err)
		}
		if next := n.current.Load(); next == before || next.sessions.Idle != 6*time.Minute || !slices.Equal(did, []string{"started", "stopped"}) {
			t.Fatalf("%v, idle timeout %v", did, next.sessions.Idle)
		}
	}
	n.leaving = true
	change("6m", "5m")
	next := n.current.Load()
	if _, err := n.takeOver(t.Context(), start); err != nil || n.current.Load() != next || len(did) != 2 {
		t.Errorf("taken over while leaving: %v, %v", err, did)
	}
}

// SIGHUP asks a node that only begins to read its files, which it will do anyway.
func TestHangupWhileStarting(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"keys.json": string(seal.NewRing().Marshal()),
		"coatcheck.yaml": `
listen: 127.0.0.1:0
public_url: https://app.example.com
keys: {file: keys.json}
store: {driver: redis, redis: {url: "redis://` + mute.Addr().String() + `"}}
providers: [{name: corp, issuer: "http://127.0.0.1:9", client_id: web}]
routes: [{path: /}]
shutdown: {delay: 0s, grace: 0s}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serveCmd{Config: filepath.Join(dir, "coatcheck.yaml")}.Run(ctx, console{io.Discard, io.Discard})
	}()
	store, err := mute.Accept() // and not a word
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Logf("ended with %v", err)
	}
}
