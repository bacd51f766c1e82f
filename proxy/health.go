package proxy

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A Pinger answers whether the session store can be used. store.Backend fits.
type Pinger interface {
	Ping(ctx context.Context) error
}

const (
	pingTimeout = 2 * time.Second
	// readyFor is how long one answer of the store serves all health checks, so that
	// a flood of them costs the store nothing.
	readyFor = 200 * time.Millisecond
)

// What health checks are called in logs and metrics, beside routes and endpoints.
const (
	routePing  = "ping"
	routeReady = "ready"
)

// healthCheck returns the handler of /ping and /ready, or nil. The target must be
// exactly that, byte for byte, with no query; no header plays a part.
func (p *Proxy) healthCheck(r *http.Request) endpoint {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return nil
	}
	switch r.RequestURI {
	case "/ping":
		return p.ping
	case "/ready":
		return p.answerReady
	}
	return nil
}

// ping answers that the process lives.
func (p *Proxy) ping(x *exchange) error {
	x.route = routePing
	h := x.w.Header()
	ownHeaders(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = x.w.Write([]byte("OK\n"))
	return nil
}

// answerReady tells a load balancer whether to send requests here: while the store
// answers, or the outage grace lets people go on without it, and the node isn't shutting
// down. A provider that is down doesn't make a node unready, since the people who are
// signed in are served without it; the body tells.
func (p *Proxy) answerReady(x *exchange) error {
	x.route = routeReady
	body := struct {
		Ready  bool   `json:"ready"`
		Store  string `json:"store"`
		SignIn string `json:"sign_in"`
		Drain  bool   `json:"draining"`
	}{Store: "ok", SignIn: "ok", Drain: p.draining.Load()}
	away, err := p.Readiness.check(x.r.Context())
	usable := err == nil || away <= p.Sessions.OutageGrace
	message, level, attrs := "ready", slog.LevelInfo, []any{"request_id", x.id}
	if err != nil {
		level, attrs = slog.LevelWarn, append(attrs, "error", err)
	}
	switch {
	case err == nil:
	case usable:
		body.Store = "unavailable, in outage grace"
		message = "ready in outage grace"
	default:
		body.Store = "unavailable"
		message = "not ready"
	}
	// Load balancers ask all day, so only what has changed since the last answer is told.
	if p.Readiness.told.Swap(message) != message {
		p.Logger.Log(x.r.Context(), level, message, attrs...)
	}
	if p.SignIn.Ready() != nil {
		body.SignIn = "unavailable"
	}
	body.Ready = usable && !body.Drain
	status := http.StatusOK
	if !body.Ready {
		status = http.StatusServiceUnavailable
	}
	return writeJSON(x, status, body)
}

func writeJSON(x *exchange, status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return coatcheck.E(coatcheck.CodeInternal, "proxy.json", err)
	}
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	ownHeaders(h)
	x.w.WriteHeader(status)
	_, _ = x.w.Write(append(data, '\n'))
	return nil
}

// A Readiness remembers the store's last answer for readyFor. One caller asks, the
// others wait for its answer.
type Readiness struct {
	store    Pinger
	mu       sync.Mutex
	until    time.Time
	answered time.Time // when the store was asked last and answered; zero before that
	err      error
	told     atomic.Value // what the log says of it: a string
}

// NewReadiness returns the Readiness of a store. There is one for each, for as long as it is
// used.
func NewReadiness(store Pinger) *Readiness { return &Readiness{store: store} }

// never is longer than any outage grace.
const never = time.Duration(math.MaxInt64)

// check returns the store's error, and for how long it has not answered.
func (c *Readiness) check(ctx context.Context) (away time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); !now.Before(c.until) {
		// Detached: a health checker that hangs up must not make the next one believe
		// that the store is down.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
		defer cancel()
		if c.err = c.store.Ping(ctx); c.err == nil {
			c.answered = now
		}
		c.until = time.Now().Add(readyFor)
	}
	if c.err == nil {
		return 0, nil
	}
	if c.answered.IsZero() {
		return never, c.err
	}
	return time.Since(c.answered), c.err
}
