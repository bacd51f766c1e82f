package session

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Requests that come together after a long pause, as those of a page do, move the idle end,
// though new tokens are written down at the same moment.
func TestIdleEndWhileTokensAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		r := nodes[0]
		value := r.enter("alice", p)
		time.Sleep(idle - time.Minute) // the access token has ended
		// The store is slow, and does what comes later first.
		r.probe.forget(func(_ context.Context, op, _ string) error {
			switch op {
			case "touch":
				time.Sleep(time.Second)
			case "replace":
				time.Sleep(2 * time.Second)
			}
			return nil
		})
		var page sync.WaitGroup
		for range 4 {
			page.Go(func() { r.wantUser("alice", value) })
		}
		page.Wait()
		if p.uses(t) != 1 {
			t.Errorf("%d refreshes", p.uses(t))
		}
		if rec, ok := r.record(value); !ok || rec.TTL < idle-time.Minute {
			t.Errorf("the session ends in %v if nobody uses it, want %v", rec.TTL, idle)
		}
	})
}
