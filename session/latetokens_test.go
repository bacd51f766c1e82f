package session

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

// That a session was replaced is known to whoever brings its tokens as soon as it is marked,
// and also where no tombstones are kept: they are left to expire, for the new session may stand
// on one grant with them.
func TestTokensOfASessionThatIsBeingReplaced(t *testing.T) {
	for name, tombstones := range map[string]time.Duration{"no tombstone yet": time.Hour, "never a tombstone": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 1, func(o *Options) { o.Tombstones = tombstones })
				r := nodes[0]
				value := r.enter("alice", p)
				p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
				time.Sleep(accessLife - maxAhead/2)
				r.wantUser("alice", value)
				time.Sleep(5 * time.Second)
				r.probe.forget(func(_ context.Context, op, key string) error {
					if op == "delete" || op == "create" && strings.HasPrefix(key, "tombstone-") {
						time.Sleep(20 * time.Second)
					}
					return nil
				})
				s := user("alice")
				s.Tokens = p.tokens(time.Now())
				if _, err := r.Begin(t.Context(), http.Header{}, carrying(value), s, r.Now()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				p.uses(t)
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.sent) != 1 || len(p.revoked) != 0 {
					t.Errorf("%d were sent, and %d revoked: want one, and none", len(p.sent), len(p.revoked))
				}
			})
		})
	}
}

// Tokens that took longer to be written down than an attempt may take are told from those of a
// session that goes on, all the same.
func TestTokensThatWereLongInComing(t *testing.T) {
	for name, ending := range map[string]bool{"its session is being ended": true, "its session goes on": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 1)
				r := nodes[0]
				value := r.enter("alice", p)
				time.Sleep(accessLife - maxAhead/2)
				// The token is sent, and nothing can be written until the attempt is over.
				p.setAnswer(func(int) (bool, error) { r.probe.forget(failing("replace")); return false, nil })
				live := r.wantUser("alice", value)
				time.Sleep(refreshLimit + 10*time.Second)
				want := 0
				if ending {
					listing := r.listing(live.Session, live.handle, live.verifier)
					if _, err := r.memory.End(t.Context(), listing, string(coatcheck.ReasonSignedOut)); err != nil {
						t.Fatal(err)
					}
					want = 1
				}
				r.probe.forget(nil)
				time.Sleep(5 * time.Second) // less than until the entry is reaped
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.sent) != 1 || len(p.revoked) != want {
					t.Errorf("%d were sent, and %d revoked: want one, and %d", len(p.sent), len(p.revoked), want)
				}
			})
		})
	}
}

// Tokens that come while their node is stopping, for a session that has ended, are revoked.
func TestTokensThatComeWhileTheNodeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		r := nodes[0].beside(func(*Options) {})
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { defer close(stopped); r.Run(ctx) }()
		value := r.enter("alice", p)
		p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
		time.Sleep(accessLife - maxAhead/2)
		live := r.wantUser("alice", value)
		time.Sleep(time.Second)
		if err := nodes[0].end(t.Context(), nodes[0].holdingOf(nil, live), coatcheck.ReasonIdle); err != nil {
			t.Fatal(err)
		}
		stop()
		<-stopped
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.sent) != 1 || len(p.revoked) != 1 {
			t.Errorf("%d were sent, and %d revoked: want one each", len(p.sent), len(p.revoked))
		}
	})
}
