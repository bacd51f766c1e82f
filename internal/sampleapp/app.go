// Package sampleapp is a web app to put behind coatcheck: what `coatcheck dev` and the
// examples protect. It has no sign-in of its own. It believes the identity headers,
// shows all that it received, and offers something of each kind that a proxy has to
// carry: pages, JSON, uploads, slow answers, WebSockets and event streams.
//
// Because it believes the headers, it must be reachable through the proxy only.
package sampleapp

import (
	"bytes"
	"embed"
	"encoding/json"
	"html/template"
	"net/http"
)

// Options say which instance of the app this is.
type Options struct {
	Name string // shown as "node"; empty: "app"
}

type app struct{ name string }

//go:embed pages/index.html
var pageFiles embed.FS

//go:embed pages/style.css
var styleCSS []byte

//go:embed pages/live.js
var liveJS []byte

//go:embed pages/icon.svg
var iconSVG []byte

var index = template.Must(template.ParseFS(pageFiles, "pages/index.html"))

// New returns the app. It serves its page under every path it has no other use for, so
// that any route can be tried with it. Event streams and WebSockets end, the latter
// with "going away", when the request's context does.
func New(o Options) http.Handler {
	a := &app{name: o.Name}
	if a.name == "" {
		a.name = "app"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", a.page)
	mux.HandleFunc("GET /whoami", a.whoami)
	mux.HandleFunc("GET /ws", a.echo)
	mux.HandleFunc("GET /events", a.events)
	mux.HandleFunc("GET /slow", a.slow)
	mux.HandleFunc("POST /upload", a.upload)
	mux.HandleFunc("/status/{code}", a.status)
	mux.HandleFunc("GET /assets/style.css", asset("text/css; charset=utf-8", styleCSS))
	mux.HandleFunc("GET /assets/live.js", asset("text/javascript; charset=utf-8", liveJS))
	mux.HandleFunc("GET /assets/icon.svg", asset("image/svg+xml", iconSVG))
	return mux
}

func asset(contentType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(body)
	}
}

func (a *app) page(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this path takes GET only", http.StatusMethodNotAllowed)
		return
	}
	var body bytes.Buffer
	err := index.Execute(&body, struct {
		Node    string
		Request string
		Visitor visitor
		Headers []header
	}{a.name, r.Method + " " + r.URL.RequestURI(), visitorOf(r), headersOf(r)})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "+
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(body.Bytes())
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone; nobody to tell
}
