package coatcheck_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
)

func TestStatesAreOrdered(t *testing.T) {
	var zero coatcheck.State
	if zero != coatcheck.Anonymous {
		t.Error("a forgotten state is not anonymous")
	}
	if !(coatcheck.Anonymous < coatcheck.Returning && coatcheck.Returning < coatcheck.Authenticated) {
		t.Error("the states are out of order")
	}
}

func TestStateNames(t *testing.T) {
	for state, want := range map[coatcheck.State]string{
		coatcheck.Anonymous: "anonymous", coatcheck.Returning: "returning",
		coatcheck.Authenticated: "authenticated", 7: "State(7)",
	} {
		if got := state.String(); got != want {
			t.Errorf("State(%d).String() = %q, want %q", uint8(state), got, want)
		}
	}
}

func TestRefHidesTheKey(t *testing.T) {
	const key = "__Host-coatcheck-00112233445566778899aabbccddeeff"
	ref := coatcheck.MakeRef(key)
	if !regexp.MustCompile(`^[0-9a-f]{24}$`).MatchString(string(ref)) {
		t.Errorf("MakeRef = %q, want 24 hex digits", ref)
	}
	if strings.Contains(key, string(ref[:8])) {
		t.Errorf("the ref %q shows a part of the key", ref)
	}
	// Refs are compared across nodes and releases, so the value is fixed.
	if want := coatcheck.Ref("aba1ed7403ece2a06e0c1c78"); ref != want {
		t.Errorf("MakeRef = %q, want %q", ref, want)
	}
	if coatcheck.MakeRef(key+"0") == ref {
		t.Error("two keys have one ref")
	}
}
