package proxy

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"

	"github.com/coatcheck/coatcheck"
)

// An answer is what somebody is told about an error. Text says what happened, Next what
// to do; neither says more than a stranger may know, the cause is in the log. What
// strangers cause all day is logged at the level debug; the access log has the code.
// Where more is known than the code, an explanation takes the place of title, text and next.
type answer struct {
	status int
	level  slog.Level
	title  string
	text   string
	next   string
	action string // what the page's button does: one of the constants below
}

// What the button of an error page does.
const (
	actionNone   = ""
	actionStart  = "start"  // begin a sign-in
	actionReturn = "return" // begin a sign-in that leads back to where the person was going
	actionResume = "resume" // go on to the site, or begin a sign-in
	actionReload = "reload" // ask for the same page again
	actionHome   = "home"
	actionSwitch = "switch" // sign out, to sign in as somebody else
)

// answers has a row for every coatcheck.Code.
var answers = map[coatcheck.Code]answer{
	coatcheck.CodeMalformed: {
		400, slog.LevelDebug, "This request can't be understood",
		"The address or the request has something in it that can be read in two ways, so it was not passed on.",
		"Check the address for typing errors.", actionHome,
	},
	coatcheck.CodeURITooLong: {
		414, slog.LevelDebug, "This address is too long",
		"The address is longer than this site takes.",
		"Go to the start page, and find your way from there.", actionHome,
	},
	coatcheck.CodeTooManyCookies: {
		431, slog.LevelDebug, "Too many cookies",
		"Your browser sent more cookies than this site takes.",
		"Delete the cookies of this site in your browser's settings, then sign in again.", actionNone,
	},
	coatcheck.CodeAmbiguousSession: {
		400, slog.LevelWarn, "Two sessions at once",
		"Your browser sent the cookies of two different sessions, so it is not clear who you are.",
		"Delete the cookies of this site in your browser's settings, then sign in again.", actionNone,
	},
	coatcheck.CodeMisdirected: {
		421, slog.LevelDebug, "Nothing is served under this name",
		"This server answers, but not under the host name in the address.",
		"Check the address. If you run this site: the host must be the one in public_url, or a route's host.", actionNone,
	},
	coatcheck.CodeNotFound: {
		404, slog.LevelDebug, "Page not found",
		"There is nothing at this address.",
		"Check the address for typing errors.", actionHome,
	},
	coatcheck.CodeMethodNotAllowed: {
		405, slog.LevelDebug, "That can't be done here",
		"This address does not take requests of this kind.",
		"Go back, or start again from the start page.", actionHome,
	},
	coatcheck.CodeForbiddenOrigin: {
		403, slog.LevelWarn, "Not from that page",
		"This is for pages of this site alone, and a page of another site may have asked for it.",
		"If you run this site: a route's websocket_origins lists whose pages may open WebSockets; everything else of this kind is for its own pages, in a browser.", actionHome,
	},
	coatcheck.CodeUpgradeRequired: {
		426, slog.LevelDebug, "This needs another WebSocket version",
		"The WebSocket handshake is not one of version 13.",
		"Use an up-to-date client.", actionNone,
	},
	coatcheck.CodeSignInRequired: {
		401, slog.LevelDebug, "Sign-in required",
		"Nobody is signed in, or the session has ended.",
		"Sign in to go on.", actionStart,
	},
	coatcheck.CodeSessionEnded: {
		401, slog.LevelDebug, "You were signed out",
		"Your session here has ended.",
		"Sign in again to go on.", actionReturn,
	},
	coatcheck.CodeLimit: {
		403, slog.LevelInfo, "Too many sessions",
		"The number of sessions is limited, and that number is reached.",
		"Sign out where you no longer need to be signed in, then sign in again.", actionReturn,
	},
	coatcheck.CodeForbidden: {
		403, slog.LevelInfo, "You may not open this",
		"Your account has no access to this page.",
		"Ask the people who run this site for access. If you have another account, sign out and sign in with that one.", actionSwitch,
	},
	coatcheck.CodeUnknown: {
		503, slog.LevelError, "One moment, please",
		"Whether you are signed in can't be looked up right now. You have not been signed out.",
		"Try again in a few seconds.", actionReload,
	},
	coatcheck.CodeNotReady: {
		503, slog.LevelError, "Sign-in is not possible right now",
		"The sign-in provider of this site can't be reached, or its answers can't be trusted. People who are signed in already are not affected.",
		"Try again in a minute.", actionReload,
	},
	coatcheck.CodeBadReturnURL: {
		400, slog.LevelDebug, "That address is not part of this site",
		"The link would send you on to an address that does not belong to this site.",
		"Go to the start page, and find your way from there.", actionHome,
	},
	coatcheck.CodeBadCallback: {
		400, slog.LevelWarn, "This sign-in can't be completed",
		"It was completed already, or was not started in this browser, or your browser did not keep its cookie.",
		"If you came here by going back or from a bookmark, just go on to the site. Otherwise sign in again.", actionResume,
	},
	coatcheck.CodeSignInExpired: {
		400, slog.LevelDebug, "That took too long",
		"A sign-in must be completed within ten minutes.",
		"Sign in again.", actionStart,
	},
	coatcheck.CodeOtherKeys: {
		400, slog.LevelError, "The servers of this site don't share their keys",
		"Your sign-in was started by another server of this site, and this one can't open its cookie: it has other keys.",
		"If you run this site: give every node the same key ring (keys.file). If you came to use it: tell the people who run it.", actionStart,
	},
	coatcheck.CodeSignInLoop: {
		400, slog.LevelError, "The servers of this site don't share their sessions",
		"You have signed in three times within 30 seconds, and no page was ever served. The server that got your next request each time did not know the session that was just made.",
		"If you run this site: give every node the same session store (store). If you came to use it: tell the people who run it.", actionStart,
	},
	coatcheck.CodeProviderRefused: {
		403, slog.LevelWarn, "You were not signed in",
		"You cancelled the sign-in, or the provider refused it.",
		"Sign in again. If that doesn't help, ask the people who run this site.", actionStart,
	},
	coatcheck.CodeProviderFailed: {
		502, slog.LevelError, "The provider is not answering",
		"Your sign-in could not be completed, because the sign-in provider of this site could not be reached or did not answer as it should.",
		"Wait a minute, then sign in again.", actionStart,
	},
	coatcheck.CodeBadToken: {
		502, slog.LevelError, "The provider's answer can't be trusted",
		"Your sign-in was stopped, because what the sign-in provider of this site said about you did not pass a check.",
		"Sign in again. If that doesn't help, tell the people who run this site.", actionStart,
	},
	coatcheck.CodeBadLogoutToken: {
		400, slog.LevelWarn, "Nobody was signed out",
		"A logout token of the sign-in provider was expected here, and what came did not pass a check.",
		"If you run this site: the log says which check. If you came to use it: this address is not for people.", actionHome,
	},
	coatcheck.CodeUpstreamFailed: {
		502, slog.LevelError, "The application is not answering",
		"You are in the right place, but the application behind this address can't be reached.",
		"Try again in a moment.", actionReload,
	},
	coatcheck.CodeUpstreamTimeout: {
		504, slog.LevelError, "The application takes too long",
		"The application behind this address did not answer in time.",
		"Try again in a moment.", actionReload,
	},
	coatcheck.CodeUpstreamBusy: {
		503, slog.LevelWarn, "The application is busy",
		"You are in the right place, but the application behind this address has more to do than it can keep up with.",
		"Try again in a few seconds.", actionReload,
	},
	coatcheck.CodeInternal: {
		500, slog.LevelError, "Something went wrong here",
		"This is this site's fault, not yours.",
		"Try again. If that doesn't help, tell the people who run this site the request ID below.", actionReload,
	},
}

// signInUnknown is the answer of CodeUnknown to those who come back from the provider. They
// have no session to be told about, and their address can't be asked for again.
var signInUnknown = answer{
	503, slog.LevelError, "You could not be signed in",
	"You could not be signed in: this site's store of sessions is not answering right now.",
	"Try again in a few seconds.", actionStart,
}

// retryAfter is on every 503, in seconds (RFC 9110 §10.2.3): one that differs, so that those
// who were refused together do not come back together.
func retryAfter() string { return strconv.Itoa(1 + rand.IntN(3)) }

// render answers with an error. It is the only place where an error becomes HTTP, but for
// the back channel, whose answers OpenID Connect prescribes.
func (p *Proxy) render(x *exchange, err error) {
	code := coatcheck.CodeOf(err)
	if code == coatcheck.CodeSignInRequired {
		err = p.ended(x, err)
		code = coatcheck.CodeOf(err)
	}
	if code == coatcheck.CodeSignInRequired && x.navigation() {
		startErr := p.startSignIn(x, p.Returns.FromRequest(x.req.Host, x.target()))
		if startErr == nil {
			return
		}
		err, code = startErr, coatcheck.CodeOf(startErr)
	}
	a, ok := answers[code]
	if !ok {
		a = answers[coatcheck.CodeInternal]
	}
	if code == coatcheck.CodeUnknown && x.req.Path == p.Prefix+"/callback" {
		a = signInUnknown
	}
	a, reason := a.explained(err)
	x.code = code
	level := a.level
	if x.r.Context().Err() != nil {
		level = slog.LevelDebug // the client has left; browsers do so all day
	}
	attrs := []slog.Attr{
		slog.String("request_id", x.id), slog.String("code", string(code)), slog.Int("status", a.status), slog.String("route", x.routeName()),
	}
	if x.live != nil {
		attrs = append(attrs, slog.String("session", x.ref()), slog.String("user", x.user()))
	}
	p.Logger.LogAttrs(x.r.Context(), level, "request refused", append(attrs, slog.String("error", err.Error()))...)

	h := x.w.Header()
	switch a.status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", retryAfter())
	case http.StatusUnauthorized:
		// RFC 9110 §15.5.2 asks for a challenge. Browsers leave an unknown scheme alone.
		h.Set("WWW-Authenticate", `Cookie realm="coatcheck"`)
	case http.StatusUpgradeRequired:
		h.Set("Sec-WebSocket-Version", "13") // RFC 6455 §4.2.2
		h.Set("Upgrade", "websocket")        // RFC 9110 §15.5.22
		h.Set("Connection", "Upgrade")
	}
	if x.wantsPage() {
		err = p.writePage(x, a.status, p.errorPage(x, a))
	} else {
		err = writeJSON(x, a.status, struct {
			Error     coatcheck.Code   `json:"error"`
			Reason    coatcheck.Reason `json:"reason,omitempty"`
			Message   string           `json:"message"`
			RequestID string           `json:"request_id"`
		}{code, reason, a.text + " " + a.next, x.id})
	}
	if err != nil {
		http.Error(&x.w, a.title, a.status)
	}
}

func (p *Proxy) errorPage(x *exchange, a answer) page {
	pg := page{Title: a.title, Text: []string{a.text, a.next}, RequestID: x.id}
	switch a.action {
	case actionStart:
		pg.Actions = []action{{"Sign in again", p.startURL(x.returnTo), true}}
	case actionReturn:
		pg.Actions = []action{{"Sign in again", p.startURL(p.goal(x)), true}}
	case actionReload:
		// An empty reference is this very address (RFC 3986 §4.4), for a GET only.
		if x.r.Method == http.MethodGet && x.req.Path != p.Prefix+"/callback" {
			pg.Actions = []action{{"Try again", "", true}}
		} else {
			pg.Actions = []action{{"Go to the start page", "/", true}}
		}
	case actionHome:
		pg.Actions = []action{{"Go to the start page", "/", true}}
	case actionResume:
		pg.Actions = []action{{"Go on to the site", "/", true}, {"Sign in again", p.startURL("/"), false}}
	case actionSwitch:
		if s := x.session(); s != nil {
			pg.Text = append([]string{signedInAs(s)}, pg.Text...)
		}
		pg.Actions = []action{{"Sign out", p.Prefix + "/sign_out", true}, {"Go to the start page", "/", false}}
	}
	return pg
}
