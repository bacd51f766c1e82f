package oidc

import (
	"context"
	"errors"
	"net/http"

	"github.com/coatcheck/coatcheck"
)

// errOtherPerson: what the provider says is about somebody else.
var errOtherPerson = errors.New("sub is not the one of the person who signed in")

// identify returns who the ID token's claims speak of. What they lack is asked of the
// userinfo endpoint, if there is one.
func (p *RelyingParty) identify(ctx context.Context, m *metadata, c claims, access coatcheck.Secret) (*coatcheck.Identity, error) {
	subject, _ := c["sub"].(string)
	id := &coatcheck.Identity{Issuer: p.Issuer, Subject: subject}
	if err := c.fill(id, p.GroupsClaim); err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadToken, "oidc.id_token", err)
	}
	if p.lacks(id) && m.UserinfoEndpoint != "" {
		more, err := p.userinfo(ctx, m.UserinfoEndpoint, access, subject)
		if err != nil {
			return nil, err
		}
		if err := more.fill(id, p.GroupsClaim); err != nil {
			return nil, coatcheck.E(coatcheck.CodeBadToken, "oidc.userinfo", err)
		}
	}
	p.trustEmail(id)
	return id, nil
}

// lacks tells whether an identity is without something that decides who may pass.
func (p *RelyingParty) lacks(id *coatcheck.Identity) bool {
	return id.Email == "" || p.GroupsClaim != "" && id.Groups == nil
}

// trustEmail takes the address for verified where the operator wants that.
func (p *RelyingParty) trustEmail(id *coatcheck.Identity) {
	if p.UnverifiedEmail && id.Email != "" {
		id.EmailVerified = true
	}
}

// userinfo asks the userinfo endpoint about the owner of an access token (OpenID Connect
// Core 1.0 §5.3). It returns CodeProviderFailed if there is no answer, with a *statusError
// in it if there is one that is not 200, and CodeBadToken for one that must not be
// believed; that is errOtherPerson if it is about somebody who is not the subject.
func (p *RelyingParty) userinfo(ctx context.Context, endpoint string, access coatcheck.Secret, subject string) (claims, error) {
	const op = "oidc.userinfo"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	}
	req.Header.Set("Authorization", "Bearer "+access.Reveal())
	body, err := p.fetchOK(req)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	}
	c, err := parseClaims(body)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
	}
	// §5.3.2: else this is somebody else's data, by accident or by token substitution.
	if c["sub"] != subject {
		return nil, coatcheck.E(coatcheck.CodeBadToken, op, errOtherPerson)
	}
	return c, nil
}
