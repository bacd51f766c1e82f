package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrInUse: another process serves from the file.
var ErrInUse = errors.New("SQLite serves one node; for more use Redis, and for a second node on this machine another file")

// resolve returns the path of file with all links resolved, so that two names of a
// file meet at one lock, and makes its folder. It does not open the file: closing it
// again would drop the locks that a Store of this same process holds on it.
func resolve(file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// create makes a missing file for its owner alone; SQLite gives -wal and -shm the
// same mode. The lock is held.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// lock takes the file for this process, or returns ErrInUse. The lock ends with the
// process, however it ends.
func lock(file string) (*flock.Flock, error) {
	path := file + ".lock"
	l := flock.New(path)
	locked, err := l.TryLock()
	if err != nil {
		return nil, err
	}
	if !locked {
		owner := "another coatcheck"
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			owner += fmt.Sprintf(" (pid %s)", strings.TrimSpace(string(b)))
		}
		return nil, fmt.Errorf("%s is using this file: %w", owner, ErrInUse)
	}
	// For the message above only.
	_ = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
	return l, nil
}

// explain puts what SQLite says about an unfit file into the operator's words.
func explain(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("the file is not a SQLite database: %w", err)
		case sqlite3.SQLITE_CORRUPT:
			return fmt.Errorf("the file is damaged: %w", err)
		}
	}
	return err
}
