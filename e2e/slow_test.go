package e2e

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-W10, bodies: a client that announces a body and never sends it, or sends it byte by
// byte, gets its answer and loses the connection; one whose body an app waits for may take longer.
func TestSlowBody(t *testing.T) {
	t.Parallel() // it waits, mostly
	rec := testenv.Record(t, testenv.OK)
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, nodeOptions{
		routes: strings.ReplaceAll(`
- {path: /, upstream: REC}
- {path: /public, require: anonymous, upstream: REC}
`, "REC", rec.URL),
		more: "timeouts: {read_header: 2s}\n",
	})
	for _, tt := range []struct {
		name, target string
		status       string
		lines        []string
		drip         string // is sent again and again
	}{
		{"refused", "/x", "401", []string{"Content-Length: 10"}, ""},
		{"refused, chunked", "/x", "401", []string{"Transfer-Encoding: chunked"}, ""},
		{"refused, dripping", "/x", "401", []string{"Content-Length: 10000"}, "x"},
		{"refused, dripping chunks", "/x", "401", []string{"Transfer-Encoding: chunked"}, "1\r\nx\r\n"},
		{"a form of ours", "/oauth2/sign_out", "400", []string{"Content-Length: 10", "Content-Type: application/x-www-form-urlencoded"}, ""},
		{"a form of ours, dripping", "/oauth2/sign_out", "400", []string{"Content-Length: 10000", "Content-Type: application/x-www-form-urlencoded"}, "x"},
		{"no form of ours", "/oauth2/start", "405", []string{"Content-Length: 10"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, strings.Replace(s.request("POST", tt.target, tt.lines...), "Connection: close\r\n", "", 1)); err != nil {
				t.Fatal(err)
			}
			if tt.drip != "" {
				go drip(conn, tt.drip)
			}
			answer, err := io.ReadAll(conn)
			if tt.drip != "" && errors.Is(err, syscall.ECONNRESET) {
				err = nil // so is a connection closed on which something is on its way
			}
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+tt.status+" ") {
				t.Errorf("%.200q, %v", answer, err)
			}
		})
	}
	t.Run("an upload", func(t *testing.T) {
		body, send := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/public", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = s.host
		go func() {
			time.Sleep(4 * time.Second) // longer than the timeout, which is what must not end it
			_, _ = io.WriteString(send, "late")
			_ = send.Close()
		}()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s, %v", resp.Status, err)
		}
	})
}

// A-W10, uploads: clients that send an app next to nothing are given up, and their places with
// them.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	rec := testenv.Record(t, testenv.OK)
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, nodeOptions{
		routes: "- {path: /, require: anonymous, upstream: " + rec.URL + "}",
		more:   "timeouts: {read_header: 1s, upload: 1s}\nlimits: {upstream_requests: 10}\n",
	})
	var given sync.WaitGroup
	for i := range 40 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		line, text := "Content-Length: 10000", "x"
		if i%2 == 0 {
			line, text = "Transfer-Encoding: chunked", "1\r\nx\r\n"
		}
		if _, err := io.WriteString(conn, strings.Replace(s.request("POST", "/x", line), "Connection: close\r\n", "", 1)); err != nil {
			t.Fatal(err)
		}
		go drip(conn, text)
		given.Go(func() {
			answer, err := io.ReadAll(conn)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) ||
				!strings.HasPrefix(string(answer), "HTTP/1.1 400 ") && !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") {
				t.Errorf("%.200q, %v", answer, err)
			}
		})
	}
	given.Wait()
	s.served(t, s.get(t, "/"), "")
}

// drip sends text again and again, until the connection is closed.
func drip(conn net.Conn, text string) {
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A-W10, headers: a thousand clients that send theirs byte by byte, or nothing at all, all
// lose their connections, however long they go on; others are served meanwhile.
func TestSlowHeaders(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, nodeOptions{
		routes: "- {path: /, upstream: " + rec.URL + "}",
		more:   "timeouts: {read_header: 1s, idle: 1s}\n",
	})
	alice := s.signIn(t, "alice").line()
	before := len(rec.Requests())
	head, _, _ := strings.Cut(s.request("GET", "/", alice), "Connection: close")
	var closed sync.WaitGroup
	for i := range 1000 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		// Where they stop is somewhere in the request line, the header, or before either;
		// some have had an answer before.
		sent, more := head, "x"
		switch i % 5 {
		case 0:
			sent, more = "", ""
		case 1:
			sent, more = "GET /", "x"
		case 2:
			more = "X: y\r\n"
		case 3:
			sent, more = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", ""
		case 4:
			sent += "X: y"
		}
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		if more != "" {
			go drip(conn, more)
		}
		closed.Go(func() {
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection %d is not closed: %v", i, err)
			}
		})
	}
	s.served(t, s.get(t, "/", alice), "alice")
	closed.Wait()
	s.served(t, s.get(t, "/", alice), "alice")
	if got := len(rec.Requests()) - before; got != 2 {
		t.Errorf("%d requests reached the app, not 2", got)
	}
}
