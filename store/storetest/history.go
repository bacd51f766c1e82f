package storetest

import (
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/coatcheck/coatcheck/store"
)

// checkTime bounds how long a history is looked at. Histories are to be short enough for
// a verdict within it.
const checkTime = 30 * time.Second

// An Outcome is what the caller of an operation learned.
type Outcome int

const (
	// Unknown: it may have happened, may happen later, or never.
	Unknown Outcome = iota
	// Done: it has happened. Of Use: the session served.
	Done
	// Refused: it has not happened. Of SignIn: a limit is reached. Of Use: the session
	// has ended.
	Refused
)

// A SessionOp is what can be done with a session.
type SessionOp int

// The operations of a SessionHistory.
const (
	SignIn SessionOp = iota
	Use
	SignOut
)

// A SessionHistory records what clients did with the sessions of one user, over any
// number of nodes and under any fault, and says whether one registry with the given
// limits could have answered like that. Its methods are safe for concurrent use.
//
// With PerUser zero, or OnLimit Deny, no session ends but by SignOut. Otherwise the ones
// that had to give way are found out by Use.
type SessionHistory struct {
	limits store.Limits

	mu    sync.Mutex
	clock int64 // counts begins and ends, so that their order is exact
	ops   []sessionCall
}

type sessionCall struct {
	op         SessionOp
	id         string
	outcome    Outcome
	begin, end int64
}

// NewSessionHistory begins a history. Of limits, PerUser and OnLimit count.
func NewSessionHistory(limits store.Limits) *SessionHistory {
	return &SessionHistory{limits: limits}
}

// Begin notes that a client is about to do op with the session called id, and returns
// what notes its outcome. An id is signed in once. What is never noted is unknown.
func (h *SessionHistory) Begin(op SessionOp, id string) (done func(Outcome)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.ops)
	h.clock++
	h.ops = append(h.ops, sessionCall{op: op, id: id, begin: h.clock})
	return func(o Outcome) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.clock++
		h.ops[n].outcome, h.ops[n].end = o, h.clock
	}
}

// Check fails t if the history can't be explained. It is called when all is done.
func (h *SessionHistory) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	checkHistory(t, "sessions", h.model(), h.operations())
}

func (h *SessionHistory) evicts() bool {
	return h.limits.PerUser > 0 && !h.limits.OnLimit.Denies()
}

// operations returns the history without what says nothing.
func (h *SessionHistory) operations() []porcupine.Operation {
	served := map[string]bool{}
	for _, c := range h.ops {
		if c.op == Use && c.outcome == Done {
			served[c.id] = true
		}
	}
	var ops []porcupine.Operation
	for i, c := range h.ops {
		if c.outcome == Unknown && (c.op == Use || c.op == SignIn && h.evicts() && !served[c.id]) {
			continue // a session that nobody could use only takes room
		}
		op := porcupine.Operation{ClientId: i, Input: c, Call: c.begin, Output: c.outcome, Return: c.end}
		if c.outcome == Unknown {
			op.Return = math.MaxInt64
		}
		ops = append(ops, op)
	}
	return ops
}

// usableSet is a state of the model: the IDs of the sessions that could be used, sorted,
// with a space after each; pending ones, whose sign-in has no known outcome, end in "?".
type usableSet string

func (s usableSet) ids() []string { return strings.Fields(string(s)) }

func (s usableSet) with(id string) usableSet {
	all := append(s.ids(), id)
	slices.Sort(all)
	return makeSet(all)
}

func (s usableSet) without(id string) usableSet {
	return makeSet(slices.DeleteFunc(s.ids(), func(i string) bool { return i == id || i == id+"?" }))
}

func (s usableSet) has(id string) bool {
	return slices.Contains(s.ids(), id) || slices.Contains(s.ids(), id+"?")
}

func makeSet(all []string) usableSet {
	var b strings.Builder
	for _, id := range all {
		b.WriteString(id + " ")
	}
	return usableSet(b.String())
}

// model is the set of a user's usable sessions, capped at the limit.
func (h *SessionHistory) model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{usableSet("")} },
		Step: func(state, input, output any) []any {
			var next []any
			for _, s := range h.step(state.(usableSet), input.(sessionCall), output.(Outcome)) {
				next = append(next, s)
			}
			return next
		},
	}
	model := m.ToModel()
	if h.limits.PerUser == 0 {
		// Nothing ties sessions to each other.
		model.Partition = func(all []porcupine.Operation) [][]porcupine.Operation {
			return partition(all, func(op porcupine.Operation) string { return op.Input.(sessionCall).id })
		}
	}
	return model
}

// step returns the sets that may follow s.
func (h *SessionHistory) step(s usableSet, c sessionCall, o Outcome) []usableSet {
	stays := []usableSet{s}
	switch {
	case c.op == SignIn && o == Refused:
		if h.limits.PerUser > 0 && h.limits.OnLimit.Denies() && len(s.ids()) >= h.limits.PerUser {
			return stays
		}
		return nil
	case c.op == SignIn && o == Done:
		return h.join(s, c.id)
	case c.op == SignIn:
		return append(h.join(s, c.id+"?"), s)
	case c.op == Use && o == Done && s.has(c.id):
		return stays
	case c.op == Use && o == Refused && (h.evicts() || !s.has(c.id)):
		return []usableSet{s.without(c.id)} // and it never comes back
	case c.op == SignOut && o == Done:
		return []usableSet{s.without(c.id)}
	case c.op == SignOut && o == Unknown:
		return append(stays, s.without(c.id))
	default:
		return nil
	}
}

// join returns the sets that follow s when id is let in: as many as have to, give way.
// Whoever gave way without need is found out by Use.
func (h *SessionHistory) join(s usableSet, id string) []usableSet {
	if h.limits.PerUser == 0 || len(s.ids()) < h.limits.PerUser {
		return []usableSet{s.with(id)}
	}
	var next []usableSet
	for _, other := range s.ids() {
		// A session whose sign-in failed may be taken back at any time.
		if h.evicts() || strings.HasSuffix(other, "?") {
			next = append(next, h.join(s.without(other), id)...)
		}
	}
	return next
}

// checkHistory fails t if ops can't be put into an order that the model explains.
func checkHistory(t testing.TB, what string, m porcupine.Model, ops []porcupine.Operation) {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(m, ops, checkTime) {
	case porcupine.Ok:
	case porcupine.Illegal:
		t.Errorf("no order explains what came of %d operations on %s", len(ops), what)
	default:
		t.Errorf("%d operations on %s are too many to be checked in %s", len(ops), what, checkTime)
	}
}
