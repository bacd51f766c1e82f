package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestProcessStopsWithinItsGrace(t *testing.T) {
	p := Start(t, Command{Path: "/bin/sh", Args: []string{"-c", "echo hello; exec sleep 60"}})
	for p.Output() != "hello\n" {
		time.Sleep(time.Millisecond)
	}
	p.Signal(syscall.SIGSTOP)
	p.Stop() // a paused one too
	if code := p.ExitCode(); code != -1 {
		t.Errorf("exit code = %d, want -1", code)
	}
	p.Stop()
}

func TestProcessWaitsUntilReady(t *testing.T) {
	marker := t.TempDir() + "/ready"
	p := Start(t, Command{
		Path: "/bin/sh",
		Args: []string{"-c", `sleep 0.05; touch "$MARKER"; exec sleep 60`},
		Env:  []string{"MARKER=" + marker},
		Ready: func(context.Context) error {
			_, err := os.Stat(marker)
			return err
		},
	})
	if _, err := os.Stat(marker); err != nil {
		t.Error("Start returned before the program was ready")
	}
	p.Kill()
}

// A process that tests has its ports to itself: whoever else asks finds the block taken.
func TestFreePortIsClaimed(t *testing.T) {
	seen := map[int]bool{}
	for range 2 * blockSize {
		port := FreePort(t)
		block := firstPort + (port-firstPort)/blockSize*blockSize
		if seen[port] || port == block {
			t.Errorf("%d is not for this test alone", port)
		}
		seen[port] = true
		if l, err := net.Listen("tcp", Loopback(block)); err == nil {
			l.Close()
			t.Errorf("the block of %d is free for others", port)
		}
	}
}

// recorder is a testing.TB whose Fatal ends only the goroutine it was called on.
type recorder struct {
	testing.TB
	fatal, skipped string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func record(t *testing.T, f func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestProcessThatEndsEarlyFailsAtOnce(t *testing.T) {
	began := time.Now()
	r := record(t, func(tb testing.TB) {
		Start(tb, Command{
			Path:   "/bin/sh",
			Args:   []string{"-c", "exit 3"},
			Ready:  func(context.Context) error { return errors.New("never") },
			Within: time.Minute,
		})
	})
	if !strings.Contains(r.fatal, "ended before it was ready: exit status 3") {
		t.Errorf("fatal = %q", r.fatal)
	}
	if time.Since(began) > 30*time.Second {
		t.Error("waited for a program that had ended")
	}
}

func TestMissingToolSkipsOrFails(t *testing.T) {
	t.Setenv("COATCHECK_TEST_REQUIRE", "")
	r := record(t, func(tb testing.TB) { RequireTool(tb, "no-such-program") })
	if !strings.Contains(r.skipped, "no-such-program is not installed") || r.fatal != "" {
		t.Errorf("skipped %q, fatal %q", r.skipped, r.fatal)
	}
	t.Setenv("COATCHECK_TEST_REQUIRE", "1")
	r = record(t, func(tb testing.TB) { RequireTool(tb, "no-such-program") })
	if !strings.Contains(r.fatal, "no-such-program is not installed") || r.skipped != "" {
		t.Errorf("skipped %q, fatal %q", r.skipped, r.fatal)
	}
}
