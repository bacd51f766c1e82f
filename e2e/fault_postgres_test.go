package e2e

import (
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-Z3: PostgreSQL restarts while people are busy, and then is killed for good. The standby
// is synchronous, so that nothing that was acknowledged is lost, and no end of a session.
func TestPostgresRestartAndFailover(t *testing.T) {
	primary, standby := testenv.StartPostgresPair(t, testenv.PostgresOptions{})
	c := startCluster(t, clusterOptions{
		store: postgresStore(primary, standby), more: uses,
		each: func(name string, o *nodeOptions) {
			if name == "node-a" {
				migrate(t, *o)
			}
		},
	})
	guests := signInGuests(t, c.url, people)
	leaving, staying := guests[:6], guests[6:]
	s := newSender(t)

	l := startLoad(t, c.url, staying, http.StatusServiceUnavailable)
	l.awaitMore(t, http.StatusOK, len(staying))
	began := time.Now()
	primary.Stop()
	primary.Restart()
	t.Logf("PostgreSQL has restarted after %v", time.Since(began).Round(10*time.Millisecond))
	l.recovered(t, began)
	l.stop(t, "PostgreSQL restarts")
	checkServed(t, c.url, staying)

	l = startLoad(t, c.url, staying, http.StatusServiceUnavailable)
	l.awaitMore(t, http.StatusOK, len(staying))
	for i, g := range leaving {
		c.signOut(t, s, c.nodes[c.names()[i%2]], g)
	}
	primary.Kill()
	killed := time.Now()
	standby.Promote()
	t.Logf("the standby is the primary after %v", time.Since(killed).Round(10*time.Millisecond))
	l.recovered(t, killed)
	for _, n := range c.nodes {
		for _, g := range leaving {
			checkEnded(t, s, c.at(n, request{url: "/whoami"}), g, coatcheck.ReasonSignedOut)
		}
	}
	l.awaitMore(t, http.StatusOK, len(staying))
	l.stop(t, "the primary is killed and the standby promoted")
	checkServed(t, c.url, staying)
	signInGuest(t, c.url, leaving[0].user)
}

// migrate makes the tables of a node that is about to start.
func migrate(t *testing.T, o nodeOptions) {
	t.Helper()
	n := newNode(t, o)
	if out, err := exec.Command(program(t), "store", "migrate", "--config", n.config).CombinedOutput(); err != nil {
		t.Fatalf("store migrate: %v\n%s", err, out)
	}
}
