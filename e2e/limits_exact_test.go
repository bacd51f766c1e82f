package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// refOf returns the name of a session in lists.
func refOf(s sitting) coatcheck.Ref {
	handle, _, _ := strings.Cut(s.cookie, ".")
	return coatcheck.MakeRef(handle)
}

// policies are what can happen at a limit, as they stand in configurations.
var policies = []struct {
	name    string
	onLimit store.OnLimit
}{{"deny", store.Deny}, {"evict_oldest", store.EvictOldest}, {"evict_idle", store.EvictIdle}}

// Invariant 6, A-S4, on every registry and over three nodes.
func TestExactLimits(t *testing.T) {
	for _, e := range engines() {
		t.Run(e.name, func(t *testing.T) {
			backends := e.start(t, direct)
			for _, p := range policies {
				t.Run(p.name, func(t *testing.T) {
					testCrowd(t, backends, store.Limits{PerUser: 3, OnLimit: p.onLimit}, 1000)
				})
			}
		})
	}
}

// testCrowd lets one person sign in that often at the same moment. After each
// acknowledgement no more sessions can be used than the limit allows, and in the end as
// many as that.
func testCrowd(t testing.TB, backends []store.Backend, limits store.Limits, crowd int) {
	s := newFleet(t, backends, fleetOptions{limits: limits})
	var denied atomic.Int64
	began := time.Now()
	atOnce(crowd, func(i int) {
		_, err := s.signIn(t.Context(), i, "alice", fmt.Sprint("app-", i%4), "")
		switch {
		case err == nil:
			s.ledger.look(t)
		case limited(err) && limits.OnLimit == store.Deny:
			denied.Add(1)
		default:
			t.Errorf("a sign-in: %v", err)
		}
	})
	want := limits.PerUser
	usable, err := s.ledger.agreed(t, false)
	if err != nil || len(usable) != want {
		t.Errorf("%d can be used in the end, want %d; %v", len(usable), want, err)
	}
	acknowledged := crowd - int(denied.Load())
	if limits.OnLimit == store.Deny && acknowledged != want {
		t.Errorf("%d sign-ins succeeded, want %d", acknowledged, want)
	}
	t.Logf("%d sign-ins acknowledged, %d denied, in %s; %d looks, at most %d could be used at once",
		acknowledged, denied.Load(), time.Since(began).Round(time.Millisecond), s.ledger.looks, s.ledger.most)
}

var _ = slices.Clone[[]int]
