package session

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// mustBegin begins a session that the provider has confirmed just now.
func (r *rig) mustBegin(sub, sid string) string {
	r.t.Helper()
	cookie, err := r.beginAt(atProvider(sub, sid), r.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	return cookie
}

// A-L4, A-L16: what each way of ending several sessions ends.
func TestEndAll(t *testing.T) {
	for name, tc := range map[string]struct {
		query  func(refs map[string]coatcheck.Ref) Query
		except string
		ends   []string
	}{
		"a session of the provider's": {
			func(map[string]coatcheck.Ref) Query { return Query{Issuer: issuer, SID: "s1"} }, "", []string{"alice s1", "alice s1 too"},
		},
		"a person": {
			func(map[string]coatcheck.Ref) Query { return Query{Issuer: issuer, Subject: "alice"} }, "",
			[]string{"alice", "alice s1", "alice s1 too"},
		},
		"a person's others": {
			func(map[string]coatcheck.Ref) Query { return Query{Issuer: issuer, Subject: "alice"} }, "alice",
			[]string{"alice s1", "alice s1 too"},
		},
		"one": {
			func(refs map[string]coatcheck.Ref) Query { return Query{Ref: refs["bob s2"]} }, "", []string{"bob s2"},
		},
		"somebody of another provider": {
			func(map[string]coatcheck.Ref) Query { return Query{Issuer: "https://other.example", Subject: "alice"} }, "", nil,
		},
		"a session of another provider's": {
			func(map[string]coatcheck.Ref) Query { return Query{Issuer: "https://other.example", SID: "s1"} }, "", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Tombstones = time.Hour })
			cookies, refs := map[string]string{}, map[string]coatcheck.Ref{}
			for _, who := range []string{"alice", "alice s1", "alice s1 too", "bob s2"} {
				parts := append(strings.Fields(who), "")
				cookies[who] = r.mustBegin(parts[0], parts[1])
				handle, _, _ := strings.Cut(cookies[who], ".")
				refs[who] = coatcheck.MakeRef(handle)
			}
			ended, err := r.EndAll(t.Context(), tc.query(refs), refs[tc.except], coatcheck.ReasonRevoked)
			if err != nil || ended != len(tc.ends) {
				t.Errorf("EndAll = %d, %v", ended, err)
			}
			for _, who := range tc.ends {
				r.wantInvalid(cookies[who])
				if reason := r.Ended(t.Context(), carrying(cookies[who])); reason != coatcheck.ReasonRevoked {
					t.Errorf("%s ended for %q", who, reason)
				}
				delete(cookies, who)
			}
			var left []string
			for _, cookie := range cookies {
				left = append(left, cookie)
			}
			r.wantKept(left...)
		})
	}
	t.Run("nobody in particular", func(t *testing.T) {
		r := newRig(t)
		cookie := r.signIn("alice")
		for _, q := range []Query{{}, {Issuer: issuer}} {
			if _, err := r.EndAll(t.Context(), q, "x", coatcheck.ReasonRevoked); err == nil {
				t.Errorf("%+v ends everybody", q)
			}
		}
		r.wantKept(cookie)
	})
}

// What is reported as ended has ended: one record that can't be deleted fails the whole, and
// all others end. A session that somebody else is ending is not taken for ended.
func TestEndAllIncomplete(t *testing.T) {
	r := newRig(t)
	stubborn := r.mustBegin("alice", "")
	handle, _, _ := strings.Cut(stubborn, ".")
	for range 20 {
		r.mustBegin("alice", "")
	}
	r.probe.forget(func(_ context.Context, op, key string) error {
		if op == "delete" && key == handle {
			return errDown
		}
		return nil
	})
	for range 2 { // the second time its entry is marked as ending
		ended, err := r.EndAll(t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", coatcheck.ReasonRevoked)
		if err == nil || !errors.Is(err, errDown) || coatcheck.CodeOf(err) != coatcheck.CodeUnknown {
			t.Errorf("EndAll = %d, %v", ended, err)
		}
		if kept := r.kept(); len(kept) != 1 || kept[0] != handle {
			t.Errorf("the store keeps %v", kept)
		}
	}
	r.probe.forget(nil)
	if _, err := r.EndAll(t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", coatcheck.ReasonRevoked); err != nil {
		t.Error(err)
	}
	r.wantKept()
}

// halfRead is a registry that fails behind the first page.
type halfRead struct{ store.Registry }

func (h halfRead) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e := range h.Registry.Find(ctx, q) {
			if !yield(e, nil) {
				return
			}
			break
		}
		yield(store.Entry{}, errDown)
	}
}

// Whoever could not be looked for may still be there.
func TestEndAllNotAllFound(t *testing.T) {
	r := newRig(t)
	r.mustBegin("alice", "s1")
	r.mustBegin("alice", "s1")
	half := r.beside(func(o *Options) { o.Registry = halfRead{o.Registry} })
	if ended, err := half.EndAll(t.Context(), Query{Issuer: issuer, SID: "s1"}, "", coatcheck.ReasonRevoked); !errors.Is(err, errDown) || ended != 1 {
		t.Errorf("EndAll = %d, %v", ended, err)
	}
	logout := Logout{Issuer: issuer, SID: "s1", ID: "1"}
	if _, err := half.BackChannelLogout(t.Context(), logout); !errors.Is(err, errDown) {
		t.Errorf("BackChannelLogout: %v", err)
	}
	if _, err := r.BackChannelLogout(t.Context(), logout); err != nil {
		t.Error(err)
	}
	r.wantKept()
}

// A-L9: a logout that was carried out is not carried out again, and one that was not can
// come again and ends what it was for, and nothing that has begun since then.
func TestLogoutReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		logout := Logout{Issuer: issuer, Subject: "alice", ID: "1", Expires: r.Now().Add(7 * time.Minute)}
		r.mustBegin("alice", "")
		time.Sleep(time.Minute)
		r.probe.forget(failing("delete"))
		if _, err := r.BackChannelLogout(t.Context(), logout); err == nil || coatcheck.CodeOf(err) != coatcheck.CodeUnknown {
			t.Errorf("with the store down: %v", err)
		}
		r.probe.forget(nil)
		time.Sleep(10 * time.Second)
		again := r.mustBegin("alice", "")
		if _, err := r.BackChannelLogout(t.Context(), logout); err != nil {
			t.Errorf("the second time: %v", err)
		}
		r.wantKept(again)
		for range 2 {
			if ended, err := r.BackChannelLogout(t.Context(), logout); !errors.Is(err, ErrReplayed) || ended != 0 {
				t.Errorf("a replay: %d, %v", ended, err)
			}
		}
		time.Sleep(logout.Expires.Add(replayMargin - time.Second).Sub(r.Now()))
		if _, err := r.BackChannelLogout(t.Context(), logout); !errors.Is(err, ErrReplayed) {
			t.Errorf("a late replay: %v", err)
		}
		time.Sleep(time.Second)
		for key := range r.memory.Keys(t.Context(), "logout-token-") {
			t.Errorf("it is remembered for longer than it can come, as %s", key)
		}
		for _, other := range []Logout{
			{Issuer: issuer, Subject: "alice", ID: "2"},
			{Issuer: "https://other.example", Subject: "alice", ID: "1"},
		} {
			if _, err := r.BackChannelLogout(t.Context(), other); err != nil {
				t.Errorf("%+v: %v", other, err)
			}
		}
		r.wantKept()
	})
}

// A logout that comes several times at once is carried out, whichever of them is faster.
func TestLogoutTwiceAtOnce(t *testing.T) {
	r := newRig(t)
	r.mustBegin("alice", "")
	logout := Logout{Issuer: issuer, Subject: "alice", ID: "1"}
	other := r.beside(func(*Options) {})
	inner := errors.New("not reached")
	r.probe.forget(func(_ context.Context, op, key string) error {
		if op == "create" && strings.HasPrefix(key, "logout-token-") {
			r.probe.forget(nil)
			_, inner = other.BackChannelLogout(t.Context(), logout)
		}
		return nil
	})
	if _, err := r.BackChannelLogout(t.Context(), logout); !errors.Is(err, ErrReplayed) || inner != nil {
		t.Errorf("%v, within it %v", err, inner)
	}
	r.wantKept()
}

// One that came at once with another, which failed, is not taken for carried out.
func TestLogoutTwiceAtOnceAndOneFails(t *testing.T) {
	r := newRig(t)
	r.mustBegin("alice", "")
	logout := Logout{Issuer: issuer, Subject: "alice", ID: "1"}
	other := r.beside(func(*Options) {})
	r.probe.forget(func(_ context.Context, op, key string) error {
		if op == "create" && strings.HasPrefix(key, "logout-token-") {
			r.probe.forget(failing("delete"))
			if _, err := other.BackChannelLogout(t.Context(), logout); !errors.Is(err, errDown) {
				t.Errorf("the one within it: %v", err)
			}
			r.probe.forget(nil)
		}
		return nil
	})
	if _, err := r.BackChannelLogout(t.Context(), logout); err != nil {
		t.Error(err)
	}
	r.wantKept()
}

// Whoever has begun a session while a logout came is not spared when it comes again: nobody
// can tell which of the two was first.
func TestLogoutAgainByAnotherClock(t *testing.T) {
	for after, spared := range map[time.Duration]bool{clockError: false, clockError + 10*time.Millisecond: true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			logout := Logout{Issuer: issuer, Subject: "alice", ID: "1"}
			r.mustBegin("alice", "")
			r.probe.forget(failing("delete"))
			if _, err := r.BackChannelLogout(t.Context(), logout); !errors.Is(err, errDown) {
				t.Fatal(err)
			}
			r.probe.forget(nil)
			time.Sleep(after)
			cookie, err := r.beginAt(atProvider("alice", ""), r.Now().Add(2*clockError)) // by a clock that is fast
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.BackChannelLogout(t.Context(), logout); err != nil {
				t.Error(err)
			}
			if _, err := r.load(cookie); spared != (err == nil) {
				t.Errorf("begun %v later: %v", after, err)
			}
		})
	}
}

// Without its barrier a logout is not carried out, and not remembered either. When it comes
// again it is for all that there is then: nobody knows since when.
func TestLogoutWithoutBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		logout := Logout{Issuer: issuer, Subject: "alice", ID: "1"}
		before := r.mustBegin("alice", "")
		r.probe.forget(func(_ context.Context, op, key string) error {
			if op == "create" && strings.HasPrefix(key, "barrier-") {
				return errDown
			}
			return nil
		})
		if _, err := r.BackChannelLogout(t.Context(), logout); !errors.Is(err, errDown) {
			t.Errorf("BackChannelLogout: %v", err)
		}
		r.wantKept(before)
		for key := range r.memory.Keys(t.Context(), "logout-token-") {
			t.Errorf("it is remembered as %s", key)
		}
		r.probe.forget(nil)
		time.Sleep(time.Minute)
		r.mustBegin("alice", "")
		if ended, err := r.BackChannelLogout(t.Context(), logout); err != nil || ended != 2 {
			t.Errorf("BackChannelLogout = %d, %v", ended, err)
		}
		r.wantKept()
	})
}

// A logout that says nothing, or of which another version remembers something, ends nothing.
func TestLogoutRefused(t *testing.T) {
	r := newRig(t)
	alice := r.mustBegin("alice", "s1")
	for _, l := range []Logout{
		{}, {Issuer: issuer, Subject: "alice"}, {Issuer: issuer, ID: "1"}, {Subject: "alice", ID: "1"},
	} {
		if _, err := r.BackChannelLogout(t.Context(), l); err == nil {
			t.Errorf("%+v is carried out", l)
		}
	}
	key := "logout-token-" + r.name("logout token", issuer, "1")
	value := must(encMode.Marshal(logoutRecord{logoutVersion + 1, 0, true}))
	if err := r.memory.Create(t.Context(), key, value, time.Hour); err != nil {
		t.Fatal(err)
	}
	_, err := r.BackChannelLogout(t.Context(), Logout{Issuer: issuer, SID: "s1", ID: "1"})
	if err == nil || coatcheck.CodeOf(err) != coatcheck.CodeUnknown || errors.Is(err, ErrReplayed) {
		t.Errorf("a later version's: %v", err)
	}
	r.wantKept(alice)
}

// A-L15: what is written late does not bring a session back.
func TestLateSaveAfterLogout(t *testing.T) {
	r := newRig(t)
	cookie := r.mustBegin("alice", "s1")
	rec, _ := r.record(cookie)
	if _, err := r.BackChannelLogout(t.Context(), Logout{Issuer: issuer, SID: "s1", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	handle, _, _ := strings.Cut(cookie, ".")
	if err := r.Store.Replace(t.Context(), handle, rec.Revision, rec.Value, time.Hour); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Replace = %v", err)
	}
	if err := r.Store.Touch(t.Context(), handle, time.Hour); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Touch = %v", err)
	}
	r.wantInvalid(cookie)
	r.wantKept()
}
