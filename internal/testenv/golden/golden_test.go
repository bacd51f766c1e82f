package golden

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNothingChanges holds every golden file, and every migration of a schema, to golden.sum,
// which "sha256sum -c" also reads, in the repository's root.
func TestNothingChanges(t *testing.T) {
	const root = "../../.."
	list, err := os.ReadFile("golden.sum")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(list)), "\n")
	var got []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		slashed := filepath.ToSlash(path)
		if !strings.Contains(slashed, "/testdata/golden/") && !strings.Contains(slashed, "/migrations/") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		got = append(got, fmt.Sprintf("%x  %s", sha256.Sum256(data), filepath.ToSlash(name)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("this golden file was changed or deleted:\n%s\n%s", line, Advice)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("golden.sum does not have this line. Add it if the file is new, and only then:\n%s", line)
		}
	}
}
