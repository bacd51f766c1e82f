package devprovider

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// token is the token endpoint (RFC 6749 §3.2).
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		p.tokenError(w, r, invalidRequest("the body is not a form of up to %d bytes", maxBody))
		return
	}
	form := r.PostForm // and never the query: RFC 6749 §2.3.1
	if err := once(form); err != nil {
		p.tokenError(w, r, err)
		return
	}
	client, oerr := p.authenticate(r, form)
	if oerr != nil {
		p.tokenError(w, r, oerr)
		return
	}
	var (
		g       grant
		refresh string
		err     error
		kind    = form.Get("grant_type")
	)
	switch kind {
	case "authorization_code":
		g, refresh, err = p.ledger.redeem(client.ID, form.Get("code"), form.Get("redirect_uri"), form.Get("code_verifier"))
	case "refresh_token":
		g, refresh, err = p.ledger.refresh(client.ID, form.Get("refresh_token"))
	case "":
		err = invalidRequest("grant_type is missing")
	default:
		err = &oauthError{"unsupported_grant_type", "grant_type must be authorization_code or refresh_token"}
	}
	if err != nil {
		p.log.Warn("token request refused", "client", client.ID, "grant_type", printable(kind), "err", err)
		p.tokenError(w, r, err)
		return
	}
	answer, err := p.tokens(g, kind == "authorization_code")
	if err != nil {
		p.log.Error("token request failed", "client", client.ID, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	answer.RefreshToken = refresh
	writeJSON(w, http.StatusOK, answer)
}

// authenticate returns the client that sent its secret, by HTTP Basic or in the body
// but not both (RFC 6749 §2.3).
func (p *Provider) authenticate(r *http.Request, form url.Values) (Client, *oauthError) {
	id, secret := form.Get("client_id"), form.Get("client_secret")
	if r.Header.Get("Authorization") != "" {
		if secret != "" {
			return Client{}, invalidRequest("the client authenticates in two ways")
		}
		basicID, basicSecret, ok := basicAuth(r)
		if !ok || id != "" && id != basicID {
			return Client{}, errInvalidClient
		}
		id, secret = basicID, basicSecret
	}
	client, ok := p.clients[id]
	// An unknown client is compared too: with a digest that nothing has.
	want := digest{}
	if ok {
		want = sha256.Sum256([]byte(client.Secret.Reveal()))
	}
	if got := digest(sha256.Sum256([]byte(secret))); !got.equal(want) {
		return Client{}, errInvalidClient
	}
	return client, nil
}

var errInvalidClient = &oauthError{"invalid_client", "unknown client or wrong secret"}

// basicAuth reads HTTP Basic credentials, which OAuth encodes once more as form values
// (RFC 6749 §2.3.1).
func basicAuth(r *http.Request) (id, secret string, ok bool) {
	id, secret, ok = r.BasicAuth()
	if !ok {
		return "", "", false
	}
	id, err := url.QueryUnescape(id)
	if err != nil {
		return "", "", false
	}
	secret, err = url.QueryUnescape(secret)
	return id, secret, err == nil
}

// tokenError answers as RFC 6749 §5.2 says. What the ledger refuses is invalid_grant.
func (p *Provider) tokenError(w http.ResponseWriter, r *http.Request, err error) {
	var oerr *oauthError
	if !errors.As(err, &oerr) {
		oerr = &oauthError{"invalid_grant", err.Error()}
	}
	status := http.StatusBadRequest
	if oerr == errInvalidClient {
		status = http.StatusUnauthorized
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="token"`)
		}
	}
	writeJSON(w, status, oerr)
}

type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
	RefreshToken string `json:"refresh_token"`
	IDToken      string `json:"id_token"`
	Scope        string `json:"scope"`
}

// person is what the scope of a grant says about its user.
type person struct {
	Name              string   `json:"name,omitempty"`
	PreferredUsername string   `json:"preferred_username,omitempty"`
	Email             string   `json:"email,omitempty"`
	EmailVerified     bool     `json:"email_verified,omitempty"`
	Groups            []string `json:"groups,omitempty"`
}

func (g *grant) person() person {
	var c person
	if hasScope(g.scope, "profile") {
		c.Name, c.PreferredUsername = g.user.Name, g.user.Username
	}
	if hasScope(g.scope, "email") && g.user.Email != "" {
		c.Email, c.EmailVerified = g.user.Email, true
	}
	// OpenID Connect has no scope for groups. Many providers give them with the
	// profile, others for a scope of that name; here either does.
	if hasScope(g.scope, "groups") || hasScope(g.scope, "profile") {
		c.Groups = g.user.Groups
	}
	return c
}

// idClaims are the claims of an ID token (OpenID Connect Core 1.0 §2).
type idClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	Expiry   int64  `json:"exp"`
	IssuedAt int64  `json:"iat"`
	AuthTime int64  `json:"auth_time"`
	Nonce    string `json:"nonce,omitempty"`
	ATHash   string `json:"at_hash"`
	SID      string `json:"sid"`
	person
}

// accessClaims are the claims of an access token (RFC 9068 §2.2). Its audience is the
// provider itself: it opens userinfo.
type accessClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	ClientID string `json:"client_id"`
	Expiry   int64  `json:"exp"`
	IssuedAt int64  `json:"iat"`
	ID       string `json:"jti"`
	Scope    string `json:"scope"`
	Grant    string `json:"grant"`
}

// tokens mints an access and an ID token for a grant. The ID token of a refresh
// repeats auth_time and has no nonce (OpenID Connect Core 1.0 §12.2).
func (p *Provider) tokens(g grant, withNonce bool) (tokenAnswer, error) {
	now := time.Now()
	expiry := now.Add(p.tokenLifetime).Unix()
	access, err := p.keys.sign(typAccessToken, accessClaims{
		Issuer: p.issuer, Subject: g.user.Username, Audience: p.issuer, ClientID: g.clientID,
		Expiry: expiry, IssuedAt: now.Unix(), ID: rand.Text(), Scope: g.scope, Grant: g.id,
	})
	if err != nil {
		return tokenAnswer{}, err
	}
	claims := idClaims{
		Issuer: p.issuer, Subject: g.user.Username, Audience: g.clientID,
		Expiry: expiry, IssuedAt: now.Unix(), AuthTime: g.authTime.Unix(),
		ATHash: atHash(access), SID: g.sid, person: g.person(),
	}
	if withNonce {
		claims.Nonce = g.nonce
	}
	id, err := p.keys.sign(typIDToken, claims)
	if err != nil {
		return tokenAnswer{}, err
	}
	return tokenAnswer{
		AccessToken: access,
		TokenType:   "Bearer",
		ExpiresIn:   int64(p.tokenLifetime / time.Second),
		IDToken:     id,
		Scope:       g.scope,
	}, nil
}

// userinfo answers the holder of an access token (OpenID Connect Core 1.0 §5.3).
func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		w.Header().Set("WWW-Authenticate", "Bearer") // RFC 6750 §3.1: no error code without a token
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var claims accessClaims
	err := p.keys.verify(typAccessToken, token, &claims)
	if err == nil && time.Now().Unix() < claims.Expiry {
		if g, ok := p.ledger.granted(claims.Grant); ok {
			writeJSON(w, http.StatusOK, struct {
				Subject string `json:"sub"`
				person
			}{g.user.Username, g.person()})
			return
		}
	}
	w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token", error_description="invalid, expired or revoked"`)
	w.WriteHeader(http.StatusUnauthorized)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // RFC 6749 §5.1
	w.Header().Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone; nobody to tell
}
