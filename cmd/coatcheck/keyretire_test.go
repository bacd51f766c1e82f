package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

// An estate is what an operator looks after: a configuration, a key ring with an old key that
// has sealed sessions and a new one that is due, and the store, which no node has open.
type estate struct {
	t            *testing.T
	config, keys string
	old, newer   string
	cookies      []http.Header // of bob's sessions
}

const estateConfig = `
public_url: https://app.example.com
keys: {file: keys.json}
store: {driver: sqlite, sqlite: {file: coatcheck.db}}
session: {limits: {per_user: 2, on_limit: deny}}
providers: [{name: corp, issuer: "https://idp.example.com", client_id: web}]
routes: [{path: /, upstream: "http://127.0.0.1:8080"}]
`

func newEstate(t *testing.T) *estate { return newEstateOf(t, estateConfig) }

// newSharedEstate returns one whose store is for several nodes.
func newSharedEstate(t *testing.T) *estate {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	kept := fmt.Sprintf("store: {driver: redis, redis: {url: %q, timeout: 10s}}", server.URL())
	return newEstateOf(t, strings.Replace(estateConfig, "store: {driver: sqlite, sqlite: {file: coatcheck.db}}", kept, 1))
}

func newEstateOf(t *testing.T, text string) *estate {
	t.Helper()
	dir := t.TempDir()
	e := &estate{t: t, config: filepath.Join(dir, "coatcheck.yaml"), keys: filepath.Join(dir, "keys.json")}
	for file, content := range map[string]string{e.config: text, filepath.Join(dir, "coatcheck.db"): ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ring := seal.NewRing()
	writeRing(t, e.keys, ring)
	e.with(func(m *session.Manager) {
		for range 2 {
			if err := e.signIn(m); err != nil {
				t.Fatal(err)
			}
		}
	})
	next := rotated(t, ring, time.Now().Add(-time.Second))
	writeRing(t, e.keys, next)
	e.old, e.newer = ring.Current(), next.KeyIDs()[0]
	return e
}

// with opens the sessions for as long as act takes.
func (e *estate) with(act func(*session.Manager)) {
	e.t.Helper()
	o, err := operate(e.t.Context(), e.config)
	if err != nil {
		e.t.Fatal(err)
	}
	o.ring.Promote(time.Now(), nil)
	act(o.sessions("node-1", nil))
	if err := o.Close(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *estate) signIn(m *session.Manager) error {
	h := http.Header{}
	_, err := m.Begin(e.t.Context(), h, http.Header{}, &coatcheck.Session{
		Provider: "corp", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{Issuer: "https://idp.example.com", Subject: "bob"},
	}, m.Now())
	if err == nil {
		pair, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
		e.cookies = append(e.cookies, http.Header{"Cookie": {pair}})
	}
	return err
}

// retire runs coatcheck key retire of the old key, and returns what it says.
func (e *estate) retire(code int, args ...string) string {
	e.t.Helper()
	var out bytes.Buffer
	if got := run(e.t.Context(), append([]string{"key", "retire", e.old}, args...), console{&out, &out}); got != code {
		e.t.Fatalf("key retire %v: exit status %d, want %d: %s", args, got, code, out.String())
	}
	return out.String()
}

func (e *estate) wantSaid(said, want string) {
	e.t.Helper()
	if !strings.Contains(said, want) {
		e.t.Errorf("it says %q, want %q", said, want)
	}
}

// wantEnded fails the test unless bob's two sessions have ended, and their places are free.
func (e *estate) wantEnded() {
	e.t.Helper()
	e.with(func(m *session.Manager) {
		for _, h := range e.cookies {
			if reason := m.Ended(e.t.Context(), h); reason != coatcheck.ReasonKeyRetired {
				e.t.Errorf("a session ended for %q", reason)
			}
		}
		for range 2 {
			if err := e.signIn(m); err != nil {
				e.t.Errorf("bob signs in again: %v", err)
			}
		}
	})
}

// behind is a clock that is not on time.
type behind struct {
	store.Clock
	by time.Duration
}

func (b *behind) Now(ctx context.Context) (time.Time, error) {
	now, err := b.Clock.Now(ctx)
	return now.Add(-b.by), err
}

// node returns what has a node report that it seals with a key. It has been on the list for
// so long already.
func (e *estate) node(listed time.Duration) (report func(seals string)) {
	e.t.Helper()
	o, err := operate(e.t.Context(), e.config)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = o.Close() })
	m, clock := newMembers(o.ring, o.store, slog.New(slog.DiscardHandler)), &behind{o.store, listed}
	m.Clock = clock
	report = func(seals string) {
		e.t.Helper()
		m.Self = func() cluster.Member { return cluster.Member{Node: "a", Keys: o.ring.KeyIDs(), Seals: seals} }
		if _, err := m.Report(e.t.Context()); err != nil {
			e.t.Fatal(err)
		}
	}
	report(e.old)
	clock.by = 0
	return report
}

// long is for how long a node has been listed that knows of all others.
const long = 25 * time.Second

// A listener calls heard with what is written.
type listener struct{ heard func(string) }

func (l listener) Write(p []byte) (int, error) { l.heard(string(p)); return len(p), nil }

// A key that came into the file while nodes were waited for stays in it.
func TestRetireKeepsAnotherKey(t *testing.T) {
	e := newSharedEstate(t)
	report := e.node(long)
	report(e.old)
	var third string
	var said strings.Builder
	hear := func(text string) {
		said.WriteString(text)
		if third != "" || !strings.HasPrefix(text, "Waiting ") {
			return
		}
		ring, err := seal.ReadRing(e.keys)
		if err != nil {
			t.Fatal(err)
		}
		next := rotated(t, ring, time.Now().Add(time.Hour))
		writeRing(t, e.keys, next)
		third = next.KeyIDs()[0]
		report(e.newer)
	}
	con := console{listener{hear}, listener{hear}}
	if code := run(t.Context(), []string{"key", "retire", e.old, "--config", e.config, "--yes"}, con); code != exitOK {
		t.Fatalf("exit status %d: %s", code, said.String())
	}
	ring, err := seal.ReadRing(e.keys)
	if err != nil {
		t.Fatal(err)
	}
	if ids := ring.KeyIDs(); third == "" || !slices.Equal(ids, []string{third, e.newer}) {
		t.Errorf("the file has the keys %q, want %q and %q", ids, third, e.newer)
	}
}

// Nor does it change a file in which the key is due to seal by now, or is retired.
func TestRetireChecksTheFileAgain(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now().Add(-time.Second))
	retired, err := second.Retired(first.Current(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for want, ring := range map[string]*seal.Ring{"is the key that seals now": first, "is retired already": retired} {
		file := filepath.Join(t.TempDir(), "keys.json")
		writeRing(t, file, ring)
		err := keyRetireCmd{Key: first.Current()}.retire(console{io.Discard, io.Discard}, file, "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// unwritable lets the key ring's file be read and not be written, also by root.
func (e *estate) unwritable() {
	e.t.Helper()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		e.t.Skip("there is no /proc here")
	}
	f, err := os.Open(e.keys)
	if err == nil {
		e.t.Cleanup(func() { _ = f.Close() })
		err = errors.Join(os.Remove(e.keys), os.Symlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), e.keys))
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// Nobody is signed out for a key that can't be taken out of the file.
func TestRetireLooksWhetherItCanWrite(t *testing.T) {
	e := newEstate(t)
	e.unwritable()
	e.wantSaid(e.retire(exitFailed, "--config", e.config, "--yes"), "keys.json can't be written and is as it was: ")
	e.with(func(m *session.Manager) {
		for _, h := range e.cookies {
			if _, err := m.Load(t.Context(), h); err != nil {
				t.Errorf("a session has ended: %v", err)
			}
		}
	})
}

// Who was signed out all the same is said.
func TestRetireSaysWhoWasSignedOut(t *testing.T) {
	e := newSharedEstate(t)
	report, heard := e.node(long), false
	report(e.old)
	var said strings.Builder
	hear := func(text string) {
		said.WriteString(text)
		if !heard && strings.HasPrefix(text, "Waiting ") {
			heard = true
			e.unwritable()
			report(e.newer)
		}
	}
	con := console{listener{hear}, listener{hear}}
	if code := run(t.Context(), []string{"key", "retire", e.old, "--config", e.config, "--yes"}, con); code != exitFailed {
		t.Errorf("exit status %d", code)
	}
	for _, want := range []string{"can't be written and is as it was: ", "2 of 2 sessions were sealed by it and have ended", "run the same command again"} {
		e.wantSaid(said.String(), want)
	}
}

// Sessions of a retired key give up their places at once.
func TestRetireEndsSessions(t *testing.T) {
	e := newEstate(t)
	before, err := os.ReadFile(e.keys)
	if err != nil {
		t.Fatal(err)
	}
	e.wantSaid(e.retire(exitFailed, "--config", e.config), "2 of 2 sessions are still sealed by "+e.old)
	if after, err := os.ReadFile(e.keys); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key ring was changed: %v", err)
	}
	e.wantSaid(e.retire(exitOK, "--config", e.config, "--yes"), "2 of 2 sessions were sealed by it and have ended")
	e.wantEnded()
	ring, err := seal.ReadRing(e.keys)
	if err != nil || ring.Current() != e.newer || len(ring.RetiredKeys()) != 1 {
		t.Errorf("the ring is %v, %v", ring, err)
	}
}

// What another version has sealed is no session that the key has not sealed.
func TestRetireSaysWhatItCantRead(t *testing.T) {
	e := newEstate(t)
	o, err := operate(t.Context(), e.config)
	if err != nil {
		t.Fatal(err)
	}
	for handle, err := range o.store.Keys(t.Context(), newJar(o.cfg).Session()+"-") {
		rec, getErr := o.store.Get(t.Context(), handle)
		if err = errors.Join(err, getErr); err == nil {
			err = o.store.Replace(t.Context(), handle, rec.Revision, append([]byte{0xee}, rec.Value...), time.Hour)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	const unread = "2 of 2 sessions were sealed by another version of coatcheck"
	said := e.retire(exitFailed, "--config", e.config)
	e.wantSaid(said, "keys.json was left as it is. "+unread)
	e.wantSaid(said, "with --yes the key is retired all the same")
	said = e.retire(exitOK, "--config", e.config, "--yes")
	e.wantSaid(said, "Retired the key "+e.old)
	e.wantSaid(said, unread)
	e.wantSaid(e.retire(exitOK, "--config", e.config), unread)
}

// A key that was taken out of the file without the store leaves sessions, which are ended when
// there is one.
func TestRetireEndsWhatWasLeft(t *testing.T) {
	e := newEstate(t)
	e.wantSaid(e.retire(exitOK, e.keys, "--yes"), "coatcheck key retire "+e.old+" --config FILE --yes")
	e.with(func(m *session.Manager) {
		if err := e.signIn(m); err == nil {
			t.Error("there was a third place")
		}
		e.wantSaid(e.retire(exitFailed, "--config", e.config, "--yes"), "is retired already; the sessions can't be counted while the node runs")
	})
	e.wantSaid(e.retire(exitFailed, "--config", e.config), "2 of 2 sessions that it has sealed still have their places")
	e.wantSaid(e.retire(exitOK, "--config", e.config, "--yes"), "2 of 2 sessions were sealed by it and have ended")
	e.wantSaid(e.retire(exitOK, "--config", e.config, "--yes"), "No session was sealed by it.")
	e.wantEnded()
}

// A ring in the environment is for somebody else to change.
func TestRetireFromTheEnvironment(t *testing.T) {
	e := newEstate(t)
	text, err := os.ReadFile(e.keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("COATCHECK_TEST_RING", string(text))
	named := strings.Replace(estateConfig, "{file: keys.json}", "{env: COATCHECK_TEST_RING}", 1)
	if err := os.WriteFile(e.config, []byte(named), 0o600); err != nil {
		t.Fatal(err)
	}
	said := e.retire(exitFailed, "--config", e.config, "--yes")
	e.wantSaid(said, "the environment variable COATCHECK_TEST_RING can't be changed from here. 2 of 2 sessions were sealed by it and have ended")
	e.wantSaid(said, "run coatcheck key retire "+e.old+" FILE --yes")
	e.wantEnded()
}
