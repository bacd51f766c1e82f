package proxy

import (
	"cmp"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
)

// formLife is how long a page with a form may stay open.
const formLife = time.Hour

// What the token of a form is good for.
const (
	formSignOut  = "sign-out"
	formSessions = "sessions"
)

// signOut ends the session here and then at the provider. It acts at once only if the
// browser says that one of our own pages asked (Fetch Metadata), or for a form that
// carries the token of our confirm page; everybody else is asked, since a link on
// somebody else's page leads here too.
func (p *Proxy) signOut(x *exchange) error {
	x.r.Body = http.MaxBytesReader(&x.w, x.r.Body, maxForm)
	if err := x.r.ParseForm(); err != nil {
		return coatcheck.E(coatcheck.CodeMalformed, "proxy.sign_out", errors.New("the form or the query is malformed"))
	}
	returnTo := ""
	if x.r.Form.Has("rd") {
		var err error
		if returnTo, err = p.returnTo(x, x.r.Form); err != nil {
			return err
		}
	}
	if err := p.loadSession(x); err != nil {
		return err
	}
	switch ourPage := askedByOurPage(x.r.Header); {
	case x.live != nil && !ourPage && !p.tokenFits(x, formSignOut):
		return p.confirmSignOut(x, returnTo)
	case x.live != nil:
		return p.endSession(x, returnTo)
	case ourPage:
		// The session has ended, or was never granted: the provider may still hold
		// one, and would sign the same account in again without a word.
		return p.endAtProvider(x, returnTo)
	default:
		return p.afterSignOut(x, returnTo, "")
	}
}

// endSession ends the session of the request, and sends the browser to end the provider's.
func (p *Proxy) endSession(x *exchange, returnTo string) error {
	if err := p.Sessions.End(x.r.Context(), x.w.Header(), x.r.Header, x.live, coatcheck.ReasonSignedOut); err != nil {
		return err
	}
	p.Logger.InfoContext(x.r.Context(), "signed out", "request_id", x.id, "session", x.live.Ref)
	return p.endAtProvider(x, returnTo)
}

func (p *Proxy) endAtProvider(x *exchange, returnTo string) error {
	if location, ok := p.SignIn.EndSession(cmp.Or(x.session(), &coatcheck.Session{}), returnTo); ok {
		return redirect(x, location)
	}
	return p.afterSignOut(x, returnTo, "?local=1")
}

// askedByOurPage tells whether a page of this very origin asked, by a link, a form or a
// script (W3C Fetch Metadata). An image or a frame that somebody put into a page of the
// app is none of these, nor is a browser that fetches links before anybody has chosen one.
func askedByOurPage(h http.Header) bool {
	if h.Get("Sec-Fetch-Site") != "same-origin" || h.Get("Sec-Fetch-Mode") == "no-cors" || h.Get("Sec-Purpose") != "" {
		return false
	}
	switch h.Get("Sec-Fetch-Dest") {
	case "document", "empty", "": // "empty" is a script; the oldest browsers with the others lack this one
		return true
	}
	return false
}

func (p *Proxy) afterSignOut(x *exchange, returnTo, query string) error {
	if returnTo == "" {
		returnTo = p.Prefix + "/sign_out/done" + query
	}
	return redirect(x, returnTo)
}

func (p *Proxy) confirmSignOut(x *exchange, returnTo string) error {
	token, err := p.formToken(x, formSignOut, time.Now().Add(formLife))
	if err != nil {
		return err
	}
	return p.writePage(x, http.StatusOK, page{
		Title: "Sign out?",
		Text:  []string{signedInAs(x.session()), "Signing out ends your session, here and at the sign-in provider."},
		Form:  &form{Action: p.Prefix + "/sign_out", Token: token, ReturnTo: returnTo, Button: "Sign out"},
	})
}

// formToken returns the token of a form that does something to the session. It is bound to
// it, so that the token of one person's page does nothing to anybody else.
func (p *Proxy) formToken(x *exchange, purpose string, expires time.Time) (string, error) {
	return p.Ring.SealValue(p.formPlace(purpose), []byte(expires.UTC().Format(time.RFC3339)+" "+string(x.live.Ref)))
}

func (p *Proxy) formPlace(purpose string) seal.Place {
	return seal.Place{Purpose: purpose, Tenant: p.Tenant, Cookie: p.Sessions.Jar.Session()}
}

// tokenFits looks for the token of a form in the body alone: GET has none there.
func (p *Proxy) tokenFits(x *exchange, purpose string) bool {
	plain, err := p.Ring.OpenValue(p.formPlace(purpose), x.r.PostForm.Get("token"))
	if err != nil {
		return false
	}
	until, ref, _ := strings.Cut(string(plain), " ")
	expires, err := time.Parse(time.RFC3339, until)
	return err == nil && time.Now().Before(expires) && ref == string(x.live.Ref)
}

// signedOut is where a browser lands after a sign-out, here or at the provider. It says
// "signed out" only to those who are: a form on another site's page is sent without the
// session's cookie (SameSite=Lax), so nothing was ended when it comes here.
func (p *Proxy) signedOut(x *exchange) error {
	if returnTo := p.SignIn.SignedOut(x.r); returnTo != "" {
		return redirect(x, returnTo)
	}
	if err := p.loadSession(x); err != nil {
		return err
	}
	if x.live != nil {
		return p.confirmSignOut(x, "")
	}
	page := page{
		Title:   "You are signed out",
		Text:    []string{"This browser is no longer signed in to this site."},
		Actions: []action{{"Sign in again", p.startURL("/"), true}},
	}
	if x.req.RawQuery == "local=1" {
		page.Text = append(page.Text, "The sign-in provider was not told, so you may still be signed in there: "+
			"on a computer that others use, close all windows of the browser.")
	}
	return p.writePage(x, http.StatusOK, page)
}
