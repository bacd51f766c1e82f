package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A session in use slides on over all nodes, and so does its place on the list: after as many
// touches as half an hour of idle timeout has in an hour, it is alive and listed, and the
// list agrees with the store. Then nobody uses it any more, and it ends.
func TestInUseIsListed(t *testing.T) {
	t.Parallel() // it waits, mostly
	const (
		idle    = 4 * time.Second
		touches = 120        // one every 30 s for an hour
		every   = idle / 20  // how often a use is written down
		uses    = every / 10 // how often the session is used
		runs    = touches * every
	)
	port := testenv.FreePort(t)
	c := startCluster(t, clusterOptions{
		port:   port,
		third:  true,
		client: startDevProvider(t, "http://"+testenv.Loopback(port)),
		more:   fmt.Sprintf("session: {idle_timeout: %s}\n", idle),
	})
	operator := c.operator()
	s := newSender(t)
	alice := signInGuest(t, c.url, "alice")

	audited := make(chan string, 1)
	go func() {
		said, clean := auditStore(t, c.nodes["node-a"])
		if !clean {
			said = "not clean: " + said
		}
		audited <- strings.TrimSpace(said)
	}()
	last, renewals, looks := time.Time{}, 0, 0
	ends := time.Now().Add(runs)
	for used := time.Now(); time.Now().Before(ends); time.Sleep(uses) {
		page, err := s.send(request{url: c.url + "/whoami", cookie: alice.asCookie(), header: asScript})
		if err != nil {
			t.Fatal(err)
		}
		if stoodStill(t, used, idle) {
			return
		}
		used = time.Now()
		if err := alice.isServed(page); err != nil {
			t.Fatalf("in use: %v", err)
		}
		list := sessionsOf(t, operator, "alice")
		looks++
		if stoodStill(t, used, idle) {
			return
		}
		if len(list) != 1 || list[0].Ref != refOfGuest(alice) || list[0].Ending != "" {
			t.Fatalf("in use, and the list has %v", list)
		}
		if seen := list[0].Seen; seen.After(last) {
			last = seen
			renewals++
		}
		if age := time.Since(last); age > idle/2 {
			t.Errorf("in use, and last seen %v ago, says the list", age)
		}
	}
	t.Logf("%d renewals seen", renewals)
	if renewals < min(touches, looks)/2 {
		t.Errorf("only %d renewals in %v, in which the list was looked at %d times", renewals, runs, looks)
	}
	if said, want := <-audited, "sessions listed: 1, kept: 1, differences: 0"; said != want {
		t.Errorf("the audit says %q, want %q", said, want)
	}

	time.Sleep(idle + every)
	checkEnded(t, s, request{url: c.url + "/whoami"}, alice, coatcheck.ReasonIdle)
	await(t, "the list to be empty", func() bool { return len(sessionsOf(t, operator, "alice")) == 0 })
	if said, clean := auditStore(t, c.nodes["node-a"]); !clean || strings.TrimSpace(said) != "sessions listed: 0, kept: 0, differences: 0" {
		t.Errorf("in the end the audit says %q", said)
	}
}

// stoodStill tells whether so much time has passed since the last use that a session may have
// ended for it.
func stoodStill(t *testing.T, used time.Time, idle time.Duration) bool {
	t.Helper()
	gap := time.Since(used)
	if gap > idle/4 {
		t.Logf("this machine stood still for %v, which ends sessions", gap)
	}
	return gap > idle/4
}
