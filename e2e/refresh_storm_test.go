package e2e

import (
	"flag"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

var (
	stormRefreshes = flag.Int("storm-refreshes", 800, "`number` of refreshes in TestRefreshStorm")
	stormPeople    = flag.Int("storm-people", 100, "`number` of people in TestRefreshStorm, at most 1000")
	stormSeed      = flag.Uint64("storm-seed", 0, "`number` that decides what fails in TestRefreshStorm (0: a new one)")
)

// A-S7: access tokens live for 2 s, a tenth of the refreshes is answered with 503, a tenth of
// the connections is reset before anything is sent, and at times all are refused. Nobody is
// signed out, no answer is anything but 200, and no refresh token is sent twice.
func TestRefreshStorm(t *testing.T) {
	seed := *stormSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	c := startRefreshing(t, refreshOptions{life: 2 * time.Second})
	guests := signInGuests(t, c.url, *stormPeople)

	began, before := time.Now(), c.proxy.Passed()
	c.proxy.Fault(testenv.RefreshFaults{Seed: seed, Unavailable: 0.1, Reset: 0.1})
	l := startLoad(t, c.url, guests)
	cuts := 0
	for c.refreshed(before) < *stormRefreshes && !t.Failed() {
		time.Sleep(2*time.Second + time.Duration(random.Int64N(int64(2*time.Second))))
		c.proxy.Cut()
		cuts++
		time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
		c.proxy.Restore()
	}
	took := time.Since(began)
	c.proxy.Fault(testenv.RefreshFaults{})
	l.awaitMore(t, http.StatusOK, 2*len(guests))
	l.stop(t, "refreshes fail now and then")
	checkServed(t, c.url, guests)

	passed, seen := c.proxy.Passed(), c.provider.Refreshes()
	t.Logf("%d refreshes of %d people in %v, %.0f a second; before that %d × 503, %d connections reset, %d times all refused",
		passed.Total, len(guests), took.Round(time.Second), float64(passed.Total)/took.Seconds(), passed.Unavailable, passed.Reset, cuts)
	c.checkOnce(t)
	if seen.Refused != 0 {
		t.Errorf("the provider has refused %d refreshes", seen.Refused)
	}
	if passed.Unavailable == 0 || passed.Reset == 0 {
		t.Errorf("nothing has failed: %+v", passed)
	}
	c.checkLogs(t, `"outcome":"unknown"`, "refresh_lost")
}
