package session

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
)

// The provider is asked at an interval whether it still vouches for somebody.
func TestRecheck(t *testing.T) {
	every := func(o *Options) { o.Recheck = time.Minute }
	// use uses the session for so long, once a second.
	use := func(r *rig, value string, d time.Duration) (last *Live) {
		for range int(d / time.Second) {
			live, err := r.load(value)
			if err != nil {
				return nil
			}
			last = live
			time.Sleep(time.Second)
		}
		return last
	}
	t.Run("changes take effect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 2, every)
			value := nodes[0].enter("alice", p)
			p.groups = []string{"changed"}
			live := use(nodes[1], value, 70*time.Second)
			if live == nil || !slices.Equal(live.Identity.Groups, []string{"changed"}) || p.checks != 1 || len(p.sent) != 0 {
				t.Errorf("%+v, %d checks, %d refreshes", live, p.checks, len(p.sent))
			}
		})
	})
	t.Run("a provider that is down ends nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			value := nodes[0].enter("alice", p)
			p.answer = always(true, outcome(coatcheck.OutcomeNone))
			if use(nodes[0], value, 5*time.Minute) == nil {
				t.Error("the session has ended")
			}
			if p.checks > 5*60/int(renewalPause/time.Second) || p.checks < 3 {
				t.Errorf("%d checks in four minutes", p.checks)
			}
		})
	})
	t.Run("refused, and there is a refresh token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			value := nodes[0].enter("alice", p)
			first := true
			p.answer = func(int) (bool, error) {
				if first {
					first = false
					return true, outcome(coatcheck.OutcomeRefused)
				}
				return false, nil
			}
			if live := use(nodes[0], value, 70*time.Second); live == nil || live.Tokens.Access != "access 2" || p.uses(t) != 1 {
				t.Errorf("%+v", live)
			}
		})
	})
	t.Run("refused, and there is none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, p := newRefreshing(t, 1, every)
			s := user("alice")
			s.Tokens = coatcheck.Tokens{Access: "access", AccessExpiry: time.Now().Add(accessLife)}
			h := map[string][]string{}
			if _, err := nodes[0].Begin(t.Context(), h, carrying(), s, nodes[0].Now()); err != nil {
				t.Fatal(err)
			}
			value := nodes[0].cookieIn(h)
			p.answer = always(true, outcome(coatcheck.OutcomeRefused))
			if use(nodes[0], value, 70*time.Second); nodes[0].ended(value) != coatcheck.ReasonRefreshRefused {
				t.Errorf("ended for %q", nodes[0].ended(value))
			}
		})
	})
}
