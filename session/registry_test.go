package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A notebook records events.
type notebook struct {
	mu     sync.Mutex
	events []coatcheck.Event
	fail   error
}

func (n *notebook) Record(_ context.Context, e coatcheck.Event) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail == nil {
		n.events = append(n.events, e)
	}
	return n.fail
}

func (n *notebook) failing(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

// told returns what was recorded, as "type subject reason", and forgets it.
func (n *notebook) told() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		list = append(list, strings.TrimSpace(fmt.Sprint(e.Type, " ", e.Subject, " ", e.Reason, e.Limit)))
	}
	n.events = nil
	return list
}

func (n *notebook) want(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, n.told(), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func limited(l store.Limits) func(*Options) { return func(o *Options) { o.Limits = l } }

// wantEnded fails the test unless the holder of the cookie, and nobody else, is told that.
func (r *rig) wantEnded(want coatcheck.Reason, value string) {
	r.t.Helper()
	if got := r.Ended(r.t.Context(), carrying(value)); got != want {
		r.t.Errorf("the session ended for %q, want %q", got, want)
	}
	handle, _, _ := strings.Cut(value, ".")
	if got := r.Ended(r.t.Context(), carrying((ticket{handle: handle}).cookieValue())); got != "" {
		r.t.Errorf("somebody without the ticket is told %q", got)
	}
}

// What is listed of a session.
func TestListed(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Node = "node-1" })
	s := user("alice")
	s.ProviderSID = "sid-1"
	s.Origin = coatcheck.Origin{App: "shop.example", IP: "192.0.2.1", UserAgent: strings.Repeat("é", 300) + "\xff"}
	h := http.Header{}
	live, err := r.Begin(t.Context(), h, http.Header{}, s, r.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.signIn("bob")
	want := Entry{
		Ref: live.Ref, Tenant: "default", Provider: "corp", Issuer: "https://idp.example", Subject: "alice", SID: "sid-1",
		State:  coatcheck.Authenticated,
		Origin: coatcheck.Origin{App: "shop.example", IP: "192.0.2.1", UserAgent: strings.Repeat("é", 128), Node: "node-1"},
	}
	for name, q := range map[string]Query{
		"user": {Issuer: "https://idp.example", Subject: "alice"},
		"sid":  {Issuer: "https://idp.example", SID: "sid-1"},
		"ref":  {Ref: live.Ref},
	} {
		found := 0
		for e, err := range r.Find(t.Context(), q) {
			found++
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, e, cmpopts.IgnoreUnexported(Entry{}), cmpopts.IgnoreFields(Entry{}, "Started", "Seen", "Expires", "Deadline")); diff != "" {
				t.Errorf("by %s (-want +got):\n%s", name, diff)
			}
			if d := e.Expires.Sub(e.Seen); d < idle-time.Second || d > idle+time.Second {
				t.Errorf("by %s: it expires %v after it was seen", name, d)
			}
			if !e.Deadline.Equal(live.Deadline.Truncate(time.Millisecond)) {
				t.Errorf("by %s: the absolute end is %v, want %v", name, e.Deadline, live.Deadline)
			}
		}
		if found != 1 {
			t.Errorf("by %s: %d sessions", name, found)
		}
	}
	all := 0
	for range r.Find(t.Context(), Query{}) {
		all++
	}
	if all != 2 {
		t.Errorf("%d sessions in all", all)
	}
	// A-K1, A-K2, A-K3, A-K4: names are literal, so nobody else is found, or signed out. A-T5.
	for _, q := range []Query{
		{Issuer: "https://idp.example", Subject: "alice*"},
		{Issuer: "https://idp.example", Subject: "a?ice"},
		{Issuer: "https://idp.example", Subject: "[a-z]*"},
		{Issuer: "https://other.example", Subject: "alice"},
		{Issuer: "https://idp.exampl", Subject: "ealice"},
		{Issuer: "https://idp.example", Subject: "sid-1"},
		{Issuer: "https://idp.example", SID: "alice"},
		{Ref: "x\r\nDEL y"},
		{Subject: "'; DROP TABLE sessions;--"},
		{Issuer: `{"$ne":null}`, Subject: `{"$ne":null}`},
		{Ref: coatcheck.Ref(strings.Repeat("a", 10<<10))},
	} {
		for e, err := range r.Find(t.Context(), q) {
			if err == nil {
				t.Errorf("%+v finds %s", q, e.Subject)
			}
		}
	}
}

// Nothing secret is listed, and names are hashes (invariant 13).
func TestListedIsNotSecret(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	_, secret, _ := strings.Cut(value, ".")
	for listed, err := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
		if err != nil {
			t.Fatal(err)
		}
		all := fmt.Sprintf("%+v %s", listed, listed.Data)
		if strings.Contains(all, secret) || strings.Contains(all, "refresh token") {
			t.Error("the entry shows a secret")
		}
		for _, name := range []string{listed.User, listed.Tenant, listed.ID} {
			if strings.Contains(name, "alice") || strings.Contains(name, "default") {
				t.Errorf("%q is no hash", name)
			}
		}
	}
}

// Invariant 6, A-S3: on the limit.
func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name    string
		limits  store.Limits
		evicted int // which of alice's two sessions has to go; -1: the third is refused
	}{
		{"deny", store.Limits{PerUser: 2}, -1},
		{"evict_oldest", store.Limits{PerUser: 2, OnLimit: store.EvictOldest}, 0},
		{"evict_idle", store.Limits{PerUser: 2, OnLimit: store.EvictIdle}, 1},
		{"total", store.Limits{Total: 3, OnLimit: store.EvictOldest}, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var events notebook
				r := newRig(t, limited(test.limits), func(o *Options) { o.Events, o.Tombstones = &events, time.Hour })
				bob := r.signIn("bob")
				first := r.signIn("alice")
				time.Sleep(time.Minute)
				second := r.signIn("alice")
				time.Sleep(time.Minute)
				r.wantUser("alice", first) // so that the second is the idle one
				time.Sleep(time.Minute)
				events.told()

				h := http.Header{}
				live, err := r.Begin(t.Context(), h, http.Header{}, user("alice"), r.Now())
				if test.evicted < 0 {
					wantCode(t, live, err, coatcheck.CodeLimit)
					if len(h) != 0 {
						t.Errorf("the answer's header is %v", h)
					}
					r.wantKept(bob, first, second)
					limit := "per_user"
					if test.limits.Total > 0 {
						limit = "total"
					}
					events.want(t, "session.limit_denied alice "+limit)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				both := []string{first, second}
				r.wantInvalid(both[test.evicted])
				r.wantEnded(coatcheck.ReasonEvicted, both[test.evicted])
				r.wantUser("alice", both[1-test.evicted])
				r.wantKept(bob, both[1-test.evicted], r.cookieIn(h))
				events.want(t, "session.ended alice evicted", "session.started alice")
			})
		})
	}
}

func TestLimitPerApp(t *testing.T) {
	r := newRig(t, limited(store.Limits{PerApp: 1}))
	in := func(app string) error {
		s := user("alice")
		s.Origin.App = app
		_, err := r.Begin(t.Context(), http.Header{}, http.Header{}, s, r.Now())
		return err
	}
	if err := errors.Join(in("shop.example"), in("wiki.example")); err != nil {
		t.Fatal(err)
	}
	if err := in("shop.example"); coatcheck.CodeOf(err) != coatcheck.CodeLimit {
		t.Errorf("a second session at the shop: %v", err)
	}
}

// Signing in again at the limit needs no place beside the one that the browser has.
func TestSignInAgainAtTheLimit(t *testing.T) {
	for _, limits := range []store.Limits{{PerUser: 1}, {Total: 1}, {PerUser: 1, OnLimit: store.EvictOldest}} {
		var events notebook
		r := newRig(t, limited(limits), func(o *Options) { o.Events, o.Tombstones = &events, time.Hour })
		value := r.signIn("alice")
		for range 5 {
			before := value
			value = r.signIn("alice", before)
			r.wantInvalid(before)
			r.wantEnded(coatcheck.ReasonReplaced, before)
		}
		r.wantKept(value)
		events.told()
		// Somebody else at the same browser is somebody else.
		h := http.Header{}
		_, err := r.Begin(t.Context(), h, carrying(value), user("bob"), r.Now())
		if limits.Total == 1 {
			if coatcheck.CodeOf(err) != coatcheck.CodeLimit {
				t.Errorf("%+v: bob beside alice: %v", limits, err)
			}
			r.wantUser("alice", value)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r.wantKept(r.cookieIn(h))
		events.want(t, "session.ended alice replaced", "session.started bob")
	}
}

// A list that denies for sessions that are gone is put right first.
func TestLimitCountsWhatIsThere(t *testing.T) {
	var events notebook
	r := newRig(t, limited(store.Limits{PerUser: 1}), func(o *Options) { o.Events = &events })
	lost, _, _ := strings.Cut(r.signIn("alice"), ".")
	if err := r.memory.Delete(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	events.told()
	value := r.signIn("alice")
	r.wantKept(value)
	events.want(t, "session.ended alice lost", "session.started alice")

	// But only those that are known to be gone.
	r.probe.forget(failing("get"))
	_, err := r.Begin(t.Context(), http.Header{}, http.Header{}, user("alice"), r.Now())
	if code := coatcheck.CodeOf(err); code != coatcheck.CodeLimit {
		t.Errorf("%v", err)
	}
	r.probe.forget(nil)
	r.wantKept(value)
}

// Invariants 4 and 6: whoever has to give way is gone before the new one is handed out.
func TestVictimThatCannotBeEnded(t *testing.T) {
	r := newRig(t, limited(store.Limits{PerUser: 1, OnLimit: store.EvictOldest}))
	first := r.signIn("alice")
	r.probe.forget(func(_ context.Context, op, key string) error {
		if handle, _, _ := strings.Cut(first, "."); op == "delete" && key == handle {
			return errDown
		}
		return nil
	})
	h := http.Header{}
	live, err := r.Begin(t.Context(), h, http.Header{}, user("alice"), r.Now())
	wantCode(t, live, err, coatcheck.CodeUnknown)
	if len(h) != 0 {
		t.Errorf("a cookie was set beside an error: %v", h)
	}
	r.probe.forget(nil)
	// The next one finishes what was begun, though it is not its own.
	second := r.signIn("alice")
	r.wantInvalid(first)
	r.finishLeft(t.Context())
	r.wantKept(second)
}

// Renew keeps a sliding session listed, and lists one again that the registry has lost.
func TestTouchRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events = &events })
		value := r.signIn("alice")
		for range 20 {
			time.Sleep(idle / 4)
			r.wantUser("alice", value)
			r.wantKept(value)
		}
		var ids []string
		for _, e := range events.events {
			ids = append(ids, e.ID)
		}
		if want := append([]string{"session.started alice"}, slices.Repeat([]string{"session.renewed alice"}, 10)...); !slices.Equal(events.told(), want) {
			t.Errorf("events: %v", ids)
		}
		slices.Sort(ids)
		if len(slices.Compact(ids)) != 11 {
			t.Error("two events have one id")
		}
		lost := store.Entry{}
		for e := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
			lost = e
		}
		if err := r.memory.Remove(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		time.Sleep(idle / 4)
		r.wantUser("alice", value)
		r.wantKept(value)
		for e := range r.Find(t.Context(), Query{}) {
			if e.Subject != "alice" || e.Provider != "corp" {
				t.Errorf("listed again: %+v", e)
			}
		}
	})
}

// What is not listed must not live longer (invariant 4).
func TestTouchNeedsRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		time.Sleep(time.Minute)
		r.probe.forget(nil)
		r.Manager.Registry = downRegistry{r.memory}
		r.wantUser("alice", value)
		if n := r.probe.count("touch"); n != 0 {
			t.Error("the record was extended and the entry was not")
		}
	})
}

type downRegistry struct{ store.Registry }

func (downRegistry) Renew(context.Context, store.Entry, time.Duration) error { return errDown }

// A session that is being ended is not kept alive by its use.
func TestTouchOfAnEndingSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		value := r.signIn("alice")
		for e := range r.Find(t.Context(), Query{}) {
			if _, err := r.memory.End(t.Context(), e.listed, "revoked"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		r.wantInvalid(value)
	})
}

func TestRevoke(t *testing.T) {
	var events notebook
	r := newRig(t, func(o *Options) { o.Events, o.Tombstones = &events, time.Hour })
	other := r.beside(func(*Options) {})
	alice, more, bob := r.signIn("alice"), r.signIn("alice"), r.signIn("bob")
	events.told()
	for e, err := range other.Find(t.Context(), Query{Issuer: "https://idp.example", Subject: "alice"}) {
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Revoke(t.Context(), e, coatcheck.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
	}
	for _, value := range []string{alice, more} {
		r.wantInvalid(value)
		r.wantEnded(coatcheck.ReasonRevoked, value)
	}
	r.wantKept(bob)
	events.want(t, "session.ended alice revoked", "session.ended alice revoked")
	if reason := r.Ended(t.Context(), carrying(bob)); reason != "" {
		t.Errorf("a live session is said to have ended: %s", reason)
	}
}

// Whose record the store has lost is not told that it was not used, and whose end comes
// between the reads is told why.
func TestLostIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Tombstones = time.Hour })
		lost, revoked := r.signIn("alice"), r.signIn("bob")
		handle, _, _ := strings.Cut(lost, ".")
		if err := r.memory.Delete(t.Context(), handle); err != nil {
			t.Fatal(err)
		}
		r.wantEnded(coatcheck.ReasonLost, lost)

		handle, _, _ = strings.Cut(revoked, ".")
		live := r.wantUser("bob", revoked)
		r.probe.forget(func(ctx context.Context, op, key string) error {
			if op == "get" && key == handle {
				r.probe.forget(nil)
				return r.End(ctx, http.Header{}, nil, live, coatcheck.ReasonRevoked)
			}
			return nil
		})
		r.wantEnded(coatcheck.ReasonRevoked, revoked)
	})
}

// An entry of a later version is ended like all others, and hides none.
func TestForeignEntry(t *testing.T) {
	r := newRig(t, limited(store.Limits{PerUser: 1, OnLimit: store.EvictOldest}))
	value := r.signIn("alice")
	for e := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
		e.Data = []byte{0xa1, 0x00, 0x02} // {0: 2}
		if _, err := r.memory.Admit(t.Context(), e, idle, store.Limits{}, ""); err != nil {
			t.Fatal(err)
		}
	}
	problems := 0
	for _, err := range r.Find(t.Context(), Query{}) {
		if err != nil {
			problems++
		}
	}
	if problems != 1 {
		t.Errorf("%d problems in the list", problems)
	}
	r.signIn("alice")
	r.wantInvalid(value)
}

// A-C6: the session of one tenant is none in another, and asks nothing of its store.
func TestOtherTenant(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	own := memory.New()
	t.Cleanup(func() { _ = own.Close() })
	p := &probe{Store: own}
	other := r.beside(func(o *Options) {
		o.Tenant, o.Store, o.Registry, o.Jar = "t2", p, own, cookie.New("other", "", false)
	})
	if live, err := other.Load(t.Context(), carrying(value)); live != nil || err != nil {
		t.Errorf("%v, %v", live, err)
	}
	if len(p.calls) != 0 {
		t.Errorf("the other tenant's store was asked: %v", p.calls)
	}
	// Even where the two share a store and a cookie's name.
	sharing := r.beside(func(o *Options) { o.Tenant = "t2" })
	sharing.wantInvalid(value)
	for e := range sharing.Find(t.Context(), Query{}) {
		t.Errorf("the other tenant's list shows %s", e.Subject)
	}
	if reason := sharing.Ended(t.Context(), carrying(value)); reason != "" {
		t.Error("the other tenant tells why it ended")
	}
	r.wantUser("alice", value)
}

// Of the sessions of a browser it is that of the same person whose place is taken.
func TestSignInAgainBesideAnother(t *testing.T) {
	for name, other := range map[string]*coatcheck.Session{
		"another person":   user("bob"),
		"another provider": {Provider: "other", Identity: coatcheck.Identity{Issuer: "https://other.example", Subject: "alice"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, limited(store.Limits{Total: 2}))
			h := http.Header{}
			if _, err := r.Begin(t.Context(), h, http.Header{}, other, r.Now()); err != nil {
				t.Fatal(err)
			}
			beside := r.cookieIn(h)
			before := r.signIn("alice") // no place is free now
			r.wantKept(r.signIn("alice", beside, before))
		})
	}
}
