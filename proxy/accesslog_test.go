package proxy

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
)

// TestAccessLog: whatever a request holds, its line is what slog's handler would write, so
// that the log has one shape.
func TestAccessLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.RuneFrom([]rune("a\"\\<&>\x00\n\x7f\u0085\u2028é")), 0, 20, -1),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) }))
		r := httptest.NewRequest("GET", "/", nil)
		r.Host, r.URL.Path = text.Draw(t, "host"), text.Draw(t, "path")
		r.URL.RawQuery = "code=canary"
		r.Header["User-Agent"] = []string{text.Draw(t, "user agent")}
		x := &exchange{
			r: r, id: "0123", start: time.Now().Truncate(time.Microsecond), client: peer{ip: "192.0.2.1"},
			route: "/shop", code: coatcheck.Code(rapid.SampledFrom([]string{"", "forbidden"}).Draw(t, "code")),
			unverified: rapid.IntRange(0, 3).Draw(t, "unverified"),
			w:          response{bytes: rapid.Int64Min(0).Draw(t, "bytes")},
		}
		if rapid.Bool().Draw(t, "signed in") {
			x.live = &session.Live{Ref: "ref", Session: &coatcheck.Session{Identity: coatcheck.Identity{Subject: text.Draw(t, "user")}}}
		}
		took := time.Duration(rapid.Int64Range(0, 1e12).Draw(t, "took"))

		var got, want bytes.Buffer
		level := rapid.SampledFrom([]slog.Level{slog.LevelDebug, slog.LevelInfo}).Draw(t, "level")
		accessLog{&got}.write(x, level, 200, took)
		attrs := []any{
			"request_id", x.id, "client", x.client.ip, "method", "GET", "host", legible(r.Host), "path", legible(r.URL.Path),
			"route", x.route, "status", 200, "bytes", x.w.bytes, "ms", float64(took.Microseconds()) / 1000,
		}
		for name, value := range map[string]string{"code": string(x.code), "session": x.ref(), "user": x.user()} {
			if value != "" {
				attrs = append(attrs, name, value)
			}
		}
		if x.unverified > 0 {
			attrs = append(attrs, "unverified", x.unverified)
		}
		slog.New(slog.NewJSONHandler(&want, &slog.HandlerOptions{Level: level})).Log(
			t.Context(), level, "request", append(attrs, "user_agent", legible(r.UserAgent()))...)
		if diff := cmp.Diff(fields(t, want.String()), fields(t, got.String())); diff != "" {
			t.Fatalf("slog writes (-) and we write (+):\n%s", diff)
		}
		if strings.Contains(got.String(), "canary") {
			t.Fatalf("the query is in the line: %s", &got)
		}
	})
}

// fields reads the one line of a log, less its time, which is checked to be one.
func fields(t *rapid.T, text string) map[string]any {
	line, rest, ok := strings.Cut(text, "\n")
	if !ok || rest != "" {
		t.Fatalf("not one line: %q", text)
	}
	var f map[string]any
	if err := json.Unmarshal([]byte(line), &f); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if _, err := time.Parse(time.RFC3339Nano, f["time"].(string)); err != nil {
		t.Fatal(err)
	}
	delete(f, "time")
	return f
}
