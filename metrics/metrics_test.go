package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A WebSocket is counted, but how long it stayed open is no answer's duration.
func TestWebSocketsHaveNoDuration(t *testing.T) {
	m := New("test", func() int { return 0 }, func() int64 { return 0 })
	m.Request("/ws", http.StatusSwitchingProtocols, time.Hour)
	m.Request("/", http.StatusOK, time.Millisecond)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line, want := range map[string]bool{
		`coatcheck_requests_total{code="101",route="/ws"} 1`:    true,
		`coatcheck_request_duration_seconds_count{route="/"} 1`: true,
		`coatcheck_request_duration_seconds_count{route="/ws"}`: false,
		`coatcheck_build_info{version="test"} 1`:                true,
	} {
		if got := strings.Contains(w.Body.String(), line); got != want {
			t.Errorf("%s: there %v, want %v", line, got, want)
		}
	}
}
