package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
)

// A-C14: a session in use is sealed anew when a new key seals, and outlives the old one. One
// that nobody has used since ends with it, and says so to the holder of its ticket alone.
func TestReseal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t, func(o *Options) { o.Tombstones = time.Hour })
		r.run(t)
		used, unused := r.signIn("alice"), r.signIn("bob")
		before, _ := r.record(used)
		old := r.Ring.Current()

		rotated, err := r.Ring.Rotated(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Ring.Replace(rotated); err != nil {
			t.Fatal(err)
		}
		r.KeysChanged()
		if !r.Ring.Promote(time.Now(), func(string) bool { return true }) && r.Ring.Current() == old {
			t.Fatal("the new key does not seal")
		}
		time.Sleep(time.Minute)
		live := r.wantUser("alice", used)
		synctest.Wait()
		after, ok := r.record(used)
		if id, _ := seal.KeyID(after.Value); !ok || id != r.Ring.Current() || after.Revision == before.Revision {
			t.Fatalf("the record is sealed by %s, the ring's key is %s", id, r.Ring.Current())
		}
		if after.TTL != idle {
			t.Errorf("the record ends in %v, want %v after a use", after.TTL, idle)
		}
		if again := r.wantUser("alice", used); again.Created != live.Created || again.Ref != live.Ref {
			t.Error("it is another session")
		}
		r.probe.forget(nil)
		for range 10 {
			time.Sleep(time.Minute)
			r.wantUser("alice", used)
		}
		if n := r.probe.count("replace"); n != 0 {
			t.Errorf("sealed %d times more", n)
		}

		retired, err := rotated.Retired(old, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Ring.Replace(retired); err != nil {
			t.Fatal(err)
		}
		r.KeysChanged()
		r.wantUser("alice", used)
		// Somebody who knows the handle and not the secret ends nothing.
		r.wantInvalid(unused[:len(unused)-22] + used[len(used)-22:])
		r.wantKept(used, unused)
		r.wantInvalid(unused)
		if got := r.ended(unused); got != coatcheck.ReasonKeyRetired {
			t.Errorf("ended for %q", got)
		}
		r.wantKept(used)
	})
}

// A session that was served from the near cache a moment ago ends with its key too.
func TestRetiredWhileHot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t, func(o *Options) { o.Tombstones = time.Hour })
		r.run(t)
		value := r.signIn("alice")
		r.wantUser("alice", value)
		rotated, err := r.Ring.Rotated(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		retired, err := rotated.Retired(r.Ring.Current(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Ring.Replace(retired); err != nil {
			t.Fatal(err)
		}
		r.KeysChanged()
		r.wantInvalid(value)
		if got := r.ended(value); got != coatcheck.ReasonKeyRetired {
			t.Errorf("ended for %q", got)
		}
	})
}

// So do its streams, which belong to no request.
func TestRetiredWithStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		var e ear
		defer r.wantUser("alice", r.signIn("alice")).Watch(e.ended)()
		rotated, err := r.Ring.Rotated(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Ring.Replace(rotated); err != nil {
			t.Fatal(err)
		}
		r.KeysChanged()
		time.Sleep(time.Minute)
		e.wantNothing(t, "while the key opens")
		retired, err := rotated.Retired(r.Ring.Current(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Ring.Replace(retired); err != nil {
			t.Fatal(err)
		}
		r.KeysChanged()
		time.Sleep(time.Second)
		e.want(t, "when it is retired", ErrInvalid)
	})
}

// What another node has sealed anew by now is not written once more.
func TestResealOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		value := r.signIn("alice")
		live := r.wantUser("alice", value)
		r.probe.forget(nil)
		r.startReseal(value, live)
		synctest.Wait()
		if reads, writes := r.probe.count("get"), r.probe.count("replace"); reads != 1 || writes != 0 {
			t.Errorf("%d reads, %d writes", reads, writes)
		}
	})
}
