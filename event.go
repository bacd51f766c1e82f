package coatcheck

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// A Reason says why a session ended, in a closed list. It stands in events and logs, and
// package proxy has a sentence for each, for the person whose session it was.
type Reason string

const (
	// ReasonIdle: nobody used the session for the idle timeout.
	ReasonIdle Reason = "idle"
	// ReasonAbsolute: the session reached its absolute end.
	ReasonAbsolute Reason = "absolute"
	// ReasonSignedOut: the person signed out.
	ReasonSignedOut Reason = "signed_out"
	// ReasonReplaced: the same browser signed in again.
	ReasonReplaced Reason = "replaced"
	// ReasonEvicted: the person signed in elsewhere, and a limit made this one give way.
	ReasonEvicted Reason = "evicted"
	// ReasonRevoked: somebody who runs the site ended the session.
	ReasonRevoked Reason = "revoked"
	// ReasonSignedOutElsewhere: the person ended it from another session.
	ReasonSignedOutElsewhere Reason = "signed_out_elsewhere"
	// ReasonBackChannel: the provider said, server to server, that its session has ended
	// (OpenID Connect Back-Channel Logout 1.0).
	ReasonBackChannel Reason = "back_channel_logout"
	// ReasonFrontChannel: the provider said so by the person's browser (OpenID Connect
	// Front-Channel Logout 1.0).
	ReasonFrontChannel Reason = "front_channel_logout"
	// ReasonRefreshRefused: the provider granted no new tokens, and said that what it had
	// granted is over.
	ReasonRefreshRefused Reason = "refresh_refused"
	// ReasonRefreshLost: a refresh token may have been used up and its successor was lost.
	ReasonRefreshLost Reason = "refresh_lost"
	// ReasonKeyRetired: the key that sealed the session was taken out of use.
	ReasonKeyRetired Reason = "key_retired"
	// ReasonLost: the record was gone before its time, and nobody says why: the store has
	// lost it, or a node was stopped while it ended the session.
	ReasonLost Reason = "lost"
)

// Reasons are all reasons.
func Reasons() []Reason {
	return []Reason{
		ReasonIdle, ReasonAbsolute, ReasonSignedOut, ReasonReplaced, ReasonEvicted,
		ReasonRevoked, ReasonSignedOutElsewhere, ReasonBackChannel, ReasonFrontChannel,
		ReasonRefreshRefused, ReasonRefreshLost, ReasonKeyRetired, ReasonLost,
	}
}

// An EventType says what happened to a session, in a closed list.
type EventType string

const (
	// EventStarted: a session began.
	EventStarted EventType = "session.started"
	// EventRenewed: a session is still in use. It is told at most once in each half of the
	// idle timeout, counted from the session's start.
	EventRenewed EventType = "session.renewed"
	// EventEnded: a session ended, for Event.Reason.
	EventEnded EventType = "session.ended"
	// EventLimitDenied: a sign-in was refused because Event.Limit is reached.
	EventLimitDenied EventType = "session.limit_denied"
)

// OperatorAt begins what Event.Node says of an event that a command tells, and no node.
const OperatorAt = "operator@"

// An Event is something that happened to a session. It has no secret in it.
type Event struct {
	// ID is the same however often the event is told, so that receivers can drop repeats.
	ID      string    `json:"id"`
	Type    EventType `json:"type"`
	Time    time.Time `json:"time"`
	Node    string    `json:"node"` // which told it first; OperatorAt and a node's name: a command, run there
	Tenant  string    `json:"tenant"`
	Issuer  string    `json:"issuer"`
	Subject string    `json:"subject"`
	Ref     Ref       `json:"session,omitempty"`
	App     string    `json:"app,omitempty"`
	Reason  Reason    `json:"reason,omitempty"` // of EventEnded
	Limit   string    `json:"limit,omitempty"`  // of EventLimitDenied
}

// MakeEventID returns the ID of an event: the same for the n-th event of a type in the
// life of a session, whoever tells it and however often.
func MakeEventID(t EventType, ref Ref, n int64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "coatcheck event\x00%s\x00%s\x00%d", t, ref, n))
	return hex.EncodeToString(sum[:16])
}
