package cluster

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
)

// A-S8: nodes whose clocks are ten minutes apart agree on when a session began and on its
// absolute end, to the time that the store takes to answer.
func TestNodesAgree(t *testing.T) {
	for _, driver := range []struct {
		name string
		open func(t *testing.T) func() (store.Backend, error)
	}{
		{"redis", func(t *testing.T) func() (store.Backend, error) {
			server := testenv.StartRedis(t, testenv.RedisOptions{})
			return func() (store.Backend, error) {
				return redis.Open(t.Context(), redis.Options{URL: server.URL(), KeyPrefix: "clocks:", Timeout: patient})
			}
		}},
		{"postgres", func(t *testing.T) func() (store.Backend, error) {
			server := testenv.StartPostgres(t, testenv.PostgresOptions{})
			return func() (store.Backend, error) {
				kept, err := postgres.Open(t.Context(), postgres.Options{URL: server.URL(), Timeout: patient})
				if err == nil {
					_, _, err = kept.Migrate(t.Context())
				}
				return kept, err
			}
		}},
	} {
		t.Run(driver.name, func(t *testing.T) {
			t.Parallel()
			open := driver.open(t)
			ring := seal.NewRing()
			var nodes []*session.Manager
			for _, off := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
				kept, err := open()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = kept.Close() })
				nodes = append(nodes, newManager(t, kept, ring, off))
			}
			for _, begins := range nodes {
				wantAgreement(t, begins, nodes)
			}
		})
	}
}

const (
	absolute = 1500 * time.Millisecond
	// agreed is how far apart the nodes may be: much more than half a round trip, since the
	// machine may be busy, and much less than their clocks.
	agreed = 500 * time.Millisecond
	// patient bounds a call of a store, on a machine that now and then stands still.
	patient = 20 * time.Second
)

// newManager returns the sessions of a node whose own clock is off.
func newManager(t *testing.T, kept store.Backend, ring *seal.Ring, off time.Duration) *session.Manager {
	t.Helper()
	clock := NewClock(kept, quiet())
	clock.own = func() time.Time { return time.Now().Round(0).Add(off) }
	measure(t, clock)
	return session.New(session.Options{
		Store: kept, Registry: kept, Ring: ring, Jar: cookie.New("coatcheck", "", false),
		Tenant: "default", Idle: absolute, Absolute: absolute, Now: clock.Now,
	})
}

// measure compares a clock with the store's until the answer is good for what is agreed.
func measure(t *testing.T, clock *Clock) {
	t.Helper()
	for {
		began := time.Now()
		err := clock.Measure(t.Context())
		switch took := time.Since(began); {
		case err != nil && took < measureLimit:
			t.Fatal(err)
		case err == nil && took < agreed/2:
			return
		}
	}
}

// wantAgreement lets one node begin a session, and all of them serve it for as long as it
// lives, and not longer.
func wantAgreement(t *testing.T, begins *session.Manager, nodes []*session.Manager) {
	t.Helper()
	h, start := http.Header{}, time.Now()
	begun, err := begins.Begin(t.Context(), h, http.Header{}, &coatcheck.Session{
		State: coatcheck.Authenticated, Identity: coatcheck.Identity{Issuer: "https://idp.example", Subject: "alice"},
	}, begins.Now())
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	c, err := http.ParseSetCookie(h.Get("Set-Cookie"))
	if err != nil {
		t.Fatal(err)
	}
	request := http.Header{"Cookie": {c.Name + "=" + c.Value}}
	for i, node := range nodes {
		live, err := node.Load(t.Context(), request)
		if errors.Is(err, session.ErrInvalid) && time.Since(start) > absolute-agreed {
			wantAgreement(t, begins, nodes) // the machine stood still for most of its life
			return
		}
		if err != nil {
			t.Fatalf("node %d does not know a session that has just begun: %v", i, err)
		}
		if d := live.Created.Sub(begun.Created).Abs(); d > time.Millisecond {
			t.Errorf("node %d: the session began %v from when it did", i, d)
		}
		least := time.Since(start) - took // the session's age by the test's clock
		now := node.Now()
		most := time.Since(start)
		if age := now.Sub(live.Created); age < least-agreed || age > most+agreed {
			t.Errorf("node %d: the session is %v old, after %v to %v", i, age, least, most)
		}
		if left := live.Deadline.Sub(now); left < absolute-most-agreed || left > absolute-least+agreed {
			t.Errorf("node %d: the session may live for %v more, after %v to %v of %v", i, left, least, most, absolute)
		}
	}
	alive := len(nodes)
	for alive > 0 {
		alive = 0
		for i, node := range nodes {
			asked := time.Since(start) - took
			switch _, err := node.Load(t.Context(), request); {
			case err == nil && asked > absolute+agreed:
				t.Fatalf("node %d serves the session %v after its start", i, asked)
			case err == nil:
				alive++
			case !errors.Is(err, session.ErrInvalid):
				t.Fatal(err)
			case time.Since(start) < absolute-agreed:
				t.Fatalf("node %d has ended the session %v after its start", i, time.Since(start))
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}
