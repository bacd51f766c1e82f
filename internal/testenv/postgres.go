package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PostgresUser is the superuser of every server that StartPostgres starts.
const PostgresUser = "coatcheck"

// PostgresOptions say how a PostgreSQL is set up. The zero value lets everybody in who
// comes from this machine.
type PostgresOptions struct {
	// Password is asked of PostgresUser (SCRAM-SHA-256).
	Password string
	// Certificates make it take TLS alone, from clients with a certificate of the same
	// authority.
	Certificates *Certificates
	// Fsync makes a commit wait for the disk. Without it Kill loses nothing either, for
	// the kernel survives.
	Fsync bool
	// Config holds settings, as in "max_connections=20".
	Config []string
}

// A Postgres is a PostgreSQL server on a loopback port, with its cluster in a folder of
// its own.
type Postgres struct {
	t    testing.TB
	tool postgresTools
	cmd  Command
	proc *Process
	port int
	dir  string
}

// StartPostgres makes a cluster, starts its server and waits until it serves.
func StartPostgres(t testing.TB, opts PostgresOptions) *Postgres {
	t.Helper()
	p := newPostgres(t)
	args := []string{"--pgdata", p.dir, "--username", PostgresUser, "--no-sync", "--encoding=UTF8", "--locale=C"}
	if opts.Password == "" {
		args = append(args, "--auth=trust")
	} else {
		file := p.write("../password", []byte(opts.Password))
		args = append(args, "--auth=scram-sha-256", "--pwfile", file)
	}
	p.tool.run(t, "initdb", args...)
	settings := slices.Clone(opts.Config)
	if !opts.Fsync {
		settings = append(settings, "fsync=off")
	}
	if c := opts.Certificates; c != nil {
		settings = append(settings, "ssl=on", "ssl_ca_file="+p.copyIn(c.CAFile, "ca.pem"),
			"ssl_cert_file="+p.copyIn(c.CertFile, "cert.pem"), "ssl_key_file="+p.copyIn(c.KeyFile, "key.pem"))
		p.write("pg_hba.conf", []byte("hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"))
	}
	p.start(settings...)
	return p
}

// StartPostgresPair starts a primary and a hot standby that follows it. What the primary
// acknowledges is on the standby by then (synchronous_commit=remote_apply), until one of
// both is gone.
func StartPostgresPair(t testing.TB, opts PostgresOptions) (primary, standby *Postgres) {
	t.Helper()
	// Given on the command line, this is not copied to the standby, which would else wait
	// for a standby of its own once it is promoted.
	opts.Config = append(slices.Clone(opts.Config), "synchronous_standby_names=*", "synchronous_commit=remote_apply")
	primary = StartPostgres(t, opts)
	standby = newPostgres(t)
	standby.tool.run(t, "pg_basebackup", "--pgdata", standby.dir, "--write-recovery-conf", "--no-sync",
		"--checkpoint=fast", "--wal-method=stream", "--dbname", primary.URL())
	standby.start("fsync=off")
	return primary, standby
}

func newPostgres(t testing.TB) *Postgres {
	t.Helper()
	tool := requirePostgres(t)
	parent, err := os.MkdirTemp("", "postgres-")
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	dir := filepath.Join(parent, "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	tool.own(t, parent)
	tool.own(t, dir)
	return &Postgres{t: t, tool: tool, port: FreePort(t), dir: dir}
}

func (p *Postgres) start(settings ...string) {
	p.t.Helper()
	args := []string{"-D", p.dir, "-p", strconv.Itoa(p.port), "-h", "127.0.0.1"}
	settings = append([]string{
		"unix_socket_directories=", "max_connections=200", "shared_buffers=16MB", "dynamic_shared_memory_type=posix",
	}, settings...)
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	path, args := p.tool.command("postgres", args...)
	p.cmd = Command{Path: path, Args: args, Dir: p.dir, Ready: p.ready, Within: time.Minute}
	p.Restart()
}

// write makes a file in the cluster's folder that the server can read, and returns its
// path.
func (p *Postgres) write(name string, content []byte) string {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		p.t.Fatalf("testenv: %v", err)
	}
	p.tool.own(p.t, file)
	return file
}

// copyIn copies a file into the cluster's folder.
func (p *Postgres) copyIn(file, name string) string {
	p.t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatalf("testenv: %v", err)
	}
	return p.write(name, content)
}

// ready returns nil once the server takes connections. A hot standby does, too.
func (p *Postgres) ready(ctx context.Context) error {
	path, args := p.tool.command("pg_isready", "-h", "127.0.0.1", "-p", strconv.Itoa(p.port))
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Addr returns the address it listens on.
func (p *Postgres) Addr() string { return Loopback(p.port) }

// URL returns the URL of its database "postgres" for PostgresUser, without a password.
func (p *Postgres) URL() string {
	return "postgres://" + PostgresUser + "@" + p.Addr() + "/postgres?sslmode=disable"
}

// Stop ends it in good order, without waiting for those who are connected.
func (p *Postgres) Stop() {
	p.proc.Signal(syscall.SIGINT)
	p.proc.Signal(syscall.SIGCONT)
	select {
	case <-p.proc.Done():
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

// Kill ends all its processes at once (SIGKILL).
func (p *Postgres) Kill() {
	pids := p.pause()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	p.proc.Kill()
	for _, pid := range pids { // they hold the memory that Restart asks for
		for s := state(pid); s != 0 && s != 'Z'; s = state(pid) {
			time.Sleep(time.Millisecond)
		}
	}
}

// Restart starts it again after Stop or Kill: on the same port, with the data it kept.
func (p *Postgres) Restart() {
	p.t.Helper()
	p.proc = Start(p.t, p.cmd)
	// Process asks it politely to end, which it does once all clients have left.
	p.t.Cleanup(p.Kill)
}

// Pause stops all its processes where they stand (SIGSTOP): connections stay open, new
// ones are taken by the kernel, and nothing is answered.
func (p *Postgres) Pause() { p.pause() }

// pause stops the server, so that it forks no more, then those that it has forked, and
// returns the latter.
func (p *Postgres) pause() []int {
	p.proc.Signal(syscall.SIGSTOP)
	for s := state(p.proc.PID()); s != 'T' && s != 'Z' && s != 0; s = state(p.proc.PID()) {
		time.Sleep(time.Millisecond)
	}
	pids := children(p.proc.PID())
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	return pids
}

// Resume ends a Pause.
func (p *Postgres) Resume() {
	for _, pid := range children(p.proc.PID()) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	p.proc.Signal(syscall.SIGCONT)
}

// Promote makes a standby a primary and waits until it is one.
func (p *Postgres) Promote() {
	p.t.Helper()
	p.tool.run(p.t, "pg_ctl", "promote", "--wait", "--pgdata", p.dir)
}

// stat returns what /proc says of a process behind its name, of which the first is its
// state and the second its parent; nil if there is no such process.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name stands in parentheses and may hold any byte.
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// state returns the letter of a process's state, 0 if there is none.
func state(pid int) byte {
	if fields := stat(pid); len(fields) > 0 {
		return fields[0][0]
	}
	return 0
}

func children(parent int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if fields := stat(pid); len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// postgresTools are the programs of one PostgreSQL version. Its server refuses to run as
// root; where the test does, all of them run as nobody.
type postgresTools struct {
	bin      string
	prefix   []string // what runs a program as somebody else
	uid, gid int      // whose the files must be; -1: as they are
}

// requirePostgres finds the newest version, or skips the test like RequireTool. Debian
// keeps them where no PATH looks.
func requirePostgres(t testing.TB) postgresTools {
	t.Helper()
	tool := postgresTools{uid: -1, gid: -1}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // the others stand beside it
			found = []string{path}
		}
	}
	if len(found) == 0 {
		RequireTool(t, "postgresql") // there is no program of that name: it skips, or fails
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	tool.bin = filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }))
	if os.Getuid() != 0 {
		return tool
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatalf("testenv: PostgreSQL does not run as root, and nobody else is there: %v", err)
	}
	tool.uid, _ = strconv.Atoi(nobody.Uid)
	tool.gid, _ = strconv.Atoi(nobody.Gid)
	tool.prefix = []string{RequireTool(t, "setpriv"), "--reuid", nobody.Uid, "--regid", nobody.Gid, "--clear-groups", "--"}
	return tool
}

// command returns what runs one of the programs.
func (tool postgresTools) command(name string, args ...string) (path string, all []string) {
	all = append(slices.Clone(tool.prefix), filepath.Join(tool.bin, name))
	all = append(all, args...)
	return all[0], all[1:]
}

// run runs one of the programs to its end.
func (tool postgresTools) run(t testing.TB, name string, args ...string) {
	t.Helper()
	path, args := tool.command(name, args...)
	cmd := exec.Command(path, args...)
	cmd.Dir = os.TempDir() // the test's own folder may be closed to nobody
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("testenv: %s: %v\n%s", name, err, out)
	}
}

// own gives a file to whom the programs run as.
func (tool postgresTools) own(t testing.TB, path string) {
	t.Helper()
	if err := os.Chown(path, tool.uid, tool.gid); err != nil {
		t.Fatalf("testenv: %v", err)
	}
}
