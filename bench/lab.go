package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const module = "github.com/coatcheck/coatcheck"

// A lab is the set of processes that take part. All files are in its folder.
type lab struct {
	settings
	dir      string
	binary   string // coatcheck
	hot      bool   // only hot sessions in Redis are measured
	issuer   string
	app      string // URL
	redis    string // address; "" until it runs
	progress io.Writer

	running  []*process
	commands []string // as they were started, without this machine's paths
}

// The stores that are measured.
const (
	sqlite = "SQLite"
	redis  = "Redis"
)

// A node is a coatcheck.
type node struct {
	*process
	address, admin string
}

// nodeOptions say how a node is set up.
type nodeOptions struct {
	name    string
	store   string
	address string // of the public listener
	silent  bool   // without an access log
	issuer  string // "": the lab's
}

func (l *lab) say(format string, args ...any) { fmt.Fprintf(l.progress, format+"\n", args...) }

// build makes the binary that is measured.
func (l *lab) build(ctx context.Context) error {
	l.say("building")
	l.binary = filepath.Join(l.dir, "coatcheck")
	args := []string{"go", "build", "-o", l.binary, module + "/cmd/coatcheck"}
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("build coatcheck: %w\n%s", err, out)
	}
	l.record("coatcheck", args)
	if out, err := exec.CommandContext(ctx, l.binary, "key", "new", filepath.Join(l.dir, "keys.json")).CombinedOutput(); err != nil {
		return fmt.Errorf("coatcheck key new: %w\n%s", err, out)
	}
	return os.WriteFile(filepath.Join(l.dir, "client-secret"), []byte(rand.Text()), 0o600)
}

// record keeps a command line for the report.
func (l *lab) record(name string, args []string) {
	line := strings.ReplaceAll(strings.Join(args, " "), l.dir+string(filepath.Separator), "")
	if self, err := os.Executable(); err == nil {
		line = strings.ReplaceAll(line, self, "bench")
	}
	l.commands = append(l.commands, name+": "+line)
}

// start starts a process that stop ends.
func (l *lab) start(ctx context.Context, name string, ready func() error, args ...string) (*process, error) {
	p, err := start(l.dir, name, args...)
	if err != nil {
		return nil, err
	}
	l.running = append(l.running, p)
	l.record(name, args)
	return p, p.await(ctx, ready)
}

// stop ends everything, the last started first.
func (l *lab) stop() {
	for _, p := range l.running {
		defer p.stop()
	}
	l.running = nil
}

// role starts this program in one of its roles.
func (l *lab) role(ctx context.Context, role string, args ...string) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	address, err := freePort()
	if err != nil {
		return nil, "", err
	}
	args = append([]string{self, role, address}, args...)
	p, err := l.start(ctx, strings.TrimPrefix(role, "role:"), listening(address), args...)
	return p, address, err
}

// startApp starts what all proxies stand in front of.
func (l *lab) startApp(ctx context.Context) error {
	_, address, err := l.role(ctx, roleApp)
	l.app = "http://" + address
	return err
}

// startRedis starts a Redis that keeps nothing on disk.
func (l *lab) startRedis(ctx context.Context) (*process, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("%w (on Debian: apt-get install redis-server)", err)
	}
	address, err := freePort()
	if err != nil {
		return nil, err
	}
	l.redis = address
	_, port, _ := strings.Cut(address, ":")
	return l.start(ctx, "redis-server", listening(address),
		path, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
}

// idleCommands returns how many commands a second Redis processes without any request: all
// nodes make sure that they hear of changes, and look for what has expired.
func (l *lab) idleCommands(ctx context.Context) (float64, error) {
	before, err := l.redisCommands(ctx)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := pause(ctx, 2*time.Second); err != nil {
		return 0, err
	}
	after, err := l.redisCommands(ctx)
	return float64(after-before) / time.Since(begun).Seconds(), err
}

// redisCommands returns how many commands Redis has processed, those of scripts included.
func (l *lab) redisCommands(ctx context.Context) (int64, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", l.redis)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "INFO stats\r\nQUIT\r\n"); err != nil {
		return 0, err
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		return 0, err
	}
	_, count, _ := strings.Cut(string(text), "total_commands_processed:")
	count, _, _ = strings.Cut(count, "\r\n")
	return strconv.ParseInt(count, 10, 64)
}

// startProvider starts a provider for nodes at these addresses and returns its issuer. With
// a life of access tokens, the role roleGrants stands before it.
func (l *lab) startProvider(ctx context.Context, life time.Duration, nodes ...string) (issuer string, err error) {
	address, err := freePort()
	if err != nil {
		return "", err
	}
	issuer = "http://" + address
	if life > 0 {
		_, front, err := l.role(ctx, roleGrants, issuer, life.String())
		if err != nil {
			return "", err
		}
		issuer = "http://" + front
	}
	args := []string{
		l.binary, "dev-provider", "--listen", address, "--issuer", issuer, "--client-id", "bench",
		"--client-secret-file", filepath.Join(l.dir, "client-secret"),
	}
	for _, n := range nodes {
		args = append(args, "--redirect-uri", "http://"+n+"/oauth2/callback")
	}
	_, err = l.start(ctx, "dev-provider", listening(address), args...)
	return issuer, err
}

// startNode starts a node and returns the time from exec to the first 200 of /ready.
func (l *lab) startNode(ctx context.Context, o nodeOptions) (*node, time.Duration, error) {
	admin, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	store := "{driver: sqlite, sqlite: {file: " + o.name + ".db}}"
	if o.store == redis {
		store = "{driver: redis, redis: {url: redis://" + l.redis + "/0, key_prefix: " + o.name + "-}}"
	}
	access := "true"
	if o.silent {
		access = "false"
	}
	config := strings.NewReplacer("LISTEN", o.address, "ADMIN", admin, "STORE", store,
		"ISSUER", cmp.Or(o.issuer, l.issuer), "APP", l.app, "ACCESS", access).Replace(`listen: LISTEN
public_url: http://LISTEN
insecure_http: true
admin: {listen: ADMIN}
trusted_proxies: [127.0.0.1/32]
keys: {file: keys.json}
store: STORE
providers:
  - {name: bench, issuer: ISSUER, client_id: bench, client_secret_file: client-secret}
routes:
  - {path: /, upstream: APP}
log: {access: ACCESS}
shutdown: {delay: 0s, grace: 5s}
`)
	file := filepath.Join(l.dir, o.name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, 0, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	ready := func() error {
		resp, err := client.Get("http://" + o.address + "/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/ready: %s", resp.Status)
		}
		return nil
	}
	started := time.Now()
	p, err := l.start(ctx, o.name, ready, l.binary, "serve", "--config", file)
	return &node{process: p, address: o.address, admin: admin}, time.Since(started), err
}
