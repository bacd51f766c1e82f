package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// Instead of running tests, holdFileEnv makes the test binary hold a file, and writeFileEnv
// write to one until it is killed.
const (
	holdFileEnv  = "COATCHECK_TEST_HOLD_FILE"
	writeFileEnv = "COATCHECK_TEST_WRITE_FILE"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(holdFileEnv); file != "" {
		os.Exit(holdFile(file))
	}
	if file := os.Getenv(writeFileEnv); file != "" {
		os.Exit(writeFile(file))
	}
	goleak.VerifyTestMain(m)
}

func openAt(t testing.TB, file string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{File: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openNew(t testing.TB) *Store { return openAt(t, filepath.Join(t.TempDir(), "coatcheck.db")) }

func TestConformance(t *testing.T) {
	storetest.RunBackend(t, storetest.BackendHarness{
		Open: func(t testing.TB, nodes int) []store.Backend {
			s, all := openNew(t), make([]store.Backend, nodes)
			for i := range all {
				all[i] = s
			}
			return all
		},
	})
}

func BenchmarkGet(b *testing.B) { storetest.BenchmarkGet(b, openNew(b)) }

// A reaper that fails says so once, and goes on.
func TestReaperFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s, err := Open(t.Context(), Options{
			File:   filepath.Join(t.TempDir(), "coatcheck.db"),
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		if err := s.Create(t.Context(), "k", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		said := func() string {
			time.Sleep(2*reapEvery + time.Second)
			synctest.Wait()
			defer log.Reset()
			return log.String()
		}
		const fails, works = "level=WARN msg=\"store/sqlite: what has expired stays for now\" error=", "level=INFO msg=\"store/sqlite: what has expired is removed again\""
		s.query(t, "PRAGMA query_only = 1")
		if text := said(); strings.Count(text, "\n") != 1 || !strings.Contains(text, fails) || !strings.Contains(text, "readonly") {
			t.Errorf("a reaper that fails: %q", text)
		}
		s.query(t, "PRAGMA query_only = 0")
		if text := said(); strings.Count(text, "\n") != 1 || !strings.Contains(text, works) {
			t.Errorf("a reaper that works again: %q", text)
		}
		if left := s.leftovers(t); left != nil {
			t.Errorf("it left %v", left)
		}
		if text := said(); text != "" {
			t.Errorf("a reaper that works: %q", text)
		}
	})
}

// TestReaperRemovesExpiredRecords covers invariant 5: an expired record that nobody
// asks for again does not stay.
func TestReaperRemovesExpiredRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := openNew(t), t.Context()
		const expiring = 2*reapBatch + 1 // several batches in one round
		for i := range expiring {
			if err := s.Create(ctx, fmt.Sprint("k", i), nil, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Create(ctx, "lives", nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			wait time.Duration
			want int64
		}{{reapEvery - time.Second, expiring + 1}, {2 * time.Second, 1}} {
			time.Sleep(step.wait)
			synctest.Wait()
			w := <-s.writer
			n, err := w.number("SELECT count(*) FROM records")
			s.writer <- w
			if err != nil || n != step.want {
				t.Errorf("%d records in the file, want %d; %v", n, step.want, err)
			}
		}
	})
}

// A writer that waits for another one leaves when its context ends.
func TestWaitForTheWriterEndsWithTheContext(t *testing.T) {
	s := openNew(t)
	w := <-s.writer
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Touch(ctx, "k", time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Touch behind a busy writer: %v", err)
	}
	s.writer <- w
}

// A file that can't be written to still serves who is signed in.
func TestPingOfAFileThatRefusesWrites(t *testing.T) {
	s := openNew(t)
	w := <-s.writer
	if _, err := w.exec("PRAGMA query_only = 1"); err != nil {
		t.Fatal(err)
	}
	s.writer <- w
	if err := s.Create(t.Context(), "k", nil, time.Hour); err == nil || errors.Is(err, store.ErrExists) {
		t.Errorf("Create: %v", err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
}
