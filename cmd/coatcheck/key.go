package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/coatcheck/coatcheck/seal"
)

type keyCmd struct {
	New keyNewCmd `cmd:"" help:"Write a new key ring to a file that does not exist yet."`
}

type keyNewCmd struct {
	File string `arg:"" help:"The file to write, readable by its owner alone."`
}

// Run writes a key ring.
func (c keyNewCmd) Run(con console) error {
	ring := seal.NewRing()
	if err := ring.WriteNew(c.File); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already and was left as it is: without it, everybody it signed in has to sign in again", c.File)
	} else if err != nil {
		return fmt.Errorf("%s can't be written: %w", c.File, err)
	}
	fmt.Fprintf(con.out, "Wrote %s with the key %s. Give the same file to every node, and keep it secret.\n", c.File, ring.KeyIDs()[0])
	return nil
}
