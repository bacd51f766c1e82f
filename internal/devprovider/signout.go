package devprovider

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// A logout is a logout request (OpenID Connect RP-Initiated Logout 1.0 §2) that has
// been found right.
type logout struct {
	hint   *idClaims // nil: none given
	target string    // where the browser goes afterwards, with state; empty: our own page
	client Client    // zero: not named
}

// endSession is the logout endpoint. It signs out at once where the id_token_hint names
// the session of this browser, and asks otherwise, so that a link on a foreign page
// signs nobody out.
func (p *Provider) endSession(w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			p.fail(w, http.StatusBadRequest, "Unreadable request", "The form could not be read.")
			return
		}
		form = r.PostForm
	}
	out, ok := p.readLogout(w, form)
	if !ok {
		return
	}
	cookie := p.sessionCookie(r)
	s, signedIn := p.ledger.session(cookie)
	if !signedIn {
		p.signedOut(w, r, out)
		return
	}
	if out.hint != nil && out.hint.SID == s.id {
		p.finishSignOut(w, r, out, cookie, s)
		return
	}
	request := url.Values{}
	for name := range form {
		// The hint has been judged; there is no need for it in one more URL.
		if name != "id_token_hint" {
			request.Set(name, form.Get(name))
		}
	}
	if out.client.ID != "" {
		request.Set("client_id", out.client.ID)
	}
	p.show(w, http.StatusOK, "signout", origins(out.client.PostLogoutRedirectURIs), struct {
		Title, Client, Action, Back string
		User                        User
	}{"Sign out", out.client.ID, signOutPath + "?" + request.Encode(), "/", s.user})
}

// signOut takes the confirm form.
func (p *Provider) signOut(w http.ResponseWriter, r *http.Request) {
	out, ok := p.readLogout(w, r.URL.Query())
	if !ok {
		return
	}
	cookie := p.sessionCookie(r)
	if s, signedIn := p.ledger.session(cookie); signedIn {
		p.finishSignOut(w, r, out, cookie, s)
		return
	}
	p.signedOut(w, r, out)
}

func (p *Provider) finishSignOut(w http.ResponseWriter, r *http.Request, out logout, cookie string, s session) {
	p.ledger.signOut(cookie)
	p.log.Info("signed out", "user", s.user.Username)
	p.signedOut(w, r, out)
}

func (p *Provider) signedOut(w http.ResponseWriter, r *http.Request, out logout) {
	p.setSessionCookie(w, "", time.Unix(0, 0))
	if out.target != "" {
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, out.target, http.StatusSeeOther)
		return
	}
	p.show(w, http.StatusOK, "signedout", nil, struct{ Title string }{"You are signed out"})
}

// readLogout validates a logout request. It returns false once it has answered with an
// error page: there is nowhere a wrong request may send the browser.
func (p *Provider) readLogout(w http.ResponseWriter, form url.Values) (logout, bool) {
	const title = "This sign-out can’t be done"
	refuse := func(why string, facts ...fact) (logout, bool) {
		p.log.Warn("logout request refused", "why", why)
		p.fail(w, http.StatusBadRequest, title, why, facts...)
		return logout{}, false
	}
	if err := once(form); err != nil {
		return refuse(err.Description)
	}
	var out logout
	clientID := form.Get("client_id")
	if hint := form.Get("id_token_hint"); hint != "" {
		// An expired one is fine (§4): sessions outlive ID tokens.
		out.hint = &idClaims{}
		if err := p.keys.verify(typIDToken, hint, out.hint); err != nil {
			return refuse("The id_token_hint is not one of this provider’s ID tokens. It may be from before a restart.")
		}
		if clientID != "" && clientID != out.hint.Audience {
			return refuse("The client_id is not the one the id_token_hint was issued to.", fact{"client_id", clientID})
		}
		clientID = out.hint.Audience
	}
	if clientID != "" {
		client, ok := p.clients[clientID]
		if !ok {
			return refuse("No client has this client_id.", fact{"client_id", clientID})
		}
		out.client = client
	}
	target := form.Get("post_logout_redirect_uri")
	if target == "" {
		return out, true
	}
	if !slices.Contains(out.client.PostLogoutRedirectURIs, target) { // §3: no client, no redirect
		return refuse("This post_logout_redirect_uri is not registered for the client. It has to be the same to the letter.",
			fact{"client_id", clientID}, fact{"post_logout_redirect_uri", target})
	}
	out.target = withQuery(target, stateValues(form.Get("state")))
	return out, true
}

func stateValues(state string) url.Values {
	if state == "" {
		return nil
	}
	return url.Values{"state": {state}}
}
