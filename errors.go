package coatcheck

import (
	"context"
	"errors"
	"fmt"
)

// A Code says what went wrong, in a closed list. It alone decides the status, the
// page and whether a cookie is cleared; package proxy holds the one table that maps
// codes to answers, and a test there fails when a code has no row.
type Code string

const (
	// CodeMalformed: the request can be read in two ways, or in none. 400.
	CodeMalformed Code = "malformed_request"
	// CodeURITooLong: the request target is over the limit. 414.
	CodeURITooLong Code = "uri_too_long"
	// CodeTooManyCookies: the request has more cookies than a browser sends. 431.
	CodeTooManyCookies Code = "too_many_cookies"
	// CodeAmbiguousSession: two cookies name two different live sessions. 400.
	CodeAmbiguousSession Code = "ambiguous_session"
	// CodeMisdirected: the Host is not one of ours (RFC 9110 §15.5.20). 421.
	CodeMisdirected Code = "misdirected_request"
	// CodeNotFound: no route leads there. 404.
	CodeNotFound Code = "not_found"
	// CodeMethodNotAllowed: one of our own endpoints does not take this method. 405.
	CodeMethodNotAllowed Code = "method_not_allowed"
	// CodeForbiddenOrigin: a WebSocket handshake from a foreign origin, or a script's request
	// that none of our pages has made. 403.
	CodeForbiddenOrigin Code = "forbidden_origin"
	// CodeUpgradeRequired: a WebSocket handshake that RFC 6455 §4.2.2 refuses. 426.
	CodeUpgradeRequired Code = "upgrade_required"

	// CodeSignInRequired: nobody is signed in and the route asks for somebody. A
	// navigation is sent to the provider, everything else gets 401.
	CodeSignInRequired Code = "sign_in_required"
	// CodeSessionEnded: as CodeSignInRequired, and the cookie is of a session that is known
	// to have ended; the answer says why. 401, for a navigation too. To an open WebSocket:
	// its session has ended. 1008.
	CodeSessionEnded Code = "session_ended"
	// CodeLimit: the person may sign in, but a limit on sessions is reached and nobody
	// gives way. 403: waiting alone does not help, so there is no Retry-After.
	CodeLimit Code = "session_limit"
	// CodeForbidden: the person is known and may not. 403.
	CodeForbidden Code = "forbidden"
	// CodeUnknown: whether there is a session can't be told now. Neither access nor
	// logout: 503 with Retry-After, and the cookie stays. To an open WebSocket: 1013.
	CodeUnknown Code = "session_unknown"

	// CodeNotReady: sign-in is not possible yet, the provider was never reached. 503.
	CodeNotReady Code = "sign_in_not_ready"
	// CodeBadReturnURL: the return URL leads elsewhere. 400.
	CodeBadReturnURL Code = "bad_return_url"
	// CodeBadCallback: the provider's answer does not fit a sign-in of this browser. 400.
	CodeBadCallback Code = "bad_callback"
	// CodeSignInExpired: the sign-in took too long. It is started afresh.
	CodeSignInExpired Code = "sign_in_expired"
	// CodeOtherKeys: the pre-login cookie was sealed by a key this node lacks. 400.
	CodeOtherKeys Code = "sign_in_other_keys"
	// CodeSignInLoop: sign-ins complete and no request is ever served. 400.
	CodeSignInLoop Code = "sign_in_loop"
	// CodeProviderRefused: the provider answered with an OAuth error. 403.
	CodeProviderRefused Code = "provider_refused"
	// CodeProviderFailed: the provider could not be reached or talked nonsense. 502.
	CodeProviderFailed Code = "provider_failed"
	// CodeBadToken: an ID token or userinfo answer that must not be believed. 502.
	CodeBadToken Code = "bad_token"
	// CodeBadLogoutToken: a logout token that must not be believed, so nothing was ended. 400.
	CodeBadLogoutToken Code = "bad_logout_token"

	// CodeUpstreamFailed: the app can't be reached or broke off. 502.
	CodeUpstreamFailed Code = "upstream_failed"
	// CodeUpstreamTimeout: the app did not answer in time. 504.
	CodeUpstreamTimeout Code = "upstream_timeout"
	// CodeUpstreamBusy: as many requests to the app are under way as may be. 503.
	CodeUpstreamBusy Code = "upstream_busy"
	// CodeInternal: a defect of ours. 500.
	CodeInternal Code = "internal_error"
)

// An Error is a failure that somebody decides on. Err is for the log and never
// reaches a browser.
type Error struct {
	Code Code
	Op   string // what was being done, as in "oidc.callback"
	Err  error  // the cause; may be nil
}

// E returns an *Error. A nil cause is allowed where the code says it all.
func E(code Code, op string, cause error) *Error {
	return &Error{Code: code, Op: op, Err: cause}
}

// Error implements error as "op: cause", or "op: code" without a cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Op, e.Code)
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the outermost *Error in err's chain. A cancelled or
// timed-out context without a code is unknown, everything else without one is
// internal. It must not be called with nil.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return CodeUnknown
	}
	return CodeInternal
}
