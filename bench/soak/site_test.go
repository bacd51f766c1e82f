package soak

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
)

// absolute is when the longest session ends.
func absolute() time.Duration { return 10 * *idle }

func userName(i int) string { return fmt.Sprintf("user-%d", i) }

// A site is the nodes, and what stands around them.
type site struct {
	t        *testing.T
	host     string // of its public URL, where nobody listens: requests go to the nodes
	nodes    []*node
	list     *session.Manager // beside the nodes, on the same store; nil where that can't be
	provider *url.URL
	outside  *http.Transport // to the provider
	around   []*httptest.Server
	dir      string
	kills    int
}

// startSite starts everything.
func startSite(t *testing.T, program string, b backend) *site {
	t.Helper()
	s := &site{t: t, host: testenv.Loopback(testenv.FreePort(t)), dir: t.TempDir(), outside: &http.Transport{MaxIdleConnsPerHost: together}}
	t.Cleanup(s.outside.CloseIdleConnections)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(appUser, r.Header.Get("X-Forwarded-User"))
	}))
	t.Cleanup(app.Close)
	s.around = append(s.around, app)
	s.startProvider()

	ring := seal.NewRing()
	if err := ring.WriteNew(filepath.Join(s.dir, "keys.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "client-secret"), []byte(clientSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	if kept := b.open(t); kept != nil {
		s.list = session.New(session.Options{
			Store: kept, Registry: kept, Ring: ring, Jar: cookie.New("coatcheck", "", true), Tenant: "default",
			Events: audit.New(audit.Options{Journal: kept, Logger: slog.New(slog.DiscardHandler), Node: "beside"}),
			Node:   "beside", Idle: *idle, Absolute: absolute(), Tombstones: tombstones,
		})
	}
	for i := range b.nodes() {
		n := s.newNode(program, fmt.Sprintf("node-%d", i), app.URL, b.config())
		n.start(t)
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		var err error
		if n.began, err = n.usage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

const clientSecret = "a secret of the soak"

// startProvider starts the development provider with everybody in it.
func (s *site) startProvider() {
	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.provider = &url.URL{Scheme: "http", Host: l.Addr().String()}
	var users []devprovider.User
	for i := range (*sessions + perPerson - 1) / perPerson {
		name := userName(i)
		users = append(users, devprovider.User{Username: name, Password: name, Name: name, Email: name + "@example.com"})
	}
	p, err := devprovider.New(devprovider.Options{
		Issuer: s.provider.String(), Users: users, Logger: slog.New(slog.DiscardHandler),
		Clients: []devprovider.Client{{
			ID: "soak", Secret: coatcheck.Secret(clientSecret),
			RedirectURIs: []string{"http://" + s.host + "/oauth2/callback"},
		}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(p)
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	s.t.Cleanup(server.Close)
	s.around = append(s.around, server)
}

// A node is a coatcheck, and the processes that it was, one after the other.
type node struct {
	*testenv.Process
	name, url, admin string
	command          testenv.Command
	transport        *http.Transport // to the node
	kills            int
	began            usage // of the first one, before anybody came
}

func (s *site) newNode(program, name, app, store string) *node {
	listen, admin := testenv.Loopback(testenv.FreePort(s.t)), testenv.Loopback(testenv.FreePort(s.t))
	n := &node{
		name: name, url: "http://" + listen, admin: "http://" + admin,
		transport: &http.Transport{MaxIdleConnsPerHost: together},
	}
	s.t.Cleanup(n.transport.CloseIdleConnections)
	config := strings.NewReplacer("NODE", name, "LISTEN", listen, "PUBLIC", s.host, "ADMIN", admin, "STORE", store,
		"ISSUER", s.provider.String(), "APP", app, "IDLE", idle.String(), "ABSOLUTE", absolute().String(),
		"TOMBSTONES", tombstones.String(), "LIMIT", strconv.Itoa(perUser)).Replace(`node: NODE
listen: LISTEN
public_url: http://PUBLIC
insecure_http: true
admin: {listen: ADMIN}
keys: {file: keys.json}
store: STORE
session:
  idle_timeout: IDLE
  absolute_timeout: ABSOLUTE
  tombstones: TOMBSTONES
  limits: {per_user: LIMIT, on_limit: evict_oldest}
providers:
  - {name: soak, issuer: ISSUER, client_id: soak, client_secret_file: client-secret}
routes:
  - {path: /, upstream: APP}
log: {level: warn, access: false}
shutdown: {delay: 0s, grace: 5s}
`)
	file := filepath.Join(s.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	n.command = testenv.Command{
		Path: program, Args: []string{"serve", "--config", file}, Dir: s.dir, Ready: n.ready, Within: time.Minute,
		Env: []string{"GORACE=log_path=" + filepath.Join(s.dir, "race")},
	}
	return n
}

// ready returns nil once the node lets people sign in.
func (n *node) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/ready", nil)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := fetch(req, func(line string) { text.WriteString(line) }); err != nil {
		return err
	}
	if !strings.Contains(text.String(), `"sign_in":"ok"`) {
		return fmt.Errorf("/ready: %s", text.String())
	}
	return nil
}

// start starts the node; again after it was killed.
func (n *node) start(t *testing.T) {
	t.Helper()
	n.Process = testenv.Start(t, n.command)
}

// Kill ends the node at once.
func (n *node) Kill() {
	n.kills++
	n.Process.Kill()
}

// A usage is what a node's process uses.
type usage struct {
	Goroutines  int   `json:"goroutines"`
	Descriptors int   `json:"descriptors"`
	Heap        int64 `json:"heap_bytes"` // in use, after a garbage collection
	Resident    int64 `json:"resident_bytes"`
}

// usage asks the admin listener.
func (n *node) usage(ctx context.Context) (usage, error) {
	values := map[string]float64{}
	read := func(line string) {
		if name, value, ok := strings.Cut(line, " "); ok {
			values[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	// A heap profile with gc=1 collects garbage first. What a finalizer or a pool held on
	// to goes with the second.
	const collect = "/debug/pprof/heap?gc=1"
	for _, path := range []string{collect, collect, "/metrics"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.admin+path, nil)
		if err != nil {
			return usage{}, err
		}
		clear(values)
		if err := fetch(req, read); err != nil {
			return usage{}, err
		}
	}
	return usage{
		Goroutines:  int(values["go_goroutines"]),
		Descriptors: int(values["process_open_fds"]),
		Heap:        int64(values["go_memstats_heap_alloc_bytes"]),
		Resident:    int64(values["process_resident_memory_bytes"]),
	}, nil
}

// fetch calls told with each line of an answer that is 200.
func fetch(req *http.Request, told func(line string)) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", req.URL.Path, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		told(lines.Text())
	}
	return lines.Err()
}

// settled closes the connections that are kept for nobody, waits a while for the nodes to
// come to rest, and returns what they use.
func (s *site) settled() []process {
	s.t.Helper()
	list := make([]process, len(s.nodes))
	for deadline := time.Now().Add(time.Minute); ; {
		for _, server := range s.around {
			server.CloseClientConnections()
		}
		rest := true
		for i, n := range s.nodes {
			n.transport.CloseIdleConnections()
			end, err := n.usage(s.t.Context())
			if err != nil {
				s.t.Fatal(err)
			}
			list[i] = process{Node: n.name, Kills: n.kills, Start: n.began, End: end}
			rest = rest && len(list[i].problems()) == 0
		}
		if rest || time.Now().After(deadline) {
			return list
		}
		time.Sleep(2 * time.Second)
	}
}

// build builds coatcheck, with the race detector where the test has it.
func build(t *testing.T) string {
	t.Helper()
	// A folder that was read counts with its files' sizes and times, so that go test does
	// not use an old result after a change of what this package does not import.
	err := filepath.WalkDir("../..", func(_ string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "coatcheck")
	args := []string{"build", "-o", program}
	if underRaceDetector() {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "../../cmd/coatcheck")...).CombinedOutput(); err != nil {
		t.Fatalf("build coatcheck: %v\n%s", err, out)
	}
	return program
}

func underRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// reportRaces fails the test if a node found a data race.
func (s *site) reportRaces() {
	files, _ := filepath.Glob(filepath.Join(s.dir, "race.*"))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		s.t.Errorf("coatcheck has a data race:\n%s", text)
	}
}
