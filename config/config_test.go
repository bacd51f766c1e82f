package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.bad.txt from what is said of them")

// parsed reads a configuration that is in no file. What Load fills in is empty, the secrets
// among it.
func parsed(name string, data []byte) (*Config, error) {
	v, err := parse(name, data)
	if err != nil {
		return nil, err
	}
	return v.result()
}

// fixtures returns the files of testdata with the given ending.
func fixtures(t *testing.T, ending string) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*" + ending)
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures %s: %v", ending, err)
	}
	return files
}

func parseFixture(t *testing.T, file string) (*Config, error) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return parsed("coatcheck.yaml", data)
}

func TestGood(t *testing.T) {
	for _, file := range fixtures(t, ".good.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if _, err := parseFixture(t, file); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestExamples reads the configurations that people copy, which are safe with their store.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found the examples %q: %v", files, err)
	}
	for _, file := range files {
		if filepath.Base(file) == "compose.yaml" {
			continue
		}
		cfg, err := parseFixture(t, file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range cfg.Warnings() {
			if strings.HasPrefix(w, "store") || strings.HasPrefix(w, "session") {
				t.Errorf("%s: %s", file, w)
			}
		}
	}
}

// TestBad compares every message with the one in the .txt beside the file, so that a
// check that is lost or a message that changes is seen.
func TestBad(t *testing.T) {
	for _, file := range fixtures(t, ".bad.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, err := parseFixture(t, file)
			if err == nil || cfg != nil {
				t.Fatalf("parsed = %v, %v; want nil and an error", cfg, err)
			}
			if _, ok := err.(Errors); !ok {
				t.Errorf("the error is a %T, not Errors", err)
			}
			got := err.Error() + "\n"
			if strings.Contains(got, "hunter2") {
				t.Errorf("a secret is in the message:\n%s", got)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages differ (-want +got), -update writes them anew:\n%s", diff)
			}
		})
	}
}
