package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/redis"
)

// A keyedCluster is a cluster in which each node has a file of its own with the key ring, as
// on machines of their own, and an operator has another one, which is handed out.
type keyedCluster struct {
	*cluster
	file string // the operator's
	kept store.Backend
}

func startKeyed(t *testing.T, o clusterOptions) *keyedCluster {
	t.Helper()
	k := &keyedCluster{}
	o.each = func(name string, n *nodeOptions) {
		k.file = n.keys
		n.keys = filepath.Join(t.TempDir(), "keys.json")
		copyFile(t, k.file, n.keys)
		n.more += "\nnode: " + name + "\n"
	}
	k.cluster = startCluster(t, o)
	kept, err := redis.Open(t.Context(), redis.Options{URL: k.redis.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	k.kept = kept
	return k
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(data))
}

// handOut gives a node the operator's file, whole.
func (k *keyedCluster) handOut(name string) {
	k.t.Helper()
	file := k.nodes[name].options.keys
	copyFile(k.t, k.file, file+".new")
	if err := os.Rename(file+".new", file); err != nil {
		k.t.Fatal(err)
	}
}

// key runs coatcheck key with a node's key ring, or the operator's, and returns what it says.
func (k *keyedCluster) key(args ...string) (string, error) {
	out, err := exec.Command(program(k.t), append([]string{"key"}, args...)...).CombinedOutput()
	return string(out), err
}

// rotate adds a key to the operator's file, which seals at once.
func (k *keyedCluster) rotate() {
	k.t.Helper()
	ring, err := seal.ReadRing(k.file)
	if err == nil {
		ring, err = ring.Rotated(time.Now())
	}
	if err == nil {
		err = ring.Write(k.file)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// keyIDs returns the operator's keys, the newest first.
func (k *keyedCluster) keyIDs() []string {
	k.t.Helper()
	ring, err := seal.ReadRing(k.file)
	if err != nil {
		k.t.Fatal(err)
	}
	return ring.KeyIDs()
}

// sealedBy returns which key has sealed a guest's session.
func (k *keyedCluster) sealedBy(g guest) string {
	k.t.Helper()
	rec, err := k.kept.Get(k.t.Context(), handle(g.cookie))
	if err != nil {
		k.t.Fatal(err)
	}
	id, ok := seal.KeyID(rec.Value)
	if !ok {
		k.t.Fatalf("the session of %s has an unknown format", g.user)
	}
	return id
}

// says tells how many lines of a node's log have the message.
func (n *node) says(msg string) int { return strings.Count(n.Output(), `"msg":"`+msg) }

// startSignIns has people sign in, one after the other, until stop is called.
func startSignIns(t *testing.T, site string) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	count := 0
	var done sync.WaitGroup
	done.Go(func() {
		for ; ctx.Err() == nil; count++ {
			if _, err := newGuest(t, testenv.NewBrowser(t), site, fmt.Sprintf("u%d", 500+count%500)); err != nil {
				t.Errorf("a sign-in failed: %v", err)
			}
		}
	})
	stop = func() int { cancel(); done.Wait(); return count }
	t.Cleanup(func() { stop() })
	return stop
}

// A-C14: a key is rotated on three nodes while people sign in and use their sessions. It
// seals when all nodes have it and not before, every session in use is sealed by it, the old
// key is retired, and nobody notices; but for somebody whose session the operator gave up.
func TestKeyRotation(t *testing.T) {
	k := startKeyed(t, clusterOptions{third: true, more: "session: {idle_timeout: 3m, absolute_timeout: 1h}\n"})
	guests := signInGuests(t, k.url, 30)
	idle := signInGuest(t, k.url, "alice")
	l := startLoad(t, k.url, guests)
	stopSignIns := startSignIns(t, k.url)
	l.awaitMore(t, http.StatusOK, len(guests))

	if out, err := k.key("rotate", k.file, "--activate-after", "3s"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	due := time.Now().Add(3 * time.Second)
	fresh, old := k.keyIDs()[0], k.keyIDs()[1]
	retire := func(more ...string) (string, error) {
		return k.key(append([]string{"retire", old, "--config", k.nodes["node-a"].config}, more...)...)
	}
	for _, name := range []string{"node-a", "node-b"} {
		k.handOut(name)
		await(t, name+" to read the key", func() bool { return k.nodes[name].says("the key ring was read again") == 1 })
		l.awaitMore(t, http.StatusOK, len(guests))
	}
	time.Sleep(time.Until(due))
	// They warn of what has lasted when they hear of each other the next time.
	const lasted = 2 * time.Minute
	awaitWithin(t, lasted, "a node to say what it waits for", func() bool {
		return strings.Contains(k.nodes["node-a"].Output(), `"nodes_without":["node-c"]`)
	})
	awaitWithin(t, lasted, "node-c to say what it lacks", func() bool {
		return k.nodes["node-c"].says("other nodes have keys that this one lacks") > 0
	})
	if by := k.sealedBy(signInGuest(t, k.url, "bob")); by != old {
		t.Errorf("%s seals, and node-c does not have it", by)
	}
	if out, err := retire(); err == nil || !strings.Contains(out, "still seals on these nodes: node-a, node-b, node-c") {
		t.Errorf("the key that seals: %v, %s", err, out)
	}

	k.handOut("node-c")
	for _, n := range k.nodes {
		await(t, "the new key to seal", func() bool { return n.says("another key seals from now on") == 1 })
	}
	if by := k.sealedBy(signInGuest(t, k.url, "bob")); by != fresh {
		t.Errorf("%s seals, not the new key", by)
	}
	await(t, "all sessions in use to be sealed anew", func() bool {
		for _, g := range guests {
			if k.sealedBy(g) != fresh {
				return false
			}
		}
		return true
	})
	if by := k.sealedBy(idle); by != old {
		t.Errorf("a session that nobody used is sealed by %s", by)
	}

	// One session that nobody uses is left, and those of the people who signed in and went.
	before, err := os.ReadFile(k.nodes["node-a"].options.keys)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := retire(); err == nil || !strings.Contains(out, " sessions are still sealed by "+old) {
		t.Errorf("there are sessions that the key has sealed: %v, %s", err, out)
	}
	if after, err := os.ReadFile(k.nodes["node-a"].options.keys); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key ring was changed: %v", err)
	}
	if out, err := retire("--yes"); err != nil || !strings.Contains(out, "Retired the key "+old) {
		t.Errorf("%v: %s", err, out)
	}
	copyFile(t, k.nodes["node-a"].options.keys, k.file)
	for _, name := range []string{"node-b", "node-c"} {
		l.awaitMore(t, http.StatusOK, len(guests))
		k.handOut(name)
	}
	for name, n := range k.nodes {
		await(t, name+" to have retired the key", func() bool { return n.says("the key ring was read again") == 2 })
	}
	l.awaitMore(t, http.StatusOK, 3*len(guests))
	t.Logf("%d people signed in meanwhile", stopSignIns())
	l.stop(t, "a key is rotated")
	checkServed(t, k.url, guests)
	checkReason(t, idle, newSender(t).mustSend(t, request{url: k.url + "/whoami", cookie: idle.asCookie(), header: asScript}), coatcheck.ReasonKeyRetired)
}

// Somebody may have read a key: what the documents say is typed without a pause. The people
// whose sessions it has sealed are signed out, and sign in again, whatever the limit.
func TestLeakedKey(t *testing.T) {
	t.Parallel() // it waits, mostly
	k := startKeyed(t, clusterOptions{more: "session: {limits: {per_user: 2, on_limit: deny}}\n"})
	before := []guest{signInGuest(t, k.url, "bob"), signInGuest(t, k.url, "bob")}
	if out, err := k.key("rotate", k.file, "--activate-after", "0s"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fresh, old := k.keyIDs()[0], k.keyIDs()[1]
	for name := range k.nodes {
		k.handOut(name)
	}
	config := k.nodes["node-a"].config
	if out, err := k.key("retire", old, "--config", config, "--yes"); err != nil || !strings.Contains(out, "2 of 2 sessions were sealed by it and have ended") {
		t.Fatalf("%v: %s", err, out)
	}
	copyFile(t, k.nodes["node-a"].options.keys, k.file)
	k.handOut("node-b")
	for range before {
		if by := k.sealedBy(signInGuest(t, k.url, "bob")); by != fresh {
			t.Errorf("%s seals", by)
		}
	}
	for _, g := range before {
		checkReason(t, g, newSender(t).mustSend(t, request{url: k.url + "/whoami", cookie: g.asCookie(), header: asScript}), coatcheck.ReasonKeyRetired)
	}
}

// A-Z9: fifty key rings are handed out one after the other under load, each with a new key
// that seals at once, and a file that can't be used is among them.
func TestKeysReloadUnderLoad(t *testing.T) {
	const reloads, bad = 50, 25
	k := startKeyed(t, clusterOptions{more: "session: {idle_timeout: 60s, absolute_timeout: 1h}\n"})
	guests := signInGuests(t, k.url, 20)
	l := startLoad(t, k.url, guests)
	l.awaitMore(t, http.StatusOK, len(guests))
	began, served := time.Now(), l.count(http.StatusOK)
	stopSignIns := startSignIns(t, k.url)
	for i := range reloads {
		if i == bad {
			n := k.nodes["node-b"]
			writeFile(t, n.options.keys, `{"version": 1, "keys": [`)
			await(t, "the alarm", func() bool { return n.metric("coatcheck_keys_reload_failed") == 1 })
			await(t, "the log to say so", func() bool { return n.says("the key ring's file can't be used") > 0 })
			l.awaitMore(t, http.StatusOK, 2*len(guests))
		}
		k.rotate()
		for name, n := range k.nodes {
			k.handOut(name)
			await(t, name+" to read its keys", func() bool { return n.says("the key ring was read again") > i })
		}
	}
	for name, n := range k.nodes {
		if got := n.metric("coatcheck_keys_reload_failed"); got != 0 {
			t.Errorf("%s: the alarm is still on", name)
		}
	}
	newest := k.keyIDs()[0]
	await(t, "all sessions to be sealed by the newest key", func() bool {
		for _, g := range guests {
			if k.sealedBy(g) != newest {
				return false
			}
		}
		return true
	})
	took := time.Since(began)
	t.Logf("%d people signed in meanwhile", stopSignIns())
	l.stop(t, fmt.Sprintf("%d reloads, %.0f requests a second", reloads, float64(l.count(http.StatusOK)-served)/took.Seconds()))
	checkServed(t, k.url, guests)
}
