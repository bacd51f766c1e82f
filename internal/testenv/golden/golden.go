// Package golden reads values that an earlier coatcheck has written, from the folders
// testdata/golden beside the code of each format.
//
// Every format that leaves a process has one there, as it was on the day when the format was
// made or grew. Every later coatcheck must read them all: nodes of two versions run beside
// each other during an update, and what is in a store or a browser outlives the update. So a
// golden file is never changed and never deleted; one is added when a format grows or gets a
// new version. The list of them all, with their hashes, is golden.sum.
package golden

import (
	_ "embed"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Keys is the key ring that has sealed what is golden, as a file.
//
//go:embed testdata/golden/keys-1.json
var Keys []byte

// Advice is what to do about a test that fails for a golden file.
const Advice = `An earlier coatcheck wrote this golden value, and sessions, cookies and stores hold more like it.
Change the code so that it reads the value as it did. Never change a golden file: where the
format must grow, add a field that older nodes may ignore, or a new version that is written
only when no older node is left, and add a golden file for that.`

// Read returns the value in testdata/golden/name: of a file with the ending .hex the bytes that
// it spells, of any other one its content without the line break at the end.
func Read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "golden", name))
	if err != nil {
		t.Fatalf("%v\n%s", err, Advice)
	}
	text := strings.TrimSuffix(string(data), "\n")
	if filepath.Ext(name) != ".hex" {
		return []byte(text)
	}
	value, err := hex.DecodeString(strings.ReplaceAll(text, "\n", ""))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return value
}

// Check fails the test if err is not nil or got is not want: what reading the golden value
// came to, and should come to.
func Check[T any](t testing.TB, name string, want, got T, err error, opts ...cmp.Option) {
	t.Helper()
	if err != nil {
		t.Errorf("%s can't be read any more: %v\n%s", name, err, Advice)
		return
	}
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Errorf("%s is read as something else (-want +got):\n%s\n%s", name, diff, Advice)
	}
}

// Written fails the test if this coatcheck writes something else than the newest golden value.
// It is for formats that are deterministic.
func Written(t testing.TB, name string, got []byte, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if diff := cmp.Diff(string(Read(t, name)), string(got)); diff != "" {
		t.Errorf("this coatcheck no longer writes %s (-golden +written):\n%s\n"+
			"If that is meant, can a node of the version before read what is written now, and keep it?\n"+
			"Then add a golden file with it, and compare with that one. It is in hex:\n%s", name, diff, hex.EncodeToString(got))
	}
}
