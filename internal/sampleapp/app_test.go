package sampleapp_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves the app and returns its URL and what ends the context of its requests.
func start(t *testing.T) (url string, stop context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewUnstartedServer(sampleapp.New(sampleapp.Options{Name: "app-1"}))
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(cancel)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return server.URL, cancel
}

type answer struct {
	status int
	header http.Header
	body   string
}

func request(t *testing.T, method, url string, body io.Reader, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

var alice = []string{
	"X-Forwarded-User", "sub-of-alice", "X-Forwarded-Preferred-Username", "alice",
	"X-Forwarded-Email", "alice@example.com", "X-Forwarded-Groups", "admins,staff",
}

func TestPage(t *testing.T) {
	url, _ := start(t)
	tests := []struct {
		name    string
		path    string
		headers []string
		want    []string
		not     []string
	}{
		{
			"signed in", "/", alice,
			[]string{"Hello, alice", "alice@example.com", "sub-of-alice", "admins", "app-1", `href="/oauth2/sign_out"`, `href="/whoami"`, "X-Forwarded-User", "User-Agent"},
			[]string{"not signed in"},
		},
		{
			"anonymous", "/", nil,
			[]string{"You are not signed in", `href="/oauth2/start?rd=/"`, "app-1"},
			[]string{"Hello", "sign_out"},
		},
		{
			"any path", "/shop/cart?id=1",
			[]string{"X-Forwarded-User", "bob"},
			[]string{"Hello, bob", "GET /shop/cart?id=1"},
			nil,
		},
		{
			"markup", "/",
			[]string{"X-Forwarded-User", "<script>x</script>", "X-Any", `"><img src=x>`},
			[]string{"&lt;script&gt;"},
			[]string{"<script>x", "<img src=x>"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := request(t, "GET", url+tt.path, nil, tt.headers...)
			if got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%d, Cache-Control %q", got.status, got.header.Get("Cache-Control"))
			}
			if csp := got.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'; ") || strings.Contains(csp, "unsafe") {
				t.Errorf("Content-Security-Policy %q", csp)
			}
			for _, want := range tt.want {
				if !strings.Contains(got.body, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(got.body, not) {
					t.Errorf("the page has %q", not)
				}
			}
		})
	}
	if got := request(t, "POST", url+"/", nil); got.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", got.status)
	}
}

func TestAssets(t *testing.T) {
	url, _ := start(t)
	for path, kind := range map[string]string{
		"/assets/style.css": "text/css; charset=utf-8",
		"/assets/live.js":   "text/javascript; charset=utf-8",
		"/assets/icon.svg":  "image/svg+xml",
	} {
		if got := request(t, "GET", url+path, nil); got.status != 200 || got.header.Get("Content-Type") != kind || got.body == "" {
			t.Errorf("%s: %d %s", path, got.status, got.header.Get("Content-Type"))
		}
	}
}

func TestWhoami(t *testing.T) {
	url, _ := start(t)
	type whoami struct {
		User    string              `json:"user"`
		Email   string              `json:"email"`
		Groups  []string            `json:"groups"`
		Headers map[string][]string `json:"headers"`
		Node    string              `json:"node"`
	}
	tests := []struct {
		name    string
		headers []string
		want    whoami
	}{
		{"signed in", alice, whoami{User: "sub-of-alice", Email: "alice@example.com", Groups: []string{"admins", "staff"}, Node: "app-1"}},
		{"anonymous", nil, whoami{Groups: []string{}, Node: "app-1"}},
		{
			"groups on two lines",
			[]string{"X-Forwarded-User", "bob", "X-Forwarded-Groups", "a, b,", "X-Forwarded-Groups", "c"},
			whoami{User: "bob", Groups: []string{"a", "b", "c"}, Node: "app-1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := request(t, "GET", url+"/whoami", nil, append(tt.headers, "X-Two", "1", "X-Two", "2")...)
			if got.status != 200 || got.header.Get("Content-Type") != "application/json" || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%d %v", got.status, got.header)
			}
			var who whoami
			if err := json.Unmarshal([]byte(got.body), &who); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"1", "2"}, who.Headers["X-Two"]); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{strings.TrimPrefix(url, "http://")}, who.Headers["Host"]); diff != "" {
				t.Error(diff)
			}
			who.Headers = nil
			if diff := cmp.Diff(tt.want, who); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func dial(t *testing.T, url string, origin string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	header := http.Header{}
	if origin != "" {
		header.Set("Origin", origin)
	}
	conn, resp, err := websocket.Dial(t.Context(), url+"/ws", &websocket.DialOptions{HTTPHeader: header})
	if err == nil {
		t.Cleanup(func() { _ = conn.CloseNow() })
	}
	return conn, resp, err
}

func TestWebSocketEchoes(t *testing.T) {
	url, _ := start(t)
	conn, _, err := dial(t, url, url)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(2 << 20)
	for _, tt := range []struct {
		kind    websocket.MessageType
		message string
	}{
		{websocket.MessageText, "hello"},
		{websocket.MessageText, ""},
		{websocket.MessageBinary, "\x00\xff"},
		{websocket.MessageBinary, strings.Repeat("x", 1<<20)},
	} {
		if err := conn.Write(t.Context(), tt.kind, []byte(tt.message)); err != nil {
			t.Fatal(err)
		}
		kind, got, err := conn.Read(t.Context())
		if err != nil || kind != tt.kind || string(got) != tt.message {
			t.Errorf("%d bytes came back as %d of kind %v, %v", len(tt.message), len(got), kind, err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestWebSocketMessageIsBounded(t *testing.T) {
	url, _ := start(t)
	conn, _, err := dial(t, url, url)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Write(t.Context(), websocket.MessageBinary, make([]byte, 1<<20+1))
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
		t.Errorf("read: %v", err)
	}
}

func TestWebSocketFromForeignOrigin(t *testing.T) {
	url, _ := start(t)
	if _, resp, err := dial(t, url, "http://evil.example"); err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("dial: %v", err)
	}
}

func TestWebSocketGoesAway(t *testing.T) {
	url, stop := start(t)
	conn, _, err := dial(t, url, url)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("read: %v", err)
	}
}

func TestEvents(t *testing.T) {
	url, _ := start(t)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, "GET", url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-User", "alice")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", resp.Header)
	}
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{
		"id: 1\n", `data: {"count":1,"user":"alice","node":"app-1"}` + "\n", "\n",
		"id: 2\n", `data: {"count":2,"user":"alice","node":"app-1"}` + "\n", "\n",
	} {
		if got, err := lines.ReadString('\n'); err != nil || got != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	leave() // and goleak sees whether the handler ends
}

func TestEventsAnswerHead(t *testing.T) {
	url, _ := start(t)
	if got := request(t, "HEAD", url+"/events", nil); got.status != 200 {
		t.Errorf("%d", got.status)
	}
}

func TestSlow(t *testing.T) {
	url, stop := start(t)
	for query, status := range map[string]int{
		"?ms=0": 200, "?ms=20": 200,
		"": 400, "?ms=": 400, "?ms=-1": 400, "?ms=30001": 400, "?ms=99999999999999999999": 400, "?ms=1.5": 400,
	} {
		began := time.Now()
		got := request(t, "GET", url+"/slow"+query, nil)
		if got.status != status {
			t.Errorf("%q: %d", query, got.status)
		}
		if query == "?ms=20" && time.Since(began) < 20*time.Millisecond {
			t.Error("answered too early")
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.Get(url + "/slow?ms=30000")
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	stop()
	<-done // long before the 30 s
}

func TestUpload(t *testing.T) {
	url, _ := start(t)
	body := strings.Repeat("0123456789", 300_000)
	sum := sha256.Sum256([]byte(body))
	// Without a length, it goes out in chunks.
	got := request(t, "POST", url+"/upload", io.MultiReader(strings.NewReader(body)))
	var arrived struct {
		Bytes  int64
		SHA256 string
	}
	if err := json.Unmarshal([]byte(got.body), &arrived); err != nil {
		t.Fatal(err)
	}
	if got.status != 200 || arrived.Bytes != 3_000_000 || arrived.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("%d %+v", got.status, arrived)
	}
}

func TestUploadThatBreaksOff(t *testing.T) {
	url, _ := start(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
	if err := errors.Join(conn.(*net.TCPConn).CloseWrite(), conn.SetDeadline(time.Now().Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 400 ") {
		t.Errorf("answer %q, %v", line, err)
	}
}

func TestStatus(t *testing.T) {
	url, _ := start(t)
	for path, status := range map[string]int{
		"200": 200, "204": 204, "304": 304, "404": 404, "418": 418, "503": 503, "599": 599,
		"199": 400, "600": 400, "-1": 400, "x": 400,
	} {
		if got := request(t, "GET", url+"/status/"+path, nil); got.status != status {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	if got := request(t, "DELETE", url+"/status/403", nil); got.status != 403 {
		t.Errorf("DELETE: %d", got.status)
	}
}

// The page's script works under the page's own Content-Security-Policy.
func TestLiveDemosInChromium(t *testing.T) {
	url, _ := start(t)
	ctx := testenv.StartChromium(t)
	err := chromedp.Do(ctx,
		chromedp.Navigate(url+"/"),
		chromedp.WaitVisible(chromedp.CSS("#ws-state[data-state=on]")),
		chromedp.WaitVisible(chromedp.CSS("#sse-state[data-state=on]")),
		chromedp.SetValue(chromedp.CSS("#ws-text"), "hello again"),
		chromedp.Click(chromedp.CSS("#ws-form button")),
		chromedp.WaitVisible(chromedp.CSS("#ws-log li")),
	)
	if err != nil {
		t.Fatal(err)
	}
	echo, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("#ws-log li")))
	if err != nil || echo != "hello again" {
		t.Errorf("echo %q, %v", echo, err)
	}
	if counts, err := chromedp.Run(ctx, chromedp.Poll[bool](`/^\d+$/.test(document.getElementById("sse-count").textContent)`)); err != nil || !counts {
		t.Errorf("no event was counted: %v", err)
	}
}
