package main

import (
	"errors"
	"testing"
)

// What fails is told once for each cause, and to whoever asks; and once when it is over.
func TestTrouble(t *testing.T) {
	one, other := errors.New("one"), errors.New("other")
	var trouble trouble
	for i, step := range []struct {
		err        error
		asked      bool
		tell, over bool
	}{
		{nil, false, false, false},
		{one, false, true, false},
		{one, false, false, false},
		{one, true, true, false},
		{other, false, true, false},
		{one, false, true, false},
		{nil, false, false, true},
		{nil, true, false, false},
		{one, false, true, false},
	} {
		tell, over := trouble.note(step.err, step.asked)
		if tell != step.tell || over != step.over {
			t.Errorf("step %d: tell %t, over %t", i, tell, over)
		}
		if got, want := trouble.failed.Load(), step.err != nil; got != want {
			t.Errorf("step %d: failed is %t", i, got)
		}
	}
}
