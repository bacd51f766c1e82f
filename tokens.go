package coatcheck

import "fmt"

// An Outcome says what became of a request to a provider that brought no new tokens. What
// may be done next depends on it alone.
type Outcome uint8

const (
	// OutcomeUnknown: the request may have reached the provider, and what it did is not
	// known. A refresh token that was in it may be used up, and must not be sent again.
	OutcomeUnknown Outcome = iota
	// OutcomeNone: the request did not reach the provider, or the provider says that it
	// did nothing. It may be made again, later.
	OutcomeNone
	// OutcomeRefused: the provider says that what it has granted is over.
	OutcomeRefused
	// OutcomeMisconfigured: the provider does not accept this client. That is the
	// operator's fault; it says nothing of any person.
	OutcomeMisconfigured
)

// String returns the outcome's name as it stands in logs.
func (o Outcome) String() string {
	switch o {
	case OutcomeUnknown:
		return "unknown"
	case OutcomeNone:
		return "none"
	case OutcomeRefused:
		return "refused"
	case OutcomeMisconfigured:
		return "misconfigured"
	default:
		return fmt.Sprintf("Outcome(%d)", uint8(o))
	}
}

// A RenewalError says why a provider gave nothing new for a session. Err is for the log; no
// token is in it.
type RenewalError struct {
	Outcome Outcome
	Err     error
}

// Error implements error.
func (e *RenewalError) Error() string { return fmt.Sprintf("outcome %s: %v", e.Outcome, e.Err) }

// Unwrap returns the cause.
func (e *RenewalError) Unwrap() error { return e.Err }

// A TokenKind is the token_type_hint of RFC 7009 §2.1.
type TokenKind string

// The kinds of tokens that can be revoked.
const (
	RefreshToken TokenKind = "refresh_token"
	AccessToken  TokenKind = "access_token"
)
