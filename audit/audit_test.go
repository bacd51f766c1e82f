package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a Log that runs, with what it logs and what one subscriber hears.
type node struct {
	*Log
	out *bytes.Buffer

	mu    sync.Mutex
	heard []coatcheck.Event
}

// start is called within a synctest bubble: after synctest.Wait everything is told.
func start(t *testing.T, j store.Journal, name string) *node {
	t.Helper()
	n := &node{out: new(bytes.Buffer)}
	n.Log = New(Options{
		Journal: j,
		Node:    name,
		Logger:  slog.New(slog.NewJSONHandler(n.out, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	n.Subscribe(func(e coatcheck.Event) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.heard = append(n.heard, e)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return n
}

// lines returns the log's lines at a level.
func (n *node) lines(t *testing.T, level slog.Level) []map[string]any {
	t.Helper()
	var list []map[string]any
	for line := range strings.Lines(n.out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if m["level"] == level.String() {
			list = append(list, m)
		}
	}
	return list
}

func event(id string) coatcheck.Event {
	return coatcheck.Event{
		ID: id, Type: coatcheck.EventEnded, Tenant: "default", Issuer: "https://idp.example.com",
		Subject: "alice", Ref: "0123", Reason: coatcheck.ReasonEvicted,
	}
}

func record(t *testing.T, n *node, e coatcheck.Event) {
	t.Helper()
	if err := n.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func TestEveryNodeHearsEveryEventOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.New()
		nodes := []*node{start(t, j, "a"), start(t, j, "b"), start(t, j, "c")}
		for i, n := range nodes {
			record(t, n, event(fmt.Sprint("own", i)))
			record(t, n, event(fmt.Sprint("own", i))) // tried again
			record(t, n, event("shared"))             // several nodes saw the same
		}
		synctest.Wait()
		at := time.Now()
		own := func(i int, node string) coatcheck.Event {
			e := event(fmt.Sprint("own", i))
			e.Node, e.Time = node, at
			return e
		}
		shared := event("shared")
		shared.Node, shared.Time = "a", at
		want := []coatcheck.Event{own(0, "a"), shared, own(1, "b"), own(2, "c")}
		for _, n := range nodes {
			if diff := cmp.Diff(want, n.heard); diff != "" {
				t.Errorf("node %s heard (-want +got):\n%s", n.Node, diff)
			}
			logged := map[any]string{}
			for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
				for _, line := range n.lines(t, level) {
					if _, twice := logged[line["id"]]; twice {
						t.Errorf("node %s logged %s twice", n.Node, line["id"])
					}
					logged[line["id"]] = level.String()
				}
			}
			delete(logged, "shared") // by whom it was recorded or heard first
			for i, other := range nodes {
				id, want := fmt.Sprint("own", i), "DEBUG"
				if other == n {
					want = "INFO"
				}
				if logged[id] != want {
					t.Errorf("node %s logged %s as %q, want %s", n.Node, id, logged[id], want)
				}
			}
		}
	})
}

func TestTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.New()
		a, b := start(t, j, "a"), start(t, j, "b")
		e := event("e1")
		e.Subject = "alice\nlevel=ERROR"
		e.Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		e.Node = "z" // which asked a to record it
		record(t, a, e)
		synctest.Wait()
		want := map[string]any{
			"msg": "session event", "event": "session.ended", "id": "e1", "node": "z", "tenant": "default",
			"issuer": "https://idp.example.com", "user": "alice\nlevel=ERROR", "session": "0123",
			"reason": "evicted", "at": "2026-01-02T03:04:05Z",
		}
		for n, level := range map[*node]slog.Level{a: slog.LevelInfo, b: slog.LevelDebug} {
			lines := n.lines(t, level)
			if len(lines) != 1 || strings.Count(n.out.String(), "\n") != 1 {
				t.Fatalf("node %s logged\n%s", n.Node, n.out)
			}
			delete(lines[0], "time")
			delete(lines[0], "level")
			if diff := cmp.Diff(want, lines[0]); diff != "" {
				t.Errorf("node %s (-want +got):\n%s", n.Node, diff)
			}
		}
	})
}

// An operator's command has no log of its own: every node's says what it has ended.
func TestWhatAnOperatorEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.New()
		a, b := start(t, j, "a"), start(t, j, "b")
		command := New(Options{Journal: j, Node: "operator@a", Logger: slog.New(slog.DiscardHandler)})
		e := event("e1")
		e.Reason = coatcheck.ReasonKeyRetired
		if err := command.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, n := range []*node{a, b} {
			if lines := n.lines(t, slog.LevelInfo); len(lines) != 1 || lines[0]["reason"] != "key_retired" || lines[0]["node"] != "operator@a" {
				t.Errorf("node %s logged\n%s", n.Node, n.out)
			}
		}
	})
}

// deaf is a journal that takes nothing, while it is down.
type deaf struct {
	store.Journal
	err error
}

func (d *deaf) Append(ctx context.Context, data []byte) error {
	if d.err != nil {
		return d.err
	}
	return d.Journal.Append(ctx, data)
}

func TestWhatCouldNotBeAppendedIsRecordedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		j := &deaf{memory.New(), down}
		n := start(t, j, "a")
		if err := n.Record(t.Context(), event("e")); !errors.Is(err, down) {
			t.Errorf("Record says %v", err)
		}
		j.err = nil
		record(t, n, event("e"))
		synctest.Wait()
		if len(n.heard) != 1 || len(n.lines(t, slog.LevelInfo)) != 1 {
			t.Errorf("heard %d, logged\n%s", len(n.heard), n.out)
		}
	})
}

func TestRecordRefusesTheNameless(t *testing.T) {
	n := New(Options{Journal: memory.New(), Logger: slog.New(slog.DiscardHandler), Node: "a"})
	for _, e := range []coatcheck.Event{{Type: coatcheck.EventEnded}, {ID: "x"}} {
		if err := n.Record(t.Context(), e); !errors.Is(err, errNameless) {
			t.Errorf("%+v: %v", e, err)
		}
	}
	long := event("long")
	long.Subject = strings.Repeat("x", store.MaxEvent)
	if err := n.Record(t.Context(), long); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("a long one: %v", err)
	}
}

// What newer nodes and strangers write into the journal stops nobody, is told to nobody,
// and fills no log.
func TestForeignEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.New()
		n := start(t, j, "a")
		appendText := func(s string) {
			t.Helper()
			if err := j.Append(t.Context(), []byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		const secret = "hunter2"
		garbage := []string{
			"", "null", "[]", `"` + secret + `"`, secret, `{"v":1}`, `{"v":1,"event":{"id":"x"}}`,
			`{"v":1,"event":{"id":"x","type":"session.ended","time":"` + secret + `"}}`,
			`{"v":2,"event":{"id":"` + secret + `","type":"session.ended"}}`,
			`{"v":1,"event":{"id":7,"type":"session.ended"}}`,
		}
		for range 100 {
			for _, s := range garbage {
				appendText(s)
			}
		}
		synctest.Wait()
		if got := n.lines(t, slog.LevelWarn); len(got) != 1 || len(n.heard) != 0 {
			t.Errorf("heard %v, logged\n%s", n.heard, n.out)
		}
		time.Sleep(complainEvery)
		appendText(secret)
		synctest.Wait()
		lines := n.lines(t, slog.LevelWarn)
		if len(lines) != 2 || lines[1]["entries"] != float64(100*len(garbage)) {
			t.Errorf("after a minute, logged\n%s", n.out)
		}
		if strings.Contains(n.out.String(), secret) {
			t.Errorf("what a stranger wrote is in the log:\n%s", n.out)
		}

		appendText(`{"v":1,"more":1,"event":{"id":"x","type":"session.invented","node":"b","new":{"a":[1]}}}`)
		synctest.Wait()
		want := []coatcheck.Event{{ID: "x", Type: "session.invented", Node: "b"}}
		if diff := cmp.Diff(want, n.heard); diff != "" {
			t.Errorf("of an event with more fields (-want +got):\n%s", diff)
		}
	})
}

func TestSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.New()
		n := start(t, j, "a")
		var heard []string
		told := func(who string) func(coatcheck.Event) {
			return func(e coatcheck.Event) { heard = append(heard, who+" "+e.ID) }
		}
		n.Subscribe(func(coatcheck.Event) { panic(errors.New("a secret")) })
		// One may leave from within, and take down something itself.
		var cancelOnce func()
		cancelOnce = n.Subscribe(func(e coatcheck.Event) {
			cancelOnce()
			heard = append(heard, "once "+e.ID)
			record(t, n, event(e.ID+"'"))
		})
		cancelFirst := n.Subscribe(told("first"))
		n.Subscribe(told("second"))
		record(t, n, event("1"))
		synctest.Wait()
		cancelFirst()
		cancelFirst()
		record(t, n, event("2"))
		synctest.Wait()
		want := []string{"once 1", "first 1", "second 1", "first 1'", "second 1'", "second 2"}
		if diff := cmp.Diff(want, heard); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got := n.lines(t, slog.LevelError); len(got) != 3 || got[0]["type"] != "*errors.errorString" ||
			!strings.Contains(fmt.Sprint(got[0]["stack"]), "TestSubscribers") {
			t.Errorf("of a panic for each event, logged\n%s", n.out)
		}
		if strings.Contains(n.out.String(), "a secret") { // invariant 13
			t.Errorf("what the panic said is in the log:\n%s", n.out)
		}
	})
}

// A journal may tell from several goroutines; subscribers need no lock of their own.
func TestToldOneAfterTheOther(t *testing.T) {
	n := New(Options{Journal: memory.New(), Logger: slog.New(slog.DiscardHandler), Node: "a"})
	heard := 0
	n.Subscribe(func(coatcheck.Event) { heard++ })
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			data, err := encode(event(fmt.Sprint(i % 10)))
			if err != nil {
				t.Error(err)
			}
			n.hear(t.Context(), data)
		})
	}
	wg.Wait()
	if heard != 10 {
		t.Errorf("heard %d events, want 10", heard)
	}
}
