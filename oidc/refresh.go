package oidc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// Refresh redeems the refresh token of a session (RFC 6749 §6), which is sent at most once,
// and returns the session with the new tokens and with what the provider says of the
// person now. It does not change s. All of Renewal, AuthTime and the times of the session
// stay as they are. Where the provider does not rotate refresh tokens the old one stays.
//
// Its errors are *coatcheck.RenewalError. With OutcomeRefused it may be that tokens were
// granted and must not be believed: those are revoked, as far as that is possible.
func (p *RelyingParty) Refresh(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error) {
	const op = "oidc.refresh"
	current, err := p.providerOf(s, op)
	if err != nil {
		return nil, err
	}
	granted, failed := p.requestTokens(ctx, &current.metadata, url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {s.Tokens.Refresh.Reveal()},
	})
	if failed != nil {
		return nil, renewalError(failed.outcome(), op, failed)
	}
	tokens := *granted
	identity, err := p.renew(ctx, current, s, &tokens)
	if err != nil {
		p.discard(ctx, granted)
		return nil, renewalError(coatcheck.OutcomeRefused, op, err)
	}
	if tokens.Refresh == "" {
		tokens.Refresh = s.Tokens.Refresh
	}
	next := *s
	next.Identity, next.Tokens = *identity, tokens
	return &next, nil
}

// Check asks the userinfo endpoint whether the provider still vouches for the person, and
// returns the session with what it says now; what it does not speak of stays as the ID
// token has it. It does not change s. Its errors are *coatcheck.RenewalError; a question uses
// nothing up, so none of them is OutcomeUnknown.
func (p *RelyingParty) Check(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error) {
	const op = "oidc.check"
	current, err := p.providerOf(s, op)
	if err != nil {
		return nil, err
	}
	if current.UserinfoEndpoint == "" {
		return nil, renewalError(coatcheck.OutcomeMisconfigured, op, errors.New("the provider has no userinfo endpoint"))
	}
	info, err := p.userinfo(ctx, current.UserinfoEndpoint, s.Tokens.Access, s.Identity.Subject)
	var answer *statusError
	switch {
	case errors.Is(err, errOtherPerson),
		errors.As(err, &answer) && answer.status == http.StatusUnauthorized: // RFC 6750 §3.1: invalid_token
		return nil, renewalError(coatcheck.OutcomeRefused, op, err)
	case err != nil:
		return nil, renewalError(coatcheck.OutcomeNone, op, err)
	}
	identity, err := p.describe(s, info, held(s))
	if err != nil {
		return nil, renewalError(coatcheck.OutcomeRefused, op, err)
	}
	next := *s
	next.Identity = *identity
	return &next, nil
}

// Revoke tells the provider that a token will not be used any more (RFC 7009 §2). It
// returns nil if the provider offers no such thing, does not revoke tokens of this kind, or
// does not know the token. Its errors are *coatcheck.RenewalError, and it can be called
// again after any of them.
func (p *RelyingParty) Revoke(ctx context.Context, token coatcheck.Secret, kind coatcheck.TokenKind) error {
	const op = "oidc.revoke"
	current, err := p.provider(op)
	switch {
	case err != nil:
		return &coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: err}
	case current.RevocationEndpoint == "":
		return nil
	}
	supported := current.RevocationAuthMethods
	if len(supported) == 0 {
		supported = current.TokenAuthMethods
	}
	method := p.authMethod(supported)
	if method == "" {
		return renewalError(coatcheck.OutcomeMisconfigured, op, fmt.Errorf("the revocation endpoint takes neither %s nor %s", authBasic, authPost))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	status, _, failed := p.post(ctx, current.RevocationEndpoint, method, url.Values{
		"token":           {token.Reveal()},
		"token_type_hint": {string(kind)},
	})
	switch {
	case failed != nil && failed.code == "unsupported_token_type": // §2.2.1
		return nil
	case failed == nil && status/100 != 2:
		failed = &failure{sent: true, status: status, err: fmt.Errorf("the revocation endpoint answered with status %d", status)}
	}
	if failed != nil {
		return renewalError(failed.outcome(), op, failed)
	}
	return nil
}

func renewalError(o coatcheck.Outcome, op string, cause error) error {
	return &coatcheck.RenewalError{Outcome: o, Err: fmt.Errorf("%s: %w", op, cause)}
}

// outcome says what became of a request that has failed.
func (f *failure) outcome() coatcheck.Outcome {
	switch {
	case f.status == 0 && !f.sent:
		return coatcheck.OutcomeNone
	case f.status >= 500, f.status == http.StatusTooManyRequests:
		// Whatever else the answer says. A gateway that lost the provider's answer says so
		// too; then trying again is answered with invalid_grant, and the person has lost
		// no more than by not trying.
		return coatcheck.OutcomeNone
	case f.code != "":
		return outcomeOf(f.code)
	case f.status >= 300:
		return coatcheck.OutcomeNone
	default: // no answer, or the one of a request that was granted, and it can't be used
		return coatcheck.OutcomeUnknown
	}
}

// outcomeOf reads the code of an OAuth error. An error of any code says that nothing was
// granted.
func outcomeOf(code string) coatcheck.Outcome {
	switch code {
	case "invalid_grant", // RFC 6749 §5.2
		// Providers use codes of the authorization endpoint too, where they want to see
		// the person again (RFC 6749 §4.1.2.1, OpenID Connect Core 1.0 §3.1.2.6).
		"access_denied", "interaction_required", "login_required", "account_selection_required", "consent_required":
		return coatcheck.OutcomeRefused
	case "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_request", "invalid_scope":
		return coatcheck.OutcomeMisconfigured
	default: // server_error, temporarily_unavailable, slow_down, and what no specification has
		return coatcheck.OutcomeNone
	}
}

// Knows tells whether a session that began with the provider of that configured name and
// issuer is one of this provider's.
func (p *RelyingParty) Knows(name, issuer string) bool { return name == p.Name && issuer == p.Issuer }

// providerOf returns the provider of a session. A token is not sent to another issuer than
// the one it came from, should the configuration have changed since.
func (p *RelyingParty) providerOf(s *coatcheck.Session, op string) (*provider, error) {
	if !p.Knows(s.Provider, s.Identity.Issuer) {
		return nil, renewalError(coatcheck.OutcomeMisconfigured, op,
			fmt.Errorf("the session is one of provider %q, %s; configured is %q, %q", s.Provider, quote(s.Identity.Issuer), p.Name, p.Issuer))
	}
	current, err := p.provider(op)
	if err != nil {
		return nil, &coatcheck.RenewalError{Outcome: coatcheck.OutcomeNone, Err: err}
	}
	return current, nil
}

// renew checks tokens that were granted for a session, and returns who they speak of now.
// An error means that they must not be believed. Where no ID token came with them, or one
// that can't be verified because its key can't be had or that is not good now, the session's
// own takes its place: a clock that is wrong, on either side, costs nobody the session.
//
// Nothing that fails here for want of an answer may lose the tokens: they are the only
// ones the session has left.
func (p *RelyingParty) renew(ctx context.Context, current *provider, s *coatcheck.Session, tokens *coatcheck.Tokens) (*coatcheck.Identity, error) {
	var fresh claims
	if tokens.ID != "" {
		var err error
		fresh, err = p.readIDToken(ctx, current, tokens)
		if fresh != nil {
			if err := checkRenewed(s, fresh); err != nil {
				return nil, coatcheck.E(coatcheck.CodeBadToken, "oidc.id_token", err)
			}
		}
		switch {
		case err == nil:
		case coatcheck.CodeOf(err) == coatcheck.CodeProviderFailed, errors.Is(err, errNoKey), errors.Is(err, errNotNow):
			fresh = nil
			p.Logger.WarnContext(ctx, "a new ID token could not be verified, the old one stays",
				"tenant", p.Tenant, "provider", p.Name, "error", err.Error())
		default:
			return nil, err
		}
	}
	if fresh == nil {
		tokens.ID = s.Tokens.ID
	}
	return p.reidentify(ctx, &current.metadata, s, fresh, tokens.Access)
}

// checkRenewed holds a new ID token to the one before (OpenID Connect Core 1.0 §12.2): it
// may name nobody else and no other authentication. What either of them lacks can't be
// compared.
func checkRenewed(s *coatcheck.Session, fresh claims) error {
	before := held(s)
	if fresh["sub"] != s.Identity.Subject {
		return errOtherPerson
	}
	if a, b := before["nonce"], fresh["nonce"]; a != nil && b != nil && a != b {
		return errors.New("the nonce is not the one of the ID token before")
	}
	a, inBefore := before.instant("auth_time")
	b, inFresh := fresh.instant("auth_time")
	if inBefore && inFresh && a.Unix() != b.Unix() {
		return fmt.Errorf("auth_time is %v, and was %v", b.UTC(), a.UTC())
	}
	return nil
}

// held returns the claims of the ID token that a session holds, which was verified when it
// came; nil if there is none.
func held(s *coatcheck.Session) claims {
	parts := strings.Split(s.Tokens.ID.Reveal(), ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	c, _ := parseClaims(payload)
	return c
}

// reidentify returns who a session belongs to after a refresh. A new ID token comes first,
// and userinfo says what it lacks, as at sign-in. Without a new ID token userinfo comes
// first. If userinfo can't be had, what it would have said stays as it was.
func (p *RelyingParty) reidentify(ctx context.Context, m *metadata, s *coatcheck.Session, fresh claims, access coatcheck.Secret) (*coatcheck.Identity, error) {
	id, err := p.describe(s, fresh)
	if err != nil || fresh != nil && !p.lacks(id) {
		return id, err
	}
	if m.UserinfoEndpoint == "" {
		if fresh == nil {
			return &s.Identity, nil
		}
		return id, nil
	}
	info, err := p.userinfo(ctx, m.UserinfoEndpoint, access, s.Identity.Subject)
	switch {
	case errors.Is(err, errOtherPerson):
		return nil, err
	case err != nil:
		p.Logger.WarnContext(ctx, "userinfo could not be asked after a refresh, what it said before stays",
			"tenant", p.Tenant, "provider", p.Name, "error", err.Error())
		p.inherit(id, &s.Identity)
		return id, nil
	case fresh != nil:
		return p.describe(s, fresh, info)
	default:
		return p.describe(s, info, held(s))
	}
}

// describe returns what sources say of the person whose session it is; the first to say
// something counts.
func (p *RelyingParty) describe(s *coatcheck.Session, sources ...claims) (*coatcheck.Identity, error) {
	id := &coatcheck.Identity{Issuer: s.Identity.Issuer, Subject: s.Identity.Subject}
	for _, c := range sources {
		if err := c.fill(id, p.GroupsClaim); err != nil {
			return nil, err
		}
	}
	p.trustEmail(id)
	return id, nil
}

// inherit adds to an identity what it lacks and was known before.
func (p *RelyingParty) inherit(id, before *coatcheck.Identity) {
	if id.Email == "" {
		id.Email, id.EmailVerified = before.Email, before.EmailVerified
	}
	if id.PreferredUsername == "" {
		id.PreferredUsername = before.PreferredUsername
	}
	if id.Name == "" {
		id.Name = before.Name
	}
	if id.Groups == nil && p.GroupsClaim != "" {
		id.Groups = before.Groups
	}
}

// discard revokes tokens that were granted and must not be used.
func (p *RelyingParty) discard(ctx context.Context, granted *coatcheck.Tokens) {
	ctx = context.WithoutCancel(ctx)
	err := p.Revoke(ctx, granted.Access, coatcheck.AccessToken)
	if granted.Refresh != "" {
		err = errors.Join(p.Revoke(ctx, granted.Refresh, coatcheck.RefreshToken), err)
	}
	if err != nil {
		p.Logger.WarnContext(ctx, "tokens that must not be believed could not be revoked",
			"tenant", p.Tenant, "provider", p.Name, "error", err.Error())
	}
}
