package proxy

import (
	"errors"
	"log/slog"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

// An explanation says more than the answer of its error's code: which of the things that
// the code stands for has happened.
type explanation struct{ title, text, next string }

// endings has a row for every coatcheck.Reason. They are read by the person whose session
// it was, or by somebody who has taken the ticket from that person.
var endings = map[coatcheck.Reason]explanation{
	coatcheck.ReasonIdle: {
		"You were signed out",
		"You were signed out because this site was not used for a while.",
		"Sign in again to go on where you were.",
	},
	coatcheck.ReasonAbsolute: {
		"You were signed out",
		"You were signed out because a sign-in at this site lasts for a limited time, even while it is used.",
		"Sign in again to go on where you were.",
	},
	coatcheck.ReasonSignedOut: {
		"You are signed out",
		"You signed out, and that ended your session.",
		"Sign in again to go on.",
	},
	coatcheck.ReasonReplaced: {
		"You were signed out",
		"You were signed out because somebody signed in again with this browser, and that ended the session before.",
		"Sign in again to go on.",
	},
	coatcheck.ReasonEvicted: {
		"You were signed out",
		"You were signed out here because you signed in on another device, and this account may be signed in on a limited number of devices.",
		"Sign in again to go on here; another device may be signed out then. If it was not you who signed in there, change your password.",
	},
	coatcheck.ReasonRevoked: {
		"You were signed out",
		"You were signed out because the people who run this site ended your session.",
		"Sign in again to go on. If that doesn't help, ask the people who run this site.",
	},
	coatcheck.ReasonSignedOutElsewhere: {
		"You were signed out",
		"You were signed out here because you ended this session from another device or browser.",
		"Sign in again to go on here. If it was not you who did that, change your password.",
	},
	coatcheck.ReasonBackChannel: {
		"You were signed out",
		"You were signed out because the sign-in provider of this site ended your session: you signed out there or at another site that uses it, or your account was locked.",
		"Sign in again to go on.",
	},
	coatcheck.ReasonFrontChannel: {
		"You were signed out",
		"You were signed out because you signed out at the sign-in provider, or at another site that uses it.",
		"Sign in again to go on.",
	},
	coatcheck.ReasonRefreshRefused: {
		"You were signed out",
		"You were signed out because the sign-in provider of this site no longer vouches for you: it asks you to sign in again.",
		"Sign in again to go on where you were. If that doesn't help, ask the people who run this site.",
	},
	coatcheck.ReasonRefreshLost: {
		"Please sign in again",
		"You were signed out because a server of this site failed just while it was renewing your sign-in, and the renewal was lost.",
		"Sign in again to go on where you were.",
	},
	coatcheck.ReasonKeyRetired: {
		"Please sign in again",
		"You were signed out because this site has changed its keys, and your session was still locked with an old one.",
		"Sign in again to go on where you were.",
	},
	coatcheck.ReasonLost: {
		"Your session is lost",
		"You were signed out because this site no longer has your session: the servers that keep it may have failed.",
		"Sign in again to go on where you were.",
	},
}

const limitNext = "Sign out on one of them, there or under “Your sessions” on any device where you are signed in; then sign in again. " +
	"A session that is not used ends by itself after a while. If you no longer have any of these devices, ask the people who run this site."

// limits has a row for every store.LimitKind.
var limits = map[store.LimitKind]explanation{
	store.LimitUser: {
		"You are signed in on too many devices",
		"Your account may be signed in to this site on a limited number of devices at once, and that number is reached.",
		limitNext,
	},
	store.LimitApp: {
		"You are signed in on too many devices",
		"Your account may be signed in to this application on a limited number of devices at once, and that number is reached.",
		limitNext,
	},
	store.LimitTotal: {
		"All places of this site are taken",
		"A limited number of people may be signed in to this site at once, and that number is reached.",
		"Wait until a place is free, then sign in again. That is when somebody signs out, or has not used this site for a while.",
	},
}

// What other errors stand for that need a word of their own.
var (
	errNoLogout = errors.New("the query does not name one session of the provider's, by iss and sid")
	noLogout    = explanation{
		"Nobody was signed out",
		"The sign-in provider was expected to say here whose session has ended, and what came does not say that.",
		"If you run this site: the provider must send iss and sid (frontchannel_logout_session_required). If you came to use it: this address is not for people.",
	}

	errNoSuchSession = errors.New("no session of this person has that name")
	noSuchSession    = explanation{
		"That session has ended",
		"You have no session of that name. It may have ended already.",
		"Look at the list of your sessions again.",
	}
)

// ended returns err, the CodeSignInRequired of a request, with the reason why its session has
// ended, where the request's cookie is of one of which that is known.
func (p *Proxy) ended(x *exchange, err error) error {
	if x.live != nil {
		return err // one that is not enough for the route
	}
	reason := p.Sessions.Ended(x.r.Context(), x.r.Header)
	if _, known := endings[reason]; !known {
		return err
	}
	return coatcheck.E(coatcheck.CodeSessionEnded, "proxy.session", &session.EndedError{Reason: reason})
}

// explained is the answer with what err says beyond its code, and the reason for which a
// session has ended, if that is what it says.
func (a answer) explained(err error) (answer, coatcheck.Reason) {
	var e explanation
	var reason coatcheck.Reason
	var ended *session.EndedError
	var limit *store.LimitError
	switch {
	case errors.As(err, &ended):
		e, reason = endings[ended.Reason], ended.Reason
	case errors.As(err, &limit):
		e = limits[limit.Limit]
	case errors.Is(err, errNoLogout):
		e, a.level = noLogout, slog.LevelWarn
	case errors.Is(err, errNoSuchSession):
		e = noSuchSession
	}
	if e != (explanation{}) {
		a.title, a.text, a.next = e.title, e.text, e.next
	}
	return a, reason
}
