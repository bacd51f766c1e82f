// Package proxy is the request line: what happens to a request between the socket and
// the app. [Proxy.serve] reads from top to bottom and is the function to start with.
//
// Every step returns an error instead of answering; render.go turns errors into
// answers, in one place.
package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/metrics"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/upstream"
)

// Options are one configuration, wired and ready to serve. All fields are required, except
// Trusted and AccessLog. A Proxy never changes them.
type Options struct {
	// PublicURL is where browsers find us. It alone says what is https and which host
	// is ours (invariant 14).
	PublicURL *url.URL
	// Prefix is the path of our own endpoints, without a slash at the end.
	Prefix string
	// Trusted are the peers whose X-Forwarded-* headers are believed.
	Trusted   []netip.Prefix
	Limits    route.Limits
	Routes    *route.Table[Route]
	Allow     policy.Rule // who may sign in at all
	Tenant    string
	Sessions  *session.Manager
	SignIn    *oidc.RelyingParty
	Returns   *oidc.Returns
	Ring      *seal.Ring
	Readiness *Readiness
	Metrics   *metrics.Metrics
	Logger    *slog.Logger
	// BodyTimeout bounds the wait for a body that no app gets: of a form of ours, or of a
	// request that is refused. An upload to an app may take longer (upstream.Options).
	BodyTimeout time.Duration
	// AccessLog takes a line for each request, in one Write, by many goroutines at once;
	// nil: none are written.
	AccessLog io.Writer
}

// A Route is what the configuration says of a host and path.
type Route struct {
	Name    string // as it stands in logs and metrics
	Require coatcheck.State
	Allow   policy.Rule
	// MethodGuarded: which route a request belongs to depends on its method, so headers
	// by which some apps read another method than the request's are not passed on.
	MethodGuarded bool
	// Upstream is nil for a route that serves forward-auth only.
	Upstream *upstream.Upstream
}

// A Proxy answers requests. It is safe for concurrent use.
type Proxy struct {
	Options
	endpoints map[string]endpoint
	draining  atomic.Bool
}

// New returns a Proxy.
func New(o Options) *Proxy {
	p := &Proxy{Options: o}
	p.endpoints = p.ownEndpoints()
	return p
}

// Drain makes /ready answer 503 from now on, so that load balancers send new requests
// elsewhere. Requests are served as before, but each answer ends its connection. One
// that is idle is left open: a request may be on its way on it.
func (p *Proxy) Drain() { p.draining.Store(true) }

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{w: response{ResponseWriter: w}, r: r, start: time.Now(), client: p.peer(r)}
	defer p.finish(x)
	x.bodyUntil(x.start.Add(p.BodyTimeout))
	x.id = x.client.requestID(r)
	switch {
	case len(r.TransferEncoding) > 0: // perhaps beside a Content-Length, which net/http does not tell (RFC 9112 §6.1)
		w.Header().Set("Connection", "close")
	case p.draining.Load() && r.Header.Get("Upgrade") == "": // a 101's Connection is the app's
		w.Header().Set("Connection", "close")
	}
	if err := p.serve(x); err != nil {
		p.render(x, err)
	}
}

// serve is the request line. It answers the request and returns nil, or returns an
// error before anything was written.
func (p *Proxy) serve(x *exchange) error {
	// Health checks come first: they send no Host that we know, and ask nothing of
	// the request but these exact bytes.
	if check := p.healthCheck(x.r); check != nil {
		return check(x)
	}

	// The request is parsed once. From here on everything is judged, and forwarded,
	// by its canonical form (invariant 9).
	req, err := route.Canonical(x.r, p.PublicURL.Scheme, p.Limits)
	if err != nil {
		return err
	}
	x.req = req

	if endpoint := p.own(x); endpoint != nil {
		return endpoint(x)
	}

	target, err := p.judge(x, req)
	if err != nil {
		return err
	}
	return p.forward(x, target)
}

// judge finds the route of a request, loads the session and decides. Forward-auth
// runs it too, on the request that it is asked about. The error says why the request
// may not pass.
func (p *Proxy) judge(x *exchange, req route.Request) (*Route, error) {
	target, err := p.Routes.Match(req)
	if err != nil {
		if !p.serves(req.Host) {
			return nil, coatcheck.E(coatcheck.CodeMisdirected, "proxy.route", errors.New("no route has the host "+req.Host))
		}
		return nil, err
	}
	x.route = target.Name
	if err := p.loadSession(x); err != nil {
		return nil, err
	}
	if err := policy.Decide(target.Require, x.session(), p.Allow, target.Allow); err != nil {
		return nil, err
	}
	return target, nil
}

// loadSession puts the live session of the request, if there is one, into x. A cookie
// that opens nothing is cleared, but only in the answer to a navigation: the answer to
// a script's request may come late, and would then clear the cookie of a sign-in that
// has completed meanwhile.
func (p *Proxy) loadSession(x *exchange) error {
	live, err := p.Sessions.Load(x.r.Context(), x.r.Header)
	switch {
	case errors.Is(err, session.ErrInvalid):
		p.Metrics.SessionLoad(metrics.LoadInvalid)
		if x.navigation() {
			p.Sessions.Clear(x.w.Header())
		}
		return nil
	case err != nil:
		if coatcheck.CodeOf(err) == coatcheck.CodeUnknown {
			p.Metrics.SessionLoad(metrics.LoadUnknown)
		} else {
			p.Metrics.SessionLoad(metrics.LoadInvalid)
		}
		return err
	case live == nil:
		p.Metrics.SessionLoad(metrics.LoadNone)
		return nil
	}
	p.Metrics.SessionLoad(metrics.LoadValid)
	x.live = live
	if live.Unverified > 0 {
		p.Metrics.Unverified()
		x.unverified = max(int(live.Unverified.Round(time.Second)/time.Second), 1)
		x.w.Header().Set(upstream.HeaderUnverified, strconv.Itoa(x.unverified))
	}
	p.SignIn.Served(x.w.Header(), x.r)
	return nil
}

// user is the session that an app is told of. On a route that serves everybody there may
// be one of somebody who may not sign in any more, since the configuration has changed:
// that one names nobody.
func (p *Proxy) user(x *exchange) *session.Live {
	if x.live == nil || policy.Permit(&x.live.Identity, p.Allow) != nil {
		return nil
	}
	return x.live
}

// forward hands the request to the app.
func (p *Proxy) forward(x *exchange, target *Route) error {
	if target.Upstream == nil {
		return coatcheck.E(coatcheck.CodeNotFound, "proxy.forward", errors.New("the route has no upstream: it serves forward-auth only"))
	}
	call := upstream.Call{
		RawPath:       x.req.RawPath,
		RawQuery:      x.req.RawQuery,
		ForceQuery:    x.req.ForceQuery,
		ClientIP:      x.client.ip,
		Scheme:        p.PublicURL.Scheme,
		Host:          x.req.Host,
		RequestID:     x.id,
		MethodGuarded: target.MethodGuarded,
	}
	if live := p.user(x); live != nil {
		call.Identity = &live.Identity
		call.State = live.State
		call.Session = live
		call.Unverified = x.unverified
	}
	x.bodyUntil(time.Time{})
	defer func() { x.bodyUntil(time.Now().Add(p.BodyTimeout)) }() // of what the app left
	return target.Upstream.Forward(&x.w, x.r, &call)
}

// finish ends an exchange: it turns a panic into an error page, and writes the metrics
// and the access log.
func (p *Proxy) finish(x *exchange) {
	v := recover()
	if v != nil && v != http.ErrAbortHandler {
		// The stack names functions and addresses, not values, so nothing secret is
		// in it; the panic's own text may quote anything and stays out of the log.
		p.Logger.LogAttrs(x.r.Context(), slog.LevelError, "panic",
			slog.String("request_id", x.id), slog.String("type", panicType(v)), slog.String("stack", string(debug.Stack())))
		if x.w.status == 0 {
			p.render(x, coatcheck.E(coatcheck.CodeInternal, "proxy", errors.New("panic")))
		} else {
			v = http.ErrAbortHandler // half an answer must not look whole
		}
	}
	took := time.Since(x.start)
	status := x.w.status
	if status == 0 {
		status = http.StatusOK // net/http's answer to a handler that wrote nothing
	}
	p.Metrics.Request(x.routeName(), status, took)
	level := slog.LevelInfo
	if (x.route == routePing || x.route == routeReady) && status == http.StatusOK {
		level = slog.LevelDebug // load balancers ask all day
	}
	if p.AccessLog != nil && (level == slog.LevelInfo || p.Logger.Enabled(x.r.Context(), level)) {
		accessLog{p.AccessLog}.write(x, level, status, took)
	}
	if v == http.ErrAbortHandler {
		panic(v) // net/http then closes the connection
	}
}
