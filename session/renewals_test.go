package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
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

// A provider that is down for everybody is asked ever more seldom, whatever number of
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

// A gate is open again after an answer, whatever that says.
func TestGateOpens(t *testing.T) {
	for name, answer := range map[string]func(*gate){
		"a success": (*gate).passed,
		"a refusal": func(g *gate) { g.failed(coatcheck.OutcomeRefused) },
	} {
		var g gate
		for range gateFailures {
			g.failed(coatcheck.OutcomeNone)
		}
		if g.enter(instantOf(time.Now())) {
			t.Fatal("it is open")
		}
		answer(&g)
		for range 2 {
			if !g.enter(instantOf(time.Now())) {
				t.Errorf("closed after %s", name)
			}
		}
	}
}

// New tokens open the gate for everybody.
func TestGateOpensByARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		value := nodes[0].enter("alice", p)
		for range gateFailures - 1 {
			nodes[0].renewal.refreshes.failed(coatcheck.OutcomeNone)
		}
		time.Sleep(accessLife)
		nodes[0].wantUser("alice", value)
		if n := nodes[0].renewal.refreshes.failures; n != 0 {
			t.Errorf("%d failures", n)
		}
	})
}

// Who is waited for by many has one place in the queue of those.
func TestUrgentOnce(t *testing.T) {
	r := newRig(t)
	r.renewal.busy = maxRenewals
	for _, n := range []need{needRefresh, needFresh, needFresh} {
		r.startRenewal(ticket{}, &Live{handle: "x"}, n)
	}
	if n := len(r.renewal.urgent); n != 1 {
		t.Errorf("%d places", n)
	}
}

// However many sessions want new tokens at once, few are asked for at a time, the others
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

// wantNoRenewals fails the test if an attempt is under way or queued.
func (r *rig) wantNoRenewals() {
	r.t.Helper()
	synctest.Wait()
	r.renewal.mu.Lock()
	defer r.renewal.mu.Unlock()
	if busy, all := r.renewal.busy, len(r.renewal.attempts); busy != 0 || all != 0 {
		r.t.Errorf("%d attempts, %d of them under way", all, busy)
	}
}

// A provider that does not answer costs those their session that had asked it by the time
// that is known, and not those that wait for their turn.
func TestGateOfTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		var values []string
		for i := range 4 * maxRenewals {
			values = append(values, nodes[0].enter(fmt.Sprint("user", i), p))
		}
		p.setAnswer(func(int) (bool, error) { time.Sleep(30 * time.Second); return true, outcome(coatcheck.OutcomeUnknown) })
		time.Sleep(accessLife - maxAhead/2)
		for i, value := range values {
			nodes[0].wantUser(fmt.Sprint("user", i), value)
		}
		time.Sleep(10 * time.Minute)
		if n := p.uses(t); n < maxRenewals || n > maxRenewals+gateFailures {
			t.Errorf("%d of %d refresh tokens were sent to a provider that has answered none of them", n, len(values))
		}
		nodes[0].wantNoRenewals()
	})
}

// Whoever is waited for comes before all who can wait, also if nobody waited for it when it
// came.
func TestUrgentFirst(t *testing.T) {
	for name, queued := range map[string]bool{"comes later": false, "is there already": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 1)
				alice := nodes[0].enter("alice", p)
				time.Sleep(maxAhead)
				values := map[string]string{}
				for i := range 30 * maxRenewals {
					name := fmt.Sprint("user", i)
					values[name] = nodes[0].enter(name, p)
				}
				p.setAnswer(func(int) (bool, error) { time.Sleep(3 * time.Second); return false, nil })
				time.Sleep(accessLife - maxAhead - time.Second/2)
				for name, value := range values {
					nodes[0].wantUser(name, value)
				}
				if queued {
					nodes[0].wantUser("alice", alice)
				}
				time.Sleep(time.Second)
				began := time.Now()
				var all sync.WaitGroup
				for range 10 {
					all.Go(func() {
						if live := nodes[0].wantUser("alice", alice); !live.Tokens.AccessExpiry.After(time.Now()) {
							t.Error("served with an access token that has ended")
						}
					})
				}
				all.Wait()
				if d := time.Since(began); d > 6*time.Second {
					t.Errorf("she waited for %v", d)
				}
				nodes[0].renewal.mu.Lock()
				defer nodes[0].renewal.mu.Unlock()
				if n := len(nodes[0].renewal.urgent); n != 0 {
					t.Errorf("%d are urgent still", n)
				}
			})
		})
	}
}

// An attempt that panics leaves nothing behind, and those after it are made.
func TestRenewalPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		nodes, p := newRefreshing(t, 1, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		values := map[string]string{}
		for i := range 2 * maxRenewals {
			name := fmt.Sprint("user", i)
			values[name] = nodes[0].enter(name, p)
		}
		p.setAnswer(func(int) (bool, error) { time.Sleep(time.Second); panic(errors.New("a secret")) })
		time.Sleep(accessLife)
		var all sync.WaitGroup
		for name, value := range values {
			all.Go(func() { nodes[0].wantUser(name, value) })
		}
		all.Wait()
		synctest.Wait()
		nodes[0].wantNoRenewals()
		if n := p.uses(t); n != len(values) {
			t.Errorf("%d refreshes", n)
		}
		wantPanics(t, out.String(), "panic while a session was renewed", "TestRenewalPanics", len(values))
	})
}

// wantPanics fails the test unless the log leads to the defect as often as it did something,
// and says nothing of what was said there.
func wantPanics(t *testing.T, log, message, where string, times int) {
	t.Helper()
	if n := strings.Count(log, message); n != times {
		t.Errorf("%q is logged %d times, want %d", message, n, times)
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, message) && (!strings.Contains(line, "type=*errors.errorString") || !strings.Contains(line, where)) {
			t.Fatalf("the log does not lead to the defect: %s", line)
		}
	}
	if strings.Contains(log, "a secret") { // invariant 13
		t.Error("what a panic said is in the log")
	}
}
