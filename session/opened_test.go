package session

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store/memory"
)

// signedIn returns a manager with one live session that was loaded before, and the
// request header of its holder.
func signedIn(t *testing.T, subject string) (*Manager, http.Header, *Live) {
	t.Helper()
	kept := memory.New()
	t.Cleanup(func() { _ = kept.Close() })
	m := New(Options{
		Store: kept, Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", true), Tenant: "default",
		Idle: time.Hour, Absolute: time.Hour,
	})
	answer := make(http.Header)
	s := &coatcheck.Session{State: coatcheck.Authenticated, Identity: coatcheck.Identity{Subject: subject}}
	if _, err := m.Begin(t.Context(), answer, make(http.Header), s); err != nil {
		t.Fatal(err)
	}
	pair, _, _ := strings.Cut(answer.Get("Set-Cookie"), ";")
	request := http.Header{"Cookie": {pair}}
	live, err := m.Load(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return m, request, live
}

func TestOpenedServesTheSameRecordOnce(t *testing.T) {
	m, request, first := signedIn(t, "alice")
	second, err := m.Load(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if first.Session != second.Session {
		t.Error("the record was opened again, though it is the same")
	}
}

// What is remembered must never outlive what the store says, nor serve another ticket.
func TestOpenedDecidesNothing(t *testing.T) {
	t.Run("another secret", func(t *testing.T) {
		m, request, _ := signedIn(t, "alice")
		pair := request.Get("Cookie")
		handle, _, _ := strings.Cut(pair, ".")
		request.Set("Cookie", handle+"."+strings.Repeat("A", 22))
		if live, err := m.Load(t.Context(), request); !errors.Is(err, ErrInvalid) {
			t.Errorf("a wrong secret opened %v, error %v", live, err)
		}
		request.Set("Cookie", pair)
		if _, err := m.Load(t.Context(), request); err != nil {
			t.Errorf("after a wrong secret the right one opens nothing: %v", err)
		}
	})
	t.Run("ended here", func(t *testing.T) {
		m, request, live := signedIn(t, "alice")
		if err := m.End(t.Context(), make(http.Header), live); err != nil {
			t.Fatal(err)
		}
		if m.opened.count() > 0 {
			t.Error("an ended session is remembered")
		}
		if _, err := m.Load(t.Context(), request); !errors.Is(err, ErrInvalid) {
			t.Errorf("an ended session: %v", err)
		}
	})
	t.Run("ended by another node", func(t *testing.T) {
		m, request, live := signedIn(t, "alice")
		if err := m.Store.Delete(t.Context(), live.handle); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Load(t.Context(), request); !errors.Is(err, ErrInvalid) {
			t.Errorf("an ended session: %v", err)
		}
		if m.opened.count() > 0 {
			t.Error("an ended session is remembered")
		}
	})
	t.Run("replaced", func(t *testing.T) {
		m, request, live := signedIn(t, "alice")
		rec, err := m.Store.Get(t.Context(), live.handle)
		if err != nil {
			t.Fatal(err)
		}
		_, value, _ := strings.Cut(request.Get("Cookie"), "=")
		ticket, err := parseTicket(m.Jar.Session(), value)
		if err != nil {
			t.Fatal(err)
		}
		changed := *live.Session
		changed.Identity.Subject = "alice, changed"
		plain, err := encode(&changed)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := m.Ring.SealRecord(m.place(live.handle), ticket.secret[:], plain)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Store.Replace(t.Context(), live.handle, rec.Revision, sealed, time.Hour); err != nil {
			t.Fatal(err)
		}
		again, err := m.Load(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if again.Identity.Subject != changed.Identity.Subject {
			t.Errorf("loaded %q after the record was replaced", again.Identity.Subject)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		m, request, live := signedIn(t, "alice")
		m.Now = func() time.Time { return live.Deadline }
		if _, err := m.Load(t.Context(), request); !errors.Is(err, ErrInvalid) {
			t.Errorf("a session at its deadline: %v", err)
		}
	})
}

// count returns the number of records that are remembered.
func (o *opened) count() int {
	n := 0
	for i := range o.shards {
		n += len(o.shards[i].young) + len(o.shards[i].old)
	}
	return n
}

// TestOpenedShards: every handle has a shard, and every shard has handles.
func TestOpenedShards(t *testing.T) {
	var o opened
	seen := map[*openedShard]bool{}
	for _, digit := range "0123456789abcdef" {
		seen[o.shard("coatcheck-"+string(digit))] = true
	}
	if len(seen) != openedShards {
		t.Errorf("%d shards are used", len(seen))
	}
}

// TestOpenedIsBounded fills one shard.
func TestOpenedIsBounded(t *testing.T) {
	var o opened
	now := time.Now()
	s := new(coatcheck.Session)
	sealed := make([]byte, 64<<10)
	const most = 2 * (openedSize/(2*64<<10) + 1)
	for i := range 2 * most {
		o.keep(now, ticket{handle: fmt.Sprint(i, "-0")}, sealed, s)
		if n := o.count(); n > most {
			t.Fatalf("%d records are remembered", n)
		}
	}
	newest := ticket{handle: fmt.Sprint(2*most-1, "-0")}
	if o.find(now, newest, sealed) != s {
		t.Error("the newest record is forgotten")
	}
	if o.find(now, ticket{handle: fmt.Sprint(0, "-0")}, sealed) != nil {
		t.Error("the oldest record is remembered")
	}
}

func TestOpenedForgetsWhatIsNotUsed(t *testing.T) {
	var o opened
	now := time.Now()
	s, sealed := new(coatcheck.Session), []byte("sealed")
	used, unused := ticket{handle: "used"}, ticket{handle: "unused"}
	o.keep(now, used, sealed, s)
	o.keep(now, unused, sealed, s)
	for range 2 {
		now = now.Add(openedAge + 1)
		if o.find(now, used, sealed) != s {
			t.Fatal("a record in use is forgotten")
		}
	}
	if o.find(now, unused, sealed) != nil {
		t.Error("a record that was not used for two generations is remembered")
	}
}
