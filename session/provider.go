package session

import (
	"context"

	"github.com/coatcheck/coatcheck"
)

// A Provider is asked anew about somebody who is signed in. Its errors are all
// *coatcheck.RenewalError, and what may be done next depends on their outcome alone. Its
// methods are safe for concurrent use.
type Provider interface {
	// Knows tells whether a session that began with the provider of that configured name and
	// issuer is one of this provider's. It is asked about no other: no token is sent to
	// anybody but the issuer that it came from.
	Knows(name, issuer string) bool
	// Refresh redeems the session's refresh token, which it sends at most once, and returns
	// the session with the new tokens and with what the provider says of the person now. It
	// does not change s. With an error no new tokens are known.
	Refresh(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error)
	// Check asks by the access token whether the provider still vouches for the person, and
	// returns the session with what it says now. It does not change s. OutcomeRefused: the
	// access token is not accepted any more.
	Check(ctx context.Context, s *coatcheck.Session) (*coatcheck.Session, error)
	// Revoke tells the provider that a token will not be used any more (RFC 7009). It
	// returns nil if the provider offers no such thing, or does not know the token.
	Revoke(ctx context.Context, token coatcheck.Secret, kind coatcheck.TokenKind) error
}
