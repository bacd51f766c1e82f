package report

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A run with one store leaves the results of the others.
func TestKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "result.json")
	for _, c := range []struct {
		name  string
		value int
		want  map[string]int
	}{
		{"redis", 1, map[string]int{"redis": 1}},
		{"postgres", 2, map[string]int{"redis": 1, "postgres": 2}},
		{"redis", 3, map[string]int{"redis": 3, "postgres": 2}},
	} {
		got, err := Keep(file, c.name, c.value)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	Table(&b, []string{"", "10³"}, []string{"renew", "1"}, []string{"touch, twice", "12.50"})
	want := `|              |   10³ |
|--------------|------:|
| renew        |     1 |
| touch, twice | 12.50 |
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
