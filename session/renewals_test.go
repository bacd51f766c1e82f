package session

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A client that hangs up changes nothing, and one that waits does not wait for ever.
func TestRefreshBelongsToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		stuck := make(chan struct{})
		p.setAnswer(func(int) (bool, error) { <-stuck; return false, nil })
		time.Sleep(accessLife)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		live, err := nodes[0].Load(ctx, carrying(value))
		wantCode(t, live, err, coatcheck.CodeUnknown, value)
		began := time.Now()
		if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 1" || time.Since(began) != freshPatience-time.Second {
			t.Errorf("served with %q after %v", live.Tokens.Access.Reveal(), time.Since(began))
		}
		close(stuck)
		synctest.Wait()
		if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 2" || p.uses(t) != 1 {
			t.Errorf("what the client had begun was not kept: %+v", live.Renewal)
		}
	})
}

// A node that stops writes down what it has begun to ask.
func TestRefreshIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		leaving := nodes[0].beside(func(*Options) {})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { leaving.Run(ctx) })
		value := nodes[0].enter("alice", p)
		p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
		time.Sleep(accessLife - maxAhead)
		leaving.wantUser("alice", value)
		synctest.Wait()
		stop()
		running.Wait()
		if live := nodes[0].wantUser("alice", value); live.Tokens.Access != "access 2" {
			t.Errorf("Run returned before the new tokens were kept: %+v", live.Renewal)
		}
		if a := leaving.startRenewal(ticket{}, &Live{handle: "x"}, needFresh); a != nil {
			t.Error("a node that leaves begins another one")
		}
	})
}

// sessions there is.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		var values []string
		for i := range 50 {
			values = append(values, nodes[0].enter(fmt.Sprint("user", i), p))
		}
		p.setAnswer(always(true, outcome(coatcheck.OutcomeNone)))
		time.Sleep(accessLife)
		for range 300 {
			for i, value := range values {
				nodes[0].wantUser(fmt.Sprint("user", i), value)
			}
			time.Sleep(time.Second)
		}
		if n := len(p.sent); n > 100 {
			t.Errorf("asked %d times in five minutes", n)
		}
		p.setAnswer(nil)
		for range 120 {
			for i, value := range values {
				nodes[0].wantUser(fmt.Sprint("user", i), value)
			}
			time.Sleep(time.Second)
		}
		for i, value := range values {
			if live := nodes[0].wantUser(fmt.Sprint("user", i), value); live.Renewal.Failures != 0 {
				t.Fatalf("not refreshed afterwards: %+v", live.Renewal)
			}
		}
	})
}

// cost no goroutine meanwhile, and each has its turn without being asked for again.
func TestRenewalsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		values := map[string]string{}
		for i := range 3 * maxRenewals {
			name := fmt.Sprint("user", i)
			values[name] = nodes[0].enter(name, p)
		}
		var now, most atomic.Int32
		p.setAnswer(func(int) (bool, error) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(3 * time.Second)
			now.Add(-1)
			return false, nil
		})
		time.Sleep(accessLife - maxAhead)
		before := runtime.NumGoroutine()
		for name, value := range values {
			nodes[0].wantUser(name, value)
		}
		synctest.Wait()
		// An attempt is one, and one more holds its lease.
		if more := runtime.NumGoroutine() - before; more < maxRenewals || more > 2*maxRenewals+8 {
			t.Errorf("%d goroutines for %d sessions", more, len(values))
		}
		time.Sleep(3*3*time.Second + time.Millisecond)
		for name, value := range values {
			if live := nodes[0].wantUser(name, value); live.Renewal.Failures > 0 || time.Until(live.Tokens.AccessExpiry) < accessLife-time.Minute {
				t.Fatalf("%s has no new tokens: %+v", name, live.Renewal)
			}
		}
		if most.Load() != maxRenewals {
			t.Errorf("%d at a time", most.Load())
		}
		if n := p.uses(t); n != len(values) {
			t.Errorf("%d refreshes", n)
		}
	})
}

// A node that leaves finishes what it has begun, and lets go who waits for the rest.
func TestRenewalsThatNeverBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		leaving := nodes[0].beside(func(*Options) {})
		ctx, stop := context.WithCancel(t.Context())
		var running, waiting sync.WaitGroup
		running.Go(func() { leaving.Run(ctx) })
		p.setAnswer(func(int) (bool, error) { time.Sleep(5 * time.Second); return false, nil })
		values := map[string]string{}
		for i := range maxRenewals + 10 {
			name := fmt.Sprint("user", i)
			values[name] = nodes[0].enter(name, p)
		}
		time.Sleep(accessLife)
		began := time.Now()
		for name, value := range values {
			waiting.Go(func() { leaving.wantUser(name, value) })
		}
		synctest.Wait()
		stop()
		running.Wait()
		waiting.Wait()
		if d := time.Since(began); d < 5*time.Second || d > 6*time.Second {
			t.Errorf("it took %v", d)
		}
		if n := p.uses(t); n != maxRenewals {
			t.Errorf("%d refreshes", n)
		}
	})
}
