package admin_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/coatcheck/coatcheck/admin"
)

func TestNew(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics\n") })
	server := httptest.NewServer(admin.New(metrics))
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
