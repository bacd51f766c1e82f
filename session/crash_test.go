package session

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A mortal is what one node has of a backend, until the node dies at one of its calls. The
// goroutine that makes the call ends there, as do those that make later ones: nothing that
// stands behind the call in the code happens.
type mortal struct {
	store.Backend
	at    int  // the number of the call, from 1 on; 0: it never dies
	after bool // the call is still done, and its answer gets lost
	// before, unless it is nil, is called before each call with its number.
	before func(call int)

	mu    sync.Mutex
	dead  bool
	trace []string // the calls
}

// enter counts a call, and tells whether the node dies at it.
func (m *mortal) enter(op string) (last bool) {
	m.mu.Lock()
	if m.dead {
		m.mu.Unlock()
		runtime.Goexit()
	}
	m.trace = append(m.trace, op)
	number := len(m.trace)
	last = number == m.at
	m.dead = last
	m.mu.Unlock()
	if m.before != nil {
		m.before(number)
	}
	return last
}

// call makes one call, on the goroutine that the node's request is on or one that it waits
// for.
func call[T any](m *mortal, op string, do func() (T, error)) (T, error) {
	if !m.enter(op) {
		return do()
	}
	if m.after {
		_, _ = do()
	}
	runtime.Goexit()
	panic("unreachable")
}

func do(m *mortal, op string, do func() error) error {
	_, err := call(m, op, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

func (m *mortal) Get(ctx context.Context, key string) (store.Record, error) {
	return call(m, "Get", func() (store.Record, error) { return m.Backend.Get(ctx, key) })
}

func (m *mortal) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return do(m, "Create", func() error { return m.Backend.Create(ctx, key, value, ttl) })
}

func (m *mortal) Touch(ctx context.Context, key string, ttl time.Duration) error {
	return do(m, "Touch", func() error { return m.Backend.Touch(ctx, key, ttl) })
}

func (m *mortal) Delete(ctx context.Context, key string) error {
	return do(m, "Delete", func() error { return m.Backend.Delete(ctx, key) })
}

func (m *mortal) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	return call(m, "Admit", func() ([]store.Entry, error) { return m.Backend.Admit(ctx, e, ttl, l, replaces) })
}

func (m *mortal) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	return do(m, "Renew", func() error { return m.Backend.Renew(ctx, e, ttl) })
}

func (m *mortal) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	return call(m, "End", func() (store.Entry, error) { return m.Backend.End(ctx, e, reason) })
}

func (m *mortal) Remove(ctx context.Context, e store.Entry) error {
	return do(m, "Remove", func() error { return m.Backend.Remove(ctx, e) })
}

func (m *mortal) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	_ = do(m, "Find", func() error { return nil })
	return m.Backend.Find(ctx, q)
}

func (m *mortal) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	return call(m, "Reap", func() ([]store.Entry, error) { return m.Backend.Reap(ctx, limit) })
}

func (m *mortal) Append(ctx context.Context, data []byte) error {
	return do(m, "Append", func() error { return m.Backend.Append(ctx, data) })
}

// appended records events in a journal, as package audit does.
type appended struct{ store.Journal }

func (a appended) Record(ctx context.Context, e coatcheck.Event) error {
	return a.Append(ctx, fmt.Append(nil, e.ID))
}

// brief is how long everything in a ward lives: nodes have something to do each second.
const brief = 2 * time.Minute

// A ward is a cluster of which one node is going to die. alice has as many sessions as she
// may have; bob's is nobody's business.
type ward struct {
	*rig            // a node that lives
	dying  *Manager // one that doesn't
	mortal *mortal
	held   []string // cookies of alice's
	bob    string
	stop   func() // ends the upkeep of the node that lives, if it runs
}

func newWard(t *testing.T, limits store.Limits) *ward {
	r := newRig(t, limited(limits), func(o *Options) { o.Idle, o.Tombstones = brief, brief })
	r.Manager.Events = appended{r.memory}
	w := &ward{rig: r, mortal: &mortal{Backend: r.memory}}
	o := r.Options
	o.Store, o.Registry, o.Events = w.mortal, w.mortal, appended{w.mortal}
	w.dying = New(o)
	w.bob = r.signIn("bob")
	for range limits.PerUser {
		time.Sleep(time.Second)
		w.held = append(w.held, r.signIn("alice"))
	}
	w.start()
	return w
}

// start starts the upkeep of the node that lives.
func (w *ward) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		w.Run(ctx)
	}()
	w.stop = func() {
		cancel()
		<-over
	}
}

// begin signs alice in at the dying node.
func (w *ward) begin(carried ...string) {
	h := http.Header{}
	if _, err := w.dying.Begin(w.t.Context(), h, carrying(carried...), user("alice"), w.dying.Now()); err == nil {
		w.held = append(w.held, w.cookieIn(h))
	}
}

// usable returns those of alice's cookies that a node which lives serves.
func (w *ward) usable() (values []string) {
	w.t.Helper()
	for _, v := range w.held {
		if _, err := w.load(v); err == nil {
			values = append(values, v)
		}
	}
	return values
}

func (w *ward) wantLimit(when string) {
	w.t.Helper()
	if n := len(w.usable()); n > w.Limits.PerUser {
		w.t.Errorf("%s: %d sessions can be used, the limit is %d", when, n, w.Limits.PerUser)
	}
}

// Invariants 4, 5 and 6, A-Z7: a node dies at each of the calls that beginning, ending and
// using a session takes, before the store has done what it asks for or right after. On the
// other nodes the limit holds, and everything finds its end.
func TestNodeDies(t *testing.T) {
	const limit = 2
	for _, tc := range []struct {
		name    string
		onLimit store.OnLimit
		does    func(w *ward)
		calls   string // all that it takes
	}{
		{
			"sign-in, denied", store.Deny,
			func(w *ward) { w.begin() },
			"Create Admit Find Get Get Delete Append",
		},
		{
			"sign-in, another is evicted", store.EvictOldest,
			func(w *ward) { w.begin() },
			"Create Admit Create Delete Append Remove Get Append",
		},
		{
			"sign-in again", store.Deny,
			func(w *ward) { w.begin(w.held[0]) },
			"Get Create Admit Create Delete Append Remove Get Append",
		},
		{
			"sign-in where somebody else was", store.EvictIdle,
			func(w *ward) { w.begin(w.bob) },
			"Get Create Admit Create Delete Append Remove End Create Delete Append Remove Get Append",
		},
		{
			"sign-in where the store has lost a session", store.Deny,
			func(w *ward) {
				handle, _, _ := strings.Cut(w.held[0], ".")
				if err := w.memory.Delete(w.t.Context(), handle); err != nil {
					w.t.Error(err)
				}
				w.begin()
			},
			"", // in no certain order
		},
		{
			"sign-out", store.Deny,
			func(w *ward) {
				if l, err := w.dying.Load(w.t.Context(), carrying(w.held[0])); err == nil {
					_ = w.dying.End(w.t.Context(), http.Header{}, nil, l, coatcheck.ReasonSignedOut)
				}
			},
			"Get End Create Delete Append Remove",
		},
		{
			"revocation", store.EvictOldest,
			func(w *ward) {
				for e, err := range w.dying.Find(w.t.Context(), Query{Issuer: "https://idp.example", Subject: "alice"}) {
					if err == nil {
						_ = w.dying.Revoke(w.t.Context(), e, coatcheck.ReasonRevoked)
					}
				}
			},
			"Find End Create Delete Append Remove End Create Delete Append Remove",
		},
		{
			"back-channel logout", store.EvictOldest,
			func(w *ward) {
				defer time.Sleep(2 * clockError) // who signs in after that does so after it
				_, _ = w.dying.BackChannelLogout(w.t.Context(), Logout{Issuer: "https://idp.example", Subject: "alice", ID: "1"})
			},
			"", // in no certain order
		},
		{
			"use", store.EvictOldest,
			func(w *ward) {
				time.Sleep(brief / 4)
				_, _ = w.dying.Load(w.t.Context(), carrying(w.held[0]))
			},
			"Get Renew Touch",
		},
		{
			"reaping", store.Deny,
			func(w *ward) {
				w.stop() // or it would be first
				time.Sleep(brief + listedLonger)
				w.dying.reap(w.t.Context())
			},
			"",
		},
	} {
		limits := store.Limits{PerUser: limit, OnLimit: tc.onLimit}
		t.Run(tc.name, func(t *testing.T) {
			var trace []string
			synctest.Test(t, func(t *testing.T) {
				w := newWard(t, limits)
				defer func() { w.stop() }()
				tc.does(w)
				trace = w.mortal.trace
			})
			for at := 1; at <= len(trace); at++ {
				for _, after := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						w := newWard(t, limits)
						defer func() { w.stop() }()
						w.mortal.at, w.mortal.after = at, after
						died := make(chan struct{})
						go func() {
							defer close(died)
							tc.does(w)
						}()
						<-died
						if !w.mortal.dead {
							t.Fatalf("the node has survived %v", w.mortal.trace)
						}
						w.outlived()
						if t.Failed() {
							t.Fatalf("the node died at the last of %v, done: %t", w.mortal.trace, after)
						}
					})
				}
			}
			if tc.calls != "" && strings.Join(trace, " ") != tc.calls {
				t.Errorf("it takes the calls %v", trace)
			}
		})
	}
}

// outlived checks what a dead node has left.
func (w *ward) outlived() {
	t := w.t
	w.stop()
	w.start()
	w.wantLimit("after its death")
	// The others go on at once.
	for range 3 {
		h := http.Header{}
		_, err := w.Begin(t.Context(), h, http.Header{}, user("alice"), w.Now())
		switch {
		case err == nil:
			w.held = append(w.held, w.cookieIn(h))
		case coatcheck.CodeOf(err) != coatcheck.CodeLimit || !w.Limits.OnLimit.Denies():
			t.Errorf("a sign-in at another node: %v", err)
		}
		w.wantLimit("after a sign-in")
	}
	time.Sleep(store.ClaimLife + 2*upkeepEvery)
	w.wantLimit("later")

	// What is left of the dead node's work alone is what nobody can open, until its time is
	// over: a record whose session was not listed yet.
	a, err := w.Audit(t.Context(), w.memory, AuditPause)
	if err != nil {
		t.Fatal(err)
	}
	usable := map[coatcheck.Ref]bool{}
	for _, v := range append(w.usable(), w.bob) {
		handle, _, _ := strings.Cut(v, ".")
		usable[coatcheck.MakeRef(handle)] = true
	}
	for _, f := range a.Findings {
		if f.Entry != nil || usable[f.Ref] {
			t.Errorf("the audit finds %+v", f)
		}
	}
	if len(a.Findings) > 1 {
		t.Errorf("%d findings", len(a.Findings))
	}

	time.Sleep(max(2*brief+store.ClaimLife, replayMargin))
	for key := range w.memory.Keys(t.Context(), "") {
		t.Errorf("in the end there is %s", key)
	}
	for e := range w.memory.Find(t.Context(), store.Query{Tenant: w.tenantName()}) {
		t.Errorf("in the end %s is listed", e.ID)
	}
	if left, err := w.memory.Reap(t.Context(), 100); err != nil || len(left) != 0 {
		t.Errorf("in the end %d entries are left to reap, %v", len(left), err)
	}
}
