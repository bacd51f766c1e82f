package e2e

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A client is a registration at a provider.
type client struct {
	issuer, id, secret string
}

// nodeOptions say how a node differs from the usual one: its own SQLite file, one
// route "/" to the upstream that asks for a sign-in, plain http on loopback.
type nodeOptions struct {
	port     int    // where it listens; 0: a free port
	public   string // public_url; "": the node's own address
	client   client
	upstream string // of the route "/"; unused where routes is given
	store    string // YAML value of store; "": sqlite in the node's folder
	keys     string // path of the key ring; "": the node makes one
	routes   string // YAML list of routes, one a line, each beginning with "- "
	more     string // more top-level YAML; it may replace nothing that stands above
	secure   bool   // public is https
	logLevel string // "": info
	dir      string // "": a new one
	notReady bool   // don't wait for /ready, only for the listener
	env      []string
	program  string // path of its coatcheck; "": the one of this tree
}

// A node is a running coatcheck.
type node struct {
	*testenv.Process
	t       *testing.T
	options nodeOptions
	addr    string // host:port
	url     string // http://host:port
	admin   string // http://host:port of the admin listener
	dir     string
	config  string
}

// startNode runs `coatcheck serve` and waits until it is ready.
func startNode(t *testing.T, o nodeOptions) *node {
	t.Helper()
	n := newNode(t, o)
	n.start()
	return n
}

// newNode writes a node's configuration and does not start it.
func newNode(t *testing.T, o nodeOptions) *node {
	t.Helper()
	o.port = cmp.Or(o.port, testenv.FreePort(t))
	o.dir = cmp.Or(o.dir, t.TempDir())
	n := &node{t: t, options: o, addr: testenv.Loopback(o.port), dir: o.dir}
	n.url = "http://" + n.addr
	adminAddr := testenv.Loopback(testenv.FreePort(t))
	n.admin = "http://" + adminAddr

	secret := filepath.Join(o.dir, "client-secret")
	writeFile(t, secret, o.client.secret)
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %s\npublic_url: %s\nadmin: {listen: %s}\n", n.addr, cmp.Or(o.public, n.url), adminAddr)
	if !o.secure {
		b.WriteString("insecure_http: true\n")
	}
	if o.keys != "" {
		fmt.Fprintf(&b, "keys: {file: %s}\n", o.keys)
	}
	fmt.Fprintf(&b, "store: %s\n", cmp.Or(o.store, "{driver: sqlite, sqlite: {file: coatcheck.db}}"))
	fmt.Fprintf(&b, "providers:\n  - {name: test, issuer: %s, client_id: %s, client_secret_file: client-secret}\n", o.client.issuer, o.client.id)
	fmt.Fprintf(&b, "routes:\n%s\n", cmp.Or(o.routes, "- {path: /, upstream: "+o.upstream+"}"))
	fmt.Fprintf(&b, "log: {level: %s}\n", cmp.Or(o.logLevel, "info"))
	if !strings.Contains(o.more, "shutdown:") {
		b.WriteString("shutdown: {delay: 0s, grace: 5s}\n")
	}
	b.WriteString(o.more)
	n.config = filepath.Join(o.dir, "coatcheck.yaml")
	writeFile(t, n.config, b.String())
	return n
}

// start runs the node; after the process has ended it may be called again, with the
// same ports, keys and store.
func (n *node) start() {
	n.t.Helper()
	ready := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/ready", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/ready answers %s", resp.Status)
		}
		return nil
	}
	if n.options.notReady {
		ready = testenv.Listening(n.addr)
	}
	n.Process = testenv.Start(n.t, testenv.Command{
		Path: cmp.Or(n.options.program, program(n.t)), Args: []string{"serve", "--config", n.config}, Env: n.options.env, Ready: ready,
	})
}

// awaitSignIn waits until the node has discovered its provider.
func (n *node) awaitSignIn() {
	n.t.Helper()
	await(n.t, "the provider to be discovered", func() bool {
		page, err := get(n.url + "/ready")
		return err == nil && strings.Contains(page, `"sign_in":"ok"`)
	})
}

// get returns the body of an answer, whatever its status.
func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	awaitWithin(t, time.Minute, what, holds)
}

// awaitWithin is await for what takes its time.
func awaitWithin(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newKeys makes a key ring for several nodes.
func newKeys(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	if out, err := exec.Command(program(t), "key", "new", file).CombinedOutput(); err != nil {
		t.Fatalf("key new: %v\n%s", err, out)
	}
	return file
}

// startApp serves the sample app until the test ends.
func startApp(t *testing.T, name string) string {
	t.Helper()
	s := httptest.NewServer(sampleapp.New(sampleapp.Options{Name: name}))
	t.Cleanup(s.Close)
	return s.URL
}

// startDevProvider runs our own provider, for stories in which the provider is not
// what is tested. origins are the public URLs of the nodes that use it.
func startDevProvider(t *testing.T, origins ...string) client {
	t.Helper()
	return startDevProviderBehind(t, func(p http.Handler) http.Handler { return p }, origins...)
}

// startDevProviderBehind puts something between our own provider and those who ask it.
func startDevProviderBehind(t *testing.T, wrap func(http.Handler) http.Handler, origins ...string) client {
	t.Helper()
	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := client{issuer: "http://" + l.Addr().String(), id: "test", secret: "a secret of the tests"}
	registered := devprovider.Client{ID: c.id, Secret: coatcheck.Secret(c.secret)}
	for _, origin := range origins {
		registered.RedirectURIs = append(registered.RedirectURIs, origin+"/oauth2/callback")
		registered.PostLogoutRedirectURIs = append(registered.PostLogoutRedirectURIs, origin+"/oauth2/sign_out/done")
	}
	p, err := devprovider.New(devprovider.Options{Issuer: c.issuer, Clients: []devprovider.Client{registered}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: wrap(p), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return c
}

// startProvider runs the certified provider.
func startProvider(t *testing.T, origins ...string) (*testenv.Provider, client) {
	t.Helper()
	var o testenv.ProviderOptions
	for _, origin := range origins {
		o.RedirectURIs = append(o.RedirectURIs, origin+"/oauth2/callback")
		o.PostLogoutRedirectURIs = append(o.PostLogoutRedirectURIs, origin+"/oauth2/sign_out/done")
	}
	p := testenv.StartProvider(t, o)
	return p, client{issuer: p.Issuer, id: p.ClientID, secret: p.ClientSecret}
}
