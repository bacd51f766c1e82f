package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/proxy"
	"github.com/coatcheck/coatcheck/session"
)

type sessionCmd struct {
	List sessionListCmd `cmd:"" help:"Say who is signed in."`
	End  sessionEndCmd  `cmd:"" help:"End somebody's sessions, on all nodes."`
}

// operatorNode is what events name in place of a node that a command tells of, run by
// somebody on the machine of that name.
func operatorNode(name string) string { return coatcheck.OperatorAt + name }

// A person is whom a provider calls by a subject.
type person struct {
	User   string `placeholder:"SUBJECT" help:"Sessions of this user: what the provider calls them (sub), not an e-mail address."`
	Issuer string `placeholder:"URL" help:"The provider whose user it is, if it is not the configured one."`
}

// Validate is called by kong.
func (p person) Validate() error {
	if p.Issuer != "" && p.User == "" {
		return errors.New("--issuer says whose --user it is: give both")
	}
	return nil
}

// query returns what finds the person's sessions, and everybody's if nobody is named.
func (p person) query(o *operator) session.Query {
	if p.User == "" {
		return session.Query{}
	}
	return session.Query{Subject: p.User, Issuer: cmp.Or(p.Issuer, o.cfg.Providers[0].Issuer)}
}

// nobody says that a query finds no session, and what may be the reason.
func nobody(ctx context.Context, sessions *session.Manager, q session.Query) (string, error) {
	if q != (session.Query{}) {
		for _, err := range sessions.Find(ctx, session.Query{}) {
			switch {
			case err != nil && !errors.Is(err, session.ErrUndescribed):
				return "", unknown(err)
			case q.Ref != "":
				return fmt.Sprintf("there is no session %s: it has ended, or never was", q.Ref), nil
			default:
				return fmt.Sprintf("%q of %s has no session. A user is what the provider calls them (sub), not an e-mail address; coatcheck session list shows them", q.Subject, q.Issuer), nil
			}
		}
	}
	return "no session is listed. If people are signed in, the nodes have another key ring or another store", nil
}

// unknown is the error of a list that may not be complete.
func unknown(err error) error {
	return fmt.Errorf("nobody can tell which sessions there are: %w", err)
}

type sessionListCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
	person
	Limit int  `default:"100" placeholder:"N" help:"Show so many, those that began last (${default}); 0 shows all."`
	JSON  bool `name:"json" help:"Write JSON."`
}

// Validate is called by kong.
func (c sessionListCmd) Validate() error {
	if c.Limit < 0 {
		return errors.New("--limit must not be negative")
	}
	return c.person.Validate()
}

// Run lists sessions, the latest first.
func (c sessionListCmd) Run(ctx context.Context, con console) (err error) {
	o, err := operate(ctx, c.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	sessions := o.sessions(operatorNode(o.cfg.Node), nil)
	q := c.query(o)
	list := sessionList{limit: c.Limit, seen: map[coatcheck.Ref]bool{}}
	for e, err := range sessions.Find(ctx, q) {
		if err != nil && !errors.Is(err, session.ErrUndescribed) {
			return unknown(err)
		}
		list.add(listed{e, err != nil})
	}
	list.trim()
	switch {
	case c.JSON:
		return list.writeJSON(con.out)
	case len(list.shown) == 0:
		why, err := nobody(ctx, sessions, q)
		if err == nil {
			fmt.Fprintln(con.out, why)
		}
		return err
	default:
		return list.write(con.out)
	}
}

// listed is a session in the list.
type listed struct {
	session.Entry
	undescribed bool // a node of another version has described it
}

// A sessionList keeps as many sessions as are to be shown, of all that it is given.
type sessionList struct {
	limit int // none if zero
	seen  map[coatcheck.Ref]bool
	shown []listed
}

func (l *sessionList) add(e listed) {
	if l.seen[e.Ref] { // it has changed while the list was read
		return
	}
	l.seen[e.Ref] = true
	l.shown = append(l.shown, e)
	if l.limit > 0 && len(l.shown) >= 2*l.limit {
		l.trim()
	}
}

// trim leaves those that began last, in that order.
func (l *sessionList) trim() {
	slices.SortFunc(l.shown, func(a, b listed) int {
		return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.Ref, b.Ref))
	})
	if l.limit > 0 && len(l.shown) > l.limit {
		l.shown = l.shown[:l.limit]
	}
}

func (l *sessionList) more() int { return len(l.seen) - len(l.shown) }

func (l *sessionList) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SESSION\tUSER\tSTATE\tSTARTED\tLAST SEEN\tEXPIRES\tIP\tDEVICE\tAPP\tNODE")
	for _, e := range l.shown {
		cells := []string{
			string(e.Ref), e.Subject, e.state(), legible(e.Started), legible(e.Seen), legible(e.Expires),
			e.Origin.IP, e.device(), e.Origin.App, e.Origin.Node,
		}
		for i, text := range cells {
			cells[i] = printable(cmp.Or(text, "-"))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "sessions: %d\n", len(l.seen))
	if n := l.more(); n > 0 {
		fmt.Fprintf(out, "%d that began earlier are not shown: --limit 0 shows all\n", n)
	}
	return nil
}

func (l *sessionList) writeJSON(out io.Writer) error {
	type shown struct {
		Session     coatcheck.Ref    `json:"session"`
		User        string           `json:"user,omitempty"`
		Issuer      string           `json:"issuer,omitempty"`
		Provider    string           `json:"provider,omitempty"`
		SID         string           `json:"sid,omitempty"`
		State       string           `json:"state,omitempty"`
		Ending      coatcheck.Reason `json:"ending,omitempty"`
		Undescribed bool             `json:"undescribed,omitempty"`
		Started     time.Time        `json:"started"`
		Seen        time.Time        `json:"seen"`
		Expires     time.Time        `json:"expires"`
		Deadline    time.Time        `json:"deadline,omitzero"`
		IP          string           `json:"ip,omitempty"`
		Device      string           `json:"device,omitempty"`
		UserAgent   string           `json:"user_agent,omitempty"`
		App         string           `json:"app,omitempty"`
		Node        string           `json:"node,omitempty"`
	}
	doc := struct {
		Sessions []shown `json:"sessions"`
		Total    int     `json:"total"`
		More     int     `json:"more,omitempty"`
	}{[]shown{}, len(l.seen), l.more()}
	for _, e := range l.shown {
		one := shown{
			Session: e.Ref, User: e.Subject, Issuer: e.Issuer, Provider: e.Provider, SID: e.SID,
			Ending: e.Ending, Undescribed: e.undescribed,
			Started: e.Started.UTC(), Seen: e.Seen.UTC(), Expires: e.Expires.UTC(), Deadline: e.Deadline.UTC(),
			IP: e.Origin.IP, Device: e.device(), UserAgent: e.Origin.UserAgent, App: e.Origin.App, Node: e.Origin.Node,
		}
		if !e.undescribed {
			one.State = e.State.String()
		}
		doc.Sessions = append(doc.Sessions, one)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err == nil {
		_, err = fmt.Fprintln(out, escaped(string(text)))
	}
	return err
}

// escaped is JSON with nothing in it that a terminal would obey, and with the same meaning.
func escaped(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, half := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, half)
		}
	}
	return b.String()
}

// state is how a session is, in a word or two.
func (e listed) state() string {
	switch {
	case e.Ending != "":
		return "ending: " + string(e.Ending)
	case e.undescribed:
		return "of another version"
	default:
		return e.State.String()
	}
}

// device is what the browser said it is, "" where that is not known.
func (e listed) device() string {
	if e.undescribed {
		return ""
	}
	return proxy.Device(e.Origin.UserAgent)
}

// printable is what others have written, with nothing in it that a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
