package session

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// A retiring rig is one whose sessions so far were sealed by a key that is to be retired. What
// ends them is a manager of its own, as in a program that is no node.
type retiring struct {
	*rig
	tool *rig
	old  string
}

func newRetiring(t *testing.T, change ...func(*Options)) *retiring {
	t.Helper()
	r := newRig(t, append([]func(*Options){func(o *Options) { o.Tombstones = time.Hour }}, change...)...)
	return &retiring{rig: r, tool: r.beside(func(*Options) {}), old: r.Ring.Current()}
}

// rotate has another key seal.
func (r *retiring) rotate() {
	r.t.Helper()
	next, err := r.Ring.Rotated(time.Now())
	if err == nil {
		err = r.Ring.Replace(next)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.Ring.Promote(time.Now(), nil)
}

// reseal seals a session anew, as its use does.
func (r *retiring) reseal(value string) {
	r.t.Helper()
	tk, err := parseTicket(r.Jar.Session(), value)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.rewrite(context.Background(), tk, func(*coatcheck.Session) bool { return true }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *retiring) end(want int) {
	r.t.Helper()
	if n, err := r.tool.EndSealedBy(r.t.Context(), r.memory, r.old); err != nil || n.Sealed != want {
		r.t.Fatalf("EndSealedBy = %+v, %v; want %d", n, err, want)
	}
}

// The sessions that a key has sealed end as all others do: for every node, with the reason,
// and their places are free. Those that another key has sealed live.
func TestEndSealedBy(t *testing.T) {
	events := new(notebook)
	r := newRetiring(t, func(o *Options) { o.Events = events }, limited(store.Limits{PerUser: 2}))
	used, unused, other := r.signIn("alice"), r.signIn("bob"), r.signIn("bob")
	r.rotate()
	fresh := r.signIn("carol")
	r.reseal(used)
	if n, err := r.tool.SealedBy(t.Context(), r.memory, r.old); n != (SealedCount{Sealed: 2, All: 4}) || err != nil {
		t.Fatalf("SealedBy = %+v, %v; want 2 of 4", n, err)
	}
	r.wantKept(used, unused, other, fresh)
	events.told()
	if n, err := r.tool.EndSealedBy(t.Context(), r.memory, r.old); n != (SealedCount{Sealed: 2, All: 4}) || err != nil {
		t.Fatalf("EndSealedBy = %+v, %v; want 2 of 4", n, err)
	}
	events.want(t, "session.ended bob key_retired", "session.ended bob key_retired")
	r.wantKept(used, fresh)
	r.wantUser("alice", used)
	r.wantUser("carol", fresh)
	for _, value := range []string{unused, other} {
		r.wantInvalid(value)
		r.wantEnded(coatcheck.ReasonKeyRetired, value)
	}
	r.wantUser("bob", r.signIn("bob"))
	r.wantUser("bob", r.signIn("bob"))
	r.end(0)
}

// A node seals a session anew between the look at it and its end.
func TestEndSealedByWhileInUse(t *testing.T) {
	r := newRetiring(t)
	used, unused := r.signIn("alice"), r.signIn("bob")
	r.rotate()
	handle, _, _ := strings.Cut(used, ".")
	var done atomic.Bool
	r.probe.forget(func(_ context.Context, op, key string) error {
		if op == "replace" && key == handle && done.CompareAndSwap(false, true) {
			r.reseal(used)
		}
		return nil
	})
	r.end(1)
	r.probe.forget(nil)
	r.wantUser("alice", used)
	r.wantKept(used)
	r.wantInvalid(unused)
}

// A session that ends meanwhile is none of those that were ended.
func TestEndSealedByWhileItEnds(t *testing.T) {
	r := newRetiring(t)
	value := r.signIn("alice")
	live := r.wantUser("alice", value)
	r.rotate()
	var done atomic.Bool
	r.probe.forget(func(_ context.Context, op, _ string) error {
		if op == "replace" && done.CompareAndSwap(false, true) {
			if err := r.signOut(live); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	r.end(0)
	r.probe.forget(nil)
	r.wantInvalid(value)
	r.wantEnded(coatcheck.ReasonSignedOut, value)
}

func (r *retiring) signOut(live *Live) error {
	return r.rig.end(context.Background(), r.holdingOf(nil, live), coatcheck.ReasonSignedOut)
}

// Whoever is interrupted leaves no session that is called invalid without a reason, and none
// that the next call does not end.
func TestEndSealedByIsInterrupted(t *testing.T) {
	for _, op := range []string{"get", "replace", "delete"} {
		t.Run(op, func(t *testing.T) {
			r := newRetiring(t)
			value := r.signIn("alice")
			r.rotate()
			r.probe.forget(failing(op))
			for range 2 {
				if n, err := r.tool.EndSealedBy(t.Context(), r.memory, r.old); err == nil || n.Sealed != 0 {
					t.Fatalf("EndSealedBy = %+v, %v; want an error", n, err)
				}
			}
			r.probe.forget(nil)
			if op == "delete" { // it is withdrawn
				live, err := r.load(value)
				wantCode(t, live, err, coatcheck.CodeUnknown, value)
			} else {
				r.wantUser("alice", value)
			}
			if n, err := r.tool.SealedBy(t.Context(), r.memory, r.old); n != (SealedCount{Sealed: 1, All: 1}) || err != nil {
				t.Errorf("SealedBy = %+v, %v", n, err)
			}
			r.end(1)
			r.wantInvalid(value)
			r.wantEnded(coatcheck.ReasonKeyRetired, value)
			r.wantKept()
		})
	}
}

// A session that can't be ended keeps no other from ending.
func TestEndSealedByGoesOn(t *testing.T) {
	for _, op := range []string{"get", "replace", "delete"} {
		t.Run(op, func(t *testing.T) {
			r := newRetiring(t)
			const sessions = 5 * atOnce
			var values []string
			for range sessions {
				values = append(values, r.signIn("alice"))
			}
			r.rotate()
			stuck := map[string]bool{}
			for _, value := range values[:3] {
				handle, _, _ := strings.Cut(value, ".")
				stuck[handle] = true
			}
			r.probe.forget(func(ctx context.Context, did, key string) error {
				if did == op && stuck[key] {
					return errDown
				}
				return ctx.Err()
			})
			n, err := r.tool.EndSealedBy(t.Context(), r.memory, r.old)
			if n.Sealed != sessions-3 || !errors.Is(err, errDown) || !strings.Contains(err.Error(), ": 3 sessions could not") {
				t.Errorf("EndSealedBy = %+v, %v; want %d, and an error of 3", n, err, sessions-3)
			}
			r.probe.forget(nil)
			for _, value := range values[3:] {
				r.wantInvalid(value)
			}
			r.end(3)
			r.wantKept()
		})
	}
}

// What is withdrawn is ended, though nobody waits for it any more.
func TestEndSealedByIsCancelled(t *testing.T) {
	r := newRetiring(t)
	value := r.signIn("alice")
	r.rotate()
	ctx, cancel := context.WithCancel(t.Context())
	r.probe.forget(func(ctx context.Context, op, _ string) error {
		if op == "create" || op == "delete" { // the tombstone, the record
			cancel()
			return ctx.Err()
		}
		return nil
	})
	if _, err := r.tool.EndSealedBy(ctx, r.memory, r.old); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	r.probe.forget(nil)
	r.wantInvalid(value)
	r.wantEnded(coatcheck.ReasonKeyRetired, value)
	r.wantKept()
}

// A session that the registry has lost ends too.
func TestEndSealedByUnlisted(t *testing.T) {
	r := newRetiring(t)
	value := r.signIn("alice")
	for e, err := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
		if err == nil {
			err = r.memory.Remove(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.rotate()
	r.end(1)
	r.wantInvalid(value)
	r.wantKept()
}

// A node that has retired the key, and one that has not heard of it, don't disagree with what
// was ended; other records are left alone.
func TestEndSealedByLeavesOthersAlone(t *testing.T) {
	r := newRetiring(t)
	value := r.signIn("alice")
	stranger := r.beside(func(o *Options) { o.Ring = seal.NewRing() }).signIn("bob")
	note := name + "-note"
	if err := r.memory.Create(t.Context(), note, []byte("a sign-in that was used once, say"), time.Hour); err != nil {
		t.Fatal(err)
	}
	r.rotate()
	if n, err := r.tool.EndSealedBy(t.Context(), r.memory, r.old); n != (SealedCount{Sealed: 1, All: 2}) || err != nil {
		t.Fatalf("EndSealedBy = %+v, %v", n, err)
	}
	r.wantInvalid(value)
	if _, ok := r.record(stranger); !ok {
		t.Error("a session that another key has sealed is gone")
	}
	if _, err := r.memory.Get(t.Context(), note); err != nil {
		t.Errorf("a record that is no session: %v", err)
	}
}

// What a later version has sealed is counted, and left alone: nobody knows by which key.
func TestEndSealedByCountsWhatItCantRead(t *testing.T) {
	r := newRetiring(t)
	value, later := r.signIn("alice"), r.signIn("bob")
	rec, _ := r.record(later)
	handle, _, _ := strings.Cut(later, ".")
	if err := r.memory.Replace(t.Context(), handle, rec.Revision, append([]byte{0xee}, rec.Value...), time.Hour); err != nil {
		t.Fatal(err)
	}
	r.rotate()
	want := SealedCount{Sealed: 1, Unread: 1, All: 2}
	if n, err := r.tool.SealedBy(t.Context(), r.memory, r.old); n != want || err != nil {
		t.Errorf("SealedBy = %+v, %v; want %+v", n, err, want)
	}
	if n, err := r.tool.EndSealedBy(t.Context(), r.memory, r.old); n != want || err != nil {
		t.Errorf("EndSealedBy = %+v, %v; want %+v", n, err, want)
	}
	r.wantInvalid(value)
	r.wantKept(later)
}

// However many there are, the store is not asked about too many at once.
func TestEndSealedByIsBounded(t *testing.T) {
	r := newRetiring(t)
	const sessions = 10 * atOnce
	for range sessions {
		r.signIn("alice")
	}
	r.rotate()
	var now, most atomic.Int64
	r.probe.forget(func(_ context.Context, op, _ string) error {
		if op != "delete" {
			return nil
		}
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond) // so that others come in
		now.Add(-1)
		return nil
	})
	r.end(sessions)
	if n := most.Load(); n > atOnce {
		t.Errorf("%d at once", n)
	}
	r.wantKept()
}
