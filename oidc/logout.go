package oidc

import (
	"net/http"
	"net/url"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
)

// signOutLife is how long a sign-out at the provider may take and still lead back to
// where it was started.
const signOutLife = 15 * time.Minute

// afterLogout is what the state of a sign-out holds, sealed: CBOR as in preLogin.
type afterLogout struct {
	Version  int    `cbor:"0,keyasint"`
	ReturnTo string `cbor:"1,keyasint"`
	Issued   int64  `cbor:"2,keyasint"` // Unix seconds
}

const afterLogoutVersion = 1

func (p *RelyingParty) afterLogoutPlace() seal.Place {
	return seal.Place{Purpose: "signed-out", Tenant: p.Tenant}
}

// EndSession returns the provider's URL to sign the person out there too (OpenID
// Connect RP-Initiated Logout 1.0 §2). returnTo may be empty, and so may s. It returns
// ok = false if the provider has no such thing or is not known yet, and for a session of
// another issuer.
func (p *RelyingParty) EndSession(s *coatcheck.Session, returnTo string) (location string, ok bool) {
	endpoint, ok := p.endSessionEndpoint()
	if other := s.Identity.Issuer != "" && s.Identity.Issuer != p.Issuer; !ok || other {
		return "", false
	}
	q := endpoint.Query() // an endpoint may have a query of its own
	q.Set("client_id", p.ClientID)
	q.Set("post_logout_redirect_uri", p.PostLogoutURL)
	if checked, err := p.Returns.Check(returnTo); err == nil {
		plain, err := cbor.Marshal(afterLogout{afterLogoutVersion, checked, p.Now().Unix()})
		if err != nil {
			return "", false
		}
		state, err := p.Ring.SealValue(p.afterLogoutPlace(), plain)
		if err != nil {
			return "", false
		}
		q.Set("state", state)
	}
	if p.IDTokenHint && s.Tokens.ID != "" {
		q.Set("id_token_hint", s.Tokens.ID.Reveal())
	}
	endpoint.RawQuery = q.Encode()
	return endpoint.String(), true
}

// EndSessionOrigin returns the origin that EndSession sends browsers to, "" if there
// is none or it is not known yet. A page whose form may end there must allow it.
func (p *RelyingParty) EndSessionOrigin() string {
	endpoint, ok := p.endSessionEndpoint()
	if !ok {
		return ""
	}
	return endpoint.Scheme + "://" + endpoint.Host
}

func (p *RelyingParty) endSessionEndpoint() (*url.URL, bool) {
	current, err := p.provider("oidc.end_session")
	if err != nil || current.EndSessionEndpoint == "" {
		return nil, false
	}
	u, err := url.Parse(current.EndSessionEndpoint)
	return u, err == nil
}

// SignedOut returns where the browser goes from the post-logout URL: the returnTo of
// EndSession, by the state that the provider has sent back. It returns "" without a
// state of ours, and for one that is over or of another version.
func (p *RelyingParty) SignedOut(r *http.Request) (returnTo string) {
	state := r.URL.Query()["state"]
	if len(state) != 1 {
		return ""
	}
	plain, err := p.Ring.OpenValue(p.afterLogoutPlace(), state[0])
	if err != nil {
		return ""
	}
	var after afterLogout
	if unmarshal(plain, afterLogoutVersion, &after) != nil || p.Now().Sub(time.Unix(after.Issued, 0)) > signOutLife {
		return ""
	}
	return p.safe(after.ReturnTo)
}
