package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The roles that this program takes when it runs itself again: "bench role:NAME
// ADDRESS [URL [DURATION]]".
const (
	roleApp   = "role:app"   // what all proxies stand in front of
	roleBare  = "role:bare"  // what coatcheck is compared with
	roleEmpty = "role:empty" // what /oauth2/auth is compared with
	// roleGrants stands before a provider; see grants. A third argument is the life of access
	// tokens.
	roleGrants = "role:grants"
)

// bodySize is the size of the app's answer, in bytes.
const bodySize = 2 << 10

// serveRole serves a role until the process is killed. ok is false if args name none.
func serveRole(args []string) (code int, ok bool) {
	if len(args) < 2 || !strings.HasPrefix(args[0], "role:") {
		return 0, false
	}
	var h http.Handler
	switch args[0] {
	case roleApp:
		h = app()
	case roleBare:
		target, err := url.Parse(args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1, true
		}
		h = bareProxy(target)
	case roleGrants:
		target, err := url.Parse(args[2])
		life, lifeErr := time.ParseDuration(args[3])
		if err := errors.Join(err, lifeErr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1, true
		}
		h = newGrants(target, life)
	case roleEmpty:
		h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	default:
		fmt.Fprintln(os.Stderr, "no such role:", args[0])
		return 2, true
	}
	// The timeouts are coatcheck's own: setting them costs something.
	server := &http.Server{Addr: args[1], Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	return 1, true
}

// app answers every request with bodySize bytes.
func app() http.Handler {
	body := strings.Repeat("coatcheck bench\n", bodySize/16)
	length := strconv.Itoa(len(body))
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Content-Length", length)
		_, _ = io.WriteString(w, body)
	})
}

// bareProxy is the least that a reverse proxy in Go does, and tuned: buffers are
// reused, as are up to 512 connections to the app.
func bareProxy(target *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 512,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		},
		BufferPool: &bufferPool{sync.Pool{New: func() any { return new([32 << 10]byte) }}},
		ErrorLog:   log.New(io.Discard, "", 0),
	}
}

type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) Get() []byte  { return p.pool.Get().(*[32 << 10]byte)[:] }
func (p *bufferPool) Put(b []byte) { p.pool.Put((*[32 << 10]byte)(b)) }
