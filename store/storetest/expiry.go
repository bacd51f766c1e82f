package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// short is a lifetime that a test waits for.
const short = 60 * time.Millisecond

// grain is the finest step of a store's clock.
const grain = time.Millisecond

// waitExpired waits until key is absent, and checks that it went neither before its
// time nor was served after it. created is a moment before the record got ttl,
// acked one after it.
func waitExpired(t testing.TB, s store.Store, ctx context.Context, key string, ttl time.Duration, created, acked time.Time) {
	t.Helper()
	for {
		asked := time.Now()
		_, err := s.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			if lived := time.Since(created); lived < ttl-grain {
				t.Errorf("%q was given %s and went after %s", key, ttl, lived)
			}
			return
		case err != nil:
			t.Fatalf("Get %q: %v", key, err)
		case asked.Sub(acked) > ttl+grain:
			t.Fatalf("%q was given %s and served after %s", key, ttl, asked.Sub(acked))
		}
		time.Sleep(grain)
	}
}

func testExpiry(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	for _, write := range []struct {
		name string
		do   func(key string) error
	}{
		{"Create", func(key string) error { return s.Create(ctx, key, []byte("v"), short) }},
		{"Replace", func(key string) error {
			must(t, "Create", s.Create(ctx, key, []byte("v"), long))
			r := wantRecord(t, s, ctx, key, []byte("v"), long)
			return s.Replace(ctx, key, r.Revision, []byte("v"), short)
		}},
		{"Touch", func(key string) error {
			for {
				began := time.Now()
				must(t, "Create", s.Create(ctx, key, []byte("v"), short/4))
				err := s.Touch(ctx, key, short)
				if errors.Is(err, store.ErrNotFound) && time.Since(began) >= short/4-grain {
					continue // on a busy machine it was over before it was touched
				}
				return err
			}
		}},
	} {
		key := "by " + write.name
		created := time.Now()
		must(t, write.name, write.do(key))
		acked := time.Now()
		if r, err := s.Get(ctx, key); err == nil && (r.TTL <= 0 || r.TTL > short) {
			t.Errorf("%s of %s: TTL = %s", write.name, short, r.TTL)
		}
		waitExpired(t, s, ctx, key, short, created, acked)

		// An expired record is absent for every method.
		wantErr(t, "Touch of an expired record", s.Touch(ctx, key, long), store.ErrNotFound)
		wantErr(t, "Replace of an expired record", s.Replace(ctx, key, 1, []byte("x"), long), store.ErrNotFound)
		wantErr(t, "Delete of an expired record", s.Delete(ctx, key), nil)
		wantAbsent(t, s, ctx, key)
	}

	must(t, "Create", s.Create(ctx, "again", []byte("old"), short))
	old, err := s.Get(ctx, "again")
	acked := time.Now()
	waitExpired(t, s, ctx, "again", short, time.Time{}, acked)
	must(t, "Create over an expired record", s.Create(ctx, "again", []byte("new"), long))
	wantRecord(t, s, ctx, "again", []byte("new"), long)
	if err == nil {
		wantErr(t, "Replace of an expired record's revision",
			s.Replace(ctx, "again", old.Revision, []byte("x"), long), store.ErrConflict)
	}
}

// testMinTTL checks that a lifetime below the least is raised to it: the record is
// neither refused nor kept for ever.
func testMinTTL(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	for _, ttl := range []time.Duration{0, -time.Hour, time.Nanosecond, store.MinTTL} {
		key := fmt.Sprint("created with ", ttl)
		must(t, key, s.Create(ctx, key, []byte("v"), ttl))
		waitExpired(t, s, ctx, key, store.MinTTL, time.Time{}, time.Now())

		key = fmt.Sprint("replaced with ", ttl)
		must(t, "Create", s.Create(ctx, key, []byte("v"), long))
		r := wantRecord(t, s, ctx, key, []byte("v"), long)
		must(t, key, s.Replace(ctx, key, r.Revision, []byte("v"), ttl))
		waitExpired(t, s, ctx, key, store.MinTTL, time.Time{}, time.Now())
	}
}

func testTouchExtends(t testing.TB, h Harness) {
	s, ctx := open(t, h)
	must(t, "Create", s.Create(ctx, "k", []byte("v"), long))
	for _, ttl := range []time.Duration{long / 2, store.MinTTL, 0, -long} {
		wantErr(t, fmt.Sprint("Touch with ", ttl), s.Touch(ctx, "k", ttl), nil)
		if r := wantRecord(t, s, ctx, "k", []byte("v"), long); r.TTL < long-2*patience {
			t.Errorf("Touch with %s shortened the TTL from %s to %s", ttl, long, r.TTL)
		}
	}
	must(t, "Touch", s.Touch(ctx, "k", 2*long))
	if r := wantRecord(t, s, ctx, "k", []byte("v"), 2*long); r.TTL <= long {
		t.Errorf("Touch with %s left a TTL of %s", 2*long, r.TTL)
	}
}
