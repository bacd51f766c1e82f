package testenv

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBrowserKeepsCookiesAsBrowsersDo(t *testing.T) {
	long := strings.Repeat("x", 4096)
	tests := []struct {
		name, url, cookie string
		kept              bool
	}{
		{"plain", "http://app.test/", "a=1; Path=/", true},
		{"secure on loopback", "http://127.0.0.1:4180/", "a=1; Path=/; Secure", true},
		{"secure on localhost", "http://localhost:4180/", "a=1; Path=/; Secure", true},
		{"secure without TLS", "http://app.test/", "a=1; Path=/; Secure", false},
		{"host prefix", "https://app.test/", "__Host-a=1; Path=/; Secure", true},
		{"host prefix not secure", "https://app.test/", "__Host-a=1; Path=/", false},
		{"host prefix with a path", "https://app.test/", "__Host-a=1; Path=/x; Secure", false},
		{"host prefix without a path", "https://app.test/", "__Host-a=1; Secure", false},
		{"host prefix with a domain", "https://app.test/", "__Host-a=1; Path=/; Secure; Domain=app.test", false},
		{"secure prefix", "https://app.test/", "__Secure-a=1; Path=/; Secure; Domain=app.test", true},
		{"secure prefix not secure", "https://app.test/", "__secure-a=1; Path=/; Domain=app.test", false},
		{"too long", "https://app.test/", "a=" + long + "; Path=/", false},
		{"just short enough", "https://app.test/", "a=" + long[1:] + "; Path=/", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			c, err := http.ParseSetCookie(tt.cookie)
			if err != nil {
				t.Fatal(err)
			}
			jar := NewBrowser(t).Jar
			jar.SetCookies(u, []*http.Cookie{c})
			if kept := len(jar.Cookies(u)) == 1; kept != tt.kept {
				t.Errorf("kept = %t, want %t", kept, tt.kept)
			}
		})
	}
}

func TestBrowserNavigates(t *testing.T) {
	var seen []string
	note := func(r *http.Request) {
		seen = append(seen, fmt.Sprintf("%s %s site=%s mode=%s origin=%t referer=%t", r.Method, r.URL.Path,
			r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Origin") != "", r.Referer() != ""))
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		note(r)
		if r.URL.Path == "/form" {
			fmt.Fprint(w, `<form id="f" method="post" action="/send?x=1"><input type="hidden" name="csrf" value="t">
				<input name="username"><input name="password"></form><input name="stray" value="no">
				<button form="f" name="go" value="yes"></button><button form="f" name="go" value="no"></button>`)
			return
		}
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		want := url.Values{
			"x": {"1"}, "csrf": {"t"}, "username": {"u1"}, "password": {"u1"}, "go": {"yes"},
		}
		if diff := cmp.Diff(want, r.Form); diff != "" {
			t.Errorf("form (-want +got):\n%s", diff)
		}
		http.Redirect(w, r, strings.Replace("http://"+r.Host, "127.0.0.1", "localhost", 1)+"/hop", http.StatusSeeOther)
	}))
	t.Cleanup(other.Close)
	mux := http.NewServeMux()
	mux.Handle("/", other.Config.Handler)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		note(r)
		http.Redirect(w, r, other.URL+"/form", http.StatusFound)
	}))
	t.Cleanup(app.Close)
	other.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hop" {
			note(r)
			fmt.Fprint(w, "done")
			return
		}
		mux.ServeHTTP(w, r)
	})

	page, err := NewBrowser(t).SignIn(t.Context(), app.URL+"/start", "u1")
	if err != nil {
		t.Fatal(err)
	}
	if page.Body != "done" || page.URL.Path != "/hop" || len(page.Redirects) != 1 {
		t.Errorf("ended at %s after %q with %q", page.URL, page.Redirects, page.Body)
	}
	want := []string{
		"GET /start site=none mode=navigate origin=false referer=false",
		"GET /form site=none mode=navigate origin=false referer=false",
		"POST /send site=same-origin mode=navigate origin=true referer=false",
		"GET /hop site=cross-site mode=navigate origin=false referer=false",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestBrowserStopsAtARedirectLoop(t *testing.T) {
	asked := 0
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, "/", http.StatusFound)
	}))
	t.Cleanup(loop.Close)
	if _, err := NewBrowser(t).Open(t.Context(), loop.URL); err == nil {
		t.Error("no error")
	}
	if asked != maxRedirects+1 {
		t.Errorf("asked %d times, want %d", asked, maxRedirects+1)
	}
}

func TestBrowserFetchIsNoNavigation(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
			t.Errorf("Sec-Fetch-Mode = %q", mode)
		}
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	}))
	t.Cleanup(server.Close)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/api", nil)
	if err != nil {
		t.Fatal(err)
	}
	page, err := NewBrowser(t).Fetch(req)
	if err != nil {
		t.Fatal(err)
	}
	if page.Status != http.StatusFound || page.URL.Path != "/api" {
		t.Errorf("%d at %s, want the redirect itself", page.Status, page.URL)
	}
}
