// Package admin serves what is for operators, on a listener of its own that is never
// the public one: the metrics, and the Go runtime's profiles.
package admin

import (
	"net/http"
	"net/http/pprof"
)

// New returns the handler of the admin listener.
//
// A profile names functions and counts; no value of a request is in one. The handlers
// are named one by one: pprof also registers itself on http.DefaultServeMux, which
// nothing serves, and its cmdline handler is of no use here.
func New(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.Handle("GET /debug/pprof/heap", pprof.Handler("heap"))
	mux.Handle("GET /debug/pprof/goroutine", pprof.Handler("goroutine"))
	return mux
}
