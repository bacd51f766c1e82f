// Package e2e drives the coatcheck program from outside, as browsers, load balancers
// and operators do.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
)

// binary is the coatcheck that is tested, built from this tree, with the race detector
// where the tests have it.
var binary string

// program returns the path of the coatcheck that is tested. Every test asks here.
func program(t testing.TB) string {
	t.Helper()
	if err := dependOnTree(); err != nil {
		t.Fatal(err)
	}
	return binary
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "coatcheck-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	binary = filepath.Join(dir, "coatcheck")
	args := []string{"build", "-o", binary}
	if underRaceDetector() {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "../cmd/coatcheck")...)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build coatcheck: %w", err)
	}

	// Every process that a test starts writes the races it finds to a file of its own,
	// wherever its output goes. Its goroutines go on for a while after its end, so that it
	// finds more; the usual second would be most of the time that many a test takes.
	races := filepath.Join(dir, "race")
	if err := os.Setenv("GORACE", "log_path="+races+" atexit_sleep_ms=100"); err != nil {
		return 0, err
	}
	// Tests that run side by side wait, mostly, and leave the machine to each other.
	if err := flag.Set("test.parallel", "4"); err != nil {
		return 0, err
	}
	code = m.Run()
	return code, reportRaces(races)
}

// dependOnTree reads every folder of the tree. Package e2e imports next to nothing of
// what it tests, so go test would call it unchanged, and use an old result, after any
// change outside of it; a folder that was read counts with its files' sizes and times.
func dependOnTree() error {
	return filepath.WalkDir("..", func(_ string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		return err
	})
}

func reportRaces(prefix string) error {
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return err
	}
	for _, file := range files {
		text, readErr := os.ReadFile(file)
		err = errors.Join(err, readErr, fmt.Errorf("coatcheck has a data race:\n%s", text))
	}
	return err
}

func underRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
