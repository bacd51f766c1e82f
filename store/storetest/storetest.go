// Package storetest holds the conformance suites of package store's interfaces. A
// driver's own test opens real servers, hands them to RunBackend, and has little else to
// say:
//
//	func TestConformance(t *testing.T) {
//		storetest.RunBackend(t, storetest.BackendHarness{Open: open})
//	}
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A Harness gives the suite its stores.
type Harness struct {
	// Open returns one Store per node, all on the same data, which is empty and
	// shared with no earlier call. Where one process owns the data, the nodes are
	// one Store (see Same). The harness closes them when the test ends.
	Open func(t testing.TB, nodes int) []store.Store
	// Outages are the ways in which the backend can go away. None: it can't.
	Outages []Outage
}

// An Outage takes the backend of every open Store away, and returns what brings it
// back with the records it had acknowledged.
type Outage struct {
	Name  string
	Begin func(t testing.TB) (end func())
}

// Same returns s as each of several nodes.
func Same(s store.Store, nodes int) []store.Store {
	all := make([]store.Store, nodes)
	for i := range all {
		all[i] = s
	}
	return all
}

// A section is one part of a contract. It reports through testing.TB alone, so that the
// suite's own test can watch it fail.
type section[H any] struct {
	name string
	run  func(testing.TB, H)
}

// runSections runs them on h, each as a test of its own.
func runSections[H any](t *testing.T, h H, sections []section[H]) {
	for _, s := range sections {
		t.Run(s.name, func(t *testing.T) { s.run(t, h) })
	}
}

// runOutages runs test on h for each outage, as a test of its own.
func runOutages[H any](t *testing.T, name string, h H, outages []Outage, test func(testing.TB, H, Outage)) {
	for _, o := range outages {
		t.Run(name+"/"+o.Name, func(t *testing.T) { test(t, h, o) })
	}
}

func sections() []section[Harness] {
	return []section[Harness]{
		{"Contract", testContract},
		{"Revisions", testRevisions},
		{"Expiry", testExpiry},
		{"MinTTL", testMinTTL},
		{"TouchExtends", testTouchExtends},
		{"Sizes", testSizes},
		{"LiteralBytes", testLiteralBytes},
		{"Concurrency", testConcurrency},
		{"NoResurrection", testNoResurrection},
		{"RecordHistories", testRecordHistories},
		{"Aliasing", testAliasing},
		{"Cancelled", testCancelled},
		{"CancelledMidway", testCancelledMidway},
	}
}

// Run runs the whole suite.
func Run(t *testing.T, h Harness) {
	runSections(t, h, sections())
	runOutages(t, "Outage", h, h.Outages, testOutage)
}

// patience bounds every wait of the suite. It says that something never happened,
// not that it was slow.
const patience = time.Minute

// long is a lifetime that no test outlives.
const long = time.Hour

func open(t testing.TB, h Harness) (store.Store, context.Context) {
	t.Helper()
	stores, ctx := openNodes(t, h, 1)
	return stores[0], ctx
}

func openNodes(t testing.TB, h Harness, nodes int) ([]store.Store, context.Context) {
	t.Helper()
	return h.Open(t, nodes), patiently(t)
}

// patiently returns a context that ends when the test has lost its patience.
func patiently(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until done says so.
func eventually(t testing.TB, ctx context.Context, what string, done func() bool) {
	t.Helper()
	for !done() {
		if ctx.Err() != nil {
			t.Fatalf("it never came that %s", what)
		}
		time.Sleep(grain)
	}
}

// returns waits until do has returned by itself.
func returns(t testing.TB, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s did not return", what)
	}
}

// A step names one call, so that a failure reads as what was done and what came.
func wantErr(t testing.TB, step string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) { // errors.Is(nil, nil) holds
		t.Errorf("%s: error = %v, want %v", step, got, want)
	}
}

// must is wantErr(nil) for what the rest of a test stands on.
func must(t testing.TB, step string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
}

// wantUnknown accepts any error but those that state an outcome.
func wantUnknown(t testing.TB, step string, err error) {
	t.Helper()
	if err == nil || sentinel(err) {
		t.Errorf("%s: error = %v, want one that leaves the outcome open", step, err)
	}
}

// sentinel says whether err states an outcome.
func sentinel(err error) bool {
	for _, s := range []error{
		store.ErrNotFound, store.ErrExists, store.ErrConflict, store.ErrTooLarge,
		store.ErrEnding, store.ErrBadEntry, store.ErrHeld, store.ErrLost, store.ErrNoFeed,
	} {
		if errors.Is(err, s) {
			return true
		}
	}
	var limit *store.LimitError
	return errors.As(err, &limit)
}

// wantRecord reads key and checks value and lifetime.
func wantRecord(t testing.TB, s store.Store, ctx context.Context, key string, value []byte, ttl time.Duration) store.Record {
	t.Helper()
	r, err := s.Get(ctx, key)
	if err != nil {
		t.Fatalf("Get %q: %v", key, err)
	}
	if !bytes.Equal(r.Value, value) {
		t.Errorf("Get %q: value = %s, want %s", key, brief(r.Value), brief(value))
	}
	if r.TTL <= 0 || r.TTL > ttl {
		t.Errorf("Get %q: TTL = %s, want above zero and at most %s", key, r.TTL, ttl)
	}
	return r
}

func wantAbsent(t testing.TB, s store.Store, ctx context.Context, key string) {
	t.Helper()
	_, err := s.Get(ctx, key)
	wantErr(t, fmt.Sprintf("Get %q", key), err, store.ErrNotFound)
}

func brief(b []byte) string {
	if len(b) > 40 {
		return fmt.Sprintf("%q… (%d bytes)", b[:40], len(b))
	}
	return fmt.Sprintf("%q", b)
}
