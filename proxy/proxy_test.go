package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/policy"
)

// TestDeadCookie: a cookie that opens nothing is cleared in the answer to a navigation,
// and in no other. An unknown session costs nobody the cookie (invariant 1).
func TestDeadCookie(t *testing.T) {
	r := newRig(t)
	name := r.Sessions.Jar.Session()
	dead := http.Header{"Cookie": {name + "=" + name + "-" + strings.Repeat("0", 32) + "." + strings.Repeat("A", 22)}}
	_, alive := r.signedIn(t, "alice")
	for _, tt := range []struct {
		name, method, target string
		header               http.Header
		cookie               http.Header
		err                  error
		clears               bool
		status               int
	}{
		{"a navigation", "GET", "/x", page200, dead, nil, true, 303},
		{"a navigation to a free page", "GET", "/public", page200, dead, nil, true, 200},
		{"our own page", "GET", "/oauth2/sign_in", page200, dead, nil, true, 200},
		{"fetch", "GET", "/x", http.Header{"Sec-Fetch-Mode": {"cors"}}, dead, nil, false, 401},
		{"fetch of a free page", "GET", "/public", http.Header{"Sec-Fetch-Mode": {"cors"}}, dead, nil, false, 200},
		{"JSON", "GET", "/x", http.Header{"Accept": {"application/json"}}, dead, nil, false, 401},
		{"a form", "POST", "/x", page200, dead, nil, false, 401},
		{"HEAD", "HEAD", "/x", page200, dead, nil, false, 401},
		{"forward-auth", "GET", "/oauth2/auth", page200, dead, nil, false, 401},
		{"userinfo", "GET", "/oauth2/userinfo", page200, dead, nil, false, 401},
		{"the store is down", "GET", "/x", page200, dead, errors.New("down"), false, 503},
		{"the store is down, a live session", "GET", "/x", page200, alive, errors.New("down"), false, 503},
		{"the client has left", "GET", "/x", page200, alive, context.Canceled, false, 503},
		{"a live session", "GET", "/x", page200, alive, nil, false, 200},
		{"no cookie", "GET", "/x", page200, nil, nil, false, 303},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.store.err = tt.err
			defer func() { r.store.err = nil }()
			w := r.serveHTTP(tt.method, tt.target, "", tt.header, tt.cookie)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
			if got := clears(w.Header(), name); got != tt.clears {
				t.Errorf("clears the cookie: %v, want %v", got, tt.clears)
			}
			if retry := w.Header().Get("Retry-After"); (retry != "") != (tt.status == 503) {
				t.Errorf("Retry-After: %q", retry)
			}
		})
	}
	if !r.alive(t, alive) {
		t.Error("the live session has ended")
	}
}

const canary = "canary-of-a-panic"

// TestPanic is A-D3: a defect shows a page with the request's id. What the panic said may
// be anything, and stays out of page and log.
func TestPanic(t *testing.T) {
	for _, tt := range []struct {
		name, target string
		arrange      func(*rig)
	}{
		{"in the app's transport", "/public", func(r *rig) {
			r.app.answer = func(*http.Request) (*http.Response, error) { panic(canary) }
		}},
		{"in the store", "/x", func(r *rig) { r.store.fault = func() { panic(errors.New(canary)) } }},
		{"at forward-auth (A-F2)", "/oauth2/auth", func(r *rig) { r.store.fault = func() { panic(canary) } }},
		{"in a health check", "/ready", func(r *rig) { r.store.fault = func() { panic(canary) } }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			_, alice := r.signedIn(t, "alice")
			tt.arrange(r)
			w := r.serveHTTP("GET", tt.target, "", alice, page200)
			if w.Code != http.StatusInternalServerError || w.Header()["Set-Cookie"] != nil {
				t.Errorf("%d, Set-Cookie %q", w.Code, w.Header()["Set-Cookie"])
			}
			if strings.Contains(w.Body.String()+r.log.String(), canary) {
				t.Errorf("the panic's text shows: %s\n%s", w.Body, r.log)
			}
			var panicked struct {
				Message   string `json:"msg"`
				RequestID string `json:"request_id"`
				Stack     string `json:"stack"`
			}
			for line := range strings.Lines(r.log.String()) {
				if err := json.Unmarshal([]byte(line), &panicked); err != nil {
					t.Fatal(err)
				}
				if panicked.Message == "panic" {
					break
				}
			}
			if !strings.Contains(panicked.Stack, "TestPanic") || !strings.Contains(w.Body.String(), panicked.RequestID) || panicked.RequestID == "" {
				t.Errorf("the log does not lead from the request id %q to the defect", panicked.RequestID)
			}
			// The next request is served.
			r.store.fault, r.app.answer = nil, nil
			if w := r.serveHTTP("GET", "/x", "", alice); w.Code != http.StatusOK {
				t.Errorf("the request after it: %d", w.Code)
			}
		})
	}
}

// TestPanicMidway: half an answer does not look whole.
func TestPanicMidway(t *testing.T) {
	for name, fault := range map[string]any{"a defect": canary, "an app that breaks off": http.ErrAbortHandler} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.app.answer = func(req *http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
					Header: http.Header{}, Body: io.NopCloser(io.MultiReader(strings.NewReader("half"), panicking{fault})),
				}, nil
			}
			server := httptest.NewServer(r)
			defer server.Close()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/public", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = r.PublicURL.Host
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err == nil {
				t.Error("the client sees a whole answer")
			}
			server.Close() // waits for the handler, and so for its log
			if strings.Contains(r.log.String(), canary) {
				t.Errorf("the panic's text is in the log: %s", r.log)
			}
			if got, want := strings.Contains(r.log.String(), `"msg":"panic"`), fault == canary; got != want {
				t.Errorf("a panic is logged: %v, want %v", got, want)
			}
		})
	}
}

type panicking struct{ value any }

func (p panicking) Read([]byte) (int, error) { panic(p.value) }

// TestLogHoldsNoQuery: codes and states come in queries (invariant 13).
func TestLogHoldsNoQuery(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	for _, target := range []string{
		"/oauth2/callback?code=canary-code&state=canary-state", "/oauth2/callback?error=canary-error&state=canary-state",
		"/x?token=canary-token", "/public?x=canary-query", "/oauth2/start?rd=/canary-rd", "/oauth2/start?rd=//canary-rd", "/oauth2/sign_out?token=canary-token",
	} {
		r.serveHTTP("GET", target, "", alice, http.Header{"Authorization": {"Bearer canary-bearer"}, "Referer": {"https://app.example.com/?canary-referer"}})
	}
	if strings.Contains(r.log.String(), "canary") || strings.Contains(r.log.String(), strings.TrimPrefix(alice.Get("Cookie"), "__Host-coatcheck=")) {
		t.Errorf("the log has a secret:\n%s", r.log)
	}
}

func TestUserinfo(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	w := r.serveHTTP("GET", "/oauth2/userinfo", "", alice, page200)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"user":"alice"`) || strings.Contains(w.Body.String(), "canary") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	for _, target := range []string{"/oauth2/userinfo", "/oauth2/auth"} {
		w := r.serveHTTP("GET", target, "", page200)
		if w.Code != http.StatusUnauthorized || w.Header().Get("Location") != "" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s by nobody: %d, %s", target, w.Code, w.Header().Get("Content-Type"))
		}
	}
	r.Proxy.Allow = policy.NewRule("allow", []string{"bob@example.com"}, nil, nil)
	for _, target := range []string{"/oauth2/userinfo", "/oauth2/auth", "/x"} {
		r.log.Reset()
		if w := r.serveHTTP("GET", target, "", alice); w.Code != http.StatusForbidden || w.Header().Get("Location") != "" {
			t.Errorf("%s by somebody who may not sign in: %d", target, w.Code)
		}
		for _, want := range []string{`"user":"alice","error":"policy: allow does not name the person`, `"user":"alice","user_agent"`} {
			if !strings.Contains(r.log.String(), want) {
				t.Errorf("the log of %s lacks %s:\n%s", target, want, r.log)
			}
		}
	}
}

// TestMayNotSignIn: who may not sign in at all gets no session, only an explanation.
func TestMayNotSignIn(t *testing.T) {
	r := newRig(t)
	r.Proxy.Allow = policy.NewRule("allow", []string{"bob@example.com"}, nil, nil)
	for user, status := range map[string]int{"alice": http.StatusForbidden, "bob": http.StatusSeeOther} {
		start := r.serveHTTP("GET", "/oauth2/start", "")
		pair, _, _ := strings.Cut(start.Header().Get("Set-Cookie"), ";")
		w := r.serveHTTP("GET", r.authorize(t, start.Header().Get("Location"), user), "", http.Header{"Cookie": {pair}}, page200)
		signedIn := strings.Contains(strings.Join(w.Header()["Set-Cookie"], "\n"), r.Sessions.Jar.Session()+"=")
		if w.Code != status || signedIn != (status == http.StatusSeeOther) {
			t.Errorf("%s: %d, Set-Cookie %q", user, w.Code, w.Header()["Set-Cookie"])
		}
	}
}

// Who took too long at the provider starts over. That was no sign-in.
func TestSignInExpired(t *testing.T) {
	r := newRig(t)
	start := r.serveHTTP("GET", "/oauth2/start?rd=/here", "")
	pair, _, _ := strings.Cut(start.Header().Get("Set-Cookie"), ";")
	back := r.authorize(t, start.Header().Get("Location"), "alice")
	r.SignIn.Now = func() time.Time { return time.Now().Add(11 * time.Minute) }
	w := r.serveHTTP("GET", back, "", http.Header{"Cookie": {pair}}, page200)
	if location := w.Header().Get("Location"); w.Code != http.StatusSeeOther || !strings.HasPrefix(location, r.issuer+"/") {
		t.Errorf("%d, to %q", w.Code, location)
	}
	counted := httptest.NewRecorder()
	r.Metrics.Handler().ServeHTTP(counted, httptest.NewRequest("GET", "/metrics", nil))
	for line, want := range map[string]bool{
		`coatcheck_sign_ins_total{result="sign_in_expired"} 1`: true, `coatcheck_sign_ins_total{result="ok"} 1`: false,
	} {
		if strings.Contains(counted.Body.String(), line) != want {
			t.Errorf("the metrics have %s: %v", line, !want)
		}
	}
}

// TestForwardAuthOnly: a route without upstream serves no request itself.
func TestForwardAuthOnly(t *testing.T) {
	r := newRig(t)
	r.Proxy.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} // where httptest's requests come from
	if w := r.serveHTTP("GET", "/elsewhere/x", "", page200); w.Code != http.StatusNotFound {
		t.Errorf("directly: %d", w.Code)
	}
	asked := http.Header{"X-Forwarded-Uri": {"/elsewhere/x", ""}, "X-Forwarded-Method": {"", "GET"}}
	if w := r.serveHTTP("GET", "/oauth2/auth", "", asked); w.Code != http.StatusAccepted {
		t.Errorf("when asked about: %d", w.Code)
	}
	r.Proxy.Trusted = nil
	if w := r.serveHTTP("GET", "/oauth2/auth", "", asked); w.Code != http.StatusUnauthorized {
		t.Errorf("when asked about by a stranger: %d", w.Code)
	}
}

// TestSignInLoop: the third sign-in in a row stops, unless a request was served between.
func TestSignInLoop(t *testing.T) {
	for served, want := range map[bool]int{false: http.StatusBadRequest, true: http.StatusSeeOther} {
		r := newRig(t)
		cookies := map[string]string{}
		send := func(target string) *httptest.ResponseRecorder {
			var pairs []string
			for name, value := range cookies {
				pairs = append(pairs, name+"="+value)
			}
			w := r.serveHTTP("GET", target, "", http.Header{"Cookie": {strings.Join(pairs, "; ")}}, page200)
			for _, c := range w.Result().Cookies() {
				if cookies[c.Name] = c.Value; c.MaxAge < 0 {
					delete(cookies, c.Name)
				}
			}
			return w
		}
		var last *httptest.ResponseRecorder
		for range 3 {
			start := send("/oauth2/start")
			last = send(r.authorize(t, start.Header().Get("Location"), "alice"))
			if served {
				send("/oauth2/sign_in")
			}
		}
		if last.Code != want {
			t.Errorf("served between: %v; the third sign-in: %d, want %d", served, last.Code, want)
		}
	}
}
