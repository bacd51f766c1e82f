package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// An ear hears a feed, and checks what Current says against the changes it knows of.
type ear struct {
	t        testing.TB
	mu       sync.Mutex
	events   int            // heard so far
	changed  map[string]int // the last event of a key
	reset    int            // the last Reset
	resets   int
	current  time.Time
	returned []returned // changes that no Current has covered yet
}

// returned is a change whose call began after so many events, and has returned.
type returned struct {
	key    string
	events int
	at     time.Time
}

// listen watches through s until the test ends.
func listen(t testing.TB, s *Store, beat time.Duration) *ear {
	t.Helper()
	e := &ear{t: t, changed: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, beat, store.Feed{Changed: e.onChanged, Reset: e.onReset, Current: e.onCurrent})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
	e.waitCurrent()
	return e
}

func (e *ear) onChanged(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events++
	e.changed[key] = e.events
}

func (e *ear) onReset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events++
	e.resets++
	e.reset = e.events
}

func (e *ear) onCurrent(asOf time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.resets == 0 {
		e.t.Error("Current before any Reset")
	}
	e.current = asOf
	var later []returned
	for _, r := range e.returned {
		switch {
		case !r.at.Before(asOf):
			later = append(later, r)
		case e.changed[r.key] <= r.events && e.reset <= r.events:
			e.t.Errorf("Current as of %s, and nothing told of %s, changed at %s", asOf.Format(time.StampMicro), r.key, r.at.Format(time.StampMicro))
		}
	}
	e.returned = later
}

// change makes a change of key, which some Current has to cover if it succeeds.
func (e *ear) change(key string, call func() error) error {
	e.mu.Lock()
	began := e.events
	e.mu.Unlock()
	err := call()
	if err == nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.returned = append(e.returned, returned{key, began, time.Now()})
	}
	return err
}

// waitCurrent waits for a Current of now or later.
func (e *ear) waitCurrent() {
	e.t.Helper()
	now := time.Now()
	eventually(e.t, "the feed is current", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return !e.current.Before(now)
	})
}

func (e *ear) heardOf(key string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed[key]
}

func (e *ear) heardResets() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.resets
}

const testBeat = 50 * time.Millisecond

func TestWatcherConformance(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	storetest.RunWatcher(t, storetest.WatcherHarness{
		Open:    opener[storetest.WatchedStore](Options{URL: server.URL(), Timeout: time.Second}),
		Outages: outages(server),
	})
}

func TestFeedTellsChanges(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	here := open(t, Options{URL: server.URL(), KeyPrefix: "p:"})
	there, ctx := open(t, Options{URL: server.URL(), KeyPrefix: "p:"}), t.Context()
	stranger := open(t, Options{URL: server.URL()})
	e := listen(t, here, testBeat)
	for _, s := range []*Store{here, there} {
		key := "a}b%{c" + fmt.Sprint(s == here)
		if err := s.Create(ctx, key, []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
		e.waitCurrent()
		r, err := s.Get(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		before, resets := e.heardOf(key), e.heardResets()
		for range 10 {
			if err := s.Touch(ctx, key, 90*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		e.waitCurrent()
		if e.heardOf(key) != before {
			t.Error("a touch is told of as a change")
		}
		if err := e.change(key, func() error { return s.Replace(ctx, key, r.Revision, nil, time.Hour) }); err != nil {
			t.Fatal(err)
		}
		e.waitCurrent()
		if e.heardOf(key) == before {
			t.Error("nothing told of Replace")
		}
		before = e.heardOf(key)
		if err := e.change(key, func() error { return s.Delete(ctx, key) }); err != nil {
			t.Fatal(err)
		}
		e.waitCurrent()
		if e.heardOf(key) == before {
			t.Error("nothing told of Delete")
		}
		if e.heardResets() != resets {
			t.Error("a Reset without a reason")
		}
	}
	if err := stranger.Create(ctx, "strange", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	e.waitCurrent()
	if e.heardOf("strange") != 0 {
		t.Error("heard of another installation's record")
	}
}

// A touch costs the other nodes nothing: the server sends them no word of it.
func TestTouchesAreNotSent(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	listen(t, open(t, Options{URL: server.URL()}), time.Second)
	s := open(t, Options{URL: server.URL()})
	if err := s.Create(t.Context(), "k", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	sent := func() int {
		m := server.Must("INFO", "stats")
		text, _ := m.ToString()
		_, text, _ = strings.Cut(text, "total_net_output_bytes:")
		text, _, _ = strings.Cut(text, "\r\n")
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const touches = 2000
	before := sent()
	for i := range touches {
		if err := s.Touch(t.Context(), "k", time.Hour+time.Duration(i)*time.Second/10); err != nil {
			t.Fatal(err)
		}
	}
	if n := sent() - before; n > 20*touches {
		t.Errorf("the server sent %d bytes for %d touches", n, touches)
	}
}

// Nobody is told anything once Watch has returned.
func TestFeedEnds(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	if err := s.Create(t.Context(), "k", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	var ended *ear
	t.Run("while it lasts", func(t *testing.T) { ended = listen(t, s, testBeat) })
	e := listen(t, s, testBeat)
	before := ended.heardOf("k")
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	e.waitCurrent()
	if ended.heardOf("k") != before || e.heardOf("k") == 0 {
		t.Error("the wrong one was told")
	}
}

// Keys that are dropped all at once are a Reset, and so is the end of the connection.
func TestFeedResets(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	e := listen(t, open(t, Options{URL: server.URL()}), testBeat)
	for _, command := range []string{"FLUSHALL", "CLIENT KILL TYPE normal SKIPME yes"} {
		resets := e.heardResets()
		server.Must(strings.Fields(command)...)
		e.waitCurrent()
		if e.heardResets() == resets {
			t.Errorf("no Reset after %s", command)
		}
	}
}

// A connection that is new does not wait for the next beat: while the feed is not heard
// every request reads its record.
func TestFeedIsBackAtOnce(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	currents := make(chan time.Time, 100)
	watching.Go(func() {
		_ = s.Watch(ctx, time.Hour, store.Feed{
			Changed: func(string) {}, Reset: func() {}, Current: func(asOf time.Time) { currents <- asOf },
		})
	})
	<-currents
	before := time.Now()
	server.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	eventually(t, "the server answers", func() bool { return s.Ping(ctx) == nil })
	for asOf := before; !asOf.After(before); {
		select {
		case asOf = <-currents:
		case <-time.After(20 * time.Second):
			t.Fatal("the feed waits for the next beat")
		}
	}
}

// Changes while connections end are told, or the feed says that it began anew.
func TestFeedAcrossConnections(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	e := listen(t, open(t, Options{URL: server.URL()}), 5*time.Millisecond)
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	for i := range 100 {
		key := fmt.Sprint("k", i)
		eventually(t, "there is a record", func() bool { // whose connection may have ended
			err := s.Create(ctx, key, nil, time.Hour)
			return err == nil || errors.Is(err, store.ErrExists)
		})
		// One that ends our own connections leaves a call's outcome open.
		var wg sync.WaitGroup
		wg.Go(func() { server.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") })
		_ = e.change(key, func() error { return s.Delete(ctx, key) })
		wg.Wait()
		e.waitCurrent()
	}
}

// The end of a connection may be told only after the next one has answered. Current
// waits for neither.
func TestFeedOnANewConnection(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	here := open(t, Options{URL: server.URL()})
	there, ctx := open(t, Options{URL: server.URL()}), t.Context()
	if err := there.Create(ctx, "k", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	e := listen(t, here, 300*time.Millisecond)
	here.feedsMu.Lock() // what the connections tell is held up
	defer here.feedsMu.Unlock()
	server.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	eventually(t, "the change is made", func() bool {
		return e.change("k", func() error { return there.Delete(ctx, "k") }) == nil
	})
	e.waitCurrent() // and judges
}

// The log is told once of an interruption that lasts, and once of its end. A connection
// that is replaced is none.
func TestFeedLog(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	var log logged
	s := open(t, Options{URL: server.URL(), Timeout: 2 * time.Second, Logger: log.logger()})
	e := listen(t, s, testBeat)
	server.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	e.waitCurrent()
	if log.String() != "" {
		t.Errorf("a connection that was replaced is logged:\n%s", log.String())
	}
	const begin, end = "level=WARN msg=\"the feed of changes is interrupted\"", "level=INFO msg=\"the feed of changes is back\""
	server.Pause()
	eventually(t, "it is logged", func() bool { return strings.Contains(log.String(), begin) })
	time.Sleep(4 * testBeat)
	server.Resume()
	eventually(t, "its end is logged", func() bool { return strings.Contains(log.String(), end) })
	e.waitCurrent()
	if strings.Count(log.String(), "\n") != 2 {
		t.Errorf("log:\n%s", log.String())
	}
}

// What is short is not worth a line, however often it comes.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logged
		var q silence
		for range 5 {
			for range 2 {
				q.log(log.logger(), time.Now(), errReconnected)
				time.Sleep(tolerance - 1)
			}
			q.log(log.logger(), time.Now(), nil)
		}
		if log.String() != "" {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// A server that hangs is not heard. When it goes on, or the connection was given up,
// the feed is current again.
func TestFeedOfAHungServer(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), Timeout: 300 * time.Millisecond})
	e := listen(t, s, testBeat)
	resets := e.heardResets()
	server.Pause()
	paused := time.Now()
	eventually(t, "the connection is given up", func() bool { return e.heardResets() > resets })
	e.mu.Lock()
	if e.current.After(paused) {
		t.Errorf("Current as of %s after the server hung", e.current.Sub(paused))
	}
	e.mu.Unlock()
	server.Resume()
	e.waitCurrent()
}

// A server that was made a replica is not the place where changes are made.
func TestFeedOfAReplica(t *testing.T) {
	server, other := testenv.StartRedis(t, testenv.RedisOptions{}), testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	e := listen(t, s, testBeat)
	_, port, _ := strings.Cut(other.Addr(), ":")
	server.Must("REPLICAOF", "127.0.0.1", port)
	if _, err := s.hear(t.Context(), new(sync.WaitGroup)); !errors.Is(err, errReplica) {
		t.Errorf("hear from a replica: %v", err)
	}
	// Nor does it know all that is there: a key could be retired that has sealed the rest.
	var said error
	for _, err := range s.Keys(t.Context(), "") {
		said = err
	}
	if !errors.Is(said, errReplica) {
		t.Errorf("Keys of a replica: %v", said)
	}
	server.Must("REPLICAOF", "NO", "ONE")
	e.waitCurrent()
}
