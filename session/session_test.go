package session

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBeginLoadEnd(t *testing.T) {
	r := newRig(t)
	h, before := http.Header{}, time.Now()
	s := goldenSession()
	begun, err := r.Begin(t.Context(), h, http.Header{}, s, r.Now())
	if err != nil {
		t.Fatal(err)
	}
	value := r.cookieIn(h)
	if c, _ := http.ParseSetCookie(h.Get("Set-Cookie")); c.MaxAge != int(absolute.Seconds()) {
		t.Errorf("the cookie lives %d s, want the absolute timeout", c.MaxAge)
	}
	if h.Get("Cache-Control") != "no-store" {
		t.Error("the answer with the ticket may be kept in caches")
	}

	live := r.wantUser("248289761001", value)
	want := goldenSession()
	want.Created, want.Deadline, want.Renewal = live.Created, live.Deadline, live.Renewal
	if diff := cmp.Diff(want, live.Session); diff != "" {
		t.Errorf("the loaded session (-want +got):\n%s", diff)
	}
	if live.Created.Before(before.Truncate(time.Millisecond)) || live.Created.After(time.Now()) {
		t.Errorf("the session began at %v", live.Created)
	}
	if got := live.Deadline.Sub(live.Created); got != absolute {
		t.Errorf("the session may live %v, want %v", got, absolute)
	}
	handle, _, _ := strings.Cut(value, ".")
	if live.Ref != coatcheck.MakeRef(handle) || begun.Ref != live.Ref {
		t.Errorf("the session's ref is %q at the beginning and %q later", begun.Ref, live.Ref)
	}

	h = http.Header{}
	if err := r.End(t.Context(), h, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	wantCleared(t, h)
	r.wantInvalid(value)
	if _, ok := r.record(value); ok {
		t.Error("the record is still there")
	}
	if err := r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Errorf("a second End: %v", err)
	}
}

func wantCleared(t *testing.T, h http.Header) {
	t.Helper()
	c, err := http.ParseSetCookie(h.Get("Set-Cookie"))
	if err != nil || c.Name != name || c.Value != "" || c.MaxAge >= 0 {
		t.Errorf("Set-Cookie: %q, want the deletion of %s", h["Set-Cookie"], name)
	}
}

// What Begin returns ends as well as what Load returns.
func TestEndOfWhatBeginReturned(t *testing.T) {
	r := newRig(t)
	h := http.Header{}
	live, err := r.Begin(t.Context(), h, http.Header{}, user("alice"), r.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	r.wantInvalid(r.cookieIn(h))
}

func TestClear(t *testing.T) {
	h := http.Header{}
	newRig(t).Clear(h)
	wantCleared(t, h)
}

// A-C16, invariant 13: neither the ticket nor the record shows who it is.
func TestNothingPersonalIsShown(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	rec, _ := r.record(value)
	_, secret, _ := strings.Cut(value, ".")
	for _, text := range []string{"alice", "corp", "idp.example", "refresh token", "agent", "default", secret} {
		if bytes.Contains(rec.Value, []byte(text)) {
			t.Errorf("the record shows %q", text)
		}
		if text != secret && strings.Contains(value, text) {
			t.Errorf("the ticket shows %q", text)
		}
	}
}

func TestLoadWithoutACookie(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	r.probe.forget(func(context.Context, string, string) error {
		t.Error("the store is asked")
		return errDown
	})
	for _, line := range []string{
		"", "a=1; b=2", "__host-coatcheck=" + value, "coatcheck=" + value, "__Secure-coatcheck=" + value,
		"__Host-coatcheck-login=" + value, "x" + name + "=" + value, name + ".0=" + value,
	} {
		if live, err := r.Load(t.Context(), http.Header{"Cookie": {line}}); live != nil || err != nil {
			t.Errorf("Load with %q = %v, %v; want nothing", line, live, err)
		}
	}
}

// A-C1: a ticket with any byte changed is refused like any other, and its record stays
// as it was.
func TestChangedTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		before, _ := r.record(value)
		time.Sleep(5 * time.Minute) // a good request would touch the record
		r.probe.forget(nil)
		for i := range len(value) {
			for b := range 256 {
				if byte(b) == value[i] {
					continue
				}
				changed := value[:i] + string([]byte{byte(b)}) + value[i+1:]
				if live, err := r.load(changed); live != nil || err != ErrInvalid {
					t.Fatalf("Load of %q = %v, %v; want ErrInvalid", changed, live, err)
				}
			}
		}
		for _, op := range []string{"create", "replace", "touch", "delete"} {
			if n := r.probe.count(op); n != 0 {
				t.Errorf("%d calls of %s", n, op)
			}
		}
		after, _ := r.record(value)
		before.TTL -= 5 * time.Minute
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the record changed (-before +after):\n%s", diff)
		}
		r.wantUser("alice", value)
	})
}

// A-C3, A-C4: the order of several session cookies, and the line they stand in, mean
// nothing.
func TestSeveralCookies(t *testing.T) {
	r := newRig(t)
	alice, bob, gone := r.signIn("alice"), r.signIn("bob"), newTicket(name).cookieValue()
	ended := r.signIn("carol")
	if err := r.End(t.Context(), http.Header{}, nil, r.wantUser("carol", ended), coatcheck.ReasonSignedOut); err != nil {
		t.Fatal(err)
	}
	const (
		asAlice   = "alice"
		invalid   = "invalid"
		ambiguous = string(coatcheck.CodeAmbiguousSession)
		malformed = string(coatcheck.CodeMalformed)
	)
	for _, test := range []struct {
		name   string
		values []string
		want   string
	}{
		{"one", []string{alice}, asAlice},
		{"one twice", []string{alice, alice}, asAlice},
		{"one many times", slices.Repeat([]string{alice}, 40), asAlice},
		{"and garbage", []string{alice, "garbage"}, asAlice},
		{"and nothing", []string{alice, ""}, asAlice},
		{"and a ticket without a record", []string{alice, gone}, asAlice},
		{"and an ended one", []string{alice, ended}, asAlice},
		{"and three that open nothing", []string{alice, "garbage", gone, ended}, asAlice},
		{"garbage alone", []string{"garbage"}, invalid},
		{"four that open nothing", []string{"garbage", gone, ended, ""}, invalid},
		{"two sessions", []string{alice, bob}, ambiguous},
		{"two sessions and garbage", []string{alice, "garbage", bob}, ambiguous},
		{"two sessions, twice", []string{alice, bob, alice, bob}, ambiguous},
		{"five, and one of them lives", []string{alice, "1", "2", "3", "4"}, malformed},
		{"five that open nothing", []string{"1", "2", "3", "4", "5"}, malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			backwards := slices.Clone(test.values)
			slices.Reverse(backwards)
			rotated := append(slices.Clone(test.values[1:]), test.values[0])
			for _, values := range [][]string{test.values, backwards, rotated} {
				lines := carrying(values...)
				joined := http.Header{"Cookie": {"a=1; " + strings.Join(lines["Cookie"], "; ") + "; b=2"}}
				for _, h := range []http.Header{lines, joined} {
					live, err := r.Load(t.Context(), h)
					switch test.want {
					case asAlice:
						if err != nil || live.Identity.Subject != "alice" {
							t.Errorf("Load = %v, %v; want alice", live, err)
						}
					case invalid:
						if live != nil || err != ErrInvalid {
							t.Errorf("Load = %v, %v; want ErrInvalid", live, err)
						}
					default:
						wantCode(t, live, err, coatcheck.Code(test.want), values...)
					}
				}
			}
		})
	}
	// None of this ended anything.
	r.wantUser("alice", alice)
	r.wantUser("bob", bob)
}

// A-C11: before the store is asked, and beside a good ticket too.
func TestBadParts(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	r.probe.forget(failing("get"))
	for _, part := range []string{"99999999", "-1", "1e9", "01", "+1", "16", ""} {
		for _, line := range []string{
			name + "." + part + "=x",
			name + "." + part + "=x; " + name + "=" + value,
			name + "=" + value + "; " + name + "." + part + "=x",
		} {
			live, err := r.Load(t.Context(), http.Header{"Cookie": {line}})
			wantCode(t, live, err, coatcheck.CodeMalformed, value)
		}
	}
	if n := r.probe.count("get"); n != 0 {
		t.Errorf("the store was asked %d times", n)
	}
}

// A-C10: cookies in thousands cost one look each.
func TestManyCookies(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	h := http.Header{"Cookie": {strings.Repeat("a=; ", 50_000) + name + "=" + value}}
	few := http.Header{"Cookie": {name + "=" + value}}
	measure := func(h http.Header) float64 {
		return testing.AllocsPerRun(5, func() {
			if _, err := r.Load(t.Context(), h); err != nil {
				t.Error(err)
			}
		})
	}
	if one, many := measure(few), measure(h); many > one+5 {
		t.Errorf("%v allocations beside 50000 cookies, %v without them", many, one)
	}
	h = http.Header{"Cookie": {strings.Repeat(name+"=x; ", 50_000) + name + "=" + value}}
	r.probe.forget(nil)
	if _, err := r.Load(t.Context(), h); err != nil {
		t.Error(err)
	}
	if n := r.probe.count("get"); n != 1 {
		t.Errorf("the store was asked %d times, want once", n)
	}
}

// A-C12, A-C13, invariant 3: every sign-in makes a new ticket, none is adopted, and
// what the browser came with is dead.
func TestFixation(t *testing.T) {
	r := newRig(t)
	mallory := r.signIn("mallory")
	for name, planted := range map[string][]string{
		"nothing":                    nil,
		"garbage":                    {"known"},
		"a well-formed ticket":       {newTicket(name).cookieValue()},
		"somebody's live session":    {mallory},
		"the person's own session":   {r.signIn("alice")},
		"two sessions":               {r.signIn("bob"), r.signIn("carol")},
		"a session behind garbage":   {"garbage", r.signIn("bob")},
		"more than anybody may send": {"1", "2", "3", "4", "5", "6"},
	} {
		t.Run(name, func(t *testing.T) {
			value := r.signIn("alice", planted...)
			if slices.Contains(planted, value) {
				t.Fatal("a planted ticket was adopted")
			}
			r.wantUser("alice", value)
			for _, p := range planted {
				r.wantInvalid(p)
				if _, ok := r.record(p); ok {
					t.Error("the record of a planted ticket is still there")
				}
			}
			again := r.signIn("alice", value)
			if again == value {
				t.Error("a second sign-in has the ticket of the first")
			}
			r.wantInvalid(value)
			r.wantUser("alice", again)
		})
	}
}

// A sign-in that carries a ticket with a wrong secret does not end that session: the
// name of a record is no right to it.
func TestBeginEndsOnlyWhatOpens(t *testing.T) {
	r := newRig(t)
	alice := r.signIn("alice")
	handle, _, _ := strings.Cut(alice, ".")
	_, other, _ := strings.Cut(newTicket(name).cookieValue(), ".")
	r.signIn("mallory", handle+"."+other)
	r.wantUser("alice", alice)
}

// Invariant 12: a record or a ticket that was moved opens nothing, and stays.
func TestMoved(t *testing.T) {
	t.Run("to another key", func(t *testing.T) { // A-C5
		r := newRig(t)
		alice, bob := r.signIn("alice"), r.signIn("bob")
		record, _ := r.record(alice)
		bobs, _, _ := strings.Cut(bob, ".")
		_, secret, _ := strings.Cut(alice, ".")
		r.putSealed(bobs, record.Value)
		r.wantInvalid(bob)
		r.wantInvalid(bobs + "." + secret)
		if after, _ := r.record(bob); !bytes.Equal(after.Value, record.Value) {
			t.Error("the record changed")
		}
	})
	t.Run("to another tenant", func(t *testing.T) { // A-C6
		r := newRig(t)
		alice := r.signIn("alice")
		other := r.beside(func(o *Options) { o.Tenant = "t2" })
		r.probe.forget(failing("create", "replace", "touch", "delete"))
		other.wantInvalid(alice)
		if n := len(r.probe.calls) - r.probe.count("get"); n != 0 {
			t.Errorf("%d calls that write", n)
		}
		r.wantUser("alice", alice)
	})
	t.Run("to another tenant, sealed for it", func(t *testing.T) {
		r := newRig(t)
		alice := r.signIn("alice")
		s := user("alice")
		s.Tenant, s.Deadline = "t2", time.Now().Add(time.Hour)
		plain, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		r.put(alice, plain)
		r.wantInvalid(alice)
	})
	t.Run("to another cookie", func(t *testing.T) { // A-C5
		r := newRig(t)
		alice := r.signIn("alice")
		other := r.beside(func(o *Options) { o.Jar = cookie.New("gate", "", false) })
		renamed := strings.Replace(alice, name, other.Jar.Session(), 1)
		record, _ := r.record(alice)
		handle, _, _ := strings.Cut(renamed, ".")
		r.putSealed(handle, record.Value)
		for _, value := range []string{alice, renamed} {
			h := http.Header{"Cookie": {other.Jar.Session() + "=" + value}}
			if live, err := other.Load(t.Context(), h); live != nil || err != ErrInvalid {
				t.Errorf("Load of %q = %v, %v; want ErrInvalid", value, live, err)
			}
		}
	})
	t.Run("to another purpose", func(t *testing.T) { // A-C5
		r := newRig(t)
		alice := r.signIn("alice")
		ticket, err := parseTicket(name, alice)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := encode(user("alice"))
		if err != nil {
			t.Fatal(err)
		}
		place := r.place(ticket.handle)
		place.Purpose = "login"
		sealed, err := r.Ring.SealRecord(place, ticket.secret[:], plain, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.putSealed(ticket.handle, sealed)
		r.wantInvalid(alice)
		value, err := r.Ring.SealValue(r.place(""), plain)
		if err != nil {
			t.Fatal(err)
		}
		r.wantInvalid(value)
	})
}

// Invariant 2: whoever ends a session ends it for all, whatever runs at the same time.
func TestEndDuringLoads(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Idle = 40 * time.Second })
	value := r.signIn("alice")
	live := r.wantUser("alice", value)
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					if _, err := r.load(value); err != ErrInvalid {
						t.Errorf("after the end Load returns %v", err)
					}
					return
				default:
				}
				if l, err := r.load(value); err != nil && err != ErrInvalid || (l == nil) == (err == nil) {
					t.Errorf("Load = %v, %v", l, err)
				}
			}
		})
	}
	if err := r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
		t.Error(err)
	}
	close(ended)
	wg.Wait()
}

func FuzzLoadCookie(f *testing.F) {
	r := newRig(f)
	// A fixed ticket, since a fuzz run has several processes.
	live := ticket{handle: name + "-00112233445566778899aabbccddeeff", secret: [secretSize]byte{1, 2, 3}}
	s := user("alice")
	s.Tenant, s.Deadline = r.Tenant, time.Now().Add(absolute)
	plain, err := encode(s)
	if err != nil {
		f.Fatal(err)
	}
	r.put(live.cookieValue(), plain)

	f.Add(name + "=" + live.cookieValue())
	f.Add("a=1; " + name + "=" + live.cookieValue() + "; " + name + "=x")
	f.Add(name + ".0=x; " + name + ".16=y")
	for _, bad := range badTickets(live.cookieValue()) {
		if len(bad) < 1000 {
			f.Add(name + "=" + bad)
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		r.probe.forget(func(_ context.Context, op, key string) error {
			// A run may take longer than a use is written down once in.
			if op != "get" && op != "touch" || !ticketForm.MatchString(key+".AAAAAAAAAAAAAAAAAAAAAA") || !strings.Contains(line, key) {
				t.Errorf("%s of %q", op, key)
			}
			return nil
		})
		got, err := r.Load(context.Background(), http.Header{"Cookie": {line}})
		switch {
		case got != nil && (err != nil || !strings.Contains(line, live.cookieValue())):
			t.Errorf("Load(%q) = %v, %v", line, got, err)
		case err != nil && err != ErrInvalid && coatcheck.CodeOf(err) != coatcheck.CodeMalformed:
			t.Errorf("Load(%q): %v", line, err)
		}
	})
}

// BenchmarkLoad loads one session again and again: warm, as most requests find it, and
// cold, as the first one on each node does.
func BenchmarkLoad(b *testing.B) {
	r := newRig(b)
	r.Manager.Store = r.memory
	s := goldenSession()
	s.Tokens.ID = coatcheck.Secret(strings.Repeat("i", 900))
	s.Tokens.Access = coatcheck.Secret(strings.Repeat("a", 900))
	h := http.Header{}
	if _, err := r.Begin(b.Context(), h, http.Header{}, s, r.Now()); err != nil {
		b.Fatal(err)
	}
	in := http.Header{"Cookie": {"theme=dark; _ga=GA1.1.1234567890.1234567890; " + name + "=" + r.cookieIn(h)}}
	for _, cold := range []bool{false, true} {
		b.Run(map[bool]string{false: "warm", true: "cold"}[cold], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				live, err := r.Load(b.Context(), in)
				if live == nil || err != nil {
					b.Fatal(err)
				}
				if cold {
					r.cache.changed(live.handle)
				}
			}
		})
	}
}
