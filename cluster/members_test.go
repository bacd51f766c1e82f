package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
	"github.com/coatcheck/coatcheck/store/redis"
)

// listKey is where the tests have the list.
const listKey = "nodes:test"

// member returns the Members of a node of that name.
func member(kept store.Backend, name string) *Members {
	return NewMembers(MembersOptions{
		Store: kept, Clock: kept, Key: listKey,
		Self: func() Member { return Member{Node: name, Version: "v1", Keys: []string{"k2", "k1"}, Seals: "k1"} },
	})
}

func report(t testing.TB, m *Members) []Member {
	t.Helper()
	live, err := m.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return live
}

func names(list []Member) (names []string) {
	for _, m := range list {
		names = append(names, m.Node)
	}
	return names
}

func wantNames(t testing.TB, list []Member, want ...string) {
	t.Helper()
	if got := names(list); !slices.Equal(got, want) {
		t.Errorf("live nodes %q, want %q", got, want)
	}
}

func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New()
		start := time.Now()
		a, b := member(kept, "a"), member(kept, "b")
		wantNames(t, report(t, b), "b")
		time.Sleep(5 * time.Second)
		report(t, a)
		live := report(t, b)
		list, err := NewMembers(MembersOptions{Store: kept, Clock: kept, Key: listKey}).List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(live, list); diff != "" {
			t.Errorf("what is listed is not what was reported (-reported +listed):\n%s", diff)
		}
		now := start.Add(5 * time.Second)
		want := []Member{
			{a.instance, "a", "v1", []string{"k2", "k1"}, "k1", now, now},
			{b.instance, "b", "v1", []string{"k2", "k1"}, "k1", start, now},
		}
		if diff := cmp.Diff(want, live); diff != "" {
			t.Errorf("live nodes (-want +got):\n%s", diff)
		}
	})
}

// Who has not reported for half a minute is not live, and is dropped by the next one that
// reports; the list ends by itself.
func TestSilentNodesAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New()
		a, b := member(kept, "a"), member(kept, "b")
		report(t, a)
		report(t, b)
		time.Sleep(memberLife)
		wantNames(t, report(t, b), "a", "b")
		time.Sleep(time.Millisecond)
		list, err := b.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantNames(t, list, "b")
		if rec, err := kept.Get(t.Context(), listKey); err != nil || !bytes.Contains(rec.Value, []byte(a.instance)) {
			t.Errorf("somebody who only looks has changed the list: %s, %v", rec.Value, err)
		}
		wantNames(t, report(t, b), "b")
		if rec, err := kept.Get(t.Context(), listKey); err != nil || bytes.Contains(rec.Value, []byte(a.instance)) {
			t.Errorf("the list still has who is gone: %s, %v", rec.Value, err)
		}
		wantNames(t, report(t, a), "a", "b")

		time.Sleep(listLife)
		if list, err := b.List(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("live nodes %v, %v", list, err)
		}
		if _, err := kept.Get(t.Context(), listKey); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the list is still there: %v", err)
		}
	})
}

// A process that is started again under the name of one that was killed is another member.
func TestStartedAgain(t *testing.T) {
	kept := memory.New()
	report(t, member(kept, "a"))
	wantNames(t, report(t, member(kept, "a")), "a", "a")
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New()
		var mu sync.Mutex
		told := map[string][]Member{}
		ask := func(name string) []Member {
			mu.Lock()
			defer mu.Unlock()
			return told[name]
		}
		keys := []string{"k1"}
		var stop []context.CancelFunc
		var tasks sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			m := member(kept, name)
			m.Told = func(live []Member, _ bool) {
				mu.Lock()
				defer mu.Unlock()
				told[name] = live
			}
			m.Self = func() Member {
				mu.Lock()
				defer mu.Unlock()
				return Member{Node: name, Keys: keys}
			}
			ctx, cancel := context.WithCancel(t.Context())
			stop = append(stop, cancel)
			tasks.Go(func() { m.Run(ctx) })
			if name == "b" {
				time.Sleep(2 * reportEvery)
				mu.Lock()
				keys = []string{"k2", "k1"}
				mu.Unlock()
				m.Sooner()
				m.Sooner() // no harm
				synctest.Wait()
				if live := ask("b"); len(live) != 2 || !slices.Equal(live[1].Keys, keys) {
					t.Errorf("a change was not reported at once: %+v", live)
				}
			}
		}
		for range 10 {
			time.Sleep(2 * reportEvery)
			synctest.Wait()
			wantNames(t, ask("a"), "a", "b")
			wantNames(t, ask("b"), "a", "b")
		}

		// One leaves in order, then the other.
		stop[0]()
		synctest.Wait()
		list, err := member(kept, "").List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantNames(t, list, "b")
		stop[1]()
		tasks.Wait()
		time.Sleep(store.MinTTL)
		if _, err := kept.Get(t.Context(), listKey); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the list outlives the last node: %v", err)
		}
	})
}

// broken is a store that does not answer while it is down.
type broken struct {
	store.Backend
	mu   sync.Mutex
	down bool
}

func (b *broken) set(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

func (b *broken) Get(ctx context.Context, key string) (store.Record, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return store.Record{}, errors.New("the store is away")
	}
	return b.Backend.Get(ctx, key)
}

// Nobody is told anything while the store does not answer, and the log says so once.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &broken{Backend: memory.New(), down: true}
		var log bytes.Buffer
		told := 0
		m := member(kept, "a")
		m.Told = func([]Member, bool) { told++ }
		m.Logger = slog.New(slog.NewTextHandler(&log, nil))
		ctx, stop := context.WithCancel(t.Context())
		var tasks sync.WaitGroup
		tasks.Go(func() { m.Run(ctx) })
		time.Sleep(time.Minute)
		synctest.Wait()
		if told != 0 {
			t.Errorf("told %d times, and nobody knows who is live", told)
		}
		if n := strings.Count(log.String(), "may not know"); n != 1 {
			t.Errorf("the log says so %d times:\n%s", n, &log)
		}
		kept.set(false)
		time.Sleep(reportAgain)
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times when the store is back, want once", told)
		}
		kept.set(true)
		time.Sleep(time.Minute)
		stop() // can't take itself off the list, and does not wait for that
		tasks.Wait()
		if n := strings.Count(log.String(), "may not know"); n != 2 {
			t.Errorf("the log says so %d times, want once for each outage:\n%s", n, &log)
		}
	})
}

// However many write at once, all are on the list: with a real store.
// Who reports first after the store was away, or after it has lost the list, does not take
// itself for the only one.
func TestComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New()
		a, b := member(kept, "a"), member(kept, "b")
		want := func(step string, m *Members, want bool) {
			t.Helper()
			if got := m.Complete(report(t, m)); got != want {
				t.Errorf("%s: the list is complete: %v, want %v", step, got, want)
			}
		}
		report(t, b)
		want("at the start", a, false)
		time.Sleep(Settles / 2)
		report(t, b)
		want("a while after it", a, false)
		time.Sleep(Settles / 2)
		want("when all have reported", a, true)

		time.Sleep(memberLife + time.Second) // nobody could report
		want("after an outage", a, false)
		time.Sleep(Settles)
		want("when all have reported after it", a, true)

		if err := kept.Delete(t.Context(), listKey); err != nil {
			t.Fatal(err)
		}
		want("the list is lost", a, false)
		time.Sleep(Settles)
		want("when all have reported after that", a, true)
		if b.Complete(report(t, a)) {
			t.Error("the list is complete for somebody who is not on it")
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	const count = 5
	var group sync.WaitGroup
	for i := range count {
		kept, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), Timeout: patient})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kept.Close() })
		m := member(kept, fmt.Sprint("n", i))
		group.Go(func() {
			for range 5 {
				if live, err := m.Report(t.Context()); err != nil || !slices.Contains(names(live), fmt.Sprint("n", i)) {
					t.Errorf("%v, %v", names(live), err)
				}
			}
			if i > 0 {
				m.leave(t.Context())
			}
		})
		if i == count-1 {
			group.Wait()
			wantNames(t, report(t, m), "n0", "n4")
		}
	}
}

// testdata/golden/nodes-1.json was written by this version, and testdata/nodes-later.json is what
// one that knows more may write. Neither must be made anew for this version.
func TestGoldenList(t *testing.T) {
	for _, file := range []string{"testdata/golden/nodes-1.json", "testdata/nodes-later.json"} {
		t.Run(file, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			kept := memory.New()
			if err := kept.Create(t.Context(), listKey, data, time.Minute); err != nil {
				t.Fatal(err)
			}
			seen := time.Date(2026, 2, 1, 12, 0, 10, 0, time.UTC)
			m := NewMembers(MembersOptions{Store: kept, Clock: fixed(seen), Key: listKey, Self: func() Member {
				return Member{Node: "node-b", Version: "v1.0.0", Keys: []string{"ac83d467213f73b0"}, Seals: "ac83d467213f73b0"}
			}})
			m.instance = "IRSPKPYRXNCAQYSWEB6CPCPNRV"
			list, err := m.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			since := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
			want := []Member{
				{"BGHUQIFK3GIJBDVVMZTMZWLZZP", "node-a", "v1.0.0", []string{"87b65fd043eb4234", "ac83d467213f73b0"}, "ac83d467213f73b0", since, seen},
				{m.instance, "node-b", "v1.0.0", []string{"ac83d467213f73b0"}, "ac83d467213f73b0", since, seen},
			}
			if diff := cmp.Diff(want, list, sameInstants); diff != "" {
				t.Errorf("live nodes (-want +got):\n%s", diff)
			}
			report(t, m)
			rec, err := kept.Get(t.Context(), listKey)
			if err != nil {
				t.Fatal(err)
			}
			// What this version does not know of the list and of others stays.
			var before, after any
			if err := errors.Join(json.Unmarshal(data, &before), json.Unmarshal(rec.Value, &after)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("a report changed the list (-before +after):\n%s", diff)
			}
		})
	}
}

// fixed is a clock that stands still.
type fixed time.Time

func (f fixed) Now(context.Context) (time.Time, error) { return time.Time(f), nil }

var sameInstants = cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })

// A list that this version can't read is left as it is: whoever wrote it can.
func TestUnreadableList(t *testing.T) {
	entry := `{"node": "x", "version": "v9", "keys": [], "seals": "", "since": 1, "seen": 1}`
	for name, data := range map[string]string{
		"another version":        `{"version": 2, "nodes": {"A": ` + entry + `}}`,
		"no version":             `{"nodes": {"A": ` + entry + `}}`,
		"no nodes":               `{"version": 1}`,
		"null":                   `null`,
		"null as nodes":          `{"version": 1, "nodes": null}`,
		"nothing":                ``,
		"not JSON":               `version 1`,
		"an entry that is text":  `{"version": 1, "nodes": {"A": "x"}}`,
		"an entry without times": `{"version": 1, "nodes": {"A": {"node": "x"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			kept := memory.New()
			if err := kept.Create(t.Context(), listKey, []byte(data), time.Minute); err != nil {
				t.Fatal(err)
			}
			m := member(kept, "a")
			if live, err := m.Report(t.Context()); err == nil {
				t.Errorf("Report = %v", live)
			}
			if live, err := m.List(t.Context()); err == nil {
				t.Errorf("List = %v", live)
			}
			if rec, err := kept.Get(t.Context(), listKey); err != nil || string(rec.Value) != data {
				t.Errorf("the list is now %q, %v", rec.Value, err)
			}
		})
	}
}
