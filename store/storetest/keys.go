package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

// testKeys checks store.Lister, on an empty backend.
func testKeys(t testing.TB, s store.Backend) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want := []string{"p-", "p-*", "p-[a-z]", "p-}{", "p-%7D", "p-\x00\xff\r\n"}
	for i := range 1200 {
		want = append(want, fmt.Sprint("p-", i))
	}
	for _, key := range want {
		must(t, "Create", s.Create(ctx, key, []byte("v"), long))
	}
	for _, key := range []string{"p", "q-1", "*", "pp-1", "P-1"} {
		must(t, "Create", s.Create(ctx, key, nil, long))
	}
	must(t, "Create", s.Create(ctx, "p-deleted", nil, long))
	must(t, "Delete", s.Delete(ctx, "p-deleted"))
	must(t, "Create", s.Create(ctx, "p-expired", nil, store.MinTTL))
	for {
		if _, err := s.Get(ctx, "p-expired"); err != nil {
			wantErr(t, "Get", err, store.ErrNotFound)
			break
		}
	}

	var got []string
	for key, err := range s.Keys(ctx, "p-") {
		must(t, "Keys", err)
		got = append(got, key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("Keys: %d keys, want %d; the first are %q", len(got), len(want), got[:min(len(got), 10)])
	}
	for range s.Keys(ctx, "p-") {
		break // a caller may stop at any time
	}
	for range s.Keys(ctx, "none-") {
		t.Error("Keys yields what does not begin with the prefix")
	}

	over, cancelOver := context.WithCancel(ctx)
	cancelOver()
	failed := false
	for _, err := range s.Keys(over, "p-") {
		if failed = err != nil; !failed {
			t.Error("Keys goes on under a cancelled context")
		}
	}
	if !failed {
		t.Error("Keys says nothing about a cancelled context")
	}
}
