package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A JournalHarness gives the suite its journals.
type JournalHarness struct {
	// Open returns one Journal per node, as Harness.Open does.
	Open    func(t testing.TB, nodes int) []store.Journal
	Outages []Outage
}

func journalSections() []section[JournalHarness] {
	return []section[JournalHarness]{
		{"Journal", testJournal},
		{"JournalBytes", testJournalBytes},
		{"JournalLoad", testJournalLoad},
		{"JournalReady", testJournalReady},
		{"JournalCancelled", testJournalCancelled},
	}
}

// RunJournal runs the suite of store.Journal.
func RunJournal(t *testing.T, h JournalHarness) {
	runSections(t, h, journalSections())
	runOutages(t, "JournalOutage", h, h.Outages, testJournalOutage)
}

// A reader is what one call of Follow has told.
type reader struct {
	mu   sync.Mutex
	told [][]byte
	seen map[string]bool // what was told, as it was then
	stop context.CancelFunc
	err  chan error // of Follow
}

// follow reads j until the test ends, and returns once it is ready.
func follow(t testing.TB, j store.Journal, ctx context.Context) *reader {
	t.Helper()
	following, stop := context.WithCancel(ctx)
	r := &reader{seen: make(map[string]bool), stop: stop, err: make(chan error, 1)}
	ready := make(chan struct{})
	var once sync.Once
	go func() {
		r.err <- j.Follow(following, func() { once.Do(func() { close(ready) }) }, func(data []byte) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, data)
			r.seen[string(data)] = true
		})
	}()
	t.Cleanup(func() { r.end(t) })
	select {
	case <-ready:
	case <-ctx.Done():
		t.Fatal("Follow was never ready")
	}
	return r
}

// end stops the reader, and waits until Follow has returned with its context's error.
func (r *reader) end(t testing.TB) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.err:
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Follow: %v, want the context's error", err)
		}
		r.err <- err // for whoever ends it again
	case <-time.After(patience):
		t.Error("Follow did not return when its context ended")
	}
}

// missing returns those of events that r has not been told of.
func (r *reader) missing(events []string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(events), func(e string) bool { return r.seen[e] })
}

// count returns how often r was told anything.
func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.told)
}

// wantTold waits until r has been told of all events, and checks that it was told of
// nothing else but what may have been appended.
func (r *reader) wantTold(t testing.TB, ctx context.Context, who string, events []string, maybe func(string) bool) {
	t.Helper()
	for missing := r.missing(events); len(missing) > 0; missing = r.missing(missing) {
		if ctx.Err() != nil {
			t.Fatalf("%s was never told of %d of %d events, such as %.60q", who, len(missing), len(events), missing[0])
		}
		time.Sleep(5 * grain)
	}
	known := make(map[string]bool, len(events))
	for _, e := range events {
		known[e] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := range r.seen {
		if !known[e] && (maybe == nil || !maybe(e)) {
			t.Errorf("%s was told of %.60q, which nobody appended", who, e)
		}
	}
	for _, data := range r.told {
		if !r.seen[string(data)] {
			t.Errorf("what %s was told has changed to %.60q", who, data)
		}
	}
}

func openJournals(t testing.TB, h JournalHarness) ([]store.Journal, []*reader, context.Context) {
	t.Helper()
	all, ctx := h.Open(t, nodes), patiently(t)
	var readers []*reader
	for _, j := range all {
		readers = append(readers, follow(t, j, ctx))
	}
	return all, readers, ctx
}

func wantAllTold(t testing.TB, ctx context.Context, readers []*reader, events []string, maybe func(string) bool) {
	t.Helper()
	// Who has not heard after this long never will.
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	for n, r := range readers {
		r.wantTold(t, ctx, fmt.Sprint("node ", n), events, maybe)
	}
}

func testJournal(t testing.TB, h JournalHarness) {
	all, readers, ctx := openJournals(t, h)
	var events []string
	for i := range 4 * nodes {
		events = append(events, fmt.Sprint("event ", i))
		must(t, "Append", all[i%nodes].Append(ctx, []byte(events[i])))
	}
	wantAllTold(t, ctx, readers, events, nil)
}

// testJournalBytes checks that events are data, whatever they look like, and nobody
// else's once they are told.
func testJournalBytes(t testing.TB, h JournalHarness) {
	all, readers, ctx := openJournals(t, h)
	over, cancel := context.WithCancel(ctx)
	cancel()
	for _, n := range []int{store.MaxEvent + 1, store.MaxValue} {
		wantErr(t, fmt.Sprintf("Append of %d bytes", n), all[0].Append(over, make([]byte, n)), store.ErrTooLarge)
	}
	every := bytes.Repeat([]byte{0}, store.MaxEvent)
	for i := range every {
		every[i] = byte(i * 7)
	}
	events := []string{"", "\x00", "a\x00b", "\r\n", "'", `{"$ne":null}`, "\xff\xfe", "*", "$1", string(every)}
	for i, e := range events {
		data := []byte(e)
		must(t, fmt.Sprintf("Append %.20q", e), all[i%nodes].Append(ctx, data))
		for j := range data {
			data[j] = 'x' // it is the caller's again
		}
	}
	wantAllTold(t, ctx, readers, events, nil)
	// What one was told is its own.
	readers[0].mu.Lock()
	for _, data := range readers[0].told {
		clear(data)
	}
	readers[0].mu.Unlock()
	wantAllTold(t, ctx, readers[1:], events, nil)
}

func testJournalLoad(t testing.TB, h JournalHarness) {
	all, readers, ctx := openJournals(t, h)
	second := follow(t, all[0], ctx) // two on one node
	events := make([][]string, contenders)
	race(all, func(j store.Journal, i int) {
		for n := range 50 {
			e := fmt.Sprintf("%d of %d", n, i)
			if err := j.Append(ctx, []byte(e)); err != nil {
				t.Errorf("Append: %v", err)
				return
			}
			events[i] = append(events[i], e)
		}
	})
	var flat []string
	for _, e := range events {
		flat = append(flat, e...)
	}
	wantAllTold(t, ctx, append(readers, second), flat, nil)
}

// testJournalReady checks that nothing is missed that is appended once ready was called,
// and that who comes later is not told for ever of what was before.
func testJournalReady(t testing.TB, h JournalHarness) {
	all, ctx := h.Open(t, nodes), patiently(t)
	must(t, "Append with nobody there", all[0].Append(ctx, []byte("before")))
	before := func(e string) bool { return e == "before" }
	for i := range 5 {
		r := follow(t, all[1], ctx)
		e := fmt.Sprint("event ", i)
		must(t, "Append", all[2].Append(ctx, []byte(e)))
		wantAllTold(t, ctx, []*reader{r}, []string{e}, func(e string) bool { return before(e) || e < fmt.Sprint("event ", i) })
		r.end(t)
		n := r.count()
		must(t, "Append", all[2].Append(ctx, []byte("before")))
		if r.count() != n {
			t.Error("something was told after Follow had returned")
		}
	}
}

func testJournalCancelled(t testing.TB, h JournalHarness) {
	all, readers, ctx := openJournals(t, h)
	over, cancel := context.WithCancel(ctx)
	cancel()
	wantUnknown(t, "Append, cancelled", all[0].Append(over, []byte("cancelled")))
	returns(t, "Follow under a context that is over", func() {
		wantErr(t, "Follow", all[0].Follow(over, func() {}, func([]byte) {}), context.Canceled)
	})
	must(t, "Append", all[0].Append(ctx, []byte("event")))
	wantAllTold(t, ctx, readers, []string{"event"}, func(e string) bool { return e == "cancelled" })
}

// testJournalOutage takes the backend away beneath nodes that append and follow. What was
// acknowledged is told, wherever the outage began.
func testJournalOutage(t testing.TB, h JournalHarness, o Outage) {
	all, readers, ctx := openJournals(t, h)
	busy, idle := context.WithCancel(ctx)
	events := make([][]string, contenders)
	var wg sync.WaitGroup
	defer wg.Wait() // before the harness closes the journals
	defer idle()
	for i := range contenders {
		wg.Go(func() {
			for n := 0; busy.Err() == nil; n++ {
				e := fmt.Sprintf("%d of %d", n, i)
				err := all[i%nodes].Append(ctx, []byte(e))
				if sentinel(err) {
					t.Errorf("Append around an outage: %v", err)
				}
				if err == nil {
					events[i] = append(events[i], e)
				}
				time.Sleep(grain)
			}
		})
	}
	time.Sleep(beat)
	end := o.Begin(t)
	returns(t, "Append in an outage", func() {
		raceOf(nodes, all, func(j store.Journal, _ int) {
			wantUnknown(t, "Append in an outage", j.Append(context.WithoutCancel(ctx), []byte("in the outage")))
		})
	})
	end()
	for _, j := range all {
		eventually(t, ctx, "events could be appended again", func() bool { return j.Append(ctx, []byte("after")) == nil })
	}
	time.Sleep(beat)
	idle()
	wg.Wait()
	var flat []string
	for _, e := range events {
		flat = append(flat, e...)
	}
	// What was not acknowledged may have been appended, too.
	wantAllTold(t, ctx, readers, append(flat, "after"), func(string) bool { return true })
}
