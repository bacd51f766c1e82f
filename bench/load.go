package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// A load is a set of open connections to one server, and the requests to send there.
// It speaks just enough HTTP/1.1 to be light beside what it measures, and takes every
// answer that is not exactly the expected one for a failure of the whole measurement.
type load struct {
	requests [][]byte // sent in turn, or
	random   bool     // at random
	status   int      // of every answer
	body     int64    // its Content-Length
	conns    []*connection
}

type connection struct {
	net.Conn
	in *bufio.Reader
}

// open dials n connections.
func (l *load) open(ctx context.Context, address string, n int) error {
	var dialer net.Dialer
	for range n {
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		l.conns = append(l.conns, &connection{Conn: c, in: bufio.NewReaderSize(c, 8<<10)})
	}
	return nil
}

func (l *load) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// send sends n requests over the open connections, the next one on a connection when
// the answer to the one before is there.
func (l *load) send(ctx context.Context, n int) error {
	ctx, end := context.WithTimeout(ctx, 2*time.Minute)
	defer end()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	conns := l.conns
	stop := context.AfterFunc(ctx, func() { // it may still run when the connections are closed
		for _, c := range conns {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()

	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			for j := i; j < n; j += len(conns) {
				next := j % len(l.requests)
				if l.random {
					next = rand.IntN(len(l.requests))
				}
				if err := l.exchange(c, l.requests[next]); err != nil {
					fail(err) // one failure spoils the measurement, so it ends all
					return
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// exchange sends one request and reads its answer.
func (l *load) exchange(c *connection, request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	// RFC 9112 §4: HTTP-version SP status-code SP [reason-phrase]
	if len(line) < 13 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return fmt.Errorf("not an HTTP/1.1 answer: %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status != l.status {
		return fmt.Errorf("status line %q, want %d", line, l.status)
	}
	length := int64(-1)
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("Connection")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("close")):
			return errors.New("the server ends the connection")
		}
	}
	if length != l.body {
		return fmt.Errorf("an answer of %d bytes, want %d", length, l.body)
	}
	_, err = c.in.Discard(int(length))
	return err
}
