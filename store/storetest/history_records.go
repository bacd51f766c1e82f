package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/coatcheck/coatcheck/store"
)

// A RecordHistory records what came of calls of a Store, over any number of nodes and
// under any fault, and says whether one map could have answered like that. No two writes
// may be of the same value, and no record may expire meanwhile.
type RecordHistory struct {
	mu    sync.Mutex
	clock int64 // counts calls and returns, so that their order is exact
	ops   []porcupine.Operation
	// written is the value that each revision of a key stands for.
	written map[revision]string
	reused  []revision
}

type revision struct {
	key string
	n   uint64
}

// NewRecordHistory begins a history.
func NewRecordHistory() *RecordHistory {
	return &RecordHistory{written: make(map[revision]string)}
}

// Record returns s, with calls recorded.
func (h *RecordHistory) Record(s store.Store) store.Store { return &recordedStore{s, h} }

// Check fails t if the history can't be explained. It is called when all is done.
func (h *RecordHistory) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.reused {
		t.Errorf("revision %d of %q stands for two values", r.n, r.key)
	}
	checkHistory(t, "records", recordModel, h.ops)
}

// A recordCall is a call on one key: what was asked, and for Replace of which value.
type recordCall struct{ op, key, of, value string }

// A recordAnswer is what came of it, and for Get the value.
type recordAnswer struct {
	err   error // nil, one of package store's errors, or errOpen
	value string
}

// errOpen stands for every error that leaves the outcome open.
var errOpen = errors.New("unknown")

// call begins a call, and returns what records it once it has returned.
func (h *RecordHistory) call(c recordCall) (returned func(err error, value string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	began := h.clock
	return func(err error, value string) { h.note(c, began, err, value) }
}

func (h *RecordHistory) note(c recordCall, began int64, err error, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	a := recordAnswer{value: value}
	for _, known := range []error{store.ErrNotFound, store.ErrExists, store.ErrConflict} {
		if errors.Is(err, known) {
			a.err = known
		}
	}
	op := porcupine.Operation{Input: c, Call: began, Return: h.clock}
	if err != nil && a.err == nil {
		if c.op == "Get" || c.op == "Touch" {
			return // it changes nothing
		}
		a.err, op.Return = errOpen, math.MaxInt64
	}
	op.Output = a
	op.ClientId = len(h.ops)
	h.ops = append(h.ops, op)
}

// A recordState is what the model's map has under one key.
type recordState struct {
	live  bool
	value string
}

var recordModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{recordState{}} },
	Step: func(state, input, output any) []any {
		s, c, a := state.(recordState), input.(recordCall), output.(recordAnswer)
		next, answer := s.after(c)
		switch {
		case a == answer:
			return []any{next}
		case a.err == errOpen:
			return []any{s, next}
		default:
			return nil
		}
	},
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		return partition(all, func(op porcupine.Operation) string { return op.Input.(recordCall).key })
	},
}).ToModel()

// after returns what a call makes of s, and its answer.
func (s recordState) after(c recordCall) (recordState, recordAnswer) {
	switch {
	case c.op == "Create" && s.live:
		return s, recordAnswer{err: store.ErrExists}
	case c.op == "Create":
		return recordState{true, c.value}, recordAnswer{}
	case c.op == "Delete":
		return recordState{}, recordAnswer{}
	case !s.live:
		return s, recordAnswer{err: store.ErrNotFound}
	case c.op == "Get":
		return s, recordAnswer{value: s.value}
	case c.op == "Replace" && s.value != c.of:
		return s, recordAnswer{err: store.ErrConflict}
	case c.op == "Replace":
		return recordState{true, c.value}, recordAnswer{}
	default: // Touch
		return s, recordAnswer{}
	}
}

// partition splits a history into those of each key.
func partition(all []porcupine.Operation, key func(porcupine.Operation) string) [][]porcupine.Operation {
	byKey := map[string][]porcupine.Operation{}
	for _, op := range all {
		byKey[key(op)] = append(byKey[key(op)], op)
	}
	var parts [][]porcupine.Operation
	for _, part := range byKey {
		parts = append(parts, part)
	}
	return parts
}

// A recordedStore is a Store whose calls are recorded.
type recordedStore struct {
	store.Store
	h *RecordHistory
}

func (s *recordedStore) Get(ctx context.Context, key string) (store.Record, error) {
	returned := s.h.call(recordCall{op: "Get", key: key})
	r, err := s.Store.Get(ctx, key)
	returned(err, string(r.Value))
	if err == nil {
		s.h.learn(revision{key, r.Revision}, string(r.Value))
	}
	return r, err
}

// learn notes which value a revision stands for.
func (h *RecordHistory) learn(r revision, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.written[r]; ok && known != value {
		h.reused = append(h.reused, r)
	}
	h.written[r] = value
}

func (s *recordedStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	returned := s.h.call(recordCall{op: "Create", key: key, value: string(value)})
	err := s.Store.Create(ctx, key, value, ttl)
	returned(err, "")
	return err
}

func (s *recordedStore) Replace(ctx context.Context, key string, rev uint64, value []byte, ttl time.Duration) error {
	s.h.mu.Lock()
	of := s.h.written[revision{key, rev}]
	s.h.mu.Unlock()
	returned := s.h.call(recordCall{op: "Replace", key: key, of: of, value: string(value)})
	err := s.Store.Replace(ctx, key, rev, value, ttl)
	returned(err, "")
	return err
}

func (s *recordedStore) Touch(ctx context.Context, key string, ttl time.Duration) error {
	returned := s.h.call(recordCall{op: "Touch", key: key})
	err := s.Store.Touch(ctx, key, ttl)
	returned(err, "")
	return err
}

func (s *recordedStore) Delete(ctx context.Context, key string) error {
	returned := s.h.call(recordCall{op: "Delete", key: key})
	err := s.Store.Delete(ctx, key)
	returned(err, "")
	return err
}

// clientsOfRecords does at random what may be done with a few records, on all nodes at
// once: each client makes calls until enough, or until most of its writes have no known
// outcome. Some calls are cut short where brief is set.
func clientsOfRecords(stores []store.Store, ctx context.Context, h *RecordHistory, calls, most int, brief bool) {
	raceOf(2*nodes, stores, func(s store.Store, client int) {
		s = h.Record(s)
		unknown := 0
		revisions := map[string]uint64{}
		for i := 0; i < calls && unknown < most && ctx.Err() == nil; i++ {
			time.Sleep(time.Duration(rand.IntN(int(grain))))
			key := fmt.Sprint("history ", rand.IntN(2))
			value := fmt.Appendf(nil, "%d by %d", i, client)
			call, cancel := ctx, context.CancelFunc(func() {})
			if brief && rand.IntN(8) == 0 {
				call, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(300))*time.Microsecond)
			}
			var err error
			switch rand.IntN(10) {
			case 0:
				err = s.Create(call, key, value, long)
			case 1:
				err = s.Delete(call, key)
			case 2:
				_ = s.Touch(call, key, long)
			case 3, 4, 5:
				err = s.Replace(call, key, revisions[key], value, long)
			default:
				if r, err := s.Get(call, key); err == nil {
					revisions[key] = r.Revision
				}
			}
			cancel()
			if err != nil && !sentinel(err) {
				unknown++
			}
		}
	})
}

// testRecordHistories covers A-Z10: what came of the calls of many clients can be told as
// one history of each record, calls that were cut short included.
func testRecordHistories(t testing.TB, h Harness) {
	stores, ctx := openNodes(t, h, nodes)
	for _, brief := range []bool{false, true} {
		history := NewRecordHistory()
		clientsOfRecords(stores, ctx, history, 60, 2, brief)
		history.Check(t)
		for i := range 2 {
			must(t, "Delete", stores[0].Delete(ctx, fmt.Sprint("history ", i)))
		}
	}
}
