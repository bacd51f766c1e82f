package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
)

type sessionEndCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
	person
	Session string `placeholder:"REF" help:"This one session, named as in coatcheck session list and in the log."`
	All     bool   `help:"All sessions of all users."`
	Yes     bool   `help:"With --all: sign everybody out."`
}

// refPattern is what coatcheck.MakeRef makes.
var refPattern = regexp.MustCompile(`^[0-9a-f]{24}$`)

// Validate is called by kong.
func (c sessionEndCmd) Validate() error {
	named := 0
	for _, given := range []bool{c.User != "", c.Session != "", c.All} {
		if given {
			named++
		}
	}
	switch {
	case named != 1:
		return errors.New("give one of --user, --session and --all")
	case c.Session != "" && !refPattern.MatchString(c.Session):
		return errors.New("--session: a session is named by 24 characters 0-9 and a-f")
	}
	return c.person.Validate()
}

// Run ends sessions for all nodes. It says that one has ended only when nobody can use it.
func (c sessionEndCmd) Run(ctx context.Context, con console) (err error) {
	o, err := operate(ctx, c.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()

	q := c.query(o)
	q.Ref = coatcheck.Ref(c.Session)
	node := operatorNode(o.cfg.Node)
	if c.All && !c.Yes {
		n, err := count(ctx, o.sessions(node, nil))
		if err != nil {
			return err
		}
		return fmt.Errorf("nothing was done: %d sessions would end, and everybody be signed out. With --yes they do", n)
	}

	var provider session.Provider
	if o.cfg.Session.Escrow {
		party, err := o.provider(ctx)
		if err != nil {
			fmt.Fprintf(con.err, "note: refresh tokens are left to expire at the provider, which can't be discovered: %v\n", err)
		} else {
			provider = party
		}
	}
	sessions := o.sessions(node, provider)
	e := ending{sessions: sessions, con: con, seen: map[coatcheck.Ref]bool{}}
	findErr := e.all(ctx, q)
	if len(e.seen) > 0 || findErr != nil {
		return e.report(findErr)
	}
	why, err := nobody(ctx, sessions, q)
	if err != nil {
		return err
	}
	return errors.New(why)
}

func count(ctx context.Context, sessions *session.Manager) (int, error) {
	seen := map[coatcheck.Ref]bool{}
	for e, err := range sessions.Find(ctx, session.Query{}) {
		if err != nil && !errors.Is(err, session.ErrUndescribed) {
			return 0, unknown(err)
		}
		seen[e.Ref] = true
	}
	return len(seen), nil
}

const (
	// endAtOnce is how many sessions are ended at once.
	endAtOnce = 8
	// endBatch is after how many of them what they were granted is revoked: the sessions
	// remember no more than a few thousand tokens.
	endBatch = 1000
	// revokePatience is how long one batch may take to be revoked. After one that took longer
	// nothing is, so that those who are still signed in don't stay so for a provider that hangs.
	revokePatience = time.Minute
)

// An ending is what becomes of the sessions that a command ends.
type ending struct {
	sessions *session.Manager
	con      console
	seen     map[coatcheck.Ref]bool
	hung     bool // the provider does

	mu      sync.Mutex
	ended   int // by this command
	already int // were being ended, and are certainly over now
	failed  int
	left    int // have ended, and are still listed
}

// all ends the sessions that match q, each on its own. An error says that the list of them
// is not complete.
func (e *ending) all(ctx context.Context, q session.Query) (err error) {
	var group errgroup.Group
	group.SetLimit(endAtOnce)
	for found, findErr := range e.sessions.Find(ctx, q) {
		if findErr != nil && !errors.Is(findErr, session.ErrUndescribed) {
			err = unknown(findErr)
			break
		}
		if e.seen[found.Ref] { // it has changed while the list was read
			continue
		}
		e.seen[found.Ref] = true
		group.Go(func() error { e.one(ctx, found); return nil })
		if len(e.seen)%endBatch == 0 {
			_ = group.Wait()
			e.settle(ctx)
		}
	}
	_ = group.Wait()
	e.settle(ctx)
	return err
}

func (e *ending) one(ctx context.Context, found session.Entry) {
	err := e.sessions.Revoke(ctx, found, coatcheck.ReasonRevoked)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil:
		e.failed++
		fmt.Fprintf(e.con.err, "session %s may not have ended: %v\n", found.Ref, err)
	case found.Ending != "":
		e.already++
	default:
		e.ended++
	}
}

// settle finishes what could not be marked as ending, and revokes at the provider what the
// sessions were granted, as far as that is known.
func (e *ending) settle(ctx context.Context) {
	e.left = e.sessions.FinishLeft(ctx)
	patience := revokePatience
	if e.hung {
		patience = 0
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if left, err := e.sessions.RevokeGranted(ctx); err != nil {
		e.hung = ctx.Err() != nil
		fmt.Fprintf(e.con.err, "note: %d refresh tokens could not be revoked at the provider, and are left to expire: %v\n", left, err)
	}
}

// report says what is certain. err is why the list of sessions is not complete.
func (e *ending) report(err error) error {
	fmt.Fprintf(e.con.out, "sessions ended: %d\n", e.ended)
	if e.already > 0 {
		fmt.Fprintf(e.con.out, "sessions that were ending already: %d\n", e.already)
	}
	if e.failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d sessions may not have ended: run it again", e.failed))
	}
	if e.left > 0 {
		err = errors.Join(err, fmt.Errorf("%d sessions can't be used any more, but the store still lists them: run it again", e.left))
	}
	return err
}
