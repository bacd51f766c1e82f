package coatcheck

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// State says how sure coatcheck is of who is there. The zero value is Anonymous,
// so a forgotten assignment grants nothing. States are ordered: a route that asks
// for one is served to that one and to every higher one.
type State uint8

const (
	// Anonymous: nobody has signed in.
	Anonymous State = iota
	// Returning: somebody who signed in earlier and was remembered; low assurance.
	Returning
	// Authenticated: a provider has vouched for this person, and the session lives.
	Authenticated
)

// String returns the state's name as it stands in configuration, headers and logs.
func (s State) String() string {
	switch s {
	case Anonymous:
		return "anonymous"
	case Returning:
		return "returning"
	case Authenticated:
		return "authenticated"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// A Session is a user's state at coatcheck. Sessions are shared between requests
// once loaded and must not be changed; a change is a new value saved under the
// store's revision.
type Session struct {
	Tenant   string   // the tenant whose name space the session lives in
	Provider string   // the configured name of the provider that vouched
	State    State    // Authenticated after every sign-in
	Identity Identity // who it is
	// ProviderSID is the provider's own session id (the "sid" claim, OpenID
	// Connect Back-Channel Logout 1.0 §2.1); empty where the provider sends none.
	ProviderSID string
	Tokens      Tokens
	Renewal     Renewal
	Origin      Origin    // where the session was begun
	AuthTime    time.Time // when the person last proved who they are (auth_time, else the sign-in)
	Created     time.Time // when this session began
	// Deadline is the absolute end. Nothing extends it, whatever the user does.
	Deadline time.Time
	// Unknown is what a node of a later version has written into the record and this one has
	// no field for, as it was coded. It is kept whenever the record is written anew.
	Unknown []byte
}

// An Origin says where a session was begun. It is for people who look through a list of
// sessions, and for limits by app; nothing is allowed or refused for what it says.
type Origin struct {
	App       string // the host that the person signed in for
	IP        string // of the client, as far as it could be believed
	UserAgent string // as the browser gave it, at most MaxUserAgent bytes
	Node      string // the node that completed the sign-in
}

// A Renewal is how far a session is with getting something new from its provider. It is
// kept with the session, so that all nodes know of it. Its times are the store's.
type Renewal struct {
	// Attempt names the attempt that may have sent the refresh token and whose outcome is
	// unknown; empty if there is none.
	Attempt string
	// AttemptAt is when Attempt was noted, shortly before anything was sent.
	AttemptAt time.Time
	// NotBefore is when the provider is asked next at the earliest: ahead of the access
	// token's end, or later after Failures failures in a row. With the refresh token lost it
	// is when the session may end. Zero: not planned.
	NotBefore time.Time
	Failures  int
	// Checked is when the provider last confirmed the person: at sign-in, with new tokens,
	// or when it was asked for that.
	Checked time.Time
}

// MaxUserAgent bounds what is kept of a User-Agent, in bytes.
const MaxUserAgent = 256

// Tokens are the OAuth tokens of a session. They never leave coatcheck but to the
// provider that issued them.
type Tokens struct {
	ID      Secret
	Access  Secret
	Refresh Secret
	// AccessExpiry is when the access token ends, by the store's clock. Where the provider
	// gives no usable expires_in it is an assumption; it is always set.
	AccessExpiry time.Time
}

// A Ref names a session in logs, events and lists. It is a hash: whoever knows a
// Ref can neither find the record nor use the session.
type Ref string

// MakeRef returns the Ref of the session kept under the given store key.
func MakeRef(key string) Ref {
	sum := sha256.Sum256([]byte("coatcheck session ref\x00" + key))
	return Ref(hex.EncodeToString(sum[:12]))
}
