package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A ProviderProxy stands between a Provider and its clients: the issuer is its address. It
// counts the refresh tokens that pass, and makes trouble when it is told to.
//
// The token endpoint alone is https, so that "before anything was sent" is no matter of
// opinion: a connection that ends before the handshake has carried no request, and both
// sides know.
type ProviderProxy struct {
	// CAFile holds the authority of the token endpoint's certificate. A process trusts it
	// with SSL_CERT_FILE.
	CAFile string

	t       testing.TB
	issuer  string
	host    string // of the issuer
	tokens  string // host:port of the token endpoint
	config  *tls.Config
	forward *httputil.ReverseProxy

	pages  *http.Server // the issuer
	grants *http.Server // the token endpoint

	mu      sync.Mutex
	open    []net.Listener // none while it is cut off
	faults  RefreshFaults
	over    chan struct{} // closed when faults are no longer those
	random  *rand.Rand
	waiting int
	counts  PassedRefreshes
	passed  map[[sha256.Size]byte]int
	fresh   map[[sha256.Size]byte]bool
}

// RefreshFaults are what may happen to refreshes at a ProviderProxy. Other requests pass.
type RefreshFaults struct {
	Seed uint64 // decides for whom a share falls due
	// Before is how long a refresh waits until the provider gets it, After how long the
	// answer waits then. Both end with the faults.
	Before, After time.Duration
	// Unavailable is the share of refreshes that are answered with 503. The provider does
	// not see them.
	Unavailable float64
	// Reset is the share of connections that are reset before the handshake.
	Reset float64
	// Lose breaks the connection off where the provider's answer should come.
	Lose bool
}

// PassedRefreshes says what passed a ProviderProxy.
type PassedRefreshes struct {
	Total       int // refreshes that the provider was given
	Most        int // how many of them had the same token
	Unavailable int // that were answered with 503
	Reset       int // connections that were reset
	Revoked     int // tokens that a refresh has brought and a client has revoked
}

func startProviderProxy(t testing.TB, provider string) *ProviderProxy {
	t.Helper()
	certs := NewCertificates(t)
	cert, err := tls.LoadX509KeyPair(certs.CertFile, certs.KeyFile)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	x := &ProviderProxy{
		CAFile: certs.CAFile,
		t:      t,
		host:   Loopback(FreePort(t)),
		tokens: Loopback(FreePort(t)),
		config: &tls.Config{Certificates: []tls.Certificate{cert}},
		over:   make(chan struct{}),
		random: rand.New(rand.NewPCG(0, 0)),
		passed: map[[sha256.Size]byte]int{},
		fresh:  map[[sha256.Size]byte]bool{},
	}
	x.issuer = "http://" + x.host
	x.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: provider})
			r.Out.Host = x.host
			r.Out.Header.Del("Accept-Encoding") // answers are read here
		},
		// A connection that is used twice may be closed by the other side meanwhile.
		Transport:      &http.Transport{DisableKeepAlives: true},
		ModifyResponse: x.answer,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			var dial *net.OpError
			if errors.As(err, &dial) && dial.Op == "dial" {
				x.turnedBack(r)
				http.Error(w, "the provider is down", http.StatusServiceUnavailable)
				return
			}
			panic(http.ErrAbortHandler)
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	x.pages = &http.Server{Handler: x, ErrorLog: log.New(io.Discard, "", 0)}
	// Whoever keeps a connection for later finds it closed, or just being closed.
	x.grants = &http.Server{Handler: x, IdleTimeout: 20 * time.Millisecond, ErrorLog: log.New(io.Discard, "", 0)}
	x.Restore()
	t.Cleanup(func() {
		x.Fault(RefreshFaults{})
		x.Cut()
		_ = x.pages.Close()
		_ = x.grants.Close()
	})
	return x
}

// Fault ends the faults so far, and begins others.
func (x *ProviderProxy) Fault(f RefreshFaults) {
	x.mu.Lock()
	defer x.mu.Unlock()
	close(x.over)
	x.over = make(chan struct{})
	x.faults, x.random = f, rand.New(rand.NewPCG(f.Seed, f.Seed))
}

// Passed counts since the start.
func (x *ProviderProxy) Passed() PassedRefreshes {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.counts
}

// Waiting returns how many refreshes a fault delays now.
func (x *ProviderProxy) Waiting() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.waiting
}

// Cut refuses all connections, and closes those that are idle. What is under way goes on.
func (x *ProviderProxy) Cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range x.open {
		_ = l.Close()
	}
	x.open = nil
	x.pages.SetKeepAlivesEnabled(false) // closes those that are idle
}

// Restore ends a Cut.
func (x *ProviderProxy) Restore() {
	x.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pages.SetKeepAlivesEnabled(true)
	x.listen(x.pages, x.host, func(l net.Listener) net.Listener { return l })
	x.listen(x.grants, x.tokens, func(l net.Listener) net.Listener { return tls.NewListener(&resetting{l, x}, x.config) })
}

// listen is called with x.mu held.
func (x *ProviderProxy) listen(s *http.Server, addr string, wrap func(net.Listener) net.Listener) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		x.t.Errorf("testenv: the provider's proxy: %v", err)
		return
	}
	l = wrap(l)
	x.open = append(x.open, l)
	go func() { _ = s.Serve(l) }()
}

// resetting is a listener that resets its share of the connections.
type resetting struct {
	net.Listener
	proxy *ProviderProxy
}

func (l *resetting) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.proxy.resets() {
			return conn, err
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

func (x *ProviderProxy) resets() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	due := x.random.Float64() < x.faults.Reset
	if due {
		x.counts.Reset++
	}
	return due
}

// ServeHTTP implements http.Handler.
func (x *ProviderProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, _ := url.ParseQuery(string(body))
		switch {
		case r.URL.Path == "/token/revocation":
			x.revoked(form.Get("token"))
		case r.URL.Path == "/token" && form.Get("grant_type") == "refresh_token":
			hash := sha256.Sum256([]byte(form.Get("refresh_token")))
			if !x.pass(hash) {
				w.Header().Set("Retry-After", "1")
				http.Error(w, "not now", http.StatusServiceUnavailable)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), refreshKey{}, hash))
		}
	}
	x.forward.ServeHTTP(w, r)
}

// refreshKey is where the context of a refresh has its token's hash.
type refreshKey struct{}

// pass takes a refresh on its way to the provider, unless it is to be answered with 503.
func (x *ProviderProxy) pass(hash [sha256.Size]byte) bool {
	x.mu.Lock()
	f := x.faults
	if x.random.Float64() < f.Unavailable {
		x.counts.Unavailable++
		x.mu.Unlock()
		return false
	}
	x.counts.Total++
	x.passed[hash]++
	x.counts.Most = max(x.counts.Most, x.passed[hash])
	x.mu.Unlock()
	x.wait(f.Before)
	return true
}

// turnedBack takes back that a request has passed, if it is a refresh.
func (x *ProviderProxy) turnedBack(r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if hash, ok := r.Context().Value(refreshKey{}).([sha256.Size]byte); ok {
		x.counts.Total--
		x.passed[hash]--
	}
}

// wait waits for so long, or until the faults are over.
func (x *ProviderProxy) wait(d time.Duration) {
	if d == 0 {
		return
	}
	x.mu.Lock()
	over := x.over
	x.waiting++
	x.mu.Unlock()
	select {
	case <-time.After(d):
	case <-over:
	}
	x.mu.Lock()
	x.waiting--
	x.mu.Unlock()
}

// answer takes an answer on its way back.
func (x *ProviderProxy) answer(resp *http.Response) error {
	refresh := resp.Request.Context().Value(refreshKey{}) != nil
	discovery := resp.Request.URL.Path == "/.well-known/openid-configuration"
	if !refresh && !discovery {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if discovery {
		var metadata map[string]any
		if err := json.Unmarshal(body, &metadata); err != nil {
			return err
		}
		metadata["token_endpoint"] = "https://" + x.tokens + "/token"
		if body, err = json.Marshal(metadata); err != nil {
			return err
		}
	}
	if refresh {
		var tokens struct {
			Refresh string `json:"refresh_token"`
		}
		_ = json.Unmarshal(body, &tokens) // a refusal has none
		x.mu.Lock()
		f := x.faults
		if tokens.Refresh != "" {
			x.fresh[sha256.Sum256([]byte(tokens.Refresh))] = true
		}
		x.mu.Unlock()
		x.wait(f.After)
		if f.Lose {
			return errors.New("the answer is lost")
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

func (x *ProviderProxy) revoked(token string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fresh[sha256.Sum256([]byte(token))] {
		x.counts.Revoked++
	}
}
