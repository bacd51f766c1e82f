package sqlite

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestFilesAreTheOwnersAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a", "b", "it's 100%? #1.db")
	s := openAt(t, file)
	if err := s.Create(t.Context(), "k", []byte("v"), 1e9); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		filepath.Dir(file): 0o700, file: 0o600, file + "-wal": 0o600, file + "-shm": 0o600, file + ".lock": 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(path), got, want)
		}
	}
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "coatcheck.db")
	s := openAt(t, file)
	if err := s.Create(t.Context(), "k", []byte("v"), 1e12); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := openAt(t, file).Get(t.Context(), "k")
	if err != nil || string(r.Value) != "v" {
		t.Errorf("Get after Close and Open: %q, %v", r.Value, err)
	}
}

// holdFile is the whole life of the other process of TestOneNodePerFile: it opens
// the file and holds it until its input ends.
func holdFile(file string) int {
	s, err := Open(context.Background(), Options{File: file})
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return 1
	}
	defer s.Close()
	os.Stdout.WriteString("held\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// startOther runs this test binary as another process, in the mode that env asks for, and
// returns what it says line by line. Its input ends with the test.
func startOther(t *testing.T, env, file string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, bufio.NewScanner(out)
}

func TestOneNodePerFile(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "coatcheck.db"), filepath.Join(dir, "link.db")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	refused := func(path string, pid int) {
		t.Helper()
		_, err := Open(t.Context(), Options{File: path})
		want := "store/sqlite: open " + path + ": another coatcheck (pid " + strconv.Itoa(pid) + ") is using this file: "
		if !errors.Is(err, ErrInUse) || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "Redis") {
			t.Errorf("error = %v, want ErrInUse and %q", err, want)
		}
	}

	s := openAt(t, file)
	refused(file, os.Getpid())
	refused(link, os.Getpid())
	if err := s.Create(t.Context(), "k", nil, 1e9); err != nil {
		t.Errorf("Create after a refused Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Another process, killed: the lock ends with it.
	cmd, out := startOther(t, holdFileEnv, file)
	if !out.Scan() || out.Text() != "held" {
		t.Fatalf("the other process said %q, %v", out.Text(), out.Err())
	}
	refused(file, cmd.Process.Pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	openAt(t, file)
}

func TestUnfitFilesAreRefused(t *testing.T) {
	text := func(file string) error {
		return os.WriteFile(file, []byte(strings.Repeat("listen: here\n", 1000)), 0o600)
	}
	run := func(sql string) func(string) error {
		return func(file string) error {
			c, err := dial(file)
			if err != nil {
				return err
			}
			_, err = c.exec(sql)
			return errors.Join(err, c.Close())
		}
	}
	newer := func(file string) error {
		s, err := Open(context.Background(), Options{File: file})
		if err != nil {
			return err
		}
		return errors.Join(s.Close(), run("PRAGMA user_version = 9")(file))
	}
	for _, tc := range []struct {
		name string
		make func(file string) error
		want string
	}{
		{"not a database", text, "the file is not a SQLite database"},
		{"another program's tables", run("CREATE TABLE bookmarks (url)"), "database of another program"},
		{"another program's id", run("PRAGMA application_id = 7"), "database of another program"},
		{"a newer schema", newer, "schema version 9 and this coatcheck knows 2"},
		{"a folder", func(file string) error { return os.Mkdir(file, 0o700) }, "unable to open database file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "unfit.db")
			if err := tc.make(file); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(file)
			_, err := Open(t.Context(), Options{File: file})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "store/sqlite: open "+file) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			after, _ := os.ReadFile(file)
			if string(before) != string(after) {
				t.Error("the refused file was changed")
			}
			// The refusal left no lock behind.
			l, err := lock(file)
			if err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
		})
	}
	if _, err := Open(t.Context(), Options{}); err == nil {
		t.Error("Open without a file succeeded")
	}
}

// Whoever reads that a file can't be opened is told which of them.
func TestOpenNamesTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "coatcheck.db")
	if err := os.Mkdir(file+".lock", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{File: file}); err == nil || !strings.Contains(err.Error(), file+".lock: ") {
		t.Errorf("Open = %v, want the name of the lock's file", err)
	}
}
