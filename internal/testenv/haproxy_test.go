package testenv

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func get(t *testing.T, url string) string {
	t.Helper()
	page, err := NewBrowser(t).Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return page.Body
}

func TestHAProxyServes(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "app") }))
	t.Cleanup(app.Close)
	addr := Loopback(FreePort(t))
	p := StartHAProxy(t, addr, `
defaults
	mode http
	timeout connect 1s
	timeout client 5s
	timeout server 5s
frontend f
	bind "${LISTEN}"
	default_backend b
backend b
	server app "${APP}"
`, "LISTEN="+addr, "APP="+app.Listener.Addr().String())
	if got := get(t, "http://"+addr+"/"); got != "app" {
		t.Errorf("got %q", got)
	}
	p.Stop()
}
