package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/coatcheck/coatcheck/seal"
)

type keyCmd struct {
	New    keyNewCmd    `cmd:"" help:"Write a new key ring to a file that does not exist yet."`
	Rotate keyRotateCmd `cmd:"" help:"Add a key to a key ring, which seals from a later time on."`
	List   keyListCmd   `cmd:"" help:"Say which keys a key ring has. No key is shown."`
	Retire keyRetireCmd `cmd:"" help:"Take an old key out of a key ring, and say first who would be signed out."`
}

type keyNewCmd struct {
	File string `arg:"" help:"The file to write, readable by its owner alone."`
}

// Run writes a key ring.
func (c keyNewCmd) Run(con console) error {
	if info, err := os.Stat(c.File); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder: name the file in it too, as in %s", c.File, filepath.Join(c.File, "keys.json"))
	}
	ring := seal.NewRing()
	switch err := ring.WriteNew(c.File); {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%s exists already and was left as it is: without it, everybody it signed in has to sign in again", c.File)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s can't be written: the folder %s does not exist", c.File, filepath.Dir(c.File))
	case err != nil:
		return fmt.Errorf("%s can't be written: %w", c.File, err)
	}
	fmt.Fprintf(con.out, "Wrote %s with the key %s. Give the same file to every node, and keep it secret.\n", c.File, ring.KeyIDs()[0])
	return nil
}

type keyRotateCmd struct {
	File          string        `arg:"" help:"The key ring."`
	ActivateAfter time.Duration `default:"10m" placeholder:"DURATION" help:"When the new key may seal, from now on: all nodes should have the file by then. 10m if not given."`
}

// maxActivateAfter catches slips of the hand: nothing can be rotated while a key waits.
const maxActivateAfter = 30 * 24 * time.Hour

// Validate is called by kong.
func (c keyRotateCmd) Validate() error {
	if c.ActivateAfter < 0 || c.ActivateAfter > maxActivateAfter {
		return fmt.Errorf("--activate-after must be between 0s and %.0fh", maxActivateAfter.Hours())
	}
	return nil
}

// Run adds a key.
func (c keyRotateCmd) Run(con console) error {
	ring, err := readRingFile(c.File, con)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, k := range ring.Keys() {
		if k.ActivateAt.After(now) {
			return fmt.Errorf("%s has a new key already, %s, which seals from %s on. Rotate again after that, or take it out before: coatcheck key retire %s %s",
				c.File, k.ID, legible(k.ActivateAt), k.ID, c.File)
		}
	}
	next, err := ring.Rotated(now.Add(c.ActivateAfter))
	if err != nil {
		return err
	}
	if err := next.Write(c.File); err != nil {
		return fmt.Errorf("%s can't be written and is as it was: %w", c.File, err)
	}
	added := next.Keys()[0]
	fmt.Fprintf(con.out, `Added the key %s to %s. It opens as soon as a node has it, and seals from %s on.
Next:
  1. Give this file to every node before then. A running node reads it by itself when it changes, and no node seals with the new key before all of them have it.
  2. When the new key has sealed for as long as session.idle_timeout, every session that is still in use has been sealed by it. Then take the old key out:
     coatcheck key retire %[4]s --config FILE
     With SQLite, whose sessions can't be counted while the node runs:
     coatcheck key retire %[4]s %[2]s --yes
`, added.ID, c.File, legible(added.ActivateAt), ring.KeyIDs()[0])
	return nil
}

type keyListCmd struct {
	File string `arg:"" help:"The key ring."`
}

// Run lists the keys. A key that is due seals on a node once all nodes have it, and the file
// does not know whether they have; the oldest one seals where no other does.
func (c keyListCmd) Run(con console) error {
	ring, err := readRingFile(c.File, con)
	if err != nil {
		return err
	}
	now := time.Now()
	ring.Promote(now, nil)
	w := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tCREATED\tSEALS FROM\tSTATE")
	keys := ring.Keys()
	oldest := keys[len(keys)-1].ID
	for _, k := range keys {
		state := "opens"
		switch {
		case k.ID == ring.Current() && k.ID == oldest:
			state = "seals and opens"
		case k.ID == ring.Current():
			state = "opens, due to seal"
		case k.ActivateAt.After(now):
			state = "opens, pending"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.ID, legible(k.Created), legible(k.ActivateAt), state)
	}
	for _, k := range ring.RetiredKeys() {
		fmt.Fprintf(w, "%s\t\t\tretired %s\n", k.ID, legible(k.At))
	}
	if err := w.Flush(); err != nil || ring.Current() == oldest {
		return err
	}
	_, err = fmt.Fprintf(con.out, "A node seals with %s as soon as all nodes have it, and with an older key until then: its log says so, and its metric coatcheck_sealing_key.\n", ring.Current())
	return err
}

// readRingFile reads a ring that somebody named on the command line, and says if others can
// read it too.
func readRingFile(file string, con console) (*seal.Ring, error) {
	ring, err := seal.ReadRing(file)
	if errors.Is(err, seal.ErrNoFile) {
		return nil, fmt.Errorf("there is no file %s", file)
	}
	if info, statErr := os.Stat(file); err == nil && statErr == nil && info.Mode().Perm()&0o004 != 0 {
		fmt.Fprintf(con.err, "note: every user of this machine can read %s: chmod o-r %[1]s\n", file)
	}
	return ring, err
}

// legible is a time for people, "-" for none.
func legible(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
