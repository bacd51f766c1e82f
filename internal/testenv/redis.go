package testenv

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// RedisOptions say how a Redis is set up. The zero value keeps nothing on disk and
// lets everybody in.
type RedisOptions struct {
	// Persist writes every change to an append-only file before it is acknowledged
	// (appendfsync always), so that Kill and Restart lose nothing.
	Persist bool
	// Password is asked of the default user.
	Password string
	// Config holds more lines of redis.conf.
	Config []string
	// Socket makes it listen on a unix socket as well.
	Socket bool
	// Certificates make it speak TLS alone, with clients that prove who they are.
	Certificates *Certificates
}

// A Redis is a redis-server on a loopback port, also one that is a sentinel.
type Redis struct {
	t      testing.TB
	opts   RedisOptions
	cmd    Command
	proc   *Process
	port   int
	dir    string
	client rueidis.Client // see Do
}

// StartRedis starts a redis-server and waits until it serves.
func StartRedis(t testing.TB, opts RedisOptions) *Redis {
	t.Helper()
	return startRedis(t, opts)
}

func startRedis(t testing.TB, opts RedisOptions, args ...string) *Redis {
	t.Helper()
	path := RequireTool(t, "redis-server")
	// A socket's path is bounded to about 100 bytes; a test's own folder is longer.
	dir, err := os.MkdirTemp("", "redis-")
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &Redis{t: t, opts: opts, port: FreePort(t), dir: dir}
	conf := []string{"bind 127.0.0.1", "dir " + r.dir, "daemonize no"}
	if c := opts.Certificates; c != nil {
		conf = append(conf, "port 0", "tls-port "+strconv.Itoa(r.port), "tls-replication yes",
			"tls-ca-cert-file "+c.CAFile, "tls-cert-file "+c.CertFile, "tls-key-file "+c.KeyFile)
	} else {
		conf = append(conf, "port "+strconv.Itoa(r.port))
	}
	if len(args) == 0 { // a sentinel keeps nothing
		conf = append(conf, `save ""`)
	}
	if opts.Persist {
		conf = append(conf, "appendonly yes", "appendfsync always")
	}
	if opts.Password != "" {
		conf = append(conf, "requirepass "+opts.Password)
	}
	if opts.Socket {
		conf = append(conf, "unixsocket "+r.socket())
	}
	conf = append(conf, opts.Config...)
	file := filepath.Join(r.dir, "redis.conf")
	if err := os.WriteFile(file, []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	r.cmd = Command{Path: path, Args: append([]string{file}, args...), Ready: r.ready}
	r.proc = Start(t, r.cmd)
	return r
}

// ready returns nil once the data is loaded: until then PING is answered LOADING,
// and after that PONG or, without the password, NOAUTH.
func (r *Redis) ready(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if r.opts.Certificates != nil {
		conn = tls.Client(conn, r.opts.Certificates.client(r.t))
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(answer, "+PONG") && !strings.HasPrefix(answer, "-NOAUTH") {
		err = fmt.Errorf("PING: %q", answer)
	}
	return err
}

// Do sends one command and returns what was answered, within five seconds.
func (r *Redis) Do(args ...string) rueidis.RedisResult {
	r.t.Helper()
	return r.do(5*time.Second, args...)
}

func (r *Redis) do(within time.Duration, args ...string) rueidis.RedisResult {
	r.t.Helper()
	if r.client == nil {
		opts := rueidis.ClientOption{
			InitAddress: []string{r.Addr()}, ForceSingleClient: true, DisableCache: true, PipelineMultiplex: -1,
			Password: r.opts.Password, Dialer: net.Dialer{Timeout: 5 * time.Second},
		}
		if r.opts.Certificates != nil {
			opts.TLSConfig = r.opts.Certificates.client(r.t)
		}
		client, err := rueidis.NewClient(opts)
		if client == nil {
			r.t.Fatalf("testenv: %v", err)
		}
		r.client = client
		r.t.Cleanup(client.Close)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return r.client.Do(ctx, r.client.B().Arbitrary(args...).Build())
}

// Must is Do for a command that has to succeed, within a minute.
func (r *Redis) Must(args ...string) rueidis.RedisMessage {
	r.t.Helper()
	m, err := r.do(time.Minute, args...).ToMessage()
	if err != nil && !rueidis.IsRedisNil(err) {
		r.t.Fatalf("testenv: %s: %s: %v", r.Addr(), strings.Join(args, " "), err)
	}
	return m
}

// Addr returns the address it listens on.
func (r *Redis) Addr() string { return Loopback(r.port) }

// URL returns a redis URL of its first database, without credentials.
func (r *Redis) URL() string {
	if r.opts.Certificates != nil {
		return "rediss://" + r.Addr() + "/0"
	}
	return "redis://" + r.Addr() + "/0"
}

// SocketURL returns the URL of its unix socket.
func (r *Redis) SocketURL() string { return "unix://" + r.socket() }

func (r *Redis) socket() string { return filepath.Join(r.dir, "redis.sock") }

// Stop ends it in good order.
func (r *Redis) Stop() { r.proc.Stop() }

// Kill ends it at once (SIGKILL).
func (r *Redis) Kill() { r.proc.Kill() }

// Restart starts it again after Stop or Kill: on the same port, with the data it
// kept.
func (r *Redis) Restart() {
	r.t.Helper()
	r.proc = Start(r.t, r.cmd)
}

// Pause stops it where it stands (SIGSTOP): connections stay open, and nothing is
// answered.
func (r *Redis) Pause() { r.proc.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (r *Redis) Resume() { r.proc.Signal(syscall.SIGCONT) }

// waitFor asks done until it returns true, for two minutes: a busy machine forms no cluster
// quickly.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	const within = 2 * time.Minute
	for deadline := time.Now().Add(within); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("testenv: not within %s: %s", within, what)
		}
	}
}
