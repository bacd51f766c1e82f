// Package admin serves what is for operators, on a listener of its own that is never
// the public one: the metrics.
package admin

import "net/http"

// New returns the handler of the admin listener.
func New(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	return mux
}
