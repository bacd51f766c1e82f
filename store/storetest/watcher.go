package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A WatchedStore is a Store that tells of its changes.
type WatchedStore interface {
	store.Store
	store.Watcher
}

// A WatcherHarness gives the suite its stores.
type WatcherHarness struct {
	// Open returns one WatchedStore per node, as Harness.Open does.
	Open    func(t testing.TB, nodes int) []WatchedStore
	Outages []Outage
}

func watcherSections() []section[WatcherHarness] {
	return []section[WatcherHarness]{
		{"Watch", testWatch},
		{"WatchBeats", testWatchBeats},
		{"WatchTouch", testWatchTouch},
		{"WatchLoad", testWatchLoad},
		{"WatchEnds", testWatchEnds},
	}
}

// RunWatcher runs the suite of store.Watcher.
func RunWatcher(t *testing.T, h WatcherHarness) {
	runSections(t, h, watcherSections())
	runOutages(t, "WatchOutage", h, h.Outages, testWatchOutage)
}

// beat is how often the suite wants to be sure.
const beat = 100 * time.Millisecond

// A feedEvent is one call of a Feed's functions.
type feedEvent struct {
	kind string // "changed", "reset" or "current"
	key  string
	asOf time.Time
}

// A watch is what one call of Watch has told, in order.
type watch struct {
	mu     sync.Mutex
	events []feedEvent
	stop   context.CancelFunc
	err    chan error // of Watch
}

func (w *watch) note(e feedEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// told returns what was told since the first from events.
func (w *watch) told(from int) []feedEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events[from:])
}

// count returns how many events there are.
func (w *watch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// startWatch watches s until the test ends, and returns once it hears.
func startWatch(t testing.TB, s store.Watcher, ctx context.Context) *watch {
	t.Helper()
	watching, stop := context.WithCancel(ctx)
	w := &watch{stop: stop, err: make(chan error, 1)}
	go func() {
		w.err <- s.Watch(watching, beat, store.Feed{
			Changed: func(key string) { w.note(feedEvent{kind: "changed", key: key}) },
			Reset:   func() { w.note(feedEvent{kind: "reset"}) },
			Current: func(asOf time.Time) { w.note(feedEvent{kind: "current", asOf: asOf}) },
		})
	}()
	t.Cleanup(func() { w.end(t) })
	w.waitCurrent(t, ctx)
	return w
}

// end stops the watch, and waits until Watch has returned with its context's error.
func (w *watch) end(t testing.TB) {
	t.Helper()
	w.stop()
	select {
	case err := <-w.err:
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Watch: %v, want the context's error", err)
		}
		w.err <- err // for whoever ends it again
	case <-time.After(patience):
		t.Error("Watch did not return when its context ended")
	}
}

// waitCurrent waits until the feed says that it knows of all that is over by now.
func (w *watch) waitCurrent(t testing.TB, ctx context.Context) {
	t.Helper()
	from, now := w.count(), time.Now()
	eventually(t, ctx, "the feed was current", func() bool {
		return slices.ContainsFunc(w.told(from), func(e feedEvent) bool { return e.kind == "current" && e.asOf.After(now) })
	})
}

// openWatched returns a store for each node, and a watch on each.
func openWatched(t testing.TB, h WatcherHarness) ([]WatchedStore, []*watch, context.Context) {
	t.Helper()
	all, ctx := h.Open(t, nodes), patiently(t)
	var watches []*watch
	for _, s := range all {
		watches = append(watches, startWatch(t, s, ctx))
	}
	return all, watches, ctx
}

func testWatch(t testing.TB, h WatcherHarness) {
	all, watches, ctx := openWatched(t, h)
	odd := []string{"k", "k\x00", "*", "a\r\nb", "\xff", "é", string(make([]byte, store.MaxKey))}
	for _, change := range []struct {
		name string
		do   func(s store.Store, key string) error
	}{
		{"Replace", func(s store.Store, key string) error {
			r := wantRecord(t, s, ctx, key, []byte("v"), long)
			return s.Replace(ctx, key, r.Revision, []byte("w"), long)
		}},
		{"Delete", func(s store.Store, key string) error { return s.Delete(ctx, key) }},
	} {
		// A reset tells of no key. On a machine that stands still for a while a feed may
		// need one, so what counts is a round without.
		for reset := true; reset; {
			for i, key := range odd {
				must(t, "Delete", all[i%nodes].Delete(ctx, key))
				must(t, "Create", all[i%nodes].Create(ctx, key, []byte("v"), long))
			}
			from := make([]int, nodes)
			for n, w := range watches {
				w.waitCurrent(t, ctx) // what came before is told
				from[n] = w.count()
			}
			for i, key := range odd {
				must(t, change.name, change.do(all[i%nodes], key))
			}
			told := make([][]feedEvent, nodes)
			reset = false
			for n, w := range watches {
				w.waitCurrent(t, ctx)
				told[n] = w.told(from[n])
				reset = reset || slices.Contains(told[n], feedEvent{kind: "reset"})
			}
			for n := range told {
				for i, key := range odd {
					if !reset && !slices.Contains(told[n], feedEvent{kind: "changed", key: key}) {
						t.Errorf("%s of %q on node %d was not told to node %d", change.name, key, i%nodes, n)
					}
				}
			}
		}
	}
}

// testWatchBeats checks the order of calls and that instants are honest.
func testWatchBeats(t testing.TB, h WatcherHarness) {
	all, ctx := h.Open(t, 1), patiently(t)
	began := time.Now()
	w := startWatch(t, all[0], ctx)
	for range 3 {
		from := w.count()
		eventually(t, ctx, "the feed was current again", func() bool {
			return slices.ContainsFunc(w.told(from), func(e feedEvent) bool { return e.kind == "current" })
		})
	}
	w.end(t)
	ended := w.count()
	last := began
	for i, e := range w.told(0) {
		switch {
		case i == 0 && e.kind != "reset":
			t.Errorf("the first that was told is %q, want a reset", e.kind)
		case e.kind == "current" && e.asOf == e.asOf.Round(0) && began != began.Round(0):
			t.Error("an instant has no monotonic reading")
		case e.kind == "current" && (e.asOf.Before(last) || time.Until(e.asOf) > 0):
			t.Errorf("the feed was current as of %s, after %s, at %s", e.asOf, last, time.Now())
		}
		if e.kind == "current" {
			last = e.asOf
		}
	}
	must(t, "Delete", all[0].Delete(ctx, "k"))
	if w.count() != ended {
		t.Error("something was told after Watch had returned")
	}
}

// testWatchTouch checks that a session in use is not read anew by everybody.
func testWatchTouch(t testing.TB, h WatcherHarness) {
	all, watches, ctx := openWatched(t, h)
	const key = "touched"
	must(t, "Create", all[0].Create(ctx, key, []byte("v"), long))
	for _, s := range all {
		wantRecord(t, s, ctx, key, []byte("v"), long)
	}
	from := make([]int, nodes)
	for n, w := range watches {
		w.waitCurrent(t, ctx)
		from[n] = w.count()
	}
	for i := range 10 {
		must(t, "Touch", all[0].Touch(ctx, key, long+time.Duration(i)*time.Second))
	}
	for n, w := range watches[1:] {
		w.waitCurrent(t, ctx)
		if slices.Contains(w.told(from[n+1]), feedEvent{kind: "changed", key: key}) {
			t.Errorf("touches on node 0 were told to node %d", n+1)
		}
	}
	// What was touched and then ends is told.
	must(t, "Delete", all[1].Delete(ctx, key))
	for n, w := range watches {
		w.waitCurrent(t, ctx)
		told := w.told(from[n])
		if !slices.Contains(told, feedEvent{kind: "changed", key: key}) && !slices.Contains(told, feedEvent{kind: "reset"}) {
			t.Errorf("Delete was not told to node %d", n)
		}
	}
}

// A change is a call that changed a record and has returned.
type change struct {
	key  string
	back time.Time // when it returned
	// from is how many events each watch had when the call began.
	from []int
}

// changing makes changes until ctx ends, and returns those that were acknowledged.
func changing(t testing.TB, s store.Store, watches []*watch, busy, ctx context.Context, writer int) []change {
	var made []change
	for i := 0; busy.Err() == nil; i++ {
		time.Sleep(grain)
		key := fmt.Sprintf("w%d-%d", writer, i%5)
		c := change{key: key}
		for _, w := range watches {
			c.from = append(c.from, w.count())
		}
		var err error
		if r, e := s.Get(ctx, key); e == nil && i%2 == 0 {
			err = s.Replace(ctx, key, r.Revision, []byte("w"), long)
		} else if e == nil {
			err = s.Delete(ctx, key)
		} else {
			_ = s.Create(ctx, key, []byte("v"), long)
			continue
		}
		if c.back = time.Now(); err == nil {
			made = append(made, c)
		}
	}
	return made
}

// wantPromise checks Current: whenever it was called, all changes that had returned by
// then had been told, or a reset had.
func wantPromise(t testing.TB, watches []*watch, made []change) {
	t.Helper()
	for n, w := range watches {
		events := w.told(0)
		broken := 0
		for _, c := range made {
			told := false
			for _, e := range events[c.from[n]:] {
				told = told || e.kind == "reset" || e.kind == "changed" && e.key == c.key
				if e.kind == "current" && e.asOf.After(c.back) {
					if !told {
						broken++
					}
					break
				}
			}
		}
		if broken > 0 {
			t.Errorf("node %d was called current while %d of %d changes had not been told", n, broken, len(made))
		}
	}
}

func testWatchLoad(t testing.TB, h WatcherHarness) {
	all, watches, ctx := openWatched(t, h)
	var flat []change
	for len(flat) < contenders {
		if ctx.Err() != nil {
			t.Fatalf("only %d changes were made", len(flat))
		}
		busy, idle := context.WithTimeout(ctx, 12*beat)
		made := make([][]change, contenders)
		race(all, func(s WatchedStore, i int) { made[i] = changing(t, s, watches, busy, ctx, i) })
		idle()
		flat = slices.Concat(flat, slices.Concat(made...))
	}
	for _, w := range watches {
		w.waitCurrent(t, ctx)
	}
	wantPromise(t, watches, flat)
}

func testWatchEnds(t testing.TB, h WatcherHarness) {
	all, ctx := h.Open(t, 1), patiently(t)
	over, cancel := context.WithCancel(ctx)
	cancel()
	var called atomic.Int64
	feed := store.Feed{
		Changed: func(string) { called.Add(1) },
		Reset:   func() {},
		Current: func(time.Time) {},
	}
	returns(t, "Watch under a context that is over", func() {
		wantErr(t, "Watch", all[0].Watch(over, beat, feed), context.Canceled)
	})
	// Many come and go beside each other, and beside changes.
	race(all, func(s WatchedStore, i int) {
		for range 3 {
			brief, cancel := context.WithTimeout(ctx, time.Duration(i)*5*grain)
			err := s.Watch(brief, beat, feed)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Watch: %v, want the context's error", err)
			}
			if err := s.Delete(ctx, "k"); err != nil {
				t.Errorf("Delete: %v", err)
			}
		}
	})
	before := called.Load()
	must(t, "Delete", all[0].Delete(ctx, "k"))
	w := startWatch(t, all[0], ctx)
	w.end(t)
	if n := called.Load(); n != before {
		t.Errorf("a watch that has returned was told of %d changes", n-before)
	}
}

// testWatchOutage takes the backend away beneath watches and writers.
func testWatchOutage(t testing.TB, h WatcherHarness, o Outage) {
	all, watches, ctx := openWatched(t, h)
	busy, idle := context.WithCancel(ctx)
	defer idle()
	made := make([][]change, nodes)
	var wg sync.WaitGroup
	defer wg.Wait() // before the harness closes the stores
	defer idle()
	for i, s := range all {
		wg.Go(func() { made[i] = changing(t, s, watches, busy, ctx, i) })
	}
	time.Sleep(2 * beat)

	from := make([]int, nodes)
	for n, w := range watches {
		from[n] = w.count()
	}
	end := o.Begin(t)
	down := time.Now()
	for _, s := range all {
		wantUnknown(t, "Ping in an outage", s.Ping(ctx))
	}
	time.Sleep(time.Until(down.Add(15 * beat))) // nobody can go on as if nothing were
	for n, w := range watches {
		for _, e := range w.told(from[n]) {
			if e.kind == "current" && e.asOf.After(down) {
				t.Errorf("node %d was called current as of %s into the outage", n, e.asOf.Sub(down))
			}
		}
	}
	end()
	for n, w := range watches {
		w.waitCurrent(t, ctx)
		for _, e := range w.told(from[n]) {
			if e.kind == "reset" {
				break
			}
			if e.kind == "current" && e.asOf.After(down) {
				t.Errorf("node %d was called current after the outage without a reset", n)
				break
			}
		}
	}
	time.Sleep(3 * beat) // under load again
	idle()
	wg.Wait()
	for _, s := range all {
		waitUp(t, s, ctx)
	}
	for _, w := range watches {
		w.waitCurrent(t, ctx)
	}
	wantPromise(t, watches, slices.Concat(made...))
}
