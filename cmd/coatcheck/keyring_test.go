package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// journal is a log that can be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), text)
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// newFileKeyring returns the keyring of a single node whose ring is in that file.
func newFileKeyring(t *testing.T, file string) (*keyring, *journal) {
	t.Helper()
	ring, err := seal.ReadRing(file)
	if err != nil {
		t.Fatal(err)
	}
	log := &journal{}
	cfg := &config.Config{Keys: config.Keys{File: file}, Store: config.Store{Driver: config.DriverSQLite}}
	logger := slog.New(slog.NewTextHandler(log, nil))
	k := newKeyring(cfg, ring, memory.New(), time.Now, func() { logger.Info("told of other keys") }, logger)
	k.start(t.Context())
	return k, log
}

// startKeyring runs the keyring of newFileKeyring.
func startKeyring(t *testing.T, file string) (*keyring, *journal) {
	t.Helper()
	k, log := newFileKeyring(t, file)
	k.trouble.failed.Store(true) // until it has looked at the file, which it does when it watches
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { k.run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	await(t, "the keyring to watch", func() bool { return !k.trouble.failed.Load() })
	return k, log
}

func writeRing(t *testing.T, file string, ring *seal.Ring) {
	t.Helper()
	if err := os.WriteFile(file, ring.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rotated(t *testing.T, ring *seal.Ring, activate time.Time) *seal.Ring {
	t.Helper()
	next, err := ring.Rotated(activate)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// However the file is changed, the node has the new key soon, and seals with it.
func TestKeysAreReadAgain(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now())
	for _, way := range []struct {
		name   string
		set    func(t *testing.T, dir string)
		change func(t *testing.T, dir string)
	}{
		{
			"written in place",
			func(t *testing.T, dir string) { writeRing(t, filepath.Join(dir, "keys.json"), first) },
			func(t *testing.T, dir string) { writeRing(t, filepath.Join(dir, "keys.json"), second) },
		},
		{
			"replaced",
			func(t *testing.T, dir string) { writeRing(t, filepath.Join(dir, "keys.json"), first) },
			func(t *testing.T, dir string) {
				if err := second.Write(filepath.Join(dir, "keys.json")); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			"a secret of Kubernetes",
			func(t *testing.T, dir string) {
				secret(t, dir, "..1", first)
				link(t, "..1", filepath.Join(dir, "..data"))
				link(t, filepath.Join("..data", "keys.json"), filepath.Join(dir, "keys.json"))
			},
			func(t *testing.T, dir string) {
				secret(t, dir, "..2", second)
				link(t, "..2", filepath.Join(dir, "..data_tmp"))
				if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			"elsewhere, and SIGHUP",
			func(t *testing.T, dir string) {
				secret(t, dir, "elsewhere", first)
				link(t, filepath.Join("elsewhere", "keys.json"), filepath.Join(dir, "keys.json"))
			},
			func(t *testing.T, dir string) {
				writeRing(t, filepath.Join(dir, "elsewhere", "keys.json"), second)
				if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(way.name, func(t *testing.T) {
			survive(t)
			dir := t.TempDir()
			way.set(t, dir)
			k, log := startKeyring(t, filepath.Join(dir, "keys.json"))
			if !slices.Equal(k.ring.KeyIDs(), first.KeyIDs()) {
				t.Fatalf("keys %v at the start", k.ring.KeyIDs())
			}
			way.change(t, dir)
			await(t, "the new key to seal", func() bool { return k.ring.Current() != first.Current() })
			if !slices.Equal(k.ring.KeyIDs(), second.KeyIDs()) || k.ring.Current() != second.KeyIDs()[0] {
				t.Errorf("keys %v, %s seals", k.ring.KeyIDs(), k.ring.Current())
			}
			if read, told := log.count("the key ring was read again"), log.count("told of other keys"); read != 1 || told != 1 {
				t.Errorf("the log says so %d times, and %d times others were told", read, told)
			}
			if k.trouble.failed.Load() {
				t.Error("that counts as a failure")
			}
		})
	}
}

// survive keeps SIGHUP from ending the test before somebody listens to it.
func survive(t *testing.T) {
	t.Helper()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangup) })
}

func secret(t *testing.T, dir, name string, ring *seal.Ring) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	writeRing(t, filepath.Join(dir, name, "keys.json"), ring)
}

func link(t *testing.T, to, name string) {
	t.Helper()
	_ = os.Remove(name)
	if err := os.Symlink(to, name); err != nil {
		t.Fatal(err)
	}
}

// A-Z9: what can't be used changes nothing, and is told until it is put right.
func TestBadKeysAreRefused(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now())
	missing, err := second.Retired(first.Current(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Replace(missing.Marshal(), []byte(`"retired"`), []byte(`"forgotten"`), 1)
	unnoted := func() []byte { // without the key that seals, and without a note of that
		text := string(missing.Marshal())
		from := strings.Index(text, `"retired"`)
		to := strings.Index(text, `"index_key"`)
		return []byte(text[:from] + text[to:])
	}()
	file := filepath.Join(t.TempDir(), "keys.json")
	writeRing(t, file, first)
	k, log := startKeyring(t, file)
	for name, bad := range map[string]struct {
		data []byte
		says string
	}{
		"cut off":                     {second.Marshal()[:100], "after 100 bytes: was it copied only in part?"},
		"empty":                       {nil, "it is empty"},
		"another field":               {cut, "a field that no key ring has"},
		"another installation's":      {seal.NewRing().Marshal(), "it is the ring of other sessions"},
		"without the key that seals":  {unnoted, "a key is taken out with coatcheck key retire"},
		"a file that is a folder now": {[]byte("folder"), "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			before := log.count(bad.says)
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if string(bad.data) == "folder" {
				if err := os.Mkdir(file, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(file, bad.data, 0o600); err != nil {
				t.Fatal(err)
			}
			await(t, "an error in the log", func() bool { return log.count(bad.says) > before })
			if !k.trouble.failed.Load() || !slices.Equal(k.ring.KeyIDs(), first.KeyIDs()) {
				t.Errorf("failed is %v, keys %v, want those of before", k.trouble.failed.Load(), k.ring.KeyIDs())
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			again := log.count("can be used again")
			writeRing(t, file, first)
			await(t, "the end of the alarm", func() bool { return !k.trouble.failed.Load() && log.count("can be used again") == again+1 })
		})
	}
	if n := log.count("level=ERROR"); n < 6 {
		t.Errorf("%d errors in the log", n)
	}
}

// A single node needs nobody's word for a new key, but its time must have come.
func TestSingleNodePromotes(t *testing.T) {
	first := seal.NewRing()
	file := filepath.Join(t.TempDir(), "keys.json")
	due := time.Now().Add(2 * time.Second).Truncate(time.Second)
	writeRing(t, file, rotated(t, first, due))
	k, _ := startKeyring(t, file)
	if current := k.ring.Current(); time.Now().Before(due) && current != first.Current() {
		t.Fatal("the new key seals before its time")
	}
	await(t, "the new key to seal", func() bool { return k.ring.Current() != first.Current() })
	if time.Now().Before(due) {
		t.Error("the new key seals before its time")
	}
}

// newTold returns the keyring of a node in a cluster, which the test tells who lives.
func newTold(t *testing.T, ring *seal.Ring) (*keyring, *journal) {
	t.Helper()
	next, err := seal.ParseRing(ring.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	log := &journal{}
	cfg := &config.Config{Node: "a", Keys: config.Keys{File: "keys.json"}, Store: config.Store{Driver: config.DriverRedis}}
	return newKeyring(cfg, next, memory.New(), time.Now, func() {}, slog.New(slog.NewTextHandler(log, nil))), log
}

// A new key seals once every live node has it; if that takes its time the log names those
// that have not, and once a minute is enough.
func TestKeyWaitsForAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := seal.NewRing()
		second := rotated(t, first, time.Now().Add(-time.Second))
		k, log := newTold(t, second)
		old, both := first.KeyIDs(), second.KeyIDs()
		told := func() {
			k.told([]cluster.Member{{Node: "a", Keys: both}, {Node: "b", Keys: old}, {Node: "c", Keys: old}}, true)
		}
		const warns = "not all nodes have it"
		told()
		time.Sleep(lasts - time.Second)
		told()
		if k.ring.Current() != first.Current() {
			t.Error("a key seals that not all nodes have")
		}
		if n := log.count(warns); n != 0 {
			t.Errorf("the log says so %d times while the file is given to one node after the other", n)
		}
		time.Sleep(time.Second)
		told()
		if log.count(warns) != 1 || log.count(`nodes_without="[b c]"`) != 1 || log.count(both[0]) == 0 {
			t.Errorf("the log does not say which nodes lack which key:\n%s", &log.buf)
		}
		for range 9 {
			time.Sleep(10 * time.Second)
			told()
		}
		if n := log.count(warns); n != 2 {
			t.Errorf("the log says so %d times in 90 seconds, want once a minute", n)
		}
		k.told([]cluster.Member{{Node: "a", Keys: both}, {Node: "b", Keys: both}}, true)
		if k.ring.Current() != both[0] {
			t.Error("the key does not seal though all nodes have it")
		}
		k.told([]cluster.Member{{Node: "a", Keys: both}, {Node: "b", Keys: old}}, true)
		if k.ring.Current() != both[0] {
			t.Error("the key does not seal any more")
		}
		if n := log.count("another key seals from now on"); n != 1 {
			t.Errorf("the log tells of another key %d times", n)
		}
	})
}

// What lasted for a while once is no reason to warn at once the next time.
func TestWarningsBeginAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := seal.NewRing()
		second := rotated(t, first, time.Now().Add(-time.Second))
		third := rotated(t, second, time.Now().Add(-time.Second))
		k, log := newTold(t, second)
		k.told([]cluster.Member{{Node: "b", Keys: first.KeyIDs()}}, true)
		time.Sleep(lasts - time.Second)
		k.told([]cluster.Member{{Node: "b", Keys: second.KeyIDs()}}, true)
		if err := k.ring.Replace(third); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		k.told([]cluster.Member{{Node: "b", Keys: second.KeyIDs()}}, true)
		if n := log.count("level=WARN"); n != 0 {
			t.Errorf("%d warnings of a key that waits since now", n)
		}
		time.Sleep(lasts)
		k.told([]cluster.Member{{Node: "b", Keys: second.KeyIDs()}}, true)
		if n := log.count("key=" + third.KeyIDs()[0]); n != 1 {
			t.Errorf("%d warnings of a key that has waited", n)
		}
	})
}

// A node whose key is taken out of the file seals with another one from then on, and says so.
func TestSealingKeyVanishes(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now().Add(time.Hour))
	retired, err := second.Retired(first.Current(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys.json")
	writeRing(t, file, second)
	k, log := newFileKeyring(t, file)
	writeRing(t, file, retired)
	k.load(true)
	if k.ring.Current() != retired.Current() {
		t.Errorf("%s seals", k.ring.Current())
	}
	line := `msg="another key seals from now on" key=` + retired.Current() + " before=" + first.Current()
	if n := log.count(line); n != 1 {
		t.Errorf("the log tells of another key %d times:\n%s", n, &log.buf)
	}
}

// Before its time a key does not seal, whoever has it, and nobody is reminded of it.
func TestKeyWaitsForItsTime(t *testing.T) {
	ring := rotated(t, seal.NewRing(), time.Now().Add(time.Hour))
	k, log := newTold(t, ring)
	k.told([]cluster.Member{{Node: "a", Keys: ring.KeyIDs()}, {Node: "b", Keys: ring.KeyIDs()[1:]}}, true)
	k.told([]cluster.Member{{Node: "a", Keys: ring.KeyIDs()}}, true)
	if k.waiting.about != "" {
		t.Error("it waits for its nodes already")
	}
	if k.ring.Current() != ring.KeyIDs()[1] || log.count("level=WARN") != 0 {
		t.Errorf("%s seals, %d warnings", k.ring.Current(), log.count("level=WARN"))
	}
}

// A node that lacks for a while what others have says so, unless it has retired that.
func TestNodeLacksAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := seal.NewRing()
		second := rotated(t, first, time.Now())
		others := []cluster.Member{{Node: "b", Keys: second.KeyIDs()}, {Node: "c", Keys: second.KeyIDs()}}
		k, log := newTold(t, first)
		k.told(others, true)
		if log.count("level=WARN") != 0 {
			t.Errorf("it warns at once:\n%s", &log.buf)
		}
		time.Sleep(lasts)
		k.told(others, true)
		k.told(others, true)
		if log.count("this one lacks") != 1 || log.count(`nodes_with="[b c]"`) != 1 || log.count(second.KeyIDs()[0]) != 1 {
			t.Errorf("the log does not say once who has which key:\n%s", &log.buf)
		}
		retired, err := second.Retired(first.Current(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		k, log = newTold(t, retired)
		k.told(others, true)
		time.Sleep(lasts)
		k.told(others, true)
		if log.count("level=WARN") != 0 {
			t.Errorf("a retired key is missed:\n%s", &log.buf)
		}
	})
}

// A node that starts seals with the key that the others seal with, if the store answers, and
// with the one that all have if not, or if it can't know yet whether there are others.
func TestKeyAtTheStart(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now().Add(-time.Second))
	synctest.Test(t, func(t *testing.T) {
		kept := &faultyMembers{Backend: memory.New()}
		a := newShared(t, "a", second, kept)
		a.start(t.Context())
		if a.ring.Current() != first.Current() {
			t.Error("the first node to start seals with a key that others, which live, may lack")
		}
		ctx, stop := context.WithCancel(t.Context())
		var tasks sync.WaitGroup
		tasks.Go(func() { a.run(ctx) })
		time.Sleep(time.Minute)
		if a.ring.Current() == first.Current() {
			t.Error("the only node seals with an old key")
		}
		b := newShared(t, "b", second, kept)
		if b.start(ctx); b.ring.Current() != a.ring.Current() {
			t.Error("a node seals with another key than those that were there")
		}
		kept.set(true)
		c := newShared(t, "c", second, kept)
		if c.start(ctx); c.ring.Current() != first.Current() {
			t.Error("a node that nobody answers seals with a new key")
		}
		stop()
		tasks.Wait()
	})
}

// After an outage the node that reports first is alone on the list, and that proves nothing:
// another one that lives lacks the key.
func TestNoKeySealsAfterAnOutage(t *testing.T) {
	first := seal.NewRing()
	second := rotated(t, first, time.Now().Add(-time.Second))
	synctest.Test(t, func(t *testing.T) {
		kept := &faultyMembers{Backend: memory.New()}
		a, b := newShared(t, "a", second, kept), newShared(t, "b", first, kept)
		ctx, stop := context.WithCancel(t.Context())
		var tasks sync.WaitGroup
		for _, k := range []*keyring{b, a} {
			k.start(ctx)
			tasks.Go(func() { k.run(ctx) })
		}
		for range 10 {
			time.Sleep(time.Minute)
			kept.set(true)
			time.Sleep(time.Minute)
			kept.set(false)
		}
		if err := kept.Delete(ctx, b.members.Key); err != nil { // as if the store had lost it
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if a.ring.Current() != first.Current() {
			t.Error("it seals with a key that another node lacks")
		}
		if err := b.ring.Replace(second); err != nil {
			t.Error(err)
		}
		b.members.Sooner()
		time.Sleep(time.Minute)
		if a.ring.Current() == first.Current() || a.ring.Current() != b.ring.Current() {
			t.Error("both have it, and it does not seal")
		}
		stop()
		tasks.Wait()
	})
}

// newShared returns the keyring of a node that shares a store with others.
func newShared(t *testing.T, name string, ring *seal.Ring, kept store.Backend) *keyring {
	t.Helper()
	next, err := seal.ParseRing(ring.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{Node: name, Keys: config.Keys{Env: "X"}, Store: config.Store{Driver: config.DriverRedis}}
	// The bubble's clock is behind, and the keys' times are not.
	now := func() time.Time { return time.Now().AddDate(100, 0, 0) }
	return newKeyring(cfg, next, kept, now, func() {}, slog.New(slog.DiscardHandler))
}

// faultyMembers is a store from which nothing can be read while it is away.
type faultyMembers struct {
	store.Backend
	away atomic.Bool
}

func (f *faultyMembers) set(away bool) { f.away.Store(away) }

func (f *faultyMembers) Get(ctx context.Context, key string) (store.Record, error) {
	if f.away.Load() {
		return store.Record{}, errors.New("away")
	}
	return f.Backend.Get(ctx, key)
}

// The others hear at once of a key that a node has read, and not with its next report: what
// waits for the key need not wait for that.
func TestNewKeysAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := seal.NewRing()
		second := rotated(t, first, time.Now().Add(time.Hour))
		k, _ := newTold(t, first)
		k.file = filepath.Join(t.TempDir(), "keys.json")
		writeRing(t, k.file, second)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { k.members.Run(ctx) })
		defer running.Wait()
		defer stop()
		synctest.Wait()
		k.load(false)
		time.Sleep(time.Second)
		live, err := k.members.List(ctx)
		if err != nil || len(live) != 1 || !slices.Equal(live[0].Keys, second.KeyIDs()) {
			t.Errorf("%+v, %v", live, err)
		}
	})
}

// The same trouble is told once, however often the file is read.
func TestBadKeysAreToldOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	writeRing(t, file, seal.NewRing())
	k, log := newFileKeyring(t, file)
	if err := os.WriteFile(file, []byte("no ring"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		k.load(false)
	}
	if n := log.count("the key ring's file can't be used"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if k.load(true); log.count("the key ring's file can't be used") != 2 {
		t.Error("who asks is told nothing")
	}
}

// A file that says its times in another zone is no news each time it is read.
func TestReloadSameTimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	first := seal.NewRing()
	second := rotated(t, first, time.Now().Add(-time.Minute))
	ring, err := second.Retired(first.Current(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(ring.Marshal()), `Z"`, `+05:45"`)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k, log := newFileKeyring(t, file)
	for range 3 {
		k.load(false)
	}
	if n := log.count("was read again"); n != 0 {
		t.Errorf("told of other keys %d times", n)
	}
}

// The metrics say which key a node seals with.
func TestSealingKeyIsCounted(t *testing.T) {
	n := wired(t, estateConfig)
	w := httptest.NewRecorder()
	n.counts.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if want := `coatcheck_sealing_key{key="` + n.ring.Current() + `"} 1`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("there is no %s", want)
	}
}
