package proxy

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/coatcheck/coatcheck"
)

// TestEndingsInDocs checks that the table in docs/sessions.md has a row for every reason why
// a session ends, with the sentence that the person is told.
func TestEndingsInDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/sessions.md")
	if err != nil {
		t.Fatal(err)
	}
	var seen []coatcheck.Reason
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|[^|]+\\|[^|]+\\| ([^|]+) \\|[^|]*\\|$").FindAllSubmatch(page, -1) {
		reason := coatcheck.Reason(row[1])
		seen = append(seen, reason)
		if got, want := string(row[2]), endings[reason].text; got != want {
			t.Errorf("%s: the page says %q, people are told %q", reason, got, want)
		}
	}
	for _, reason := range coatcheck.Reasons() {
		if !slices.Contains(seen, reason) {
			t.Errorf("docs/sessions.md has no row for %s", reason)
		}
	}
	if len(seen) != len(coatcheck.Reasons()) {
		t.Errorf("docs/sessions.md has rows for %v", seen)
	}
}
