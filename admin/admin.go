// Package admin serves what is for operators, on a listener of its own that is never
// the public one: the metrics, and the Go runtime's profiles.
package admin

import (
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
)

// New returns the handler of the admin listener at addr.
//
// At a loopback address it answers only who asks for an IP address or for localhost, and
// everybody else with 403. A web page whose author lets its name lead to that address (DNS
// rebinding) is of the same origin to the browser on this machine, and only the name in its
// requests gives it away. Elsewhere every name may be one that operators use.
//
// A profile names functions and counts; no value of a request is in one. The handlers
// are named one by one: pprof also registers itself on http.DefaultServeMux, which
// nothing serves, and its cmdline handler is of no use here.
func New(metrics http.Handler, addr net.Addr) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.Handle("GET /debug/pprof/heap", pprof.Handler("heap"))
	mux.Handle("GET /debug/pprof/goroutine", pprof.Handler("goroutine"))
	if at, err := netip.ParseAddrPort(addr.String()); err == nil && at.Addr().Unmap().IsLoopback() {
		return onlyLocal(mux)
	}
	return mux
}

// onlyLocal refuses requests for names that anybody may let lead here.
func onlyLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r.Host) {
			http.Error(w, "admin.listen is a loopback address: ask for it, or for localhost, and for no other name", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLocal tells whether a Host is an IP address or localhost, with or without a port.
func isLocal(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	_, err = netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}
