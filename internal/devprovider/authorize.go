package devprovider

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An authorization is an authorization request whose client and redirect URI are known
// to be right, so that errors may be sent there.
type authorization struct {
	client      Client
	redirectURI string
	state       string

	scope     string
	nonce     string
	challenge string
	loginHint string
	prompt    []string
	maxAge    time.Duration // negative: none asked for
}

// authorize is the authorization endpoint (RFC 6749 §3.1): it answers with a code at
// once where somebody is signed in, and with the sign-in form otherwise.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			p.fail(w, http.StatusBadRequest, "Unreadable request", "The form could not be read.")
			return
		}
		form = r.PostForm
	}
	a, ok := p.readAuthorization(w, r, form)
	if !ok {
		return
	}
	cookie := p.sessionCookie(r)
	s, signedIn := p.ledger.session(cookie)
	if signedIn && !a.wantsSignIn(s.authTime) && p.grant(w, r, a, cookie) {
		return
	}
	if slices.Contains(a.prompt, "none") {
		p.redirect(w, r, a, (&oauthError{"login_required", "nobody is signed in, or not recently enough"}).values())
		return
	}
	p.showSignIn(w, http.StatusOK, a, form, a.loginHint, "")
}

// grant sends the browser back to the client with a code. It returns false, having
// answered nothing, if the session ended meanwhile.
func (p *Provider) grant(w http.ResponseWriter, r *http.Request, a *authorization, cookie string) bool {
	code, ok := p.ledger.authorize(cookie, grant{
		clientID:    a.client.ID,
		redirectURI: a.redirectURI,
		scope:       a.scope,
		nonce:       a.nonce,
		challenge:   a.challenge,
	})
	if ok {
		p.redirect(w, r, a, url.Values{"code": {code}})
	}
	return ok
}

// readAuthorization validates an authorization request. It returns false once it has
// answered with an error: to the client where client and redirect URI are right, and
// as a page where they are not (RFC 6749 §4.1.2.1).
func (p *Provider) readAuthorization(w http.ResponseWriter, r *http.Request, form url.Values) (*authorization, bool) {
	const title = "This sign-in can’t start"
	if len(form["client_id"]) > 1 || len(form["redirect_uri"]) > 1 {
		p.fail(w, http.StatusBadRequest, title, "The request has more than one client_id or redirect_uri.")
		return nil, false
	}
	client, ok := p.clients[form.Get("client_id")]
	if !ok {
		p.fail(w, http.StatusBadRequest, title, "No client has this client_id.",
			fact{"client_id", form.Get("client_id")})
		return nil, false
	}
	redirectURI := form.Get("redirect_uri")
	if !slices.Contains(client.RedirectURIs, redirectURI) {
		facts := []fact{{"client_id", client.ID}, {"redirect_uri", redirectURI}}
		for _, uri := range client.RedirectURIs {
			facts = append(facts, fact{"registered", uri})
		}
		p.fail(w, http.StatusBadRequest, title, "This redirect_uri is not registered for the client. "+
			"It has to be the same to the letter.", facts...)
		return nil, false
	}
	a := &authorization{client: client, redirectURI: redirectURI}
	if err := a.read(form); err != nil {
		p.log.Warn("authorization request refused", "client", client.ID, "err", err)
		p.redirect(w, r, a, err.values())
		return nil, false
	}
	return a, true
}

// An S256 challenge is the unpadded base64url of 32 bytes (RFC 7636 §4.2).
var challengePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// read takes over the parameters that an error may be sent to the client for.
func (a *authorization) read(form url.Values) *oauthError {
	if len(form["state"]) == 1 {
		a.state = form.Get("state")
	}
	if err := once(form); err != nil {
		return err
	}
	a.scope, a.nonce, a.loginHint = grantedScope(form.Get("scope")), form.Get("nonce"), form.Get("login_hint")
	a.prompt = strings.Fields(form.Get("prompt"))
	a.challenge = form.Get("code_challenge")
	a.maxAge = -1
	switch mode := form.Get("response_mode"); {
	case form.Get("request") != "":
		return &oauthError{"request_not_supported", "request objects are not supported"}
	case form.Get("request_uri") != "":
		return &oauthError{"request_uri_not_supported", "request objects are not supported"}
	case form.Get("response_type") == "":
		return invalidRequest("response_type is missing")
	case form.Get("response_type") != "code": // RFC 9700 §2.1.2: no implicit grant
		return &oauthError{"unsupported_response_type", "response_type must be code"}
	case mode != "" && mode != "query":
		return invalidRequest("response_mode must be query")
	case !hasScope(a.scope, "openid"):
		return &oauthError{"invalid_scope", "scope must include openid"}
	case a.challenge == "":
		return invalidRequest("code_challenge is missing: PKCE is required")
	case form.Get("code_challenge_method") != "S256": // an absent one means plain, RFC 7636 §4.3
		return invalidRequest("code_challenge_method must be S256")
	case !challengePattern.MatchString(a.challenge):
		return invalidRequest("code_challenge is not an S256 challenge")
	}
	for _, v := range a.prompt {
		if !slices.Contains(prompts, v) {
			return invalidRequest("unknown prompt: %s", printable(v))
		}
		if v == "none" && len(a.prompt) > 1 { // OpenID Connect Core 1.0 §3.1.2.1
			return invalidRequest("prompt none goes with no other")
		}
	}
	if v := form.Get("max_age"); v != "" {
		seconds, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return invalidRequest("max_age is not a number of seconds")
		}
		a.maxAge = time.Duration(seconds) * time.Second
	}
	return nil
}

// prompts are the values of the prompt parameter that the provider knows. There is
// nothing to consent to, so "consent" changes nothing; choosing an account is signing
// in.
var prompts = []string{"none", "login", "consent", "select_account"}

// wantsSignIn reports whether a person who signed in at authTime has to do so again.
func (a *authorization) wantsSignIn(authTime time.Time) bool {
	return slices.Contains(a.prompt, "login") || slices.Contains(a.prompt, "select_account") ||
		a.maxAge >= 0 && time.Since(authTime) >= a.maxAge
}

// redirect sends the browser to the client. The status is 303, so that a POST with a
// password is never repeated there (RFC 9700 §4.12).
func (p *Provider) redirect(w http.ResponseWriter, r *http.Request, a *authorization, v url.Values) {
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, p.response(a, v), http.StatusSeeOther)
}

// response returns the redirect URI with the parameters of an authorization response
// added to the query it may already have (RFC 6749 §3.1.2).
func (p *Provider) response(a *authorization, v url.Values) string {
	if a.state != "" {
		v.Set("state", a.state)
	}
	v.Set("iss", p.issuer) // RFC 9207 §2
	return withQuery(a.redirectURI, v)
}

func withQuery(uri string, v url.Values) string {
	switch {
	case len(v) == 0:
		return uri
	case strings.Contains(uri, "?"):
		return uri + "&" + v.Encode()
	default:
		return uri + "?" + v.Encode()
	}
}
