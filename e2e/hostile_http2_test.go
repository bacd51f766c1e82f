package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hostileHTTP2 is A-W9 and A-W13: the node speaks HTTP/1.1 alone. A client that begins
// HTTP/2 is told so and loses the connection, and nothing in its frames is ever read: no
// reset or continuation costs anything, and no request hides in them.
func hostileHTTP2(t *testing.T, s *site) {
	fields := func(list ...string) []byte {
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		for i := 0; i < len(list); i += 2 {
			if err := e.WriteField(hpack.HeaderField{Name: list[i], Value: list[i+1]}); err != nil {
				t.Fatal(err)
			}
		}
		return block.Bytes()
	}
	get := func(path string, more ...string) []byte {
		return fields(append([]string{":method", "GET", ":scheme", "http", ":path", path, ":authority", s.host}, more...)...)
	}
	request := func(f *http2.Framer, stream uint32, block []byte, whole bool) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: whole})
	}
	for name, frames := range map[string]func(f *http2.Framer) error{
		"nothing more": func(*http2.Framer) error { return nil },
		"a request":    func(f *http2.Framer) error { return request(f, 1, get("/public/x"), true) },
		"connection":   func(f *http2.Framer) error { return request(f, 1, get("/public/x", "connection", "close"), true) },
		"transfer-encoding": func(f *http2.Framer) error {
			return request(f, 1, get("/public/x", "transfer-encoding", "chunked"), true)
		},
		"a line break": func(f *http2.Framer) error {
			return request(f, 1, get("/public/x", "x", "y\r\nX-Auth-User: admin"), true)
		},
		"a path without /": func(f *http2.Framer) error { return request(f, 1, get("public/x"), true) },
		"another host":     func(f *http2.Framer) error { return request(f, 1, get("/public/x", "host", "evil.com"), true) },
		"HTTP/1.1 in a path": func(f *http2.Framer) error {
			return request(f, 1, get("/public/x HTTP/1.1\r\nHost: app.t1.test\r\n\r\n"), true)
		},
		"rapid reset": func(f *http2.Framer) error {
			var err error
			for stream := uint32(1); stream < 20_000; stream += 2 {
				err = errors.Join(err, request(f, stream, get("/public/x"), true), f.WriteRSTStream(stream, http2.ErrCodeCancel))
			}
			return err
		},
		"continuations without end": func(f *http2.Framer) error {
			err := request(f, 1, get("/public/x"), false)
			for range 10_000 {
				err = errors.Join(err, f.WriteContinuation(1, false, fields("x", "y")))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var sent bytes.Buffer
			sent.WriteString(http2.ClientPreface)
			f := http2.NewFramer(&sent, nil)
			f.AllowIllegalWrites = true
			if err := errors.Join(f.WriteSettings(), frames(f)); err != nil {
				t.Fatal(err)
			}
			before := len(s.rec.Requests())
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			go func() { _, _ = conn.Write(sent.Bytes()) }() // whose end nobody reads
			answer, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection stays open")
			}
			const refusal = "HTTP/1.1 400 "
			if text := string(answer); !strings.HasPrefix(text, refusal) || strings.Count(text, "HTTP/1.1 ") != strings.Count(text, refusal) {
				t.Errorf("answered with %.200q", text)
			}
			if got := s.rec.Requests()[before:]; len(got) > 0 {
				t.Errorf("reached the app: %q", got)
			}
		})
	}
	if a := s.get(t, "/public/x"); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards others get %s", a.Status)
	}
}
