package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

func testContract(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	must(t, "Ping", s.Ping(ctx))

	wantAbsent(t, s, ctx, "k")
	wantErr(t, "Replace of an absent record", s.Replace(ctx, "k", 1, []byte("v"), long), store.ErrNotFound)
	wantErr(t, "Touch of an absent record", s.Touch(ctx, "k", long), store.ErrNotFound)
	wantErr(t, "Delete of an absent record", s.Delete(ctx, "k"), nil)
	wantAbsent(t, s, ctx, "k")

	must(t, "Create", s.Create(ctx, "k", []byte("one"), long))
	wantRecord(t, s, ctx, "k", []byte("one"), long)
	wantErr(t, "second Create", s.Create(ctx, "k", []byte("two"), long), store.ErrExists)
	r := wantRecord(t, s, ctx, "k", []byte("one"), long)

	must(t, "Create of a neighbour", s.Create(ctx, "k2", []byte("other"), long))
	must(t, "Replace", s.Replace(ctx, "k", r.Revision, []byte("two"), long/2))
	wantRecord(t, s, ctx, "k", []byte("two"), long/2)
	must(t, "Delete", s.Delete(ctx, "k"))
	wantAbsent(t, s, ctx, "k")
	wantErr(t, "second Delete", s.Delete(ctx, "k"), nil)
	wantRecord(t, s, ctx, "k2", []byte("other"), long)
	must(t, "Ping", s.Ping(ctx))
}

func testRevisions(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	must(t, "Create", s.Create(ctx, "k", []byte("v0"), long))
	seen := map[uint64]bool{}
	value := []byte("v0")
	for i := range 5 {
		r := wantRecord(t, s, ctx, "k", value, long)
		if seen[r.Revision] {
			t.Errorf("revision %d came twice", r.Revision)
		}
		seen[r.Revision] = true
		for stale := range seen {
			if stale != r.Revision {
				wantErr(t, "Replace of a stale revision", s.Replace(ctx, "k", stale, []byte("x"), long), store.ErrConflict)
			}
		}
		wantErr(t, "Replace of a revision that never was", s.Replace(ctx, "k", r.Revision+7, []byte("x"), long), store.ErrConflict)
		must(t, "Touch", s.Touch(ctx, "k", long))
		if again := wantRecord(t, s, ctx, "k", value, long); again.Revision != r.Revision {
			t.Errorf("Touch or a refused Replace changed the revision from %d to %d", r.Revision, again.Revision)
		}
		value = fmt.Appendf(nil, "v%d", i+1)
		must(t, "Replace", s.Replace(ctx, "k", r.Revision, value, long))
	}
	must(t, "Delete", s.Delete(ctx, "k"))
	must(t, "Create anew", s.Create(ctx, "k", []byte("new"), long))
	for stale := range seen {
		wantErr(t, "Replace of a deleted record's revision", s.Replace(ctx, "k", stale, []byte("x"), long), store.ErrConflict)
	}
	wantRecord(t, s, ctx, "k", []byte("new"), long)
}

func testSizes(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	// A context that is over lets nothing be sent; the bounds are checked before.
	over, cancel := context.WithCancel(ctx)
	cancel()
	for name, key := range map[string]string{
		"an empty key": "", "a key over the limit": strings.Repeat("k", store.MaxKey+1),
		"a key of 10 KiB": strings.Repeat("k", 10<<10), // K5
	} {
		_, err := s.Get(over, key)
		wantErr(t, "Get of "+name, err, store.ErrTooLarge)
		wantErr(t, "Create of "+name, s.Create(over, key, nil, long), store.ErrTooLarge)
		wantErr(t, "Replace of "+name, s.Replace(over, key, 1, nil, long), store.ErrTooLarge)
		wantErr(t, "Touch of "+name, s.Touch(over, key, long), store.ErrTooLarge)
		wantErr(t, "Delete of "+name, s.Delete(over, key), store.ErrTooLarge)
	}
	huge := make([]byte, store.MaxValue+1)
	wantErr(t, "Create of a value over the limit", s.Create(over, "k", huge, long), store.ErrTooLarge)
	wantErr(t, "Replace by a value over the limit", s.Replace(over, "k", 1, huge, long), store.ErrTooLarge)

	largest := huge[:store.MaxValue]
	_, _ = rand.Read(largest)
	longest := strings.Repeat("k", store.MaxKey)
	for i, value := range [][]byte{nil, {}, {0}, largest} {
		key := longest[i:]
		must(t, "Create", s.Create(ctx, key, value, long))
		r := wantRecord(t, s, ctx, key, value, long)
		must(t, "Replace", s.Replace(ctx, key, r.Revision, bytes.Clone(value), long))
		wantRecord(t, s, ctx, key, value, long)
	}
}

// testLiteralBytes covers A-K2 to A-K5: keys and values are data, whatever they
// look like to the backend.
func testLiteralBytes(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	odd := []string{
		"y", "x\r\nDEL y", "x\nDEL y", "*", "?", "[a-z]*", "k*", "k?", "k\\", // K1, K2
		"'; DROP TABLE sessions;--", "\"", "`", "%", "_", "$1", "?1", ":key", // K3
		`{"$ne":null}`, "{}", "{k}", "{k", // K4
		"../x", "k", "k\x00", "k\x00k", "\x00", " k", "k ", "K", "\xff\xfe", "é", "e\u0301", // K5
		"$4\r\nk", "-1", "0", "nil", "NULL",
		string(every),
	}
	for _, key := range odd {
		must(t, fmt.Sprintf("Create %q", key), s.Create(ctx, key, []byte("value of "+key), long))
	}
	for i, key := range odd {
		r := wantRecord(t, s, ctx, key, []byte("value of "+key), long)
		must(t, fmt.Sprintf("Touch %q", key), s.Touch(ctx, key, long))
		must(t, fmt.Sprintf("Replace %q", key), s.Replace(ctx, key, r.Revision, []byte(odd[len(odd)-1-i]), long))
	}
	for i, key := range odd {
		wantRecord(t, s, ctx, key, []byte(odd[len(odd)-1-i]), long)
		must(t, fmt.Sprintf("Delete %q", key), s.Delete(ctx, key))
		wantAbsent(t, s, ctx, key)
		for j := i + 1; j < len(odd); j++ {
			if _, err := s.Get(ctx, odd[j]); err != nil {
				t.Fatalf("Delete %q: then Get %q: %v", key, odd[j], err)
			}
		}
	}
}

func testAliasing(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	in := []byte("created")
	must(t, "Create", s.Create(ctx, "k", in, long))
	clear(in)
	r := wantRecord(t, s, ctx, "k", []byte("created"), long)
	clear(r.Value)
	_ = append(r.Value, "and what stands behind it"...)
	r = wantRecord(t, s, ctx, "k", []byte("created"), long)

	in = []byte("replaced")
	must(t, "Replace", s.Replace(ctx, "k", r.Revision, in, long))
	clear(in)
	wantRecord(t, s, ctx, "k", []byte("replaced"), long)

	first, err := s.Get(ctx, "k")
	must(t, "Get", err)
	second, err := s.Get(ctx, "k")
	must(t, "Get", err)
	clear(first.Value)
	if string(second.Value) != "replaced" {
		t.Error("two Gets returned the same memory")
	}
}
