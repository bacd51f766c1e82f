package admin_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/coatcheck/coatcheck/admin"
)

var loopback = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4181}

func TestNew(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics\n") })
	server := httptest.NewServer(admin.New(metrics, loopback))
	defer server.Close()
	gzipped := []byte{0x1f, 0x8b} // profiles are gzip (RFC 1952 §2.3.1)
	for _, c := range []struct {
		method, path string
		status       int
		begins       []byte
	}{
		{http.MethodGet, "/metrics", http.StatusOK, []byte("metrics\n")},
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed, nil},
		{http.MethodGet, "/debug/pprof/profile?seconds=1", http.StatusOK, gzipped},
		{http.MethodGet, "/debug/pprof/heap", http.StatusOK, gzipped},
		{http.MethodGet, "/debug/pprof/goroutine", http.StatusOK, gzipped},
		{http.MethodGet, "/debug/pprof/cmdline", http.StatusNotFound, nil},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound, nil},
		{http.MethodGet, "/", http.StatusNotFound, nil},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.status)
			}
			if !bytes.HasPrefix(body, c.begins) {
				t.Errorf("the answer begins with %q, want %q", body[:min(len(body), 20)], c.begins)
			}
		})
	}
}

// A-M5: a name that leads to a loopback address by somebody else's doing gets nothing there.
func TestHost(t *testing.T) {
	served := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	everywhere := &net.TCPAddr{IP: net.IPv6unspecified, Port: 4181}
	private := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4181}
	for _, c := range []struct {
		addr   net.Addr
		host   string
		status int
	}{
		{loopback, "127.0.0.1:4181", http.StatusOK},
		{loopback, "127.0.0.1", http.StatusOK},
		{loopback, "localhost:4181", http.StatusOK},
		{loopback, "LOCALHOST", http.StatusOK},
		{loopback, "[::1]:4181", http.StatusOK},
		{loopback, "[::1]", http.StatusOK},
		{loopback, "10.0.0.7:4181", http.StatusOK}, // through a tunnel, and no name
		{loopback, "evil.com:4181", http.StatusForbidden},
		{loopback, "evil.com", http.StatusForbidden},
		{loopback, "127.0.0.1.evil.com:4181", http.StatusForbidden},
		{loopback, "localhost.evil.com", http.StatusForbidden},
		{loopback, "evil.com:127.0.0.1", http.StatusForbidden},
		{loopback, "localhost:80:evil.com", http.StatusForbidden},
		{loopback, "", http.StatusForbidden},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 4181}, "evil.com", http.StatusForbidden},
		{&net.TCPAddr{IP: net.ParseIP("::ffff:127.0.0.1"), Port: 4181}, "evil.com", http.StatusForbidden},
		{everywhere, "coatcheck-a:4181", http.StatusOK},
		{private, "node-1.corp.example:4181", http.StatusOK},
	} {
		t.Run(c.addr.String()+" as "+c.host, func(t *testing.T) {
			for _, path := range []string{"/metrics", "/debug/pprof/heap"} {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Host = c.host
				w := httptest.NewRecorder()
				admin.New(served, c.addr).ServeHTTP(w, r)
				if w.Code != c.status {
					t.Errorf("%s: %d, want %d", path, w.Code, c.status)
				}
			}
		})
	}
}
