package proxy

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
)

var page200 = http.Header{"Accept": {"text/html"}}

// TestSignOut: a sign-out acts at once for our own pages and for the form of the confirm
// page, and for nobody else (A-L2).
func TestSignOut(t *testing.T) {
	r := newRig(t)
	_, others := r.signedIn(t, "bob")
	token := func(live *session.Live, until time.Time) string {
		token, err := r.formToken(&exchange{live: live}, formSignOut, until)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	soon, past := time.Now().Add(time.Minute), time.Now().Add(-time.Second)
	bob, _ := r.Sessions.Load(t.Context(), others)
	for _, tt := range []struct {
		name, method, site string
		mode, dest         string
		purpose            string
		token              func(*session.Live) string
		inQuery            bool
		ends               bool
	}{
		{name: "a link on our own page", method: "GET", site: "same-origin", ends: true},
		{name: "a form on our own page", method: "POST", site: "same-origin", ends: true},
		{name: "a script on our own page", method: "POST", site: "same-origin", mode: "cors", dest: "empty", ends: true},
		{name: "a link that says so in full", method: "GET", site: "same-origin", mode: "navigate", dest: "document", ends: true},
		{name: "an image with crossorigin on our own page", method: "GET", site: "same-origin", mode: "cors", dest: "image"},
		{name: "a frame on our own page", method: "GET", site: "same-origin", mode: "navigate", dest: "iframe"},
		{name: "an object on our own page", method: "GET", site: "same-origin", mode: "navigate", dest: "object"},
		{name: "an image on our own page", method: "GET", site: "same-origin", mode: "no-cors"},
		{name: "a link that is fetched ahead", method: "GET", site: "same-origin", mode: "navigate", purpose: "prefetch;prerender"},
		{name: "a typed address", method: "GET", site: "none"},
		{name: "an image on another site", method: "GET", site: "cross-site"},
		{name: "a form on another site", method: "POST", site: "cross-site"},
		{name: "a page on a neighbouring host", method: "GET", site: "same-site"},
		{name: "a form on a neighbouring host", method: "POST", site: "same-site"},
		{name: "an old browser", method: "GET"},
		{name: "an old browser's form", method: "POST"},
		{name: "the confirm page", method: "POST", token: func(l *session.Live) string { return token(l, soon) }, ends: true},
		{name: "the confirm page, opened from elsewhere", method: "POST", site: "cross-site", token: func(l *session.Live) string { return token(l, soon) }, ends: true},
		{name: "the token of another session", method: "POST", token: func(*session.Live) string { return token(bob, soon) }},
		{name: "a token that is over", method: "POST", token: func(l *session.Live) string { return token(l, past) }},
		{name: "a token in the query", method: "POST", token: func(l *session.Live) string { return token(l, soon) }, inQuery: true},
		{name: "a token with GET", method: "GET", token: func(l *session.Live) string { return token(l, soon) }, inQuery: true},
		{name: "junk", method: "POST", token: func(*session.Live) string { return "junk" }},
		{name: "what another purpose has sealed", method: "POST", token: func(l *session.Live) string {
			other, err := r.formToken(&exchange{live: l}, formSessions, soon)
			if err != nil {
				t.Fatal(err)
			}
			return other
		}},
		{name: "what another tenant has sealed", method: "POST", token: func(l *session.Live) string {
			place := r.formPlace(formSignOut)
			place.Tenant = "other"
			return sealed(t, r.Ring, place, []byte(soon.UTC().Format(time.RFC3339)+" "+string(l.Ref)))
		}},
		{name: "no time in it", method: "POST", token: func(l *session.Live) string {
			return sealed(t, r.Ring, r.formPlace(formSignOut), []byte(" "+string(l.Ref)))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			live, alice := r.signedIn(t, "alice")
			form := url.Values{}
			if tt.token != nil {
				form.Set("token", tt.token(live))
			}
			target, body := "/oauth2/sign_out", form.Encode()
			if tt.inQuery {
				target, body = target+"?"+body, ""
			}
			header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
			if tt.site != "" {
				header.Set("Sec-Fetch-Site", tt.site)
			}
			if tt.mode != "" {
				header.Set("Sec-Fetch-Mode", tt.mode)
			}
			if tt.dest != "" {
				header.Set("Sec-Fetch-Dest", tt.dest)
			}
			if tt.purpose != "" {
				header.Set("Sec-Purpose", tt.purpose)
			}
			w := r.serveHTTP(tt.method, target, body, alice, header, page200)
			if alive := r.alive(t, alice); alive == tt.ends {
				t.Errorf("alive after it: %v", alive)
			}
			if tt.ends {
				if w.Code != http.StatusSeeOther || !strings.HasPrefix(w.Header().Get("Location"), r.issuer+"/") {
					t.Errorf("%d, Location %q", w.Code, w.Header().Get("Location"))
				}
				if !clears(w.Header(), r.Sessions.Jar.Session()) {
					t.Errorf("Set-Cookie: %q", w.Header()["Set-Cookie"])
				}
				return
			}
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Sign out?") || w.Header()["Set-Cookie"] != nil {
				t.Errorf("%d, Set-Cookie %q", w.Code, w.Header()["Set-Cookie"])
			}
		})
	}
	if !r.alive(t, others) {
		t.Error("bob's session has ended with alice's")
	}
}

// TestConfirmPage follows the page: its own token signs out, and carries the return URL.
func TestConfirmPage(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	w := r.serveHTTP("GET", "/oauth2/sign_out?rd=/bye", "", alice, page200)
	_, rest, _ := strings.Cut(w.Body.String(), `name="token" value="`)
	token, _, _ := strings.Cut(rest, `"`)
	if !strings.Contains(w.Body.String(), `name="rd" value="/bye"`) || token == "" {
		t.Fatalf("the page is %s", w.Body)
	}
	if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' "+r.issuer+";") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}
	w = r.serveHTTP("POST", "/oauth2/sign_out", url.Values{"token": {token}, "rd": {"/bye"}}.Encode(), alice,
		http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
	if w.Code != http.StatusSeeOther || r.alive(t, alice) {
		t.Fatalf("%d, alive: %v", w.Code, r.alive(t, alice))
	}
	end, err := url.Parse(w.Header().Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	w = r.serveHTTP("GET", "/oauth2/sign_out/done?state="+url.QueryEscape(end.Query().Get("state")), "", page200)
	if w.Header().Get("Location") != "/bye" {
		t.Errorf("after the provider: %d, Location %q", w.Code, w.Header().Get("Location"))
	}
	// The token is of use once, since it names a session that has ended.
	w = r.serveHTTP("POST", "/oauth2/sign_out?rd=//evil.com", "token="+token, alice, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
	if w.Code != http.StatusBadRequest {
		t.Errorf("a bad return URL: %d", w.Code)
	}
}

// TestSignOutUnknown: who was not signed out is not told so.
func TestSignOutUnknown(t *testing.T) {
	r := newRig(t)
	_, alice := r.signedIn(t, "alice")
	reads := 0
	r.store.fault = func() {
		if reads++; reads > 1 { // the session is read, and its record can't be deleted
			r.store.err = errors.New("down")
		}
	}
	w := r.serveHTTP("GET", "/oauth2/sign_out", "", alice, http.Header{"Sec-Fetch-Site": {"same-origin"}})
	r.store.fault, r.store.err = nil, nil
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header()["Set-Cookie"] != nil {
		t.Errorf("%d, Set-Cookie %q", w.Code, w.Header()["Set-Cookie"])
	}
	if !r.alive(t, alice) {
		t.Error("the session has ended")
	}
}

func sealed(t *testing.T, ring *seal.Ring, place seal.Place, plain []byte) string {
	t.Helper()
	value, err := ring.SealValue(place, plain)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// clears tells whether a response deletes the cookie.
func clears(h http.Header, name string) bool {
	for _, line := range h["Set-Cookie"] {
		if strings.HasPrefix(line, name+"=;") && strings.Contains(line, "; Max-Age=0;") {
			return true
		}
	}
	return false
}

// TestReturnURLsOfOurOwn: nothing but the sign-in page can be put behind a sign-in or a
// sign-out.
func TestReturnURLsOfOurOwn(t *testing.T) {
	r := newRig(t)
	absolute := r.PublicURL.String() + "/oauth2/sign_out"
	for rd, status := range map[string]int{
		"/oauth2/sign_in":     http.StatusOK,
		"/oauth2start":        http.StatusOK,
		"/x?rd=/oauth2/start": http.StatusOK,
		"/oauth2/start?rd=/":  http.StatusBadRequest,
		"/oauth2/sign_out":    http.StatusBadRequest,
		"/%6fauth2/sign_out":  http.StatusBadRequest,
		"/oauth2":             http.StatusBadRequest,
		absolute:              http.StatusBadRequest,
	} {
		if w := r.serveHTTP("GET", "/oauth2/sign_in?rd="+url.QueryEscape(rd), ""); w.Code != status {
			t.Errorf("rd=%s: %d, want %d", rd, w.Code, status)
		}
	}
}
