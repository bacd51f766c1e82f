package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

const lease = time.Second

// newHearing returns a rig whose near cache is on, and what ends its Run.
func newHearing(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := newRig(t, append([]func(*Options){func(o *Options) {
		o.CacheSize, o.CacheLease = 8<<20, lease
	}}, change...)...)
	r.Feed = r.memory
	return r
}

// run runs the manager until the test ends.
func (r *rig) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	synctest.Wait()
}

// A hot session costs no store command, whoever is at it.
func TestHotSessionAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		value := r.signIn("alice")
		first := r.wantUser("alice", value)
		r.probe.forget(nil)
		for range 25 {
			if again := r.wantUser("alice", value); again != first {
				t.Error("the session was opened again")
			}
			time.Sleep(time.Second)
		}
		if len(r.probe.calls) != 0 {
			t.Errorf("%d calls of the store: %v", len(r.probe.calls), r.probe.calls)
		}
		stats := r.CacheStats()
		if stats.Hits != 25 || stats.Misses != 1 || stats.Stale != 0 || !stats.Hearing || stats.Bytes == 0 {
			t.Errorf("%+v", stats)
		}
	})
}

// Invariant 8: what another node ends or replaces is known at once, while the feed is heard.
func TestChangesAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		other := r.beside(func(*Options) {})
		value := r.signIn("alice")
		r.wantUser("alice", value)

		live := other.wantUser("alice", value)
		changed := *live.Session
		changed.Identity.Subject = "alice, changed"
		plain, err := encode(&changed)
		if err != nil {
			t.Fatal(err)
		}
		tk, err := parseTicket(r.Jar.Session(), value)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := r.Ring.SealRecord(r.place(tk.handle), tk.secret[:], plain, nil)
		if err != nil {
			t.Fatal(err)
		}
		rec, _ := r.record(value)
		if err := r.memory.Replace(t.Context(), tk.handle, rec.Revision, sealed, idle); err != nil {
			t.Fatal(err)
		}
		r.wantUser("alice, changed", value)

		if err := other.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
			t.Fatal(err)
		}
		r.wantInvalid(value)
		if n := r.CacheStats().Bytes; n != 0 {
			t.Errorf("the near cache keeps %d bytes of an ended session", n)
		}
	})
}

// A mute feed connects and never tells anything after that.
type muteFeed struct{ heard chan store.Feed }

func (f muteFeed) Watch(ctx context.Context, _ time.Duration, feed store.Feed) error {
	feed.Reset()
	feed.Current(time.Now())
	f.heard <- feed
	<-ctx.Done()
	return ctx.Err()
}

// Invariant 8: a node that is cut off from the feed serves nothing from the near cache for
// longer than the lease, and what it reads again need not be opened again.
func TestLeaseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed = feed
		r.run(t)
		told := <-feed.heard
		value := r.signIn("alice")
		first := r.wantUser("alice", value)
		r.probe.forget(nil)
		time.Sleep(lease)
		r.wantUser("alice", value)
		if n := r.probe.count("get"); n != 0 {
			t.Errorf("%d reads within the lease", n)
		}
		time.Sleep(time.Nanosecond)
		for range 3 {
			if again := r.wantUser("alice", value); again != first {
				t.Error("the same bytes were opened again")
			}
		}
		if n := r.probe.count("get"); n != 3 {
			t.Errorf("%d reads past the lease, want 3", n)
		}
		if r.CacheStats().Hearing {
			t.Error("the feed is said to be heard")
		}

		told.Current(time.Now()) // it is heard again, without a gap
		r.probe.forget(nil)
		r.wantUser("alice", value)
		told.Reset() // a gap
		told.Current(time.Now())
		if n := r.probe.count("get"); n != 0 {
			t.Errorf("%d reads", n)
		}
		r.wantUser("alice", value)
		r.wantUser("alice", value)
		if n := r.probe.count("get"); n != 1 {
			t.Errorf("%d reads after a gap, want 1", n)
		}
		if err := r.memory.Delete(t.Context(), first.handle); err != nil {
			t.Fatal(err)
		}
		told.Changed(first.handle)
		r.wantInvalid(value)
	})
}

// Beside a request that is moving the idle end nobody is served past it.
func TestIdleEndBesideATouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		value := r.signIn("alice")
		r.wantUser("alice", value)
		time.Sleep(idle - time.Second)
		r.probe.forget(func(_ context.Context, op, _ string) error {
			if op == "touch" {
				time.Sleep(time.Minute)
			}
			return nil
		})
		var slow sync.WaitGroup
		slow.Go(func() { r.wantInvalid(value) }) // the store says so, too late
		synctest.Wait()
		r.wantUser("alice", value)
		time.Sleep(time.Second)
		r.wantInvalid(value)
		slow.Wait()
	})
}

// What is remembered of the gaps in the feed is bounded: a read from before them all is
// confirmed by itself alone, and not by what was heard long after it.
func TestConfirmed(t *testing.T) {
	c := newCache(0, lease, slog.New(slog.DiscardHandler))
	const read, told = instant(1), instant(time.Second)
	for gaps := range 3 * len(c.lastCurrent) {
		want := told // up to when the feed told everything before the first gap
		if gaps == 0 || gaps >= len(c.lastCurrent) {
			want = read
		}
		if got := c.confirmed(read, 0); got != want {
			t.Errorf("after %d gaps it is confirmed at %d, want %d", gaps, got, want)
		}
		c.heard(base.Add(time.Duration(told) * time.Duration(gaps+1)))
		c.reset()
	}
}

// A read that began before a change, or before a gap, is not kept as what came after it.
func TestReadsThatOverlapChanges(t *testing.T) {
	for name, meanwhile := range map[string]func(told store.Feed, handle string){
		"a change": func(told store.Feed, handle string) { told.Changed(handle) },
		"a gap":    func(told store.Feed, _ string) { told.Reset(); told.Current(time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHearing(t)
				feed := muteFeed{make(chan store.Feed, 1)}
				r.Feed = feed
				r.run(t)
				told := <-feed.heard
				value := r.signIn("alice")
				handle, _, _ := strings.Cut(value, ".")
				r.probe.forget(func(_ context.Context, op, key string) error {
					if op == "get" {
						time.Sleep(10 * time.Millisecond)
					}
					return nil
				})
				loaded := make(chan error)
				go func() {
					_, err := r.load(value)
					loaded <- err
				}()
				time.Sleep(5 * time.Millisecond)
				meanwhile(told, handle)
				if err := <-loaded; err != nil {
					t.Fatal(err)
				}
				r.probe.forget(nil)
				r.wantUser("alice", value)
				if n := r.probe.count("get"); n != 1 {
					t.Errorf("%d reads, want one: what was read before may be outdated", n)
				}
			})
		})
	}
}

// All who ask at once are served by one read, and one who leaves takes nothing from the
// others (A-S12, A-Z6). Who asks after a change is not served by a read from before it.
func TestOneReadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		value := r.signIn("alice")
		hold := make(chan struct{})
		r.probe.forget(func(ctx context.Context, op, _ string) error {
			if op == "get" {
				<-hold
			}
			return nil
		})
		leaving, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		left := make(chan error, 1)
		all.Go(func() {
			_, err := r.Load(leaving, carrying(value))
			left <- err
		})
		synctest.Wait()
		for range 100 {
			all.Go(func() { r.wantUser("alice", value) })
		}
		synctest.Wait()
		leave()
		if err := <-left; coatcheck.CodeOf(err) != coatcheck.CodeUnknown || errors.Is(err, ErrInvalid) {
			t.Errorf("who left: %v", err)
		}
		handle, _, _ := strings.Cut(value, ".")
		r.cache.changed(handle)
		all.Go(func() { r.wantUser("alice", value) })
		synctest.Wait()
		if n := r.probe.count("get"); n != 2 {
			t.Errorf("%d reads, want one before the change and one after it", n)
		}
		close(hold)
		all.Wait()
		if n := r.CacheStats().Misses; n == 0 {
			t.Error("nothing was missed: the test shows nothing")
		}
	})
}

// Who asks after a session has ended elsewhere is not served by a read from before that, if
// there is no near cache, and for no longer than one may be served from it otherwise.
func TestReadsAreNotShared(t *testing.T) {
	for _, cached := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newHearing(t, func(o *Options) {
				if !cached {
					o.CacheSize = 0
				}
			})
			value := r.signIn("alice")
			other := r.beside(func(*Options) {})
			live := other.wantUser("alice", value)
			slow := make(chan struct{})
			r.Manager.Store = lateStore{r.memory, slow}
			var all sync.WaitGroup
			all.Go(func() { r.wantUser("alice", value) })
			synctest.Wait()
			if err := other.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonSignedOut); err != nil {
				t.Fatal(err)
			}
			if cached {
				time.Sleep(lease + 1)
			}
			all.Go(func() { r.wantInvalid(value) })
			synctest.Wait()
			close(slow)
			all.Wait()
		})
	}
}

// Nobody but the holder of the ticket is served from the near cache.
func TestCacheComparesTheSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		value := r.signIn("alice")
		r.wantUser("alice", value)
		handle, _, _ := strings.Cut(value, ".")
		other := ticket{handle: handle}
		r.wantInvalid(other.cookieValue())
		r.probe.forget(nil)
		r.wantUser("alice", value)
		if n := r.probe.count("get"); n != 0 {
			t.Error("a wrong ticket pushed the right one out")
		}
	})
}

// The bound holds for what the cache accounts for, and that is what it takes.
func TestCacheIsBounded(t *testing.T) {
	const size = 4 << 20
	kept := memory.New()
	t.Cleanup(func() { _ = kept.Close() })
	m := New(Options{
		Store: kept, Registry: kept, Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", true), Tenant: "default",
		Idle: time.Hour, Absolute: time.Hour, CacheSize: size, CacheLease: lease,
	})
	text := func(n int) coatcheck.Secret { return coatcheck.Secret(strings.Repeat("x", n)) }
	fill := func(n int) {
		for i := range n {
			tk := newTicket(m.Jar.Session())
			s := &coatcheck.Session{
				Tenant: "default", Deadline: time.Now().Add(time.Hour),
				Identity: coatcheck.Identity{Subject: fmt.Sprint("user ", i), Groups: []string{"a", "b", "c"}},
				Tokens:   coatcheck.Tokens{Access: text(i % 3000), ID: text(900)},
			}
			m.cache.put(tk, &flight{rec: store.Record{TTL: time.Hour}, changes: m.cache.shard(tk.handle).changes}, m.live(tk, s))
			if got := m.CacheStats().Bytes; i%1000 == 0 && got > size {
				t.Fatalf("after %d sessions it keeps %d bytes", i, got)
			}
		}
	}
	fill(5000)
	before := heap()
	fill(20000)
	if grown := heap() - before; grown > size/2 {
		t.Errorf("the heap grew by %d bytes beside a full cache", grown)
	}
	if got := m.CacheStats().Bytes; got > size || got < size/2 {
		t.Errorf("it keeps %d bytes of at most %d", got, size)
	}
	full := heap()
	accounted := m.CacheStats().Bytes
	m.cache = newCache(size, lease, m.Logger)
	if freed := full - heap(); freed > int64(accounted)*5/4 {
		t.Errorf("it took %d bytes and accounted for %d", freed, accounted)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// Who was used least goes first, and what has ended goes without being asked for.
func TestCacheForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHearing(t)
		r.run(t)
		r.signIn("bob")
		value := r.signIn("alice")
		r.wantUser("alice", value)
		if r.CacheStats().Bytes == 0 {
			t.Fatal("nothing is kept: the test shows nothing")
		}
		time.Sleep(idle + 2*upkeepEvery)
		if n := r.CacheStats().Bytes; n != 0 {
			t.Errorf("%d bytes of sessions that have ended", n)
		}
	})
}

func TestCacheKeepsWhatIsUsed(t *testing.T) {
	sized := func(i int) (ticket, *Live) {
		tk := ticket{handle: fmt.Sprint("coatcheck-", i, "-00")} // all in one shard
		return tk, &Live{Session: &coatcheck.Session{}, handle: tk.handle}
	}
	_, one := sized(1)
	c := newCache(3*sizeOf(one)*cacheShards+cacheShards, lease, slog.New(slog.DiscardHandler))
	now := instant(0)
	put := func(i int) {
		tk, live := sized(i)
		now += 2 * reorder
		c.put(tk, &flight{began: now, changes: c.shard(tk.handle).changes, rec: store.Record{TTL: time.Hour}}, live)
	}
	has := func(i int) bool {
		tk, _ := sized(i)
		now += 2 * reorder
		found, _ := c.find(tk, now)
		return found != nil
	}
	put(1)
	put(2)
	put(3)
	if !has(1) || !has(2) || !has(3) {
		t.Fatal("three sessions have no room")
	}
	has(1)
	put(4)
	if has(2) || !has(1) || !has(3) || !has(4) {
		t.Error("it was not the one used longest ago that went")
	}
}

func TestCacheShards(t *testing.T) {
	c := newCache(0, 0, slog.New(slog.DiscardHandler))
	seen := map[*cacheShard]bool{}
	for i := range 256 {
		seen[c.shard(fmt.Sprintf("coatcheck-%02x", i))] = true
	}
	if len(seen) != cacheShards {
		t.Errorf("%d shards are used", len(seen))
	}
	c.changed("x") // any key of the store may come
	c.changed("")
}

// A cache that is turned off keeps nothing, and everything works.
func TestNoCache(t *testing.T) {
	r := newHearing(t, func(o *Options) { o.CacheSize = 0 })
	value := r.signIn("alice")
	r.probe.forget(nil)
	for range 3 {
		r.wantUser("alice", value)
	}
	if n := r.probe.count("get"); n != 3 || r.CacheStats().Bytes != 0 {
		t.Errorf("%d reads, %+v", n, r.CacheStats())
	}
}

// Whatever happens in whatever order, what is served is what the store holds, as long as
// the feed keeps its promise.
func TestCacheIsTrue(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{"load", "load", "wrong", "end", "begin", "gap", "cut", "hear", "wait"}), 1, 60).Draw(rt, "steps")
		problem := ""
		synctest.Test(t, func(t *testing.T) { problem = liveOn(t, steps) })
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

func liveOn(t *testing.T, steps []string) string {
	r := newHearing(t)
	feed := muteFeed{make(chan store.Feed, 1)}
	r.Feed = feed
	r.run(t)
	told := <-feed.heard
	other := r.beside(func(o *Options) { o.CacheSize = 0 })
	value, there, cut := "", false, false
	for i, step := range steps {
		switch step {
		case "begin":
			value, there = other.signIn("alice"), true
		case "end":
			if there {
				if err := other.End(t.Context(), http.Header{}, nil, other.wantUser("alice", value), coatcheck.ReasonSignedOut); err != nil {
					return err.Error()
				}
				there = false
				if handle, _, _ := strings.Cut(value, "."); !cut {
					told.Changed(handle)
				}
			}
		case "gap":
			told.Reset()
			cut = false
			told.Current(time.Now())
		case "cut":
			cut = true
			time.Sleep(lease + 1)
		case "hear":
			if !cut {
				told.Current(time.Now())
			}
		case "wait":
			time.Sleep(lease / 3)
		case "wrong":
			if handle, _, ok := strings.Cut(value, "."); ok {
				if _, err := r.load((ticket{handle: handle}).cookieValue()); err != ErrInvalid {
					return fmt.Sprintf("step %d: a wrong ticket: %v", i, err)
				}
			}
		case "load":
			if value == "" {
				continue
			}
			if _, err := r.load(value); (err == nil) != there {
				return fmt.Sprintf("step %d: the session is there: %t; Load: %v", i, there, err)
			}
		}
	}
	return ""
}

// Requests that wait for one read move the idle end once.
func TestTouchOfManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.CacheSize, o.CacheLease = 1<<20, time.Second })
		value := r.signIn("alice")
		time.Sleep(idle / 2)
		r.probe.forget(func(context.Context, string, string) error {
			time.Sleep(time.Millisecond)
			return nil
		})
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() { r.wantUser("alice", value) })
		}
		all.Wait()
		if reads, touches := r.probe.count("get"), r.probe.count("touch"); reads != 1 || touches != 1 {
			t.Errorf("%d reads, %d touches", reads, touches)
		}
	})
}

// A store that panics while a session is read: each request that waits for the read panics too,
// and is caught as such, and the log has the stack of the one read.
func TestReadPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newHearing(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		value := r.signIn("alice")
		r.probe.forget(func(context.Context, string, string) error {
			time.Sleep(time.Second)
			panic(errors.New("a secret"))
		})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				defer func() {
					if recover() == nil {
						t.Error("the request goes on")
					}
				}()
				_, _ = r.load(value)
			})
		}
		all.Wait()
		wantPanics(t, out.String(), "panic while a session was read", "TestReadPanics", 1)
		r.probe.forget(nil)
		r.wantUser("alice", value)
	})
}
