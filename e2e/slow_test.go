package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// TestSlowBody: a client that announces a body and never sends it gets its answer and
// loses the connection, unless the body is an app's, who may wait as long as it likes.
func TestSlowBody(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, nodeOptions{
		routes: strings.ReplaceAll(`
- {path: /, upstream: REC}
- {path: /public, require: anonymous, upstream: REC}
`, "REC", rec.URL),
		more: "timeouts: {read_header: 300ms}\n",
	})
	for _, tt := range []struct {
		name, target string
		status       string
		lines        []string
	}{
		{"refused", "/x", "401", []string{"Content-Length: 10"}},
		{"refused, chunked", "/x", "401", []string{"Transfer-Encoding: chunked"}},
		{"a form of ours", "/oauth2/sign_out", "400", []string{"Content-Length: 10", "Content-Type: application/x-www-form-urlencoded"}},
		{"no form of ours", "/oauth2/start", "405", []string{"Content-Length: 10"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(conn, strings.Replace(s.request("POST", tt.target, tt.lines...), "Connection: close\r\n", "", 1)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
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
			time.Sleep(time.Second) // longer than the timeout, which is what must not end it
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
