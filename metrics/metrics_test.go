package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
)

func newTest() *Metrics {
	return New("test", func() int { return 0 })
}

func scrape(m *Metrics) string {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// wantLines checks which lines are there.
func wantLines(t *testing.T, m *Metrics, lines map[string]bool) {
	t.Helper()
	text := scrape(m)
	for line, want := range lines {
		if got := strings.Contains(text, line); got != want {
			t.Errorf("%s: there %v, want %v", line, got, want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A WebSocket is counted, but how long it stayed open is no answer's duration.
func TestWebSocketsHaveNoDuration(t *testing.T) {
	m := newTest()
	m.Request("/ws", http.StatusSwitchingProtocols, time.Hour)
	m.Request("/", http.StatusOK, time.Millisecond)
	wantLines(t, m, map[string]bool{
		`coatcheck_requests_total{code="101",route="/ws"} 1`:    true,
		`coatcheck_request_duration_seconds_count{route="/"} 1`: true,
		`coatcheck_request_duration_seconds_count{route="/ws"}`: false,
		`coatcheck_build_info{version="test"} 1`:                true,
	})
}

func TestSessionLoads(t *testing.T) {
	m := newTest()
	for _, result := range []SessionLoad{LoadNone, LoadValid, LoadValid, LoadInvalid} {
		m.SessionLoad(result)
	}
	m.Unverified()
	wantLines(t, m, map[string]bool{
		`coatcheck_session_loads_total{result="none"} 1`:    true,
		`coatcheck_session_loads_total{result="valid"} 2`:   true,
		`coatcheck_session_loads_total{result="invalid"} 1`: true,
		`coatcheck_session_loads_total{result="unknown"} 0`: true,
		`coatcheck_session_unverified_total 1`:              true,
	})
}

// Each node counts what it told of itself, and nothing that somebody wrote into the
// journal becomes a label.
func TestEvents(t *testing.T) {
	m := newTest()
	told := m.Events("a")
	for _, e := range []coatcheck.Event{
		{Node: "a", Type: coatcheck.EventStarted, Reason: coatcheck.ReasonIdle},
		{Node: "b", Type: coatcheck.EventStarted},
		{Node: "a", Type: coatcheck.EventEnded, Reason: coatcheck.ReasonEvicted},
		{Node: "a", Type: coatcheck.EventEnded, Reason: "forged"},
		{Node: "b", Type: coatcheck.EventEnded, Reason: coatcheck.ReasonEvicted},
		{Node: "a", Type: coatcheck.EventLimitDenied, Limit: "per_user"},
		{Node: "a", Type: coatcheck.EventLimitDenied, Limit: "forged"},
		{Node: "a", Type: "forged"},
	} {
		told(e)
	}
	wantLines(t, m, map[string]bool{
		`coatcheck_session_events_total{type="session.started"} 1`:      true,
		`coatcheck_session_events_total{type="session.renewed"} 0`:      true,
		`coatcheck_session_events_total{type="session.ended"} 2`:        true,
		`coatcheck_session_events_total{type="session.limit_denied"} 2`: true,
		`coatcheck_session_events_total{type="other"} 1`:                true,
		`coatcheck_sessions_ended_total{reason="idle"} 0`:               true,
		`coatcheck_sessions_ended_total{reason="evicted"} 1`:            true,
		`coatcheck_sessions_ended_total{reason="other"} 1`:              true,
		`coatcheck_session_limit_denials_total{limit="per_user"} 1`:     true,
		`coatcheck_session_limit_denials_total{limit="total"} 0`:        true,
		`coatcheck_session_limit_denials_total{limit="other"} 1`:        true,
		`forged`: false,
	})
}

func TestUpstreams(t *testing.T) {
	m := newTest()
	list := []Upstream{{"http://a:1", 1, 3}, {"http://b:2", 2, 4}}
	m.Upstreams(func() []Upstream { return list })
	m.AnswerBroken()
	wantLines(t, m, map[string]bool{
		"coatcheck_upstream_requests{upstream=\"http://a:1\"} 1\n":      true,
		"coatcheck_upstream_requests{upstream=\"http://b:2\"} 2\n":      true,
		"coatcheck_upstream_refused_total{upstream=\"http://a:1\"} 3\n": true,
		"coatcheck_upstream_refused_total{upstream=\"http://b:2\"} 4\n": true,
		"coatcheck_upstream_answers_broken_total 1\n":                   true,
	})
	list = list[1:]
	wantLines(t, m, map[string]bool{
		"coatcheck_upstream_requests{upstream=\"http://a:1\"}":   false,
		"coatcheck_upstream_requests{upstream=\"http://b:2\"} 2": true,
	})
}

func TestProviders(t *testing.T) {
	m := newTest()
	m.Providers(func() map[string]bool { return map[string]bool{"corp": true, "other": false} })
	wantLines(t, m, map[string]bool{
		"coatcheck_provider_ready{provider=\"corp\"} 1\n":  true,
		"coatcheck_provider_ready{provider=\"other\"} 0\n": true,
	})
}

func TestCacheAndBreaker(t *testing.T) {
	m := newTest()
	stats := CacheStats{Hits: 1, Misses: 2, Stale: 3, Bytes: 4}
	m.Cache(func() CacheStats { return stats })
	m.Breaker(func() int { return 1 }, func() int { return 2 })
	wantLines(t, m, map[string]bool{
		`coatcheck_session_cache_requests_total{result="hit"} 1`:   true,
		`coatcheck_session_cache_requests_total{result="miss"} 2`:  true,
		`coatcheck_session_cache_requests_total{result="stale"} 3`: true,
		"coatcheck_session_cache_bytes 4\n":                        true,
		"coatcheck_store_feed_up 0\n":                              true,
		`coatcheck_store_breaker_state{calls="read"} 1`:            true,
		`coatcheck_store_breaker_state{calls="write"} 2`:           true,
	})
	stats.Hearing = true
	wantLines(t, m, map[string]bool{"coatcheck_store_feed_up 1\n": true})
}

// What is counted for each request costs no memory.
func TestCountingAllocatesNothing(t *testing.T) {
	m := newTest()
	n := testing.AllocsPerRun(100, func() {
		m.SessionLoad(LoadValid)
		m.Unverified()
		m.Request("/", http.StatusOK, time.Millisecond)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
