package main

import (
	"errors"
	"testing"

	"github.com/coatcheck/coatcheck/session"
)

// What --repair would refuse is not recommended.
func TestDifferences(t *testing.T) {
	gone, unlisted := session.Finding{Entry: new(session.Entry)}, session.Finding{}
	for name, tc := range map[string]struct {
		found session.Audit
		want  error
	}{
		"none":               {session.Audit{Listed: 2, Records: 2}, nil},
		"no sessions":        {session.Audit{}, nil},
		"a few":              {session.Audit{Listed: 2, Records: 2, Findings: []session.Finding{gone, unlisted}}, errDifferences},
		"records are gone":   {session.Audit{Listed: 2, Findings: []session.Finding{gone, gone}}, errDifferences},
		"most are unlisted":  {session.Audit{Listed: 1, Records: 3, Findings: []session.Finding{unlisted, unlisted}}, errAccident},
		"of another keyring": {session.Audit{Records: 1, Findings: []session.Finding{unlisted}}, errAccident},
	} {
		if got := differences(tc.found); !errors.Is(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
