package testenv

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// dialog is a connection on which PINGs are sent.
type dialog struct {
	net.Conn
	r *bufio.Reader
}

func converse(t *testing.T, addr string) *dialog {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &dialog{conn, bufio.NewReader(conn)}
}

// ask sends one command and returns the first line of its answer.
func (d *dialog) ask(command string, patience time.Duration) (string, error) {
	_ = d.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(d, command+"\r\n"); err != nil {
		return "", err
	}
	return d.r.ReadString('\n')
}

func TestProxyMakesTrouble(t *testing.T) {
	const patience, impatience = time.Minute, 100 * time.Millisecond
	server := StartRedis(t, RedisOptions{})
	p := StartProxy(t, server.Addr())
	well := func(d *dialog) {
		t.Helper()
		if answer, err := d.ask("PING", patience); !strings.HasPrefix(answer, "+PONG") {
			t.Fatalf("PING: %q, %v", answer, err)
		}
	}
	broken := func(d *dialog) {
		t.Helper()
		if answer, err := d.ask("PING", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("PING on a connection that should be broken: %q, %v", answer, err)
		}
	}
	slow := func(d *dialog, command string, atLeast time.Duration) {
		t.Helper()
		start := time.Now()
		answer, err := d.ask(command, patience)
		if took := time.Since(start); err != nil || took < atLeast {
			t.Fatalf("%s after %s: %d bytes, %v", command, took, len(answer), err)
		}
	}

	open := converse(t, p.Addr())
	well(open)

	p.Latency(50 * time.Millisecond)
	slow(open, "PING", 50*time.Millisecond)
	slow(converse(t, p.Addr()), "PING", 50*time.Millisecond)
	p.Heal()
	well(open)

	p.Bandwidth(10)
	start := time.Now()
	if _, err := open.ask("ECHO "+strings.Repeat("x", 5000), patience); err != nil { // its length
		t.Fatal(err)
	}
	if answer, err := open.r.ReadString('\n'); len(answer) != 5002 || time.Since(start) < 200*time.Millisecond {
		t.Fatalf("5 KB at 10 KB a second: %d bytes after %s, %v", len(answer), time.Since(start), err)
	}
	p.Heal()
	well(open)

	p.Reset(0)
	well(open)
	well(converse(t, p.Addr()))
	p.Heal()
	p.Reset(1)
	broken(open)
	broken(converse(t, p.Addr()))
	p.Heal()

	open = converse(t, p.Addr())
	well(open)
	p.Swallow()
	for _, d := range []*dialog{open, converse(t, p.Addr())} {
		if _, err := d.ask("SET swallowed 1", impatience); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a swallowed command: %v", err)
		}
	}
	p.Heal()
	broken(open)
	open = converse(t, p.Addr())
	if answer, _ := open.ask("EXISTS swallowed", patience); answer != ":0\r\n" {
		t.Errorf("EXISTS of what was swallowed: %q", answer)
	}

	p.Cut()
	p.Cut()
	broken(open)
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		conn.Close()
		t.Error("a connection was accepted after Cut")
	}
	p.Restore()
	well(converse(t, p.Addr()))
}
