package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// writeFile is the whole life of the process that TestKill kills. It says the number of
// each round whose calls have all returned.
func writeFile(file string) int {
	ctx := context.Background()
	s, err := Open(ctx, Options{File: file})
	for i := 0; err == nil; i++ {
		e := entry(fmt.Sprint("u", i), fmt.Sprint("s", i))
		key := fmt.Sprint("k", i)
		err = s.Create(ctx, key, []byte(key), time.Hour)
		if err == nil {
			_, err = s.Admit(ctx, e, time.Minute, store.Limits{PerUser: 3, Total: 1e9}, "")
		}
		if err == nil {
			err = s.Renew(ctx, e, time.Hour)
		}
		if err == nil {
			_, err = s.Acquire(ctx, fmt.Sprint("l", i), time.Hour)
		}
		switch {
		case err != nil:
		case i%3 == 1:
			_, err = s.End(ctx, e, "revoked")
		case i%3 == 2:
			err = errors.Join(s.Delete(ctx, key), s.Remove(ctx, e))
		}
		if err == nil {
			_, err = os.Stdout.WriteString(strconv.Itoa(i) + "\n")
		}
	}
	os.Stdout.WriteString(err.Error() + "\n")
	return 1
}

// TestKill: what was acknowledged before a kill -9 is there after it, and seats, which a
// transaction changes together with its entry, fit. A-Z7
func TestKill(t *testing.T) {
	file := filepath.Join(t.TempDir(), "coatcheck.db")
	cmd, out := startOther(t, writeFileEnv, file)
	acked := -1
	for out.Scan() {
		i, err := strconv.Atoi(out.Text())
		if err != nil {
			t.Fatalf("the other process: %s", out.Text())
		}
		if acked = i; acked == 100 {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if acked < 100 {
		t.Fatalf("the other process said no more than %d", acked)
	}

	s, ctx := openAt(t, file), t.Context()
	if got := s.query(t, "PRAGMA integrity_check"); fmt.Sprint(got) != "[[ok]]" {
		t.Error(got)
	}
	for i := range acked + 1 {
		r, err := s.Get(ctx, fmt.Sprint("k", i))
		found := string(r.Value)
		if err != nil {
			found = err.Error()
		}
		for e, err := range s.Find(ctx, store.Query{Tenant: "t", ID: fmt.Sprint("s", i)}) {
			found += fmt.Sprintf(" listed %s %v", e.Ending, err)
			if left := time.Until(e.Expires); left < 30*time.Minute {
				t.Errorf("s%d has %s left", i, left)
			}
		}
		want := []string{fmt.Sprintf("k%d listed  <nil>", i), fmt.Sprintf("k%d listed revoked <nil>", i), store.ErrNotFound.Error()}[i%3]
		if found != want {
			t.Errorf("round %d: %q, want %q", i, found, want)
		}
		if _, err := s.Acquire(ctx, fmt.Sprint("l", i), time.Hour); err != store.ErrHeld {
			t.Errorf("round %d: Acquire of the dead process's lease: %v", i, err)
		}
	}
	counted, kept := s.query(t, `SELECT count(*) FROM entries`), s.query(t, `SELECT taken FROM seats`)
	if fmt.Sprint(counted) != fmt.Sprint(kept) {
		t.Errorf("%v entries hold %v seats", counted, kept)
	}
}
