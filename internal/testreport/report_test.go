package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module writes a module with one test file and changes into it.
func module(t *testing.T, testFile string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":    "module sample\n\ngo 1.26\n",
		"a_test.go": "package a\n\nimport \"testing\"\n\n" + testFile,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
}

// TestRun drives the real go test, whose events are not ours to define.
func TestRun(t *testing.T) {
	const (
		pass = "func TestPass(t *testing.T) { t.Log(\"quiet\"); t.Run(\"sub\", func(t *testing.T) {}) }\n"
		skip = "func TestSkip(t *testing.T) { t.Skip(\"for a reason\") }\n"
		fail = "func TestFail(t *testing.T) { t.Run(\"good\", func(t *testing.T) { t.Log(\"quiet\") })\n" +
			"t.Run(\"bad\", func(t *testing.T) { t.Error(\"loud\") }) }\n"
	)
	tests := []struct {
		name, file, allow string
		strict            bool
		tally             string
		prints            []string
		fails             string // in the error; empty: none
	}{
		{name: "pass", file: pass, strict: true, tally: "2 passed, 0 failed, 0 skipped", prints: []string{"ok  \tsample\t"}},
		{
			name: "fail", file: pass + fail, tally: "3 passed, 2 failed, 0 skipped",
			prints: []string{"--- FAIL: TestFail (", "--- FAIL: TestFail/bad (0.00s)\n    a_test.go:7: loud\n", "FAIL\tsample\t"},
			fails:  "there are failures",
		},
		{
			name: "skip", file: pass + skip, tally: "2 passed, 0 failed, 1 skipped",
			prints: []string{"--- SKIP: TestSkip (", "for a reason", "ok  \tsample\t"},
		},
		{
			name: "strict skip", file: pass + skip, strict: true, tally: "2 passed, 0 failed, 1 skipped",
			fails: "TestSkip skipped, which nothing allows",
		},
		{
			name: "allowed skip", file: pass + skip, allow: "# why\n\nTestSkip  not here\n", strict: true,
			tally: "2 passed, 0 failed, 1 skipped",
		},
		{
			name: "another skip allowed", file: pass + skip, allow: "TestSki not here\n", strict: true,
			tally: "2 passed, 0 failed, 1 skipped", fails: "TestSkip skipped",
		},
		{name: "only skips", file: skip, tally: "0 passed, 0 failed, 1 skipped", fails: "no test ran"},
		{name: "none", file: "var _ = testing.Short\n", tally: "0 passed, 0 failed, 0 skipped", fails: "no test ran"},
		{
			name: "does not build", file: "var _ testing.TB = 1\n", tally: "0 passed, 1 failed, 0 skipped",
			prints: []string{"cannot use 1", "FAIL\tsample [build failed]"}, fails: "there are failures",
		},
		{
			name: "panics", file: pass + "func TestPanic(t *testing.T) { panic(\"boom\") }\n",
			tally: "2 passed, 1 failed, 0 skipped", prints: []string{"boom", "FAIL\tsample\t"}, fails: "there are failures",
		},
		{
			name: "exits", file: "import \"os\"\n" + pass + "func TestExit(t *testing.T) { os.Exit(3) }\n",
			tally: "2 passed, 1 failed, 0 skipped", prints: []string{"FAIL\tsample\t"}, fails: "there are failures",
		},
		{
			name: "fails outside of tests", file: "import \"os\"\n" + pass +
				"func TestMain(m *testing.M) { m.Run(); os.Exit(1) }\n",
			tally: "2 passed, 1 failed, 0 skipped", fails: "there are failures",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			module(t, tt.file)
			var allow string
			if tt.allow != "" {
				allow = "allowed.txt"
				if err := os.WriteFile(allow, []byte(tt.allow), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			err := run(&out, allow, []string{"./..."}, tt.strict)
			if tt.fails == "" && err != nil {
				t.Errorf("error: %v", err)
			}
			if tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("error = %v, want %q", err, tt.fails)
			}
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if last := lines[len(lines)-1]; last != tt.tally {
				t.Errorf("last line = %q, want %q", last, tt.tally)
			}
			for _, want := range tt.prints {
				if !strings.Contains(out.String(), want) {
					t.Errorf("does not print %q", want)
				}
			}
			if strings.Contains(out.String(), "quiet") || strings.Contains(out.String(), "=== ") {
				t.Error("prints what passed")
			}
			if t.Failed() {
				t.Logf("output:\n%s", out.String())
			}
		})
	}
}

func TestRunNeedsTheAllowedFile(t *testing.T) {
	module(t, "func TestPass(t *testing.T) {}\n")
	if err := run(new(strings.Builder), "absent.txt", []string{"./..."}, false); err == nil {
		t.Error("no error")
	}
}

func TestReadAllowed(t *testing.T) {
	got, err := readAllowed(strings.NewReader("# comment\n\n  TestA/sub \t no server here \nTestB why\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"TestA/sub": "no server here", "TestB": "why"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := readAllowed(strings.NewReader("TestA ok\nTestB \n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("error = %v, want one about line 2", err)
	}
}
