package proxy

import (
	"errors"
	"net/http"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/upstream"
)

// forwardAuth answers another proxy, which asks whether it may serve a request: 202,
// 401 or 403, with the identity in X-Auth-Request-* headers. It is the request line
// for the request that is asked about, and differs in the last step only.
//
// Which request that is, only a trusted peer may say. Its body is never read.
func (p *Proxy) forwardAuth(x *exchange) error {
	x.script = true // the other proxy decides about redirects
	if x.r.ContentLength != 0 {
		// net/http would wait for the body before it answers. A proxy that passes the
		// original's Content-Length on, and not its body, never sends one.
		x.w.Header().Set("Connection", "close")
	}
	err := p.judgeOriginal(x)
	switch {
	case err == nil:
		var id *coatcheck.Identity
		if live := p.user(x); live != nil {
			id = &live.Identity
		}
		for name, value := range authRequestHeaders.Fields(id) {
			x.w.Header().Set(name, value) // an empty one too, so that nobody else's stays
		}
		x.w.WriteHeader(http.StatusAccepted)
		return nil
	case forwardAuthAnswers[coatcheck.CodeOf(err)]:
		return err
	default:
		// The request itself is wrong. To the other proxy that means: don't serve it.
		return coatcheck.E(coatcheck.CodeForbidden, "proxy.forward_auth", err)
	}
}

// authRequestHeaders are on every 202, whether or not there is something to say.
var authRequestHeaders = upstream.IdentityHeaders{
	User:              "X-Auth-Request-User",
	Email:             "X-Auth-Request-Email",
	Groups:            "X-Auth-Request-Groups",
	PreferredUsername: "X-Auth-Request-Preferred-Username",
}

// forwardAuthAnswers are the refusals that keep their own status.
var forwardAuthAnswers = map[coatcheck.Code]bool{
	coatcheck.CodeSignInRequired: true,
	coatcheck.CodeForbidden:      true,
	coatcheck.CodeUnknown:        true,
	coatcheck.CodeInternal:       true,
}

// judgeOriginal judges the request that is asked about. Where nobody said which path
// that is, everything that any route of the host demands is demanded; where nobody said
// which method, everything that the path's route for any method does.
func (p *Proxy) judgeOriginal(x *exchange) error {
	original, err := p.original(x)
	if err != nil {
		return err
	}
	if original.Path != "" {
		if _, err := p.judge(x, original); err != nil || original.Method != "" {
			return err
		}
		for _, original.Method = range p.Routes.Methods() {
			target, err := p.Routes.Match(original)
			if err != nil {
				return err
			}
			if err := policy.Decide(target.Require, x.session(), p.Allow, target.Allow); err != nil {
				return err
			}
		}
		return nil
	}
	if !p.Routes.Knows(original.Host) { // nothing says what it demands
		return coatcheck.E(coatcheck.CodeMisdirected, "proxy.forward_auth", errors.New("no route has the host "+original.Host))
	}
	if err := p.loadSession(x); err != nil {
		return err
	}
	if !p.Routes.Covers(original.Host) {
		// It may be a path of no route, which nobody gets who asks here for it. Free
		// routes beside it don't make it free.
		if err := policy.Decide(coatcheck.Authenticated, x.session(), p.Allow); err != nil {
			return err
		}
	}
	for target := range p.Routes.All(original.Host) {
		if err := policy.Decide(target.Require, x.session(), p.Allow, target.Allow); err != nil {
			return err
		}
	}
	return nil
}

// The headers in which proxies describe the request they ask about: those of Traefik
// and Caddy first, then those that nginx configurations use.
var (
	originalURI    = []string{"X-Forwarded-Uri", "X-Original-Uri", "X-Original-Url"}
	originalMethod = []string{"X-Forwarded-Method", "X-Original-Method"}
	originalHost   = []string{"X-Forwarded-Host", "X-Original-Host"}
)

// original is the request that is asked about. Without a trusted peer that says so,
// its path and method are unknown, and empty.
func (p *Proxy) original(x *exchange) (route.Request, error) {
	host := x.req.Host
	if !x.client.trusted {
		return route.Request{Host: host}, nil
	}
	said := func(names []string) (string, error) { return oneValue(x.r.Header, names) }
	method, err := said(originalMethod)
	if err != nil {
		return route.Request{}, err
	}
	uri, err := said(originalURI)
	if err != nil {
		return route.Request{}, err
	}
	if h, err := said(originalHost); err != nil {
		return route.Request{}, err
	} else if h != "" {
		host = h
	}
	if uri != "" {
		return route.Forwarded(method, host, uri, p.PublicURL.Scheme)
	}
	req, err := route.Forwarded(method, host, "/", p.PublicURL.Scheme)
	return route.Request{Method: method, Host: req.Host}, err
}

// oneValue returns the value of the headers that say the same thing. Two that say
// different things make an error: another party than the trusted one may have sent
// one of them. An empty one says nothing.
func oneValue(h http.Header, names []string) (string, error) {
	value := ""
	for _, name := range names {
		for _, v := range h[name] {
			if v == "" {
				continue
			}
			if value != "" && v != value {
				return "", coatcheck.E(coatcheck.CodeMalformed, "proxy.forward_auth",
					errors.New("the headers that describe the original request contradict each other: "+name))
			}
			value = v
		}
	}
	return value, nil
}
