package testenv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Command says how to start a program and how to tell that it serves.
type Command struct {
	Path string   // the program; its base name stands in messages
	Args []string // without the program's name
	Env  []string // "KEY=value", added to the test's own environment
	Dir  string   // where it runs; empty: where the test does
	// Ready returns nil once the program serves. It is asked every few
	// milliseconds until then, each time with a deadline of five seconds. Nil: the
	// program counts as ready when it has started.
	Ready func(context.Context) error
	// Within bounds the wait for Ready. Zero means a minute.
	Within time.Duration
}

// A Process is a running program. It is stopped when the test that started it
// ends; what it wrote is logged if that test failed. Its methods are for one
// goroutine at a time.
type Process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  string        // the file that takes stdout and stderr
	done chan struct{} // closed once the program has ended and was reaped
}

// Start runs c and waits until it is ready. A program that ends before, or takes
// too long, fails the test with its output.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "output-*.log")
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	defer out.Close()

	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("testenv: start %s: %v", c.Path, err)
	}
	p := &Process{t: t, cmd: cmd, log: out.Name(), done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("%s (pid %d, %s):\n%s", c.Path, p.PID(), cmd.ProcessState, p.Output())
		}
	})
	p.waitReady(c)
	return p
}

func (p *Process) waitReady(c Command) {
	p.t.Helper()
	if c.Ready == nil {
		return
	}
	within := c.Within
	if within == 0 {
		within = time.Minute
	}
	deadline := time.Now().Add(within)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := c.Ready(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("testenv: %s was not ready within %s: %v", c.Path, within, err)
		}
		select {
		case <-p.done:
			p.t.Fatalf("testenv: %s ended before it was ready: %s", c.Path, p.cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// PID returns the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed once the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode waits for the program to end and returns its exit code, -1 if a signal
// ended it.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Output returns what the program has written to stdout and stderr so far.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Sprintf("(no output: %v)", err)
	}
	return string(b)
}

// Signal sends sig to the program. One that has ended gets none.
func (p *Process) Signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// Stop asks the program to end (SIGTERM) and waits; after 20 s it is killed. It may
// be called again, and on a program that was paused.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	p.Signal(syscall.SIGCONT) // a stopped process takes no SIGTERM
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.Kill()
	}
}

// Kill ends the program at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// FreePort returns a port of 127.0.0.1 on which nothing listens, and which neither this nor
// another process of tests that runs has got from it: whoever got one may not listen yet, or
// no more for a moment. It lies below the range that outgoing connections take theirs from
// (32768 and up on Linux), so that no client of a test sits on it while a server restarts.
func FreePort(t testing.TB) int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for {
		for ports.next < ports.end {
			port := ports.next
			ports.next++
			if l, err := net.Listen("tcp", Loopback(port)); err == nil {
				l.Close()
				return port
			}
		}
		if !claimBlock() {
			t.Fatal("testenv: no free loopback port found")
		}
	}
}

// The ports that FreePort returns come in blocks. A process claims a block by listening on its
// first port until it ends, whatever becomes of it.
const firstPort, blockSize, blocks = 20000, 50, 240

var ports struct {
	mu        sync.Mutex
	next, end int // what is left of the last block
	claimed   []net.Listener
}

// claimBlock claims a block of ports for this process, and returns false if all are taken. It
// is called with the lock held.
func claimBlock() bool {
	for _, block := range rand.Perm(blocks) {
		first := firstPort + block*blockSize
		if l, err := net.Listen("tcp", Loopback(first)); err == nil {
			ports.claimed = append(ports.claimed, l)
			ports.next, ports.end = first+1, first+blockSize
			return true
		}
	}
	return false
}

// Loopback returns "127.0.0.1:port".
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Listening returns a Command.Ready that asks for a TCP connection to addr.
func Listening(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
