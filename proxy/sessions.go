package proxy

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/session"
)

// maxShown bounds how many sessions are shown to a person. All of them can be ended.
const maxShown = 100

// What the field "end" of the form may say, beside the name of a session.
const (
	endOthers     = "others"
	endEverywhere = "everywhere"
)

// sessions shows people where they are signed in, and lets them sign out there. They see
// and end sessions of the same person alone: the same issuer and subject.
func (p *Proxy) sessions(x *exchange) error {
	if err := p.loadSession(x); err != nil {
		return err
	}
	// Who may not sign in any more may still look and sign out.
	if err := policy.Decide(coatcheck.Authenticated, x.session()); err != nil {
		return err
	}
	if x.r.Method == http.MethodPost {
		return p.endSessions(x)
	}
	return p.listSessions(x, http.StatusOK, "")
}

// ownSessions returns the sessions of the person whose request it is: the one of the request
// first, then those that were used last.
func (p *Proxy) ownSessions(x *exchange) (list []session.Entry, err error) {
	id := &x.session().Identity
	seen := map[coatcheck.Ref]bool{}
	for e, err := range p.Sessions.Find(x.r.Context(), session.Query{Issuer: id.Issuer, Subject: id.Subject}) {
		// A node of another version may have described it: it can be ended for all that.
		if err != nil && !errors.Is(err, session.ErrUndescribed) {
			return nil, coatcheck.E(coatcheck.CodeUnknown, "proxy.sessions", err)
		}
		if e.Ending == "" && !seen[e.Ref] { // one that changes meanwhile may come twice
			seen[e.Ref] = true
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b session.Entry) int {
		switch x.live.Ref {
		case a.Ref:
			return -1
		case b.Ref:
			return 1
		}
		return cmp.Or(b.Seen.Compare(a.Seen), cmp.Compare(a.Ref, b.Ref))
	})
	return list, nil
}

// A shownSession is a session as people and programs see it.
type shownSession struct {
	Session   coatcheck.Ref `json:"session"`
	Current   bool          `json:"current"`
	Device    string        `json:"device"`
	UserAgent string        `json:"user_agent,omitempty"`
	App       string        `json:"app,omitempty"`
	IP        string        `json:"ip,omitempty"`
	Started   time.Time     `json:"started"`
	Seen      time.Time     `json:"seen"`
	Expires   time.Time     `json:"expires"`
}

// A sessionList is the part of a page that shows sessions, with what can be done to them.
type sessionList struct {
	Action   string
	Token    string
	SignOut  string // where the person signs out of the session of this browser
	Sessions []shownSession
	Others   int // how many there are beside that one
	More     int // how many of them are not shown
}

// listSessions answers with the sessions. notice is what the person should know first.
func (p *Proxy) listSessions(x *exchange, status int, notice string) error {
	entries, err := p.ownSessions(x)
	if err != nil {
		return err
	}
	list := sessionList{Action: p.Prefix + "/sessions", SignOut: p.Prefix + "/sign_out"}
	list.More = max(len(entries)-maxShown, 0)
	for i, e := range entries {
		if e.Ref != x.live.Ref {
			list.Others++
		}
		if i < maxShown {
			list.Sessions = append(list.Sessions, shownSession{
				Session: e.Ref, Current: e.Ref == x.live.Ref,
				Device: Device(e.Origin.UserAgent), UserAgent: e.Origin.UserAgent, App: e.Origin.App, IP: e.Origin.IP,
				Started: e.Started.UTC(), Seen: e.Seen.UTC(), Expires: e.Expires.UTC(),
			})
		}
	}
	if x.accepts("application/json") {
		return writeJSON(x, status, struct {
			Sessions []shownSession `json:"sessions"`
			More     int            `json:"more,omitempty"`
		}{list.Sessions, list.More})
	}
	if list.Token, err = p.formToken(x, formSessions, time.Now().Add(formLife)); err != nil {
		return err
	}
	pg := page{Title: "Your sessions", Text: []string{signedInAs(x.session())}, Sessions: &list}
	if notice != "" {
		pg.Text = []string{notice}
	}
	return p.writePage(x, status, pg)
}

// endSessions ends what the form's field "end" names: one session, all others, or all.
func (p *Proxy) endSessions(x *exchange) error {
	const op = "proxy.sessions"
	x.r.Body = http.MaxBytesReader(&x.w, x.r.Body, maxForm)
	if err := x.r.ParseForm(); err != nil {
		return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("the form is malformed"))
	}
	if !askedByOurPage(x.r.Header) && !p.tokenFits(x, formSessions) {
		if x.accepts("application/json") {
			return coatcheck.E(coatcheck.CodeForbiddenOrigin, op, errors.New("no page of ours has asked, and there is no token of one"))
		}
		return p.listSessions(x, http.StatusForbidden,
			"Nothing was ended: the page had been open for too long, or another site asked for it. Press the button again if you meant to.")
	}
	end := x.r.PostForm["end"]
	if len(end) != 1 {
		return coatcheck.E(coatcheck.CodeMalformed, op, errors.New("the form does not say what to end"))
	}
	ended := 0
	ctx, id := x.r.Context(), &x.session().Identity
	switch what := end[0]; what {
	case endOthers, endEverywhere:
		var err error
		all := session.Query{Issuer: id.Issuer, Subject: id.Subject}
		if ended, err = p.Sessions.EndAll(ctx, all, x.live.Ref, coatcheck.ReasonSignedOutElsewhere); err != nil {
			return err
		}
		if what == endEverywhere {
			return p.endSession(x, "")
		}
	case string(x.live.Ref):
		return p.endSession(x, "")
	default:
		list, err := p.ownSessions(x)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(e session.Entry) bool { return string(e.Ref) == what })
		if i < 0 {
			if !x.accepts("application/json") {
				return p.listSessions(x, http.StatusNotFound, "That session had ended already.")
			}
			return coatcheck.E(coatcheck.CodeNotFound, op, errNoSuchSession)
		}
		if err := p.Sessions.Revoke(ctx, list[i], coatcheck.ReasonSignedOutElsewhere); err != nil {
			return coatcheck.E(coatcheck.CodeUnknown, op, err)
		}
		ended = 1
	}
	p.Logger.InfoContext(ctx, "signed out elsewhere", "request_id", x.id, "session", x.live.Ref, "sessions", ended)
	if x.accepts("application/json") {
		return writeJSON(x, http.StatusOK, struct {
			Ended int `json:"ended"`
		}{ended})
	}
	return redirect(x, p.Prefix+"/sessions")
}

// Times returns what the page says of a session's times.
func (s shownSession) Times() []shownTime {
	return []shownTime{{"Signed in", s.Started}, {"Last seen", s.Seen}}
}

type shownTime struct {
	Label string
	At    time.Time
}

// Machine and Human are the two spellings of a time in a page.
func (t shownTime) Machine() string { return t.At.Format(time.RFC3339) }

func (t shownTime) Human() string { return t.At.Format("2 Jan 2006, 15:04 UTC") }

// Summary says how many sessions there are.
func (l *sessionList) Summary() string {
	switch l.Others {
	case 0:
		return "You are signed in nowhere else."
	case 1:
		return "You are signed in here and in one other place."
	default:
		return "You are signed in here and in " + strconv.Itoa(l.Others) + " other places."
	}
}
