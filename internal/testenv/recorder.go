package testenv

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Recorder is an upstream that keeps the bytes it is sent. It knows just enough of
// HTTP/1.1 to tell where a request ends, by code of its own: what it shows is what was
// on the wire, not what net/http makes of it.
type Recorder struct {
	URL string // http://127.0.0.1:PORT

	mu       sync.Mutex
	requests []string
	conns    map[net.Conn]bool
	opened   int
	closed   bool
}

// A Script answers one request on its connection. The connection takes another request
// if it returns true, and is closed otherwise.
type Script func(conn net.Conn, request string) bool

// Answer returns a Script that writes the same bytes to every request.
func Answer(response string) Script {
	return func(conn net.Conn, _ string) bool {
		_, err := io.WriteString(conn, response)
		return err == nil
	}
}

// OK answers every request with a 200 and two bytes.
var OK = Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

// Record starts a Recorder that answers by script. It stops with the test.
func Record(t testing.TB, script Script) *Recorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	rec := &Recorder{URL: "http://" + ln.Addr().String(), conns: make(map[net.Conn]bool)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { rec.serve(conn, script) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		rec.mu.Lock()
		rec.closed = true
		for conn := range rec.conns {
			_ = conn.Close()
		}
		rec.mu.Unlock()
		wg.Wait()
	})
	return rec
}

func (rec *Recorder) serve(conn net.Conn, script Script) {
	defer conn.Close()
	rec.mu.Lock()
	if rec.closed {
		rec.mu.Unlock()
		return
	}
	rec.conns[conn] = true
	rec.opened++
	rec.mu.Unlock()
	defer func() {
		rec.mu.Lock()
		delete(rec.conns, conn)
		rec.mu.Unlock()
	}()
	var pending []byte
	for {
		size := requestSize(pending)
		if size == 0 {
			buf := make([]byte, 16<<10)
			n, err := conn.Read(buf)
			pending = append(pending, buf[:n]...)
			if err != nil {
				if len(pending) > 0 { // what came of a request is worth seeing too
					rec.keep(string(pending))
				}
				return
			}
			continue
		}
		request := string(pending[:size])
		pending = pending[size:]
		rec.keep(request)
		if !script(conn, request) {
			return
		}
	}
}

func (rec *Recorder) keep(request string) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.requests = append(rec.requests, request)
}

// Requests returns the requests so far, byte for byte.
func (rec *Recorder) Requests() []string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return append([]string(nil), rec.requests...)
}

// Opened returns how many connections were opened to the recorder.
func (rec *Recorder) Opened() int {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.opened
}

// requestSize returns the length of the first request in b, or 0 if it is not whole.
func requestSize(b []byte) int {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0
	}
	end += 4
	head := strings.ToLower(string(b[:end]))
	if strings.Contains(head, "\r\ntransfer-encoding: chunked\r\n") {
		// The last chunk, then trailers up to an empty line.
		last := bytes.Index(b[end-2:], []byte("\r\n0\r\n"))
		if last < 0 {
			return 0
		}
		trailers := end - 2 + last + len("\r\n0")
		stop := bytes.Index(b[trailers:], []byte("\r\n\r\n"))
		if stop < 0 {
			return 0
		}
		return trailers + stop + 4
	}
	if _, rest, ok := strings.Cut(head, "\r\ncontent-length: "); ok {
		value, _, _ := strings.Cut(rest, "\r\n")
		n, err := strconv.Atoi(value)
		if err != nil || len(b) < end+n {
			return 0
		}
		return end + n
	}
	return end
}

// Target returns the request target in a recorded request.
func Target(request string) string {
	line, _, _ := strings.Cut(request, "\r\n")
	_, rest, _ := strings.Cut(line, " ")
	return strings.TrimSuffix(rest, " HTTP/1.1")
}

// Fields returns the values of every field whose name, in lower case and with "_" for
// "-" or the other way round, is the given one.
func Fields(request, name string) []string {
	head, _, _ := strings.Cut(request, "\r\n\r\n")
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "-") }
	var values []string
	for _, line := range strings.Split(head, "\r\n")[1:] {
		if key, value, ok := strings.Cut(line, ":"); ok && fold(key) == fold(name) {
			values = append(values, strings.TrimPrefix(value, " "))
		}
	}
	return values
}

// Send opens a connection to addr (host:port), writes the bytes of request and returns
// everything that comes back until the other side closes, or for a minute. The request should
// say Connection: close.
func Send(t testing.TB, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	answer, _ := io.ReadAll(conn) // a reset after the answer is no matter
	return string(answer)
}
