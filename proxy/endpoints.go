package proxy

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/route"
)

// An endpoint answers one of our own paths.
type endpoint func(*exchange) error

// maxForm bounds the body of a form sent to one of our own endpoints, in bytes.
const maxForm = 16 << 10

// ownEndpoints are the paths below Options.Prefix, with the names that people already
// have in their nginx files.
func (p *Proxy) ownEndpoints() map[string]endpoint {
	get, post, head := http.MethodGet, http.MethodPost, http.MethodHead
	return map[string]endpoint{
		"start":               only(p.start, get),
		"sign_in":             only(p.signInPage, get, head),
		"callback":            only(p.callback, get),
		"sign_out":            only(p.signOut, get, post),
		"sign_out/done":       only(p.signedOut, get, head),
		"sessions":            only(p.sessions, get, head, post),
		"backchannel-logout":  only(p.backChannelLogout, post),
		"frontchannel-logout": only(p.frontChannelLogout, get),
		"userinfo":            only(p.userinfo, get, head),
		"auth":                p.forwardAuth,
	}
}

// only lets an endpoint take these methods alone.
func only(e endpoint, methods ...string) endpoint {
	return func(x *exchange) error {
		if !slices.Contains(methods, x.r.Method) {
			x.w.Header().Set("Allow", strings.Join(methods, ", ")) // RFC 9110 §15.5.6
			return coatcheck.E(coatcheck.CodeMethodNotAllowed, "proxy."+x.route, nil)
		}
		return e(x)
	}
}

// own returns the endpoint that the request is for, or nil if it is for an app. Paths
// below the prefix are never an app's, and hosts that are not ours have no endpoints.
func (p *Proxy) own(x *exchange) endpoint {
	rest, ok := p.belowPrefix(x.req.Path)
	if !ok || !p.serves(x.req.Host) {
		return nil
	}
	if e, ok := p.endpoints[rest]; ok {
		x.route = rest
		ownHeaders(x.w.Header())
		return e
	}
	return func(*exchange) error {
		return coatcheck.E(coatcheck.CodeNotFound, "proxy.endpoint", errors.New("no such endpoint"))
	}
}

// belowPrefix returns what follows Prefix in a path of ours.
func (p *Proxy) belowPrefix(path string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, p.Prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// serves tells whether a host is ours: the site's own, even if all routes have others,
// or a route's.
func (p *Proxy) serves(host string) bool {
	return host == p.PublicURL.Host || p.Routes.Knows(host)
}

// ownHeaders are on every answer that is ours and not an app's. No-referrer keeps the
// code and state of a callback's URL from whatever comes next (RFC 9700 §4.2.4).
func ownHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// redirect sends a browser on. 303 makes it a GET, whatever it was: a password that
// was just posted must not be posted on (RFC 9700 §4.12).
func redirect(x *exchange, location string) error {
	h := x.w.Header()
	ownHeaders(h)
	h.Set("Location", location)
	x.w.WriteHeader(http.StatusSeeOther)
	return nil
}

// start begins a sign-in and sends the browser to the provider.
func (p *Proxy) start(x *exchange) error {
	returnTo, err := p.returnURL(x)
	if err != nil {
		return err
	}
	return p.startSignIn(x, returnTo)
}

func (p *Proxy) startSignIn(x *exchange, returnTo string) error {
	location, err := p.SignIn.Start(x.w.Header(), x.r, returnTo)
	if err != nil {
		return err
	}
	return redirect(x, location)
}

// returnURL is the validated rd parameter of the query.
func (p *Proxy) returnURL(x *exchange) (string, error) {
	query, err := url.ParseQuery(x.req.RawQuery)
	if err != nil {
		return "", coatcheck.E(coatcheck.CodeMalformed, "proxy.query", errors.New("the query is malformed"))
	}
	return p.returnTo(x, query)
}

// returnTo is the validated rd parameter of a query or form, "/" without one.
//
// Of our own endpoints it leads to the sign-in page alone: a link could chain sign-ins by
// the others, or make "Continue" sign out. A path is one of the host that was asked: it is
// made absolute where that is not the public one, since browsers come back from the
// provider to that.
func (p *Proxy) returnTo(x *exchange, q url.Values) (string, error) {
	rd, err := p.Returns.FromQuery(q)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(rd)
	if err == nil {
		if rest, ours := p.belowPrefix(u.Path); ours && rest != "sign_in" {
			err = errors.New("one of our own endpoints")
		}
	}
	if err != nil {
		return "", coatcheck.E(coatcheck.CodeBadReturnURL, "proxy.return_url", err)
	}
	if !strings.HasPrefix(rd, "/") {
		return rd, nil
	}
	return p.Returns.FromRequest(x.req.Host, rd), nil
}

// signInPage is for people who come to sign in, or look whether they are.
func (p *Proxy) signInPage(x *exchange) error {
	returnTo, err := p.returnURL(x)
	if err != nil {
		return err
	}
	if err := p.loadSession(x); err != nil {
		return err
	}
	page := page{
		Title:   "Sign in",
		Text:    []string{"The sign-in provider of this site asks who you are, then sends you back here."},
		Actions: []action{{"Sign in", p.startURL(returnTo), true}},
	}
	if s := x.session(); s != nil {
		page.Title = "You are signed in"
		page.Text = []string{signedInAs(s)}
		page.Actions = []action{
			{"Continue", returnTo, true}, {"Your sessions", p.Prefix + "/sessions", false}, {"Sign out", p.Prefix + "/sign_out", false},
		}
	}
	return p.writePage(x, http.StatusOK, page)
}

// signedInAs names the person by what they would call themselves.
func signedInAs(s *coatcheck.Session) string {
	id := &s.Identity
	return "You are signed in as " + cmp.Or(id.Name, id.PreferredUsername, id.Email, id.Subject) + "."
}

func (p *Proxy) startURL(returnTo string) string {
	u := p.Prefix + "/start"
	if returnTo != "" && returnTo != "/" {
		u += "?rd=" + url.QueryEscape(returnTo)
	}
	return u
}

// callback completes a sign-in: the provider has sent the browser back. Nobody gets a
// session who may not sign in at all. Who took too long starts over.
func (p *Proxy) callback(x *exchange) error {
	err := p.completeSignIn(x)
	result := "ok"
	if err != nil {
		result = string(coatcheck.CodeOf(err))
	}
	p.Metrics.SignIn(result)
	var expired *oidc.ExpiredError
	if errors.As(err, &expired) {
		return p.startSignIn(x, expired.ReturnTo)
	}
	return err
}

func (p *Proxy) completeSignIn(x *exchange) error {
	ctx, h := x.r.Context(), x.w.Header()
	asked := p.Sessions.Now()
	login, err := p.SignIn.Callback(ctx, h, x.r)
	if err != nil {
		return err
	}
	if err := policy.Permit(&login.Session.Identity, p.Allow); err != nil {
		return err
	}
	cookies := h["Set-Cookie"]
	if err := p.SignIn.Completed(h, x.r.Header); err != nil {
		return err
	}
	x.returnTo = login.ReturnTo
	login.Session.Origin = coatcheck.Origin{App: p.app(login.ReturnTo), IP: x.client.ip, UserAgent: x.r.UserAgent()}
	live, err := p.Sessions.Begin(ctx, h, x.r.Header, login.Session, asked)
	if err != nil {
		h["Set-Cookie"] = cookies // without a session it was no turn of a loop
		return err
	}
	x.live = live
	p.Logger.InfoContext(ctx, "signed in",
		"request_id", x.id, "session", live.Ref, "provider", live.Provider, "user", live.Identity.Subject)
	return redirect(x, login.ReturnTo)
}

// app is the host of a return URL, in the one form that hosts are compared in: whoever
// writes it in another way is at the same app for all that.
func (p *Proxy) app(returnTo string) string {
	u, err := url.Parse(returnTo)
	if err == nil && u.Host != "" {
		var req route.Request
		if req, err = route.Forwarded(http.MethodGet, u.Host, "/", p.PublicURL.Scheme); err == nil {
			return req.Host
		}
	}
	return p.PublicURL.Host
}

// goal is where the person wanted to go who made a request, "/" where no link leads.
func (p *Proxy) goal(x *exchange) string {
	switch {
	case x.returnTo != "":
		return x.returnTo
	case x.r.Method == http.MethodGet:
		return p.Returns.FromRequest(x.req.Host, x.target())
	default:
		return "/"
	}
}

// userinfo tells the apps' scripts who is signed in. Tokens are never in it.
func (p *Proxy) userinfo(x *exchange) error {
	x.script = true
	if err := p.loadSession(x); err != nil {
		return err
	}
	s := x.session()
	if err := policy.Decide(coatcheck.Authenticated, s, p.Allow); err != nil {
		return err
	}
	return writeJSON(x, http.StatusOK, struct {
		User              string    `json:"user"`
		Email             string    `json:"email,omitempty"`
		Groups            []string  `json:"groups,omitempty"`
		PreferredUsername string    `json:"preferredUsername,omitempty"`
		Expires           time.Time `json:"expires"`
	}{s.Identity.Subject, s.Identity.VerifiedEmail(), s.Identity.Groups, s.Identity.PreferredUsername, s.Deadline.UTC()})
}
