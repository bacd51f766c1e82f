package redis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// The whole key is the hash tag, whatever is in it, so value and deadline share a slot;
// and no key is taken for another (A-K).
func TestTags(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[{}%257Da]{1,8}|.{1,20}`).Draw(t, "key")
		other := rapid.StringMatching(`[{}%257Da]{1,8}`).Draw(t, "other")
		inner := strings.TrimPrefix(tag(key), "{")
		if i := strings.IndexByte(inner, '}'); i != len(inner)-1 || i == 0 {
			t.Errorf("tag of %q is %q", key, tag(key))
		}
		if back, ok := untag(tag(key)); back != key || !ok {
			t.Errorf("untag(tag(%q)) = %q, %t", key, back, ok)
		}
		if key != other && tag(key) == tag(other) {
			t.Errorf("%q and %q share the tag %q", key, other, tag(key))
		}
	})
	for _, foreign := range []string{"", "{", "}", "x", "{x", "x}"} {
		if key, ok := untag(foreign); ok {
			t.Errorf("untag(%q) = %q", foreign, key)
		}
	}
}

// What others wrote under our keys is neither a record nor the lack of one.
func TestForeignValues(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), KeyPrefix: "p:"})
	server.Must("SET", s.valueKey("short"), "v", "PX", "1000000")
	server.Must("SET", s.valueKey("for ever"), "long enough", "PX", "1000000")
	server.Must("RPUSH", s.valueKey("list"), "v")
	for key, expiry := range map[string][]string{"short": {"PX", "1000000"}, "for ever": nil, "list": {"PX", "1000000"}} {
		server.Must(append([]string{"SET", s.deadlineKey(key), ""}, expiry...)...)
		if _, err := s.Get(t.Context(), key); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a foreign value (%s): %v", key, err)
		}
	}
}

// Whatever connections end under them, reads tell of what is there, or of nothing; and a
// command that is sent a second time is left to the connection it was sent on first.
func TestReadsWhileConnectionsEnd(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	const readers = 16
	for i := range readers {
		if err := s.Create(t.Context(), fmt.Sprint("of ", i), fmt.Append(nil, "value ", i), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var reading sync.WaitGroup
	var read atomic.Int64
	for i := range readers {
		reading.Go(func() {
			for ctx.Err() == nil {
				rec, err := s.Get(ctx, fmt.Sprint("of ", i))
				if errors.Is(err, store.ErrNotFound) || err == nil && string(rec.Value) != fmt.Sprint("value ", i) {
					t.Errorf("Get: %q, %v", rec.Value, err)
				}
				if err == nil {
					read.Add(1)
				}
				_ = s.Touch(ctx, fmt.Sprint("of nobody ", i), time.Hour) // takes the memory that is free
			}
		})
	}
	for pause := 2 * time.Millisecond; ctx.Err() == nil; time.Sleep(pause) {
		before := read.Load()
		hangUp(server)
		if pause *= 2; read.Load() > before {
			pause = 2 * time.Millisecond
		}
	}
	reading.Wait()
	if read.Load() == 0 {
		t.Error("nothing was read: the test shows nothing")
	}
}

// Which commands are sent a second time is rueidis's matter: all that it takes for reads. The
// others that are made here are known.
func TestReadsArePinned(t *testing.T) {
	sent := regexp.MustCompile(`B\(\)\.(\w+)\([^;{}]*?\.Build\(\)(\.Pin\(\))?`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	pinned := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range sent.FindAllSubmatch(text, -1) {
			switch string(m[1]) {
			case "ConfigGet", "ClusterInfo", "ClusterNodes", "Hello", "Del", "Arbitrary", "Evalsha", "Eval":
			default:
				if pinned++; len(m[2]) == 0 && !strings.HasSuffix(file, "_test.go") {
					t.Errorf("%s: the command %s is not pinned: %s", file, m[1], m[0])
				}
			}
		}
	}
	if pinned < 5 {
		t.Errorf("%d reads are found: the test shows nothing", pinned)
	}
}

// A record of which one key is gone, evicted say, is absent for every call, and made
// anew as a whole.
func TestHalfRecords(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	for _, half := range []string{s.valueKey("k"), s.deadlineKey("k")} {
		if err := s.Create(ctx, "k", []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		server.Must("DEL", half)
		if _, err := s.Get(ctx, "k"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get without %s: %v", half, err)
		}
		if err := s.Touch(ctx, "k", 2*time.Hour); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Touch without %s: %v", half, err)
		}
		if err := s.Replace(ctx, "k", r.Revision, nil, time.Hour); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Replace without %s: %v", half, err)
		}
		if err := s.Create(ctx, "k", []byte("w"), time.Hour); err != nil {
			t.Errorf("Create without %s: %v", half, err)
		}
		if err := s.Delete(ctx, "k"); err != nil {
			t.Error(err)
		}
		wantKeys(t, server, 0)
	}
}

func wantKeys(t *testing.T, server *testenv.Redis, want int64) {
	t.Helper()
	m := server.Must("DBSIZE")
	if n, err := m.AsInt64(); n != want || err != nil {
		t.Errorf("the server holds %d keys, want %d; %v", n, want, err)
	}
}

// Invariant 5: whatever is done, each key of ours carries its end, and the value's is
// not before the deadline.
func TestEveryKeyExpires(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL(), KeyPrefix: "p:"}), t.Context()
	for _, key := range []string{"created", "touched", "touched far", "replaced", "deleted"} {
		if err := s.Create(ctx, key, []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Get(ctx, "replaced")
	if err = errors.Join(
		err,
		s.Replace(ctx, "replaced", r.Revision, nil, 3*time.Hour),
		s.Touch(ctx, "touched", 90*time.Minute),
		s.Touch(ctx, "touched far", 9*time.Hour),
		s.Delete(ctx, "deleted"),
		s.Ping(ctx),
	); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]struct{ deadline, value time.Duration }{
		"created":     {time.Hour, 2 * time.Hour},
		"touched":     {90 * time.Minute, 2 * time.Hour},
		"touched far": {9 * time.Hour, 18 * time.Hour},
		"replaced":    {3 * time.Hour, 6 * time.Hour},
	} {
		for name, want := range map[string]time.Duration{s.deadlineKey(key): want.deadline, s.valueKey(key): want.value} {
			m := server.Must("PTTL", name)
			ms, err := m.AsInt64()
			if left := time.Duration(ms) * time.Millisecond; err != nil || left > want || left < want-time.Minute {
				t.Errorf("%s lives %s, want %s; %v", name, left, want, err)
			}
		}
	}
	wantKeys(t, server, 8)
}

// A record that is touched for longer than its value was written for does not end before
// its deadline.
func TestTouchedForLong(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	const ttl = 300 * time.Millisecond
	for over := true; over; {
		touched := time.Now()
		if err := s.Create(ctx, "k", []byte("v"), ttl); err != nil {
			t.Fatal(err)
		}
		over = false
		for end := touched.Add(5 * ttl); !over && time.Now().Before(end); time.Sleep(ttl / 6) {
			asked := time.Now()
			err := s.Touch(ctx, "k", ttl)
			over = errors.Is(err, store.ErrNotFound) && time.Since(touched) >= ttl // on a machine that stood still
			if err != nil && !over {
				t.Fatalf("Touch: %v", err)
			}
			touched = asked
		}
	}
	eventually(t, "every key is gone", func() bool {
		m := server.Must("DBSIZE")
		n, err := m.AsInt64()
		return n == 0 && err == nil
	})
}
