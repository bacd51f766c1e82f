// Package storetest holds the conformance suite of store.Store. A driver's own test
// opens real servers, hands them to Run, and has little else to say:
//
//	func TestConformance(t *testing.T) {
//		storetest.Run(t, storetest.Harness{Open: open})
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

// A section is one part of the contract. It reports through testing.TB alone, so
// that the suite's own test can watch it fail.
type section struct {
	name string
	run  func(testing.TB, Harness)
}

func sections() []section {
	return []section{
		{"Contract", testContract},
		{"Revisions", testRevisions},
		{"Expiry", testExpiry},
		{"MinTTL", testMinTTL},
		{"TouchExtends", testTouchExtends},
		{"Sizes", testSizes},
		{"LiteralBytes", testLiteralBytes},
		{"Concurrency", testConcurrency},
		{"NoResurrection", testNoResurrection},
		{"Aliasing", testAliasing},
		{"Cancelled", testCancelled},
		{"CancelledMidway", testCancelledMidway},
	}
}

// Run runs the whole suite.
func Run(t *testing.T, h Harness) {
	for _, s := range sections() {
		t.Run(s.name, func(t *testing.T) { s.run(t, h) })
	}
	for _, o := range h.Outages {
		t.Run("Outage/"+o.Name, func(t *testing.T) { testOutage(t, h, o) })
	}
}

// patience bounds every wait of the suite. It says that something never happened,
// not that it was slow.
const patience = 30 * time.Second

// long is a lifetime that no test outlives.
const long = time.Hour

func open(t testing.TB, h Harness) (store.Store, context.Context) {
	t.Helper()
	stores, ctx := openNodes(t, h, 1)
	return stores[0], ctx
}

func openNodes(t testing.TB, h Harness, nodes int) ([]store.Store, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return h.Open(t, nodes), ctx
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

func sentinel(err error) bool {
	for _, s := range []error{store.ErrNotFound, store.ErrExists, store.ErrConflict, store.ErrTooLarge} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
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
