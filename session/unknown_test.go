package session

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// Invariant 1: what can't be told now is unknown; nothing is written because of it.
func TestLoadUnknown(t *testing.T) {
	strange := strangeRecords(t)
	reseal := func(name string) func(*rig, string) {
		if _, ok := strange[name]; !ok {
			t.Fatalf("no record is called %q", name)
		}
		return func(r *rig, value string) { r.put(value, strange[name].data) }
	}
	foreign := func(r *rig, value string) { // sealed on a node with another ring
		other := r.beside(func(o *Options) { o.Ring = seal.NewRing() })
		s := user("alice")
		s.Tenant, s.Deadline = r.Tenant, time.Now().Add(time.Hour)
		plain, err := encode(s)
		if err != nil {
			r.t.Fatal(err)
		}
		other.put(value, plain)
	}
	later := func(r *rig, value string) { // sealed by a later coatcheck
		rec, _ := r.record(value)
		rec.Value[0] = 0xff
		r.putSealed(r.probe.keys[0], rec.Value)
	}
	hang := func(ctx context.Context, _, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	// What the store tells at once may be served even to a client who has just left.
	slow := func(context.Context, string, string) error {
		time.Sleep(time.Second)
		return nil
	}
	cancelled := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, cancel
	}
	timed := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, time.Second)
	}
	for _, test := range []struct {
		name   string
		record func(r *rig, value string) // changes the stored record
		hook   func(ctx context.Context, op, key string) error
		ctx    func(context.Context) (context.Context, context.CancelFunc)
	}{
		{name: "the store fails", hook: failing("get")},
		{name: "the store fails with a wrapped error", hook: func(context.Context, string, string) error { return fmt.Errorf("get: %w", errDown) }},
		{name: "the store says conflict", hook: func(context.Context, string, string) error { return store.ErrConflict }},
		{name: "the store hangs", hook: hang, ctx: timed},
		{name: "the client is gone", hook: slow, ctx: cancelled},
		{name: "a key that this node lacks", record: foreign},
		{name: "a later format", record: later},
		{name: "a later version of the record", record: reseal("the next version, with a new field")},
		{name: "a field that no version has", record: reseal("a later field named by text")},
		{name: "a record that is none", record: reseal("text")},
		{name: "a state that is none", record: reseal("a state that is none")},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				value := r.signIn("alice")
				if test.record != nil {
					test.record(r, value)
				}
				time.Sleep(time.Minute) // a good request would touch the record
				before, _ := r.record(value)
				r.probe.forget(test.hook)
				defer time.Sleep(flightLimit) // a read that hangs is given up
				for _, h := range []http.Header{carrying(value), carrying("garbage", value), carrying(value, "garbage")} {
					ctx := t.Context()
					if test.ctx != nil {
						var cancel context.CancelFunc
						ctx, cancel = test.ctx(ctx)
						defer cancel()
					}
					live, err := r.Load(ctx, h)
					wantCode(t, live, err, coatcheck.CodeUnknown, value)
				}
				for _, op := range []string{"create", "replace", "touch", "delete"} {
					if n := r.probe.count(op); n != 0 {
						t.Errorf("%d calls of %s", n, op)
					}
				}
				after, ok := r.record(value)
				after.TTL = before.TTL // a hanging store takes its time
				if diff := cmp.Diff(before, after); !ok || diff != "" {
					t.Errorf("the record changed (-before +after):\n%s", diff)
				}
			})
		})
	}
}

// Beside a session that is unknown a live one does not count: the two might be two
// people's.
func TestLoadUnknownBesideLive(t *testing.T) {
	r := newRig(t)
	alice := r.signIn("alice")
	other := r.beside(func(o *Options) { o.Ring = seal.NewRing() })
	bob := other.signIn("bob")
	for _, values := range [][]string{{alice, bob}, {bob, alice}} {
		live, err := r.load(values...)
		wantCode(t, live, err, coatcheck.CodeUnknown, values...)
	}
	r.wantUser("alice", alice)
	other.wantUser("bob", bob)
}

// Bytes that nobody could open are no session, and are left where they are.
func TestLoadGarbageFromTheStore(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	rec, _ := r.record(value)
	for name, garbage := range map[string][]byte{
		"nothing": {}, "text": []byte("\x00hello"), "cut off": rec.Value[:len(rec.Value)-1],
		"long": bytes.Repeat([]byte{0}, store.MaxValue), "a byte changed": append(bytes.Clone(rec.Value[:len(rec.Value)-1]), ^rec.Value[len(rec.Value)-1]),
	} {
		t.Run(name, func(t *testing.T) {
			r.putSealed(r.probe.keys[0], garbage)
			r.wantInvalid(value)
			if after, ok := r.record(value); !ok || !bytes.Equal(after.Value, garbage) {
				t.Error("the record is gone or was changed")
			}
		})
	}
}

// A-Z14: with an error Begin hands out nothing, and leaves nothing that anybody could
// use.
func TestBeginFails(t *testing.T) {
	lost := func(r *rig) func(context.Context, string, string) error { // written, and the answer lost
		return func(ctx context.Context, op, key string) error {
			if op != "create" {
				return nil
			}
			if err := r.memory.Create(ctx, key, []byte("x"), time.Minute); err != nil {
				return err
			}
			return errDown
		}
	}
	always := func(ops ...string) func(*rig) func(context.Context, string, string) error {
		return func(*rig) func(context.Context, string, string) error { return failing(ops...) }
	}
	for _, test := range []struct {
		name string
		hook func(*rig) func(ctx context.Context, op, key string) error
	}{
		{"the store refuses the record", always("create")},
		{"the answer to Create is lost", lost},
		{"the session before can't be read", always("get")},
		{"the session before can't be ended", func(r *rig) func(context.Context, string, string) error {
			before := r.probe.keys[0]
			return func(_ context.Context, op, key string) error {
				if op == "delete" && key == before {
					return errDown
				}
				return nil
			}
		}},
		{"nothing can be deleted", always("delete")},
		{"the registry does not answer", func(r *rig) func(context.Context, string, string) error {
			r.Manager.Registry = deafRegistry{r.memory}
			return nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var events notebook
			r := newRig(t, func(o *Options) { o.Events = &events })
			before := r.signIn("alice")
			events.told()
			r.probe.forget(nil)
			r.wantUser("alice", before) // so that the probe knows its key
			hook := test.hook(r)
			r.probe.forget(hook)

			h := http.Header{}
			live, err := r.Begin(t.Context(), h, carrying(before), user("alice"), r.Now())
			wantCode(t, live, err, coatcheck.CodeUnknown, before)
			if len(h) != 0 {
				t.Errorf("the answer's header is %v, want none", h)
			}
			r.probe.forget(nil)
			r.wantUser("alice", before)
			// What is left is nobody's, and goes as soon as the store allows.
			r.Manager.Registry = r.memory
			r.finishLeft(t.Context())
			r.wantKept(before)
			events.want(t)
		})
	}
}

// A deafRegistry admits, and its answer is lost.
type deafRegistry struct{ store.Registry }

func (d deafRegistry) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, _ string) ([]store.Entry, error) {
	if _, err := d.Registry.Admit(ctx, e, ttl, limits, ""); err != nil {
		return nil, err
	}
	return nil, errDown
}

// A session before that nobody can judge now is not left alive behind a new one.
func TestBeginBesideUnknown(t *testing.T) {
	r := newRig(t)
	before := r.beside(func(o *Options) { o.Ring = seal.NewRing() }).signIn("alice")
	r.probe.forget(nil)
	h := http.Header{}
	live, err := r.Begin(t.Context(), h, carrying(before), user("alice"), r.Now())
	wantCode(t, live, err, coatcheck.CodeUnknown, before)
	if len(h) != 0 {
		t.Errorf("the answer's header is %v, want none", h)
	}
	if n := r.probe.count("create"); n != 0 {
		t.Error("a new record was made")
	}
	if _, ok := r.record(before); !ok {
		t.Error("the record that this node can't open is gone")
	}
}

func TestBeginWithACancelledContext(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := http.Header{}
	live, err := r.Begin(ctx, h, http.Header{}, user("alice"), r.Now())
	wantCode(t, live, err, coatcheck.CodeUnknown)
	if len(h) != 0 {
		t.Errorf("the answer's header is %v, want none", h)
	}
}

// Whoever is told "signed out" is: with an error the cookie stays.
func TestEndFails(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	live := r.wantUser("alice", value)
	r.probe.forget(failing("delete"))
	h := http.Header{}
	wantCode(t, nil, r.End(t.Context(), h, nil, live, coatcheck.ReasonSignedOut), coatcheck.CodeUnknown, value)
	if len(h) != 0 {
		t.Errorf("the answer's header is %v, want none", h)
	}
	r.wantUser("alice", value)
	r.probe.forget(nil)
	if err := r.End(t.Context(), h, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	wantCleared(t, h)
	r.wantInvalid(value)
}
