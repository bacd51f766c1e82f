package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

// refOf returns the name of a live session.
func (r *rig) refOf(t *testing.T, cookie http.Header) coatcheck.Ref {
	t.Helper()
	live, err := r.Sessions.Load(t.Context(), cookie)
	if err != nil {
		t.Fatal(err)
	}
	return live.Ref
}

// startOf returns when a live session began, in UTC.
func (r *rig) startOf(t *testing.T, cookie http.Header) time.Time {
	t.Helper()
	live, err := r.Sessions.Load(t.Context(), cookie)
	if err != nil {
		t.Fatal(err)
	}
	return live.Created.UTC()
}

var tokenField = regexp.MustCompile(`name="token" value="([^"]+)"`)

// tokenOf returns the token in the form of a page.
func tokenOf(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	m := tokenField.FindStringSubmatch(w.Body.String())
	if m == nil {
		t.Fatalf("no form: %d %s", w.Code, w.Body)
	}
	return m[1]
}

// errorOf returns the code that a script is told.
func errorOf(t *testing.T, w *httptest.ResponseRecorder) coatcheck.Code {
	t.Helper()
	var said struct{ Error coatcheck.Code }
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return said.Error
}

// People see their own sessions, the one of this browser first, and nothing secret.
func TestSessionsPage(t *testing.T) {
	r := newRig(t)
	alice, other := r.signedInAt(t, "alice", "s1"), r.signedInAt(t, "alice", "s2")
	r.signedInAt(t, "bob", "s3")
	w := r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice)
	body := w.Body.String()
	if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d, %v", w.Code, w.Header())
	}
	for _, want := range []string{
		"You are signed in as alice.", "You are signed in here and in one other place.", "Firefox on Linux", "This browser",
		"app.example.com · from 192.0.2.7", `<time datetime="` + r.startOf(t, other).Format("2006-01-02T"), " UTC</time>",
		`value="` + string(r.refOf(t, other)) + `"`, "Sign out everywhere else", `href="/oauth2/sign_out"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(body, `value="`+string(r.refOf(t, alice))+`"`) || strings.Count(body, "<li>") != 2 || strings.Index(body, "This browser") > strings.Index(body, `name="end"`) {
		t.Errorf("the page is %s", body)
	}
	w = r.serveHTTP("GET", "/oauth2/sessions", "", alice, http.Header{"Accept": {"application/json"}})
	var said struct{ Sessions []shownSession }
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || len(said.Sessions) != 2 || !said.Sessions[0].Current ||
		said.Sessions[0].Session != r.refOf(t, alice) || said.Sessions[1].Session != r.refOf(t, other) || said.Sessions[1].Device != "Firefox on Linux" {
		t.Errorf("%s, %v", w.Body, err)
	}
	for _, secret := range append(alice["Cookie"], other["Cookie"]...) {
		_, value, _ := strings.Cut(secret, "=")
		handle, key, _ := strings.Cut(value, ".")
		if all := body + w.Body.String(); strings.Contains(all, handle) || strings.Contains(all, key) {
			t.Error("the page shows a part of a ticket")
		}
	}
	if w := r.serveHTTP("GET", "/oauth2/sign_in", "", page200, alice); !strings.Contains(w.Body.String(), `href="/oauth2/sessions"`) {
		t.Error("the sign-in page does not lead to the sessions")
	}
	if w := r.serveHTTP("GET", "/oauth2/sessions", "", page200); w.Code != http.StatusSeeOther {
		t.Errorf("nobody gets %d", w.Code)
	}
	if w := r.serveHTTP("GET", "/oauth2/sessions", "", http.Header{"Accept": {"application/json"}}); w.Code != http.StatusUnauthorized {
		t.Errorf("a program without a session gets %d", w.Code)
	}
	r.store.err = errors.New("down")
	if w := r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice); w.Code != http.StatusServiceUnavailable {
		t.Errorf("with the store down: %d", w.Code)
	}
}

// A-L2, A-L16, A-M2: what each button ends, and who may press it.
func TestEndSessions(t *testing.T) {
	sameOrigin := http.Header{"Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"navigate"}}
	crossSite := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"navigate"}}
	const end1, endBobs, endOwn = "(alice's other session)", "(bob's session)", "(this session)"
	for _, tc := range []struct {
		name, end string
		header    http.Header
		text      bool   // sent as text/plain, which a page may send anywhere
		token     string // "": of the page; "-": none; else of another form
		ends      []string
		status    int
	}{
		{name: "one", end: end1, ends: []string{"alice 1"}, status: 303},
		{name: "one, as our page's browser says", end: end1, header: sameOrigin, token: "-", ends: []string{"alice 1"}, status: 303},
		{name: "all others", end: endOthers, ends: []string{"alice 1", "alice 2"}, status: 303},
		{name: "everywhere", end: endEverywhere, ends: []string{"alice", "alice 1", "alice 2"}, status: 303},
		{name: "this one", end: endOwn, ends: []string{"alice"}, status: 303},
		{name: "somebody else's", end: endBobs, status: 404},
		{name: "nobody's", end: strings.Repeat("0", 24), status: 404},
		{name: "nothing", end: "", status: 404},
		{name: "another site, with the token", end: endOthers, header: crossSite, ends: []string{"alice 1", "alice 2"}, status: 303},
		{name: "another site", end: endOthers, header: crossSite, token: "-", status: 403},
		{name: "another site, by a form of text/plain", end: endEverywhere, header: crossSite, text: true, token: "-", status: 403},
		{name: "a form of text/plain with the token", end: endEverywhere, text: true, status: 403},
		{name: "an old browser without a token", end: endOthers, token: "-", status: 403},
		{name: "the token of another page", end: endOthers, token: formSignOut, status: 403},
		{name: "the token of bob's page", end: endOthers, token: "bob", status: 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			all := map[string]http.Header{
				"alice": r.signedInAt(t, "alice", ""), "alice 1": r.signedInAt(t, "alice", ""), "alice 2": r.signedInAt(t, "alice", ""),
				"bob": r.signedInAt(t, "bob", ""),
			}
			form := url.Values{"end": {tc.end}}
			switch tc.end {
			case end1:
				form.Set("end", string(r.refOf(t, all["alice 1"])))
			case endBobs:
				form.Set("end", string(r.refOf(t, all["bob"])))
			case endOwn:
				form.Set("end", string(r.refOf(t, all["alice"])))
			}
			switch tc.token {
			case "":
				form.Set("token", tokenOf(t, r.serveHTTP("GET", "/oauth2/sessions", "", page200, all["alice"])))
			case formSignOut:
				form.Set("token", tokenOf(t, r.serveHTTP("GET", "/oauth2/sign_out", "", page200, all["alice"])))
			case "bob":
				form.Set("token", tokenOf(t, r.serveHTTP("GET", "/oauth2/sessions", "", page200, all["bob"])))
			}
			contentType := formHeader
			if tc.text {
				contentType = http.Header{"Content-Type": {"text/plain"}}
			}
			w := r.serveHTTP("POST", "/oauth2/sessions", form.Encode(), page200, contentType, tc.header, all["alice"])
			if w.Code != tc.status {
				t.Errorf("%d: %s", w.Code, w.Body)
			}
			want := map[string]bool{"alice": true, "alice 1": true, "alice 2": true, "bob": true}
			for _, name := range tc.ends {
				delete(want, name)
			}
			r.wantAlive(t, want, all)
			if reason := r.Sessions.Ended(t.Context(), all["alice 1"]); !want["alice 1"] && reason != coatcheck.ReasonSignedOutElsewhere {
				t.Errorf("it ended for %q", reason)
			}
			location := w.Header().Get("Location")
			if cleared := clears(w.Header(), r.Sessions.Jar.Session()); cleared != !want["alice"] || tc.status == 303 && strings.HasPrefix(location, r.issuer) != !want["alice"] {
				t.Errorf("the way leads to %s, the cookie is cleared: %t", location, cleared)
			}
			if tc.status == 404 && (!strings.Contains(w.Body.String(), "That session had ended already.") || tokenOf(t, w) == "") {
				t.Errorf("the page is %s", w.Body)
			}
			if tc.status == 403 && (!strings.Contains(w.Body.String(), "Nothing was ended") || tokenOf(t, w) == "") {
				t.Errorf("the page is %s", w.Body)
			}
		})
	}
}

// A program that ends sessions is told how many; where nobody can tell, it is told so, and
// the own session is the last to end.
func TestEndSessionsUnknown(t *testing.T) {
	r := newRig(t)
	alice, other := r.signedInAt(t, "alice", ""), r.signedInAt(t, "alice", "")
	asScript := http.Header{"Accept": {"application/json"}, "Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"cors"}}
	n := 0
	r.store.fault = func() {
		if n++; n > 1 {
			r.store.err = errors.New("down")
		}
	}
	w := r.serveHTTP("POST", "/oauth2/sessions", "end=everywhere", formHeader, asScript, alice)
	r.store.fault, r.store.err = nil, nil
	if w.Code != http.StatusServiceUnavailable || !r.alive(t, alice) || w.Header()["Set-Cookie"] != nil {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	w = r.serveHTTP("POST", "/oauth2/sessions", "end=others", formHeader, asScript, alice)
	if w.Code != http.StatusOK || !r.alive(t, alice) || r.alive(t, other) {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if w = r.serveHTTP("POST", "/oauth2/sessions", "end=others&end=everywhere", formHeader, asScript, alice); w.Code != http.StatusBadRequest {
		t.Errorf("two answers at once: %d", w.Code)
	}
	if w = r.serveHTTP("POST", "/oauth2/sessions", "end=0", formHeader, asScript, alice); w.Code != http.StatusNotFound || errorOf(t, w) != coatcheck.CodeNotFound ||
		!strings.Contains(w.Body.String(), "You have no session of that name") {
		t.Errorf("nobody's session: %d: %s", w.Code, w.Body)
	}
	asScript.Set("Sec-Fetch-Site", "same-site")
	if w = r.serveHTTP("POST", "/oauth2/sessions", "end=everywhere", formHeader, asScript, alice); w.Code != http.StatusForbidden || errorOf(t, w) != coatcheck.CodeForbiddenOrigin {
		t.Errorf("a script of a neighbouring host: %d: %s", w.Code, w.Body)
	}
	if !r.alive(t, alice) {
		t.Error("the session has ended")
	}
}

// A session that is being ended is not shown any more, and is ended for good with all others.
func TestSessionsThatEnd(t *testing.T) {
	r := newRig(t)
	alice, other := r.signedInAt(t, "alice", "s1"), r.signedInAt(t, "alice", "s2")
	r.store.err = errors.New("down") // of records; the registry takes the mark
	_, err := r.Sessions.EndAll(t.Context(), session.Query{Issuer: r.issuer, SID: "s2"}, "", coatcheck.ReasonRevoked)
	r.store.err = nil
	if err == nil || !r.alive(t, other) {
		t.Fatalf("the record is gone, %v", err)
	}
	if body := r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice).Body.String(); strings.Count(body, "<li>") != 1 ||
		!strings.Contains(body, "You are signed in nowhere else.") || strings.Contains(body, "everywhere") {
		t.Errorf("the page is %s", body)
	}
	token := tokenOf(t, r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice))
	r.serveHTTP("POST", "/oauth2/sessions", url.Values{"token": {token}, "end": {endOthers}}.Encode(), formHeader, page200, alice)
	if r.alive(t, other) || !r.alive(t, alice) {
		t.Error("what is being ended is left to whoever began")
	}
}

// A session that a node of another version has listed is shown for what is known of it, and
// can be ended.
func TestSessionsOfAnotherVersion(t *testing.T) {
	r := newRig(t)
	alice, other := r.signedInAt(t, "alice", "s1"), r.signedInAt(t, "alice", "s2")
	name := string(r.refOf(t, other))
	r.store.listed = func(e store.Entry) []byte {
		if e.ID == name {
			return []byte("of another version")
		}
		return e.Data
	}
	w := r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice)
	if body := w.Body.String(); w.Code != http.StatusOK || strings.Count(body, "<li>") != 2 || !strings.Contains(body, `value="`+name+`"`) ||
		strings.Contains(body, "0001") {
		t.Errorf("%d: %s", w.Code, body)
	}
	form := url.Values{"token": {tokenOf(t, w)}, "end": {name}}.Encode()
	r.serveHTTP("POST", "/oauth2/sessions", form, formHeader, page200, alice)
	if r.alive(t, other) || !r.alive(t, alice) {
		t.Error("it can't be ended")
	}
}

// However many there are, the page stays one that can be read.
func TestManySessions(t *testing.T) {
	r := newRig(t)
	alice := r.signedInAt(t, "alice", "")
	for range maxShown + 4 {
		r.signedInAt(t, "alice", "")
	}
	body := r.serveHTTP("GET", "/oauth2/sessions", "", page200, alice).Body.String()
	if n := strings.Count(body, "<li>"); n != maxShown || !strings.Contains(body, "There are 5 more") || !strings.Contains(body, "in 104 other places") {
		t.Errorf("%d are shown", n)
	}
}

// The page as browsers show it: it can be read by everybody, on every screen.
func TestSessionsPageInABrowser(t *testing.T) {
	r := newRig(t)
	alice := r.signedInAt(t, "alice", "")
	for _, agent := range []string{
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1",
		strings.Repeat("W", 300), "",
	} {
		_, err := r.Sessions.Begin(t.Context(), http.Header{}, http.Header{}, &coatcheck.Session{
			State: coatcheck.Authenticated, Identity: coatcheck.Identity{Issuer: r.issuer, Subject: "alice"},
			Origin: coatcheck.Origin{App: strings.Repeat("long.", 40) + "example.com", IP: "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", UserAgent: agent},
		}, r.Sessions.Now())
		if err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.Host, req.Header["Cookie"] = r.PublicURL.Host, alice["Cookie"]
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	ctx := testenv.StartChromium(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(server.URL+"/oauth2/sessions")); err != nil {
		t.Fatal(err)
	}
	if styled, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("document.styleSheets.length === 1")); err != nil || !styled {
		t.Errorf("the page's style is refused, %v", err)
	}
	problems, err := testenv.Legible(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

func TestDevice(t *testing.T) {
	for agent, want := range map[string]string{
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0":          "Edge on Windows",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36":                        "Chrome on Windows",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15":                  "Safari on Mac",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/141.0 Mobile/15E148 Safari/604.1": "Chrome on iPhone",
		"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36":                        "Chrome on Android",
		"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36":                         "Chrome on ChromeOS",
		"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0":                                                                 "Firefox on Linux",
		"curl/8.5.0":                    "curl",
		"Mozilla/5.0 (Windows NT 10.0)": "Windows",
		"":                              "Unknown browser",
		"a program\x9b of ours":         "a program\ufffd of ours",
		strings.Repeat("é", 200):        strings.Repeat("é", 59) + "…",
	} {
		if got := Device(agent); got != want {
			t.Errorf("%q is %q, want %q", agent, got, want)
		}
	}
}
