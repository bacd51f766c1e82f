package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

const issuer = "https://idp.example"

// atProvider returns what a provider says of a person who is in the session sid there.
func atProvider(sub, sid string) *coatcheck.Session {
	s := user(sub)
	s.ProviderSID = sid
	return s
}

// beginAt begins a session, and returns the value of its cookie, "" without one.
func (r *rig) beginAt(s *coatcheck.Session, asked time.Time) (string, error) {
	r.t.Helper()
	h := http.Header{}
	if _, err := r.Begin(r.t.Context(), h, http.Header{}, s, asked); err != nil {
		if len(h) > 0 {
			r.t.Errorf("a failed sign-in sets %v", h)
		}
		return "", err
	}
	return r.cookieIn(h), nil
}

// wantBarred fails the test unless a sign-in failed because the provider has ended it.
func wantBarred(t *testing.T, err error) {
	t.Helper()
	var ended *EndedError
	if !errors.As(err, &ended) || ended.Reason != coatcheck.ReasonBackChannel || coatcheck.CodeOf(err) != coatcheck.CodeSessionEnded {
		t.Errorf("the sign-in ends with %v", err)
	}
}

// A logout that arrives while the very sign-in is in its callback wins, wherever in the one
// the whole of the other comes: before each call that a sign-in takes a logout is carried
// out, and the other way round.
func TestLogoutMeetsSignIn(t *testing.T) {
	for name, logout := range map[string]Logout{
		"of the session": {Issuer: issuer, SID: "s1", Subject: "alice", ID: "1"},
		"of the person":  {Issuer: issuer, Subject: "alice", ID: "1"},
	} {
		signIn := func(m *Manager, asked time.Time) string {
			h := http.Header{}
			_, err := m.Begin(context.Background(), h, http.Header{}, atProvider("alice", "s1"), asked)
			if err != nil {
				wantBarred(t, err)
				return ""
			}
			c, err := http.ParseSetCookie(h.Get("Set-Cookie"))
			if err != nil {
				t.Fatal(err)
			}
			return c.Value
		}
		signOut := func(m *Manager) {
			if _, err := m.BackChannelLogout(context.Background(), logout); err != nil {
				t.Errorf("the logout: %v", err)
			}
		}
		for _, inSignIn := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, within the sign-in: %t", name, inSignIn), func(t *testing.T) {
				reached := true
				for at := 1; reached; at++ {
					reached = false
					synctest.Test(t, func(t *testing.T) {
						r := newRig(t)
						bob := r.signIn("bob")
						calls := &mortal{Backend: r.memory}
						slow := r.beside(func(o *Options) { o.Store, o.Registry = calls, calls }).Manager
						asked, cookie := r.Now(), ""
						time.Sleep(5 * time.Second) // at the provider's token endpoint
						calls.before = func(call int) {
							if call != at {
								return
							}
							reached = true
							if inSignIn {
								signOut(r.Manager)
							} else {
								cookie = signIn(r.Manager, asked)
							}
						}
						if inSignIn {
							cookie = signIn(slow, asked)
						} else {
							signOut(slow)
						}
						if !reached {
							return
						}
						if cookie != "" {
							r.wantInvalid(cookie)
						}
						r.wantKept(bob)
						if t.Failed() {
							t.Fatalf("at call %d of %v", at, calls.trace)
						}
					})
				}
			})
		}
	}
}

// Whoever signs in after a logout is signed in; whoever had done so at the provider before is
// not, however late that comes to an end here.
func TestBarrier(t *testing.T) {
	ofPerson := Logout{Issuer: issuer, Subject: "alice", ID: "1"}
	ofSession := Logout{Issuer: issuer, SID: "s1", ID: "1"}
	for _, tc := range []struct {
		name   string
		logout Logout
		sub    string
		sid    string
		after  time.Duration // from the logout until the provider is asked
		takes  time.Duration // from then until the session begins
		code   coatcheck.Code
	}{
		{name: "before it", logout: ofPerson, sub: "alice", after: -time.Second, takes: 2 * time.Second, code: coatcheck.CodeSessionEnded},
		{name: "long before it", logout: ofPerson, sub: "alice", after: -100 * time.Second, takes: 101 * time.Second, code: coatcheck.CodeSessionEnded},
		{name: "at the same time, as far as clocks tell", logout: ofPerson, sub: "alice", after: clockError, code: coatcheck.CodeSessionEnded},
		{name: "after it", logout: ofPerson, sub: "alice", after: clockError + time.Millisecond},
		{name: "somebody else", logout: ofPerson, sub: "bob", after: -time.Second, takes: 2 * time.Second},
		{name: "longer than barriers stand", logout: ofPerson, sub: "alice", after: -time.Second, takes: barrierLife + 2*time.Second, code: coatcheck.CodeUnknown},
		{name: "longer than barriers stand, without one", logout: ofSession, sub: "bob", after: -time.Second, takes: barrierLife, code: coatcheck.CodeUnknown},
		{name: "of the session that ended", logout: ofSession, sub: "alice", sid: "s1", after: -time.Second, takes: 2 * time.Second, code: coatcheck.CodeSessionEnded},
		{name: "of the session that ended, asked later", logout: ofSession, sub: "alice", sid: "s1", after: 10 * time.Second, code: coatcheck.CodeSessionEnded},
		{name: "of another session", logout: ofSession, sub: "alice", sid: "s2", after: -time.Second, takes: 2 * time.Second},
		{name: "of no known session", logout: ofSession, sub: "alice", after: -time.Second, takes: 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				time.Sleep(time.Hour)
				logoutAt, asked := r.Now(), r.Now().Add(tc.after)
				if tc.after < 0 {
					asked, logoutAt = r.Now(), r.Now().Add(-tc.after)
				}
				time.Sleep(time.Until(logoutAt))
				if _, err := r.BackChannelLogout(t.Context(), tc.logout); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(asked.Add(tc.takes)))
				cookie, err := r.beginAt(atProvider(tc.sub, tc.sid), asked)
				switch {
				case tc.code == "" && err != nil, tc.code != "" && (err == nil || coatcheck.CodeOf(err) != tc.code):
					t.Errorf("the sign-in ends with %v", err)
				case tc.code == "":
					r.wantKept(cookie)
				case tc.code == coatcheck.CodeSessionEnded:
					r.wantKept()
				}
			})
		})
	}
}

// A later logout is not hidden by one before, nor by one that is told later.
func TestBarrierMovesForwardAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		key := userBarrier(r.userName(issuer, "alice"))
		start := r.Now()
		for _, at := range []time.Duration{5, 10, 7} {
			if err := r.raise(t.Context(), key, start.Add(at*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(30 * time.Second)
		if _, err := r.beginAt(atProvider("alice", ""), start.Add(10*time.Second)); err == nil {
			t.Error("an earlier logout has taken the place of a later one")
		}
		cookie, err := r.beginAt(atProvider("alice", ""), start.Add(12*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		r.wantUser("alice", cookie)
	})
}

// Nor is it hidden by one that is written at the same moment.
func TestBarriersAtOnce(t *testing.T) {
	for _, op := range []string{"create", "replace"} {
		t.Run(op, func(t *testing.T) {
			r := newRig(t)
			key, start := userBarrier(r.userName(issuer, "alice")), r.Now()
			raise := func(after time.Duration) {
				if err := r.raise(t.Context(), key, start.Add(after)); err != nil {
					t.Error(err)
				}
			}
			if op == "replace" {
				raise(time.Second)
			}
			r.probe.forget(func(_ context.Context, called, _ string) error {
				if called == op {
					r.probe.forget(nil)
					raise(2 * time.Second)
				}
				return nil
			})
			raise(3 * time.Second)
			if at, _, err := r.readBarrier(t.Context(), key); err != nil || at.Before(start.Add(3*time.Second).Truncate(time.Millisecond)) {
				t.Errorf("the barrier is of %v after the start, %v", at.Sub(start), err)
			}
		})
	}
}

// One that stands there no longer is in nobody's way.
func TestBarrierGoesMeanwhile(t *testing.T) {
	for _, op := range []string{"get", "replace"} {
		t.Run(op, func(t *testing.T) {
			r := newRig(t)
			key, start := userBarrier(r.userName(issuer, "alice")), r.Now()
			if err := r.raise(t.Context(), key, start); err != nil {
				t.Fatal(err)
			}
			r.probe.forget(func(_ context.Context, called, _ string) error {
				if called == op {
					r.probe.forget(nil)
					return r.memory.Delete(t.Context(), key)
				}
				return nil
			})
			if err := r.raise(t.Context(), key, start.Add(time.Second)); err != nil {
				t.Error(err)
			}
			if at, _, err := r.readBarrier(t.Context(), key); err != nil || !at.After(start) {
				t.Errorf("the barrier is of %v after the start, %v", at.Sub(start), err)
			}
		})
	}
}

// Where nobody can tell whether there is a barrier, nobody is signed in.
func TestBarrierUnknown(t *testing.T) {
	for name, prepare := range map[string]func(r *rig){
		"the store is down": func(r *rig) {
			r.probe.forget(func(_ context.Context, op, key string) error {
				if strings.HasPrefix(key, "barrier-") {
					return errDown
				}
				return nil
			})
		},
		"a barrier of a later version": func(r *rig) {
			value := must(encMode.Marshal(barrier{barrierVersion + 1, 0}))
			if err := r.memory.Create(r.t.Context(), userBarrier(r.userName(issuer, "alice")), value, time.Minute); err != nil {
				r.t.Fatal(err)
			}
		},
		"a broken one": func(r *rig) {
			if err := r.memory.Create(r.t.Context(), sidBarrier(r.sidName(issuer, "s1")), []byte("?"), time.Minute); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			prepare(r)
			cookie, err := r.beginAt(atProvider("alice", "s1"), r.Now())
			if cookie != "" || err == nil || coatcheck.CodeOf(err) != coatcheck.CodeUnknown {
				t.Fatalf("the sign-in ends with %v", err)
			}
			r.probe.forget(nil)
			r.finishLeft(t.Context())
			r.wantKept()
		})
	}
}

// A sign-in that the provider has ended meanwhile, and that can't be ended here yet.
func TestBarredAndNotEnded(t *testing.T) {
	r := newRig(t)
	if _, err := r.BackChannelLogout(t.Context(), Logout{Issuer: issuer, SID: "s1", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	r.probe.forget(failing("delete"))
	_, err := r.beginAt(atProvider("alice", "s1"), r.Now())
	wantBarred(t, err)
	if len(r.kept()) != 1 {
		t.Fatal("it was ended: the test shows nothing")
	}
	r.probe.forget(nil)
	r.finishLeft(t.Context())
	r.wantKept()
}
