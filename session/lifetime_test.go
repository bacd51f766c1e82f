package session

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

func TestSlack(t *testing.T) {
	for idle, want := range map[time.Duration]time.Duration{
		time.Minute: 3 * time.Second, 10 * time.Minute: 30 * time.Second, 30 * time.Minute: 30 * time.Second, 24 * time.Hour: 30 * time.Second,
	} {
		if got := New(Options{Idle: idle}).slack; got != want {
			t.Errorf("with an idle timeout of %v a use is written down every %v, want %v", idle, got, want)
		}
	}
}

// A-S1, A-S2: whenever requests come, a session is never served past its idle or its
// absolute end, and never refused more than min(idle/20, 30 s) before both.
func TestLifetimes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		idle := rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 10 * time.Minute, 30 * time.Minute, 8 * time.Hour}).Draw(rt, "idle")
		absolute := idle + time.Duration(rapid.Int64Range(0, int64(10*idle)).Draw(rt, "absolute beyond idle"))
		pause := rapid.OneOf(
			rapid.Int64Range(0, int64(idle/20)),
			rapid.Int64Range(0, int64(idle)),
			rapid.Int64Range(int64(idle-idle/15), int64(idle+idle/100)),
			rapid.SampledFrom([]int64{int64(idle), int64(idle) - 1, int64(idle) + 1, int64(min(idle/20, 30*time.Second))}),
		)
		pauses := rapid.SliceOfN(pause, 1, 40).Draw(rt, "pauses")
		problem := ""
		synctest.Test(t, func(t *testing.T) { problem = live(t, idle, absolute, pauses) })
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// live uses one session after each of the pauses, and says what went wrong.
func live(t *testing.T, idle, absolute time.Duration, pauses []int64) string {
	r := newRig(t, func(o *Options) { o.Idle, o.Absolute = idle, absolute })
	value := r.signIn("alice")
	slack := min(idle/20, 30*time.Second)
	const rounding = storeResolution + time.Millisecond // the record holds its deadline in milliseconds
	begun := time.Now()
	used := begun
	r.probe.forget(nil)
	for i, pause := range pauses {
		time.Sleep(time.Duration(pause))
		age, unused := time.Since(begun), time.Since(used)
		_, err := r.load(value)
		switch {
		case err != nil && err != ErrInvalid:
			return fmt.Sprintf("request %d: %v", i, err)
		case err == nil && unused >= idle:
			return fmt.Sprintf("request %d: served after %v without a use", i, unused)
		case err == nil && age >= absolute:
			return fmt.Sprintf("request %d: served at the age of %v", i, age)
		case err != nil && idle-unused > slack+time.Millisecond && absolute-age > rounding:
			return fmt.Sprintf("request %d: refused after %v without a use, at the age of %v", i, unused, age)
		}
		if err != nil {
			break
		}
		used = time.Now()
		if rec, ok := r.record(value); !ok || rec.TTL > max(absolute-age, store.MinTTL) {
			return fmt.Sprintf("request %d: the store keeps the record for %v, %v before its end", i, rec.TTL, absolute-age)
		}
	}
	if most := int(used.Sub(begun)/slack) + 2; r.probe.count("touch") > most {
		return fmt.Sprintf("%d touches in %v, want at most %d", r.probe.count("touch"), used.Sub(begun), most)
	}
	return ""
}

// A session that is used all the time is written seldom.
func TestTouchesAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		r.probe.forget(nil)
		for range 1000 { // within the slack
			r.wantUser("alice", value)
			time.Sleep(30 * time.Millisecond)
		}
		if n := r.probe.count("touch"); n != 0 {
			t.Errorf("%d touches in 30 s, want none", n)
		}
		for range 600 {
			r.wantUser("alice", value)
			time.Sleep(time.Second)
		}
		if n := r.probe.count("touch"); n < 15 || n > 20 {
			t.Errorf("%d touches in 10 minutes, want about one in 30 s", n)
		}
		for _, op := range []string{"create", "replace", "delete"} {
			if n := r.probe.count(op); n != 0 {
				t.Errorf("%d calls of %s", n, op)
			}
		}
	})
}

// A-S2: activity does not move the absolute end, and the store's opinion doesn't count.
func TestAbsoluteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		deadline := time.Now().Add(absolute)
		for time.Until(deadline) > time.Minute {
			r.wantUser("alice", value)
			time.Sleep(time.Minute)
		}
		handle := r.probe.keys[0]
		if err := r.memory.Touch(t.Context(), handle, 1000*time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(deadline) - time.Millisecond)
		r.wantUser("alice", value)
		time.Sleep(time.Millisecond)
		if _, ok := r.record(value); !ok {
			t.Fatal("the record is gone: the test shows nothing")
		}
		r.probe.forget(nil)
		r.wantInvalid(value)
		if n := r.probe.count("touch"); n != 0 {
			t.Error("a session past its end was touched")
		}
	})
}

func TestAbsoluteShorterThanIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Absolute = time.Minute })
		value := r.signIn("alice")
		if rec, _ := r.record(value); rec.TTL > time.Minute {
			t.Errorf("the store keeps the record for %v, the session ends after a minute", rec.TTL)
		}
		time.Sleep(time.Minute)
		r.wantInvalid(value)
	})
}

// Invariant 2: a session that is ended between the read and the touch stays ended.
func TestTouchRacesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		time.Sleep(time.Minute)
		r.probe.forget(func(ctx context.Context, op, key string) error {
			if op == "touch" {
				return r.memory.Delete(ctx, key)
			}
			return nil
		})
		r.wantInvalid(value)
		if n := r.probe.count("touch"); n != 1 {
			t.Errorf("%d touches, want one", n)
		}
		if _, ok := r.record(value); ok {
			t.Error("the touch brought the record back")
		}
		for _, op := range []string{"create", "replace"} {
			if n := r.probe.count(op); n != 0 {
				t.Errorf("%d calls of %s", n, op)
			}
		}
	})
}

// A touch that fails otherwise costs nothing now, and is tried again.
func TestTouchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		time.Sleep(time.Minute)
		r.probe.forget(failing("touch"))
		r.wantUser("alice", value)
		time.Sleep(touchAgain)
		r.wantUser("alice", value)
		if n := r.probe.count("touch"); n != 2 {
			t.Errorf("%d touches, want two", n)
		}
		r.probe.forget(nil)
		time.Sleep(touchAgain)
		r.wantUser("alice", value)
		if rec, _ := r.record(value); rec.TTL != idle {
			t.Errorf("the record lives another %v, want %v", rec.TTL, idle)
		}
	})
}

// The clock of the node decides on the deadline alone, and Begin uses it as well.
func TestNow(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := newRig(t, func(o *Options) { o.Now = func() time.Time { return now } })
	value := r.signIn("alice")
	if live := r.wantUser("alice", value); !live.Created.Equal(now) || !live.Deadline.Equal(now.Add(absolute)) {
		t.Errorf("the session lives from %v to %v", live.Created, live.Deadline)
	}
	now = now.Add(absolute)
	r.wantInvalid(value)
}

// A record without a deadline, which nobody writes, is no session for ever.
func TestNoDeadline(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	s := user("alice")
	s.Tenant = r.Tenant
	plain, err := encode(s)
	if err != nil {
		t.Fatal(err)
	}
	r.put(value, plain)
	r.wantInvalid(value)
	if live, err := r.Load(t.Context(), http.Header{}); live != nil || err != nil {
		t.Errorf("without a cookie: %v, %v", live, err)
	}
}

// What the caller sets of these fields does not matter.
func TestBeginSetsTheLifetime(t *testing.T) {
	r := newRig(t)
	s := user("alice")
	s.Tenant, s.Created, s.Deadline = "t2", time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour)
	h := http.Header{}
	if _, err := r.Begin(t.Context(), h, http.Header{}, s, r.Now()); err != nil {
		t.Fatal(err)
	}
	live := r.wantUser("alice", r.cookieIn(h))
	if live.Tenant != "default" || live.Deadline.Sub(live.Created) != absolute || time.Since(live.Created) > time.Minute {
		t.Errorf("the session of %q lives from %v to %v", live.Tenant, live.Created, live.Deadline)
	}
	if live.State != coatcheck.Authenticated {
		t.Errorf("the session is %v", live.State)
	}
}

// TestFailedTouchIsLogged: requests are served while touches fail, so the log must say
// what will come, and not with every request.
func TestFailedTouchIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newRig(t, func(o *Options) {
			o.Idle, o.Absolute = time.Hour, time.Hour*24
			o.Logger = slog.New(slog.NewTextHandler(&out, nil))
		})
		value := r.signIn("alice")
		r.probe.forget(failing("touch"))
		for range 10 {
			time.Sleep(4 * time.Minute)
			for range 10 {
				if _, err := r.load(value); err != nil {
					t.Fatal(err)
				}
			}
		}
		if lines := strings.Count(out.String(), "level=WARN"); lines < 5 || lines > 10 || strings.Contains(out.String(), value) {
			t.Errorf("%d warnings:\n%s", lines, out.String())
		}
	})
}

// TestAbsoluteEndIsExact: that touches are coalesced costs nothing at the absolute end.
func TestAbsoluteEndIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle, absolute = 200 * time.Second, 300 * time.Second // the slack is 10 s
		r := newRig(t, func(o *Options) { o.Idle, o.Absolute = idle, absolute })
		value := r.signIn("alice")
		time.Sleep(95 * time.Second)
		for range 20 { // the touch at 95 s leads to 295 s, and at 104 s less than the slack is to be gained
			if _, err := r.load(value); err != nil {
				t.Fatal(err)
			}
			time.Sleep(9 * time.Second)
		}
		time.Sleep(24 * time.Second) // 299 s
		if _, err := r.load(value); err != nil {
			t.Errorf("a second before the absolute end: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := r.load(value); err != ErrInvalid {
			t.Errorf("at the absolute end: %v", err)
		}
	})
}
