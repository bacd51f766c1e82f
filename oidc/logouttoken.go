package oidc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coatcheck/coatcheck"
)

const (
	// maxLogoutAge is how old a logout token may be. Providers that send it again after
	// a failure make a new one or give up soon, and for as long its ID must be remembered.
	maxLogoutAge = 5 * time.Minute
	// logoutEvent makes a token one of a logout (OpenID Connect Back-Channel Logout 1.0 §2.4).
	logoutEvent = "http://schemas.openid.net/event/backchannel-logout"
)

// A Logout is what a logout token says: the provider has ended one of its sessions, or all
// that somebody had.
type Logout struct {
	Issuer string
	// SID names the provider's session that has ended. Where it is empty, all sessions of
	// Subject have. At least one of the two is set.
	Subject string
	SID     string
	// ID is the token's own (jti), at most 1024 bytes. Who sees it again has a replay.
	ID string
	// Expires is after when LogoutToken does not take the token any more.
	Expires time.Time
}

// LogoutToken verifies a token that the provider is said to have sent server to server
// (OpenID Connect Back-Channel Logout 1.0 §2.6). It does not know whether it has seen the
// token before. It returns CodeBadLogoutToken for a token that must not be believed, and
// CodeNotReady or CodeProviderFailed where the provider's keys can't be had, so that the
// provider should send it again.
func (p *RelyingParty) LogoutToken(ctx context.Context, raw string) (*Logout, error) {
	const op = "oidc.logout_token"
	current, err := p.awaited(ctx, op)
	if err != nil {
		return nil, err
	}
	// Not all providers give the token a type of its own, as §2.4 recommends. The event
	// and the nonce tell it from an ID token.
	_, c, err := p.verify(ctx, current, raw, "logout+jwt", "application/logout+jwt", "JWT")
	var unfetched *fetchError
	switch {
	case errors.As(err, &unfetched), errors.Is(err, errNoKeyYet):
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	case err != nil:
		return nil, coatcheck.E(coatcheck.CodeBadLogoutToken, op, err)
	}
	logout, err := p.parseLogout(c)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadLogoutToken, op, err)
	}
	return logout, nil
}

// parseLogout reads the claims that a logout token has beside those of checkClaims.
func (p *RelyingParty) parseLogout(c claims) (*Logout, error) {
	iat, _ := c.instant("iat") // checkClaims has seen it, and exp
	exp, _ := c.instant("exp")
	l := &Logout{
		Issuer:  p.Issuer,
		SID:     c.text("sid"),
		ID:      c.text("jti"),
		Expires: earlier(exp, iat.Add(maxLogoutAge)).Add(skew),
	}
	if p.Now().After(iat.Add(maxLogoutAge + skew)) {
		return nil, fmt.Errorf("issued at %v, over %v ago", iat.UTC(), maxLogoutAge)
	}
	events, _ := c["events"].(map[string]any)
	if _, ok := events[logoutEvent].(map[string]any); !ok {
		return nil, errors.New("events is not that of a logout")
	}
	if _, ok := c["nonce"]; ok {
		return nil, errors.New("there is a nonce: this is an ID token")
	}
	if l.ID == "" {
		return nil, fmt.Errorf("jti is missing or is no text of at most %d bytes", maxText)
	}
	if _, ok := c["sid"]; ok && l.SID == "" {
		return nil, fmt.Errorf("sid is no text of at most %d bytes", maxText)
	}
	sub, ok := c["sub"]
	if ok {
		if err := checkSubject(sub); err != nil {
			return nil, err
		}
		l.Subject = sub.(string)
	}
	if l.Subject == "" && l.SID == "" {
		return nil, errors.New("there is neither sub nor sid")
	}
	return l, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
