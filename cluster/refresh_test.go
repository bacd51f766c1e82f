package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store/redis"
)

// A-S8: nodes whose clocks are five minutes apart refresh no sooner and no more often than
// one alone would, and end nobody's session.
func TestNodesRefreshInStep(t *testing.T) {
	t.Parallel() // it waits, most of the time
	const (
		life    = 3 * time.Second // of access tokens
		rounds  = 4
		ahead   = life / 5 * 3 / 2 // how long before their end tokens are replaced, at most
		visits  = 5
		visitor = 50 * time.Millisecond // between two visits
	)
	// One address for all nodes, which get requests in turn.
	var nodes []http.Handler
	var turn atomic.Int64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nodes[turn.Add(1)%int64(len(nodes))].ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	provider := testenv.StartProvider(t, testenv.ProviderOptions{
		RedirectURIs: []string{front.URL + "/callback"}, AccessTokenLifetime: life,
	})
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	ring := seal.NewRing()
	for _, off := range []time.Duration{0, 5 * time.Minute, -5 * time.Minute} {
		nodes = append(nodes, newSite(t, server, provider, ring, front.URL, off))
	}
	b := testenv.NewBrowser(t)
	check := func() {
		page, err := b.Open(t.Context(), front.URL)
		if err != nil || page.Status != http.StatusOK || page.Body != "alice" || len(page.Redirects) > 0 {
			t.Errorf("%+v, %v", page, err)
		}
	}
	if page, err := b.SignIn(t.Context(), front.URL, "alice"); err != nil || page.Body != "alice" {
		t.Fatalf("%+v, %v", page, err)
	}

	// Somebody is there all the time.
	// While the machine stands still nobody is, and tokens may end.
	began, away, still := time.Now(), time.Duration(0), 0
	for time.Since(began)-away < rounds*life {
		visited := time.Now()
		check()
		time.Sleep(visitor)
		if took := time.Since(visited); took > life/6 {
			away += took
			still++
		}
	}
	lasted := time.Since(began)
	least, most := int((lasted-away)/(life+time.Second))-1-still, int(lasted/(life-ahead))+1
	if seen := provider.Refreshes(); seen.Total < least || seen.Total > most || seen.Most != 1 || seen.Refused != 0 {
		t.Errorf("refreshes in %v, without %d pauses of %v in all: %+v, want %d to %d", lasted, still, away, seen, least, most)
	}

	// Nobody was, and then many are.
	time.Sleep(life + 100*time.Millisecond)
	before, came := provider.Refreshes().Total, time.Now()
	var all sync.WaitGroup
	for range visits * len(nodes) {
		all.Go(check)
	}
	all.Wait()
	took := time.Since(came)
	if n := provider.Refreshes().Total - before; n < 1 || n > 1+int(took/(life-ahead)) {
		t.Errorf("%d refreshes within %v, want 1", n, took)
	}
	if n := provider.Counts().Authorize; n != 1 {
		t.Errorf("%d sign-ins, want 1", n)
	}
}

// newSite returns the least of a node whose own clock is off: it signs people in and tells
// them who they are.
func newSite(t *testing.T, server *testenv.Redis, provider *testenv.Provider, ring *seal.Ring, site string, off time.Duration) http.Handler {
	t.Helper()
	kept, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	clock := NewClock(kept, quiet())
	clock.own = func() time.Time { return time.Now().Round(0).Add(off) }
	measure(t, clock)
	public, err := url.Parse(site)
	if err != nil {
		t.Fatal(err)
	}
	jar := cookie.New("coatcheck", "", true)
	rp := oidc.New(oidc.Config{
		Tenant: "default", Name: "test", Issuer: provider.Issuer,
		ClientID: provider.ClientID, ClientSecret: coatcheck.Secret(provider.ClientSecret),
		Scopes: []string{"openid"}, RedirectURL: site + "/callback", Returns: oidc.NewReturns(public),
		Ring: ring, Jar: jar, Once: kept, Logger: quiet(), Now: clock.Now,
	})
	m := session.New(session.Options{
		Store: kept, Registry: kept, Feed: kept, Leases: kept, Provider: rp, Ring: ring, Jar: jar, Tenant: "default",
		Idle: time.Minute, Absolute: time.Hour, CacheSize: 1 << 20, CacheLease: time.Second, Now: clock.Now, Logger: quiet(),
	})
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	for _, run := range []func(context.Context){clock.Run, rp.Run, m.Run} {
		tasks.Go(func() { run(ctx) })
	}
	t.Cleanup(func() {
		stop()
		tasks.Wait()
		_ = kept.Close()
	})
	for rp.Ready() != nil {
		time.Sleep(10 * time.Millisecond)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/callback" {
			login, err := rp.Callback(r.Context(), w.Header(), r)
			if err == nil {
				_, err = m.Begin(r.Context(), w.Header(), r.Header, login.Session, m.Now())
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			http.Redirect(w, r, login.ReturnTo, http.StatusSeeOther)
			return
		}
		live, err := m.Load(r.Context(), r.Header)
		switch {
		case live != nil:
			fmt.Fprint(w, live.Identity.Subject)
			return
		case err != nil && !errors.Is(err, session.ErrInvalid):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		location, err := rp.Start(w.Header(), r, "/")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		http.Redirect(w, r, location, http.StatusSeeOther)
	})
}
