package redis

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// After a failover the next primary may number events by a clock that is behind, and lack
// the last ones. Here a server that kept nothing takes the place of the next primary.
func TestFollowerGoesBack(t *testing.T) {
	for name, tc := range map[string]struct {
		began time.Duration // before the events
		want  []string
	}{
		"it has followed for long":     {time.Minute, []string{"behind", "last"}},
		"it began after the late ones": {0, []string{"last"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := testenv.StartRedis(t, testenv.RedisOptions{})
			s := open(t, Options{URL: server.URL(), Timeout: 2 * time.Second})
			now := time.Now() // as the events have it, however long the machine takes
			add := func(ago time.Duration, data string) {
				server.Must("XADD", s.journalKey(), fmt.Sprint(now.Add(-ago).UnixMilli()), "d", data)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ready, told, done := make(chan struct{}), make(chan string, 100), make(chan error, 1)
			add(tc.began, "before it began")
			go func() {
				done <- s.Follow(ctx, func() { close(ready) }, func(data []byte) { told <- string(data) })
			}()
			<-ready
			if err := s.Append(ctx, []byte("first")); err != nil {
				t.Fatal(err)
			}
			if got := <-told; got != "first" {
				t.Fatalf("told of %q", got)
			}
			server.Stop()
			time.Sleep(10 * minFollowDelay) // it fails a few times, which leads no further back than once
			server.Restart()
			eventually(t, "the server answers", func() bool { return server.Do("PING").Error() == nil })
			add(2*followOverlap, "long ago")
			add(100*time.Millisecond, "behind")
			now = time.Now()
			add(0, "last")
			for _, want := range tc.want {
				if got := <-told; got != want {
					t.Errorf("told of %q, want %q", got, want)
				}
			}
			stop()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Follow: %v", err)
			}
		})
	}
}

func TestEventIDs(t *testing.T) {
	id, err := parseEventID("1732274000123-7")
	if err != nil || id != (eventID{1732274000123, 7}) || id.String() != "1732274000123-7" {
		t.Errorf("parseEventID: %v, %v", id, err)
	}
	if back := id.back(time.Second); back != (eventID{1732273999123, 0}) || !back.before(id) || id.before(back) {
		t.Errorf("back: %v", back)
	}
	if back := (eventID{1, 1}).back(time.Second); back != (eventID{}) {
		t.Errorf("back before the beginning of time: %v", back)
	}
	for _, text := range []string{"", "-", "1", "1-", "-1", "a-1", "1-1-1"} {
		if id, err := parseEventID(text); err == nil {
			t.Errorf("parseEventID(%q): %v", text, id)
		}
	}
}

// A journal is trimmed by time.
func TestJournalIsTrimmed(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	old := time.Now().Add(-store.JournalLife - time.Minute).UnixMilli()
	young := time.Now().Add(-store.JournalLife + time.Minute).UnixMilli()
	for i := range 300 {
		server.Must("XADD", s.journalKey(), fmt.Sprintf("%d-%d", old, i+1), "d", "old")
	}
	for i := range 300 {
		server.Must("XADD", s.journalKey(), fmt.Sprintf("%d-%d", young, i+1), "d", "young")
	}
	if err := s.Append(t.Context(), []byte("new")); err != nil {
		t.Fatal(err)
	}
	m := server.Must("XLEN", s.journalKey())
	// It is trimmed by whole blocks of a hundred, roughly.
	if n, err := m.AsInt64(); n < 301 || n > 450 || err != nil {
		t.Errorf("the journal has %d events, want 301 and a few more; %v", n, err)
	}
}
