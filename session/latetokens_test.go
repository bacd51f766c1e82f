package session

import (
	"context"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Tokens that come after their session has ended are revoked, by their refresh token, unless
// another one stands on the same session of the provider's.
func TestTokensThatComeTooLate(t *testing.T) {
	for name, shared := range map[string]bool{"nobody's": false, "another session's too": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, p := newRefreshing(t, 2)
				s := atProvider("alice", "s1")
				s.Tokens = p.tokens(time.Now())
				value, err := nodes[0].beginAt(s, nodes[0].Now())
				if err != nil {
					t.Fatal(err)
				}
				if shared {
					nodes[0].mustBegin("alice", "s1")
				}
				p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
				time.Sleep(accessLife - maxAhead/2)
				live := nodes[0].wantUser("alice", value)
				time.Sleep(5 * time.Second)
				if err := nodes[1].end(t.Context(), nodes[1].holdingOf(nil, live), coatcheck.ReasonIdle); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				var want []coatcheck.Secret
				if !shared {
					want = append(want, "refresh 2")
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				if !slices.Equal(p.revoked, want) {
					t.Errorf("%d were revoked, want %d", len(p.revoked), len(want))
				}
			})
		})
	}
}

// Tokens that come while their session is being ended, after the last look at what is to be
// revoked, are revoked by whoever brings them.
func TestTokensThatComeAtTheEnd(t *testing.T) {
	for name, late := range map[string]string{"before the record is deleted": "delete", "before they are looked for": "find"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := &slowRegistry{}
				nodes, p := newRefreshing(t, 2, func(o *Options) { slow.Registry, o.Registry = o.Registry, slow })
				value := nodes[0].enter("alice", p)
				p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
				time.Sleep(accessLife - maxAhead/2)
				live := nodes[0].wantUser("alice", value)
				switch late {
				case "delete":
					nodes[0].probe.forget(func(_ context.Context, op, _ string) error {
						if op == "delete" {
							time.Sleep(30 * time.Second)
						}
						return nil
					})
				case "find":
					slow.find.Store(int64(30 * time.Second))
					nodes[0].probe.forget(func(_ context.Context, op, _ string) error {
						if op == "delete" {
							time.Sleep(10 * time.Second)
						}
						return nil
					})
				}
				time.Sleep(5 * time.Second)
				if err := nodes[1].End(t.Context(), http.Header{}, carrying(value), live, coatcheck.ReasonSignedOut); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)
				p.mu.Lock()
				defer p.mu.Unlock()
				if got := slices.Sorted(slices.Values(p.revoked)); !slices.Equal(got, []coatcheck.Secret{"refresh 1", "refresh 2"}) {
					t.Errorf("%d were revoked, want both", len(p.revoked))
				}
			})
		})
	}
}

// A slowRegistry answers searches late.
type slowRegistry struct {
	store.Registry
	find atomic.Int64 // for how long a search takes
}

func (r *slowRegistry) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	time.Sleep(time.Duration(r.find.Load()))
	return r.Registry.Find(ctx, q)
}

// Tokens of a session that another one of the same browser has replaced meanwhile may stand on
// one grant with those of the new one, and are left to expire.
func TestTokensOfAReplacedSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, p := newRefreshing(t, 1)
		r := nodes[0]
		value := r.enter("alice", p)
		p.setAnswer(func(int) (bool, error) { time.Sleep(10 * time.Second); return false, nil })
		time.Sleep(accessLife - maxAhead/2)
		r.wantUser("alice", value)
		time.Sleep(5 * time.Second)
		s := user("alice")
		s.Tokens = p.tokens(time.Now())
		if _, err := r.Begin(t.Context(), http.Header{}, carrying(value), s, r.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.revoked) != 0 {
			t.Errorf("%d were revoked", len(p.revoked))
		}
	})
}

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
