package proxy

import (
	"encoding/json"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/store"
)

// TestEveryEndingIsExplained: every reason and every limit has its sentences, and no row
// stands for one that does not exist.
func TestEveryEndingIsExplained(t *testing.T) {
	complete := func(what string, e explanation) {
		t.Helper()
		if e.title == "" || !strings.HasSuffix(e.text, ".") || !strings.HasSuffix(e.next, ".") {
			t.Errorf("%s: %+v is not complete", what, e)
		}
	}
	for _, reason := range coatcheck.Reasons() {
		complete(string(reason), endings[reason])
	}
	for reason := range endings {
		if !slices.Contains(coatcheck.Reasons(), reason) {
			t.Errorf("%q is no reason", reason)
		}
	}
	kinds := []store.LimitKind{store.LimitUser, store.LimitApp, store.LimitTotal}
	for _, kind := range kinds {
		complete(string(kind), limits[kind])
	}
	if len(limits) != len(kinds) {
		t.Errorf("%d rows for %d limits", len(limits), len(kinds))
	}
}

// end begins a session and ends it. It returns the Cookie header of its former holder.
func (r *rig) end(t *testing.T, reason coatcheck.Reason) http.Header {
	t.Helper()
	live, cookie := r.signedIn(t, "alice")
	if err := r.Sessions.End(t.Context(), http.Header{}, nil, live, reason); err != nil {
		t.Fatal(err)
	}
	return cookie
}

// TestEndedSessionExplainsItself is A-S3 and invariant 15.
func TestEndedSessionExplainsItself(t *testing.T) {
	r := newRig(t)
	name := r.Sessions.Jar.Session()
	for _, reason := range coatcheck.Reasons() {
		cookie := r.end(t, reason)
		for _, tt := range []struct {
			name, method, target string
			header               http.Header
			page, clears         bool
			goal                 string // where "Sign in again" leads in the end
		}{
			{"a navigation", "GET", "/x?a=1&b=2", page200, true, true, "/oauth2/start?rd=%2Fx%3Fa%3D1%26b%3D2"},
			{"a form", "POST", "/x", page200, true, false, "/oauth2/start"},
			{"fetch", "GET", "/x", http.Header{"Sec-Fetch-Mode": {"cors"}}, false, false, ""},
			{"a WebSocket", "GET", "/x", http.Header{"Upgrade": {"websocket"}}, false, false, ""},
			{"JSON", "GET", "/x", http.Header{"Accept": {"application/json"}}, false, false, ""},
			{"forward-auth", "GET", "/oauth2/auth", page200, false, false, ""},
			{"userinfo", "GET", "/oauth2/userinfo", page200, false, false, ""},
		} {
			t.Run(string(reason)+", "+tt.name, func(t *testing.T) {
				w := r.serveHTTP(tt.method, tt.target, "", tt.header, cookie)
				if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" {
					t.Errorf("status %d, WWW-Authenticate %q", w.Code, w.Header().Get("WWW-Authenticate"))
				}
				if got := clears(w.Header(), name); got != tt.clears {
					t.Errorf("clears the cookie: %v, want %v", got, tt.clears)
				}
				if tt.page {
					for _, want := range []string{endings[reason].title, endings[reason].text, endings[reason].next, `"` + tt.goal + `">Sign in again<`} {
						if !strings.Contains(w.Body.String(), want) && !strings.Contains(w.Body.String(), html.EscapeString(want)) {
							t.Errorf("the page does not say %q:\n%s", want, w.Body)
						}
					}
					return
				}
				var said struct{ Error, Reason, Message string }
				if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || said.Error != "session_ended" ||
					said.Reason != string(reason) || !strings.HasPrefix(said.Message, endings[reason].text) {
					t.Errorf("%s, %v", w.Body, err)
				}
			})
		}
	}
	if log := r.log.String(); !strings.Contains(log, "the session has ended: evicted") || !strings.Contains(log, `"code":"session_ended"`) {
		t.Errorf("the log:\n%s", log)
	}
}

// TestEndedUnknown: where nobody knows why a session ended, or the request does not hold
// its ticket, all is as without a cookie.
func TestEndedUnknown(t *testing.T) {
	r := newRig(t)
	evicted := r.end(t, coatcheck.ReasonEvicted).Get("Cookie")
	handle, _, _ := strings.Cut(evicted, ".")
	unheard := r.end(t, "of_another_version").Get("Cookie")
	r.Sessions.Tombstones = 0
	silent := r.end(t, coatcheck.ReasonEvicted).Get("Cookie")
	for what, cookie := range map[string]string{
		"another ticket of the handle": handle + "." + strings.Repeat("A", 22),
		"no tombstone":                 silent,
		"a reason without a row":       unheard,
	} {
		h := http.Header{"Cookie": {cookie}}
		if w := r.serveHTTP("GET", "/x", "", page200, h); w.Code != http.StatusSeeOther {
			t.Errorf("%s: a navigation gets %d, want the provider", what, w.Code)
		}
		w := r.serveHTTP("GET", "/oauth2/userinfo", "", h)
		if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `"error":"sign_in_required","message"`) {
			t.Errorf("%s: a script gets %d: %s", what, w.Code, w.Body)
		}
	}
}

// TestEndedIsReadToTell: the store is asked why a session ended only where somebody is
// told.
func TestEndedIsReadToTell(t *testing.T) {
	r := newRig(t)
	dead := r.end(t, coatcheck.ReasonEvicted)
	_, alive := r.signedIn(t, "alice")
	h := http.Header{}
	if _, err := r.Sessions.Begin(t.Context(), h, http.Header{}, &coatcheck.Session{
		Provider: "test", State: coatcheck.Returning, Identity: coatcheck.Identity{Issuer: r.issuer, Subject: "bob"},
	}, r.Sessions.Now()); err != nil {
		t.Fatal(err)
	}
	pair, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
	returning := http.Header{"Cookie": {pair}}
	for _, tt := range []struct {
		name, target string
		cookie       http.Header
		allow        policy.Rule
		gets         int32
	}{
		{"a free page", "/public", dead, r.Allow, 1},
		{"our own page", "/oauth2/sign_in", dead, r.Allow, 1},
		{"signed in", "/x", alive, r.Allow, 1},
		{"signed in, refused", "/x", alive, policy.NewRule("allow", []string{"bob@example.com"}, nil, nil), 1},
		{"nobody", "/x", nil, r.Allow, 0},
		{"a session that is not enough", "/x", returning, r.Allow, 1},
		{"told", "/x", dead, r.Allow, 2},
	} {
		r.Proxy.Allow = tt.allow
		r.store.gets.Store(0)
		r.serveHTTP("GET", tt.target, "", page200, tt.cookie)
		if got := r.store.gets.Load(); got != tt.gets {
			t.Errorf("%s: %d reads of the store, want %d", tt.name, got, tt.gets)
		}
	}
}

// signIn sends a browser without a session through a sign-in and returns the answer to its
// callback.
func (r *rig) signIn(t *testing.T, user, rd string, cookies map[string]string) *httptest.ResponseRecorder {
	t.Helper()
	send := func(target string) *httptest.ResponseRecorder {
		var pairs []string
		for name, value := range cookies {
			pairs = append(pairs, name+"="+value)
		}
		w := r.serveHTTP("GET", target, "", http.Header{"Cookie": {strings.Join(pairs, "; ")}, "User-Agent": {"Browser/1"}}, page200)
		for _, c := range w.Result().Cookies() {
			if cookies[c.Name] = c.Value; c.MaxAge < 0 {
				delete(cookies, c.Name)
			}
		}
		return w
	}
	start := send("/oauth2/start?rd=" + url.QueryEscape(rd))
	return send(r.authorize(t, start.Header().Get("Location"), user))
}

// TestLimitPage is A-S3: who is refused by a limit is told so, gets no session, and can try
// again as often as they like.
func TestLimitPage(t *testing.T) {
	for kind, l := range map[store.LimitKind]store.Limits{
		store.LimitUser: {PerUser: 1}, store.LimitApp: {PerApp: 1}, store.LimitTotal: {Total: 1},
	} {
		t.Run(string(kind), func(t *testing.T) {
			r := newRig(t)
			r.Sessions.Limits = l
			first := map[string]string{}
			if w := r.signIn(t, "alice", "/", first); w.Code != http.StatusSeeOther {
				t.Fatalf("the first sign-in: %d", w.Code)
			}
			second := map[string]string{}
			for try := range 4 {
				w := r.signIn(t, "alice", "/cart?item=7", second)
				if w.Code != http.StatusForbidden || w.Header().Get("Retry-After") != "" {
					t.Errorf("try %d: %d, Retry-After %q", try, w.Code, w.Header().Get("Retry-After"))
				}
				for _, want := range []string{limits[kind].title, limits[kind].text, limits[kind].next, `"/oauth2/start?rd=%2Fcart%3Fitem%3D7">Sign in again<`} {
					if !strings.Contains(w.Body.String(), want) {
						t.Errorf("try %d: the page does not say %q:\n%s", try, want, w.Body)
					}
				}
				if len(second) > 0 {
					t.Errorf("try %d left cookies: %v", try, second)
				}
			}
			if !strings.Contains(r.log.String(), `"code":"session_limit"`) {
				t.Errorf("the log:\n%s", r.log)
			}
		})
	}
}

// TestOrigin: a session knows where it was begun, and hosts that are one and the same are
// one app.
func TestOrigin(t *testing.T) {
	r := newRig(t)
	for _, rd := range []string{"", "/x", "https://APP.example.com:443/x"} {
		cookies := map[string]string{}
		r.signIn(t, "alice", rd, cookies)
		name := r.Sessions.Jar.Session()
		live, err := r.Sessions.Load(t.Context(), http.Header{"Cookie": {name + "=" + cookies[name]}})
		if err != nil || live == nil {
			t.Fatalf("%q: %v, %v", rd, live, err)
		}
		if o := live.Origin; o.App != "app.example.com" || o.IP != "192.0.2.1" || o.UserAgent != "Browser/1" {
			t.Errorf("%q: %+v", rd, o)
		}
	}
}

// TestUnverified: what is served while the store can't be asked says so to the app, to the
// client, to a proxy that asks, in the log and in the metrics.
func TestUnverified(t *testing.T) {
	r := newRig(t)
	r.Sessions.OutageGrace = time.Minute
	var got http.Header
	r.app.answer = func(req *http.Request) (*http.Response, error) {
		got = req.Header
		res, err := new(faultyApp).RoundTrip(req)
		res.Header.Set("Coatcheck-Unverified", "the app's own")
		return res, err
	}
	began := time.Now()
	_, alice := r.signedIn(t, "alice")
	// said checks how many seconds ago the store has confirmed the session, says an answer.
	said := func(what, seconds string, down error) {
		t.Helper()
		n, err := strconv.Atoi(seconds)
		if down == nil && seconds != "" || down != nil && (err != nil || n < 1 || n > 1+int(time.Since(began).Seconds())) {
			t.Errorf("%v: %s: %q", down, what, seconds)
		}
	}
	for _, down := range []error{nil, errors.New("down")} {
		r.store.err = down
		r.log.Reset()
		w := r.serveHTTP("GET", "/x", "", alice, http.Header{"Coatcheck-Unverified": {"9"}})
		seconds := w.Header().Get("Coatcheck-Unverified")
		if said("the client", seconds, down); w.Code != http.StatusOK || got.Get("Coatcheck-Unverified") != seconds {
			t.Errorf("%v: %d, %q to the app, %q to the client", down, w.Code, got.Get("Coatcheck-Unverified"), seconds)
		}
		if logged := seconds != "" && strings.Contains(r.log.String(), `"unverified":`+seconds); logged != (down != nil) || strings.Contains(r.log.String(), `"":`) {
			t.Errorf("%v: the log:\n%s", down, r.log)
		}
		w = r.serveHTTP("GET", "/oauth2/auth", "", alice)
		if said("forward-auth", w.Header().Get("Coatcheck-Unverified"), down); w.Code != http.StatusAccepted {
			t.Errorf("%v: forward-auth: %d", down, w.Code)
		}
	}
	w := httptest.NewRecorder()
	r.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), "\ncoatcheck_session_unverified_total 2\n") {
		t.Errorf("two requests were served unverified; the metrics:\n%s", w.Body)
	}
}

// TestOpenStreamEndsWithSession: an app's event stream is watched on behalf of the person
// that the app was told of.
func TestOpenStreamEndsWithSession(t *testing.T) {
	r := newRig(t)
	r.app.answer = func(req *http.Request) (*http.Response, error) {
		body, events := io.Pipe()
		go func() {
			_, _ = io.WriteString(events, "data: 1\n\n")
			<-req.Context().Done()
			_ = events.Close()
		}()
		return &http.Response{
			StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req, ContentLength: -1,
			Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body,
		}, nil
	}
	server := httptest.NewServer(r)
	defer server.Close()
	live, alice := r.signedIn(t, "alice")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.Header = r.PublicURL.Host, alice
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	if err := r.Sessions.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonRevoked); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("after the session's end: %q, %v", rest, err)
	}
}

// TestRetryAfter: those who were refused together come back apart.
func TestRetryAfter(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		seen[retryAfter()] = true
	}
	if len(seen) != 3 || !seen["1"] || !seen["2"] || !seen["3"] {
		t.Errorf("Retry-After is one of %v, want 1, 2, 3", seen)
	}
}
