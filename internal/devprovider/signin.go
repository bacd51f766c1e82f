package devprovider

import (
	"crypto/sha256"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// signIn takes the sign-in form. The authorization request stands in the form's URL
// and is read afresh: a form left open over a restart still works.
func (p *Provider) signIn(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	a, ok := p.readAuthorization(w, r, query)
	if !ok {
		return
	}
	if err := r.ParseForm(); err != nil {
		p.fail(w, http.StatusBadRequest, "Unreadable form", "The form could not be read.")
		return
	}
	username := r.PostForm.Get("username")
	user, ok := p.userWithPassword(username, r.PostForm.Get("password"))
	if !ok {
		p.log.Info("sign-in refused", "client", a.client.ID)
		p.showSignIn(w, http.StatusForbidden, a, query, username,
			"That user name and password don’t go together. The right ones are listed below.")
		return
	}
	cookie, s := p.ledger.signIn(user, p.sessionCookie(r))
	p.setSessionCookie(w, cookie, s.expires)
	p.log.Info("signed in", "user", user.Username, "client", a.client.ID)
	if !p.grant(w, r, a, cookie) {
		p.showSignIn(w, http.StatusServiceUnavailable, a, query, username, "That sign-in has ended already. Please try again.")
	}
}

func (p *Provider) userWithPassword(username, password string) (User, bool) {
	i := slices.IndexFunc(p.users, func(u User) bool { return u.Username == username })
	if i < 0 {
		return User{}, false
	}
	want, got := digest(sha256.Sum256([]byte(p.users[i].Password))), digest(sha256.Sum256([]byte(password)))
	return p.users[i], got.equal(want)
}

// showSignIn shows the form. The redirect that follows a submission is subject to
// form-action in Chromium, so the client's origins are allowed beside our own.
func (p *Provider) showSignIn(w http.ResponseWriter, status int, a *authorization, request url.Values, username, problem string) {
	type person struct {
		User
		Pick string // the same page with the user name filled in
	}
	people := make([]person, len(p.users))
	for i, u := range p.users {
		pick := url.Values{"login_hint": {u.Username}}
		for name, values := range request {
			if name != "login_hint" {
				pick[name] = values
			}
		}
		people[i] = person{u, authorizePath + "?" + pick.Encode()}
	}
	p.show(w, status, "signin", origins(a.client.RedirectURIs), struct {
		Title, Client, Action, Username, Problem, Cancel string
		Users                                            []person
	}{
		Title:    "Sign in",
		Client:   a.client.ID,
		Action:   signInPath + "?" + request.Encode(),
		Username: username,
		Problem:  problem,
		Cancel:   p.response(a, (&oauthError{"access_denied", "the person cancelled the sign-in"}).values()),
		Users:    people,
	})
}

func (p *Provider) sessionCookie(r *http.Request) string {
	c, err := r.Cookie(p.cookie)
	if err != nil {
		return ""
	}
	return c.Value
}

func (p *Provider) setSessionCookie(w http.ResponseWriter, value string, expires time.Time) {
	http.SetCookie(w, &http.Cookie{
		Name: p.cookie, Value: value, Path: browserPath, Expires: expires,
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: strings.HasPrefix(p.issuer, "https:"),
	})
}
