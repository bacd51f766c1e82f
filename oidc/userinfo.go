package oidc

import (
	"context"
	"errors"
	"net/http"

	"github.com/coatcheck/coatcheck"
)

// identify returns who the ID token's claims speak of. What they lack is asked of the
// userinfo endpoint (OpenID Connect Core 1.0 §5.3), if there is one.
func (p *RelyingParty) identify(ctx context.Context, m *metadata, c claims, access coatcheck.Secret) (*coatcheck.Identity, error) {
	subject, _ := c["sub"].(string)
	id := &coatcheck.Identity{Issuer: p.Issuer, Subject: subject}
	if err := c.fill(id, p.GroupsClaim); err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadToken, "oidc.id_token", err)
	}
	lacks := id.Email == "" || p.GroupsClaim != "" && id.Groups == nil
	if lacks && m.UserinfoEndpoint != "" {
		const op = "oidc.userinfo"
		info, err := p.userinfo(ctx, m.UserinfoEndpoint, access)
		if err != nil {
			return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
		}
		more, err := parseClaims(info)
		if err != nil {
			return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
		}
		// §5.3.2: else this is somebody else's data, by accident or by token substitution.
		if more["sub"] != subject {
			return nil, coatcheck.E(coatcheck.CodeBadToken, op, errors.New("sub is not the one of the ID token"))
		}
		if err := more.fill(id, p.GroupsClaim); err != nil {
			return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
		}
	}
	if p.UnverifiedEmail && id.Email != "" {
		id.EmailVerified = true
	}
	return id, nil
}

func (p *RelyingParty) userinfo(ctx context.Context, endpoint string, access coatcheck.Secret) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+access.Reveal())
	return p.fetchOK(req)
}
