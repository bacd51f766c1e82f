package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

type storeAuditCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
	Repair bool   `help:"Take sessions that are gone off the list, and end those that are not listed."`
}

// What an audit says that found something and left it.
var (
	errDifferences = errors.New("the list of sessions and the store differ; --repair puts that right")
	errAccident    = errors.New("--repair ends nothing then: to end them all would be an accident.\n" +
		"Is this the key ring that the nodes use? Sessions are found under names made with its index_key.\n" +
		"If the store has lost the list: sessions in use list themselves again within 30 seconds")
)

// Run compares the list of sessions with what the store keeps. Nodes may run meanwhile,
// except with SQLite, where one process has the file.
func (c storeAuditCmd) Run(ctx context.Context, con console) (err error) {
	o, err := operate(ctx, c.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	return c.compare(ctx, o.sessions(operatorNode(o.cfg.Node), nil), o.store, con.out)
}

// compare is Run for the sessions in a store.
func (c storeAuditCmd) compare(ctx context.Context, sessions *session.Manager, kept store.Lister, out io.Writer) error {
	pause := session.AuditPause
	if c.Repair {
		pause = session.RepairPause
	}
	found, err := sessions.Audit(ctx, kept, pause)
	if err != nil {
		return err
	}
	left := differences(found)
	if c.Repair && errors.Is(left, errAccident) {
		return left
	}
	for _, f := range found.Findings {
		done := ""
		if c.Repair {
			if err := sessions.Repair(ctx, f); err != nil {
				return err
			}
			if done = "; ended"; f.Entry != nil {
				done = "; taken off the list"
			}
		}
		fmt.Fprintln(out, describe(f)+done)
	}
	fmt.Fprintf(out, "sessions listed: %d, kept: %d, differences: %d\n", found.Listed, found.Records, len(found.Findings))
	if c.Repair {
		return nil
	}
	return left
}

// differences is what an audit comes to that leaves what it has found. With errAccident
// nothing may be repaired.
func differences(found session.Audit) error {
	n := found.Unlisted()
	switch {
	case len(found.Findings) == 0:
		return nil
	case 2*n <= found.Records:
		return errDifferences
	}
	return fmt.Errorf("%d of %d sessions are not listed, and %w", n, found.Records, errAccident)
}

func describe(f session.Finding) string {
	if e := f.Entry; e != nil {
		return fmt.Sprintf("session %s of %q (%s), last seen %s: listed, but its record is gone",
			f.Ref, e.Subject, e.Issuer, e.Seen.UTC().Format("2006-01-02 15:04:05"))
	}
	return fmt.Sprintf("session %s: can be used, but is not listed", f.Ref)
}
