package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// changing makes changes through s, which e checks, until stop is called. Calls may
// fail; what they say must be true.
func changing(t *testing.T, e *ear, s *Store) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key, value := fmt.Sprintf("key %d of %d", n, i), []byte(fmt.Sprint(n))
				if s.Create(ctx, key, value, time.Hour) != nil {
					continue
				}
				r, err := s.Get(ctx, key)
				if err == nil && string(r.Value) != string(value) {
					t.Errorf("Get %q: %s", key, r.Value)
				}
				if err == nil {
					_ = e.change(key, func() error { return s.Replace(ctx, key, r.Revision, nil, time.Hour) })
				}
				_ = e.change(key, func() error { return s.Delete(ctx, key) })
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func TestCluster(t *testing.T) {
	t.Parallel()
	certs := testenv.NewCertificates(t)
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{
		Replicas: 1,
		Empty:    1,
		Redis:    testenv.RedisOptions{Password: password, Certificates: certs, Persist: true},
	})
	opts := Options{
		Cluster:   &Cluster{Addresses: env.Addresses()[:2]},
		TLS:       &TLS{CAFile: certs.CAFile, CertFile: certs.CertFile, KeyFile: certs.KeyFile},
		Password:  password,
		KeyPrefix: "feed:",
	}

	// No operation of the suite names keys of two slots.
	t.Run("Conformance", func(t *testing.T) {
		storetest.Run(t, storetest.Harness{Open: opener[store.Store](opts)})
		storetest.RunWatcher(t, storetest.WatcherHarness{Open: opener[storetest.WatchedStore](opts)})
	})

	t.Run("TLSRenewed", func(t *testing.T) { testTLSRenewed(t, opts, certs) }) // A-Z9

	// A key is the primary's and its replica's; it comes once.
	t.Run("Keys", func(t *testing.T) {
		s := open(t, opts)
		var want, got []string
		for i := range 20 {
			key := fmt.Sprintf("keys-%02d", i)
			want = append(want, key)
			if err := s.Create(t.Context(), key, nil, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "a client knows of replicas", func() bool {
			s = open(t, opts)
			return len(s.redis().Nodes()) >= 6
		})
		for key, err := range s.Keys(t.Context(), "keys-") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, key)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})

	// A-Z4
	t.Run("Reshard", func(t *testing.T) {
		here, there := open(t, opts), open(t, opts)
		ctx := t.Context()
		// Records of one slot, which moves to a node that has none.
		var keys []string
		slot := env.Slot(here.valueKey("k0"))
		for i := 0; len(keys) < 20; i++ {
			if key := fmt.Sprint("k", i); slotOf(here.valueKey(key)) == slot {
				keys = append(keys, key)
				if err := there.Create(ctx, key, []byte(key), time.Hour); err != nil {
					t.Fatal(err)
				}
			}
		}
		e := listen(t, here, testBeat)
		stop := changing(t, e, there)
		check := func(when string) {
			t.Helper()
			for _, key := range keys {
				for _, s := range []*Store{here, there} {
					if r, err := s.Get(ctx, key); err != nil || string(r.Value) != key {
						t.Errorf("%s: Get %s: %q, %v", when, key, r.Value, err)
					}
				}
			}
		}
		to := env.Nodes()[3]
		env.BeginMigration(slot, to)
		resets := e.heardResets()
		e.waitCurrent()
		e.waitCurrent()
		if e.heardResets() < resets+2 {
			t.Error("no Reset at each beat while a slot moves to a node that is not heard")
		}
		env.MoveKeys(slot, to, len(keys)-1) // half of them, for each has two, and of one only one
		check("half moved")
		from := env.Owner(slot)
		moved := func(name string) bool { return from.Do("EXISTS", name).Error() != nil }
		i := slices.IndexFunc(keys, func(key string) bool { return moved(here.valueKey(key)) != moved(here.deadlineKey(key)) })
		if i < 0 {
			t.Fatal("no record is on two nodes")
		}
		torn := keys[i]
		read, err := there.Get(ctx, torn)
		if err != nil {
			t.Fatal(err)
		}
		waits := open(t, opts)
		var wg sync.WaitGroup
		wg.Go(func() { // until its two keys are together
			if err := e.change(torn, func() error { return waits.Replace(ctx, torn, read.Revision, []byte(torn), time.Hour) }); err != nil {
				t.Errorf("Replace while its slot moves: %v", err)
			}
		})
		for env.MoveKeys(slot, to, 1) {
		}
		e.waitCurrent()
		wg.Wait()
		env.EndMigration(slot, to)
		check("moved")
		e.waitCurrent()
		stop()
		e.waitCurrent()
		check("afterwards")

		// Between nodes that are heard, a slot that has moved is a Reset.
		e.waitCurrent()
		resets = e.heardResets()
		env.Migrate(clusterSlots-1, env.Nodes()[0])
		e.waitCurrent()
		if e.heardResets() == resets {
			t.Error("no Reset after a slot has moved")
		}
	})

	t.Run("Failover", func(t *testing.T) {
		here, there := open(t, opts), open(t, opts)
		e := listen(t, here, testBeat)
		stop := changing(t, e, there)
		env.Failover(env.Nodes()[0]) // in good order: its connections stay
		e.waitCurrent()
		dead := env.Nodes()[1]
		dead.Kill()
		env.WaitServing()
		e.waitCurrent()
		stop()
		e.waitCurrent()
		dead.Restart()
		env.WaitServing()
	})

	t.Run("Outages", func(t *testing.T) {
		each := func(do func(*testenv.Redis)) {
			for _, node := range env.Nodes() {
				do(node)
			}
		}
		outages := []storetest.Outage{
			{Name: "hung", Begin: func(testing.TB) func() {
				each((*testenv.Redis).Pause)
				return func() { each((*testenv.Redis).Resume) }
			}},
			{Name: "killed", Begin: func(testing.TB) func() {
				each((*testenv.Redis).Kill)
				return func() { each((*testenv.Redis).Restart) }
			}},
		}
		hasty := opts
		hasty.Timeout = time.Second
		storetest.Run(t, storetest.Harness{Open: opener[store.Store](hasty), Outages: outages})
	})

	t.Run("DownAtOpen", func(t *testing.T) {
		last := env.Owner(0)
		lone := open(t, opts).redis().Nodes()[last.Addr()]
		for _, node := range env.Nodes() {
			if node != last {
				node.Stop()
			}
		}
		// Whoever has lost the others may have been replaced.
		eventually(t, "the last node speaks for nobody", func() bool { return askNode(t.Context(), lone).err == errLostCluster })
		last.Stop()
		s := open(t, opts)
		if err := s.Ping(t.Context()); err == nil {
			t.Error("Ping succeeded without a node")
		}
		for _, node := range env.Nodes() {
			node.Restart()
		}
		waitUp(t, s)
	})
}

// One node of many that is set up wrongly is found, and told by name.
func TestIdleTimeoutOnCluster(t *testing.T) {
	t.Parallel()
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{})
	wrong := env.Nodes()[2]
	wrong.Must("CONFIG", "SET", "timeout", "1")
	s := open(t, Options{Cluster: &Cluster{Addresses: env.Addresses()[:1]}})
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), wrong.Addr()+" ends connections") {
		t.Errorf("Ping: %v, want %s", err, wrong.Addr())
	}
	wrong.Must("CONFIG", "SET", "timeout", "0")
	waitUp(t, s)
}

func TestNotACluster(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	err := open(t, Options{Cluster: &Cluster{Addresses: []string{server.Addr()}}}).Ping(t.Context())
	if err == nil || !strings.Contains(err.Error(), "not part of a cluster") {
		t.Errorf("Ping: %v", err)
	}
}

func TestParseSelf(t *testing.T) {
	const others = "aaa 127.0.0.1:7001@17001 master - 0 1700000000000 2 connected 0-100\n"
	for _, tc := range []struct {
		name, text string
		want       clusterNode
		err        error
	}{
		{"a primary", others + "bbb 127.0.0.1:7002@17002,host myself,master - 0 0 3 connected 101 200-300 [77->-aaa] [88-<-aaa]\n", clusterNode{
			line: "bbb 3 101 200-300 [77->-aaa] [88-<-aaa]", id: "bbb", primary: true,
			slots: []slotRange{{101, 101}, {200, 300}}, movingTo: []string{"aaa"},
		}, nil},
		{"one without slots", "bbb 127.0.0.1:7002@17002 myself,master - 0 0 3 connected\n", clusterNode{line: "bbb 3", id: "bbb", primary: true}, nil},
		{"a replica", "bbb 127.0.0.1:7002@17002 myself,slave aaa 0 0 2 connected\n" + others, clusterNode{line: "bbb 2", id: "bbb"}, nil},
		{"nobody", others, clusterNode{}, errNodes},
		{"nothing", "", clusterNode{}, errNodes},
		{"a short line", "bbb 127.0.0.1:7002@17002 myself\n", clusterNode{}, errNodes},
		{"a slot beyond the last", "bbb 127.0.0.1:7002@17002 myself,master - 0 0 3 connected 0-16384\n", clusterNode{}, errNodes},
		{"a slot below the first", "bbb 127.0.0.1:7002@17002 myself,master - 0 0 3 connected -1\n", clusterNode{}, errNodes},
		{"no slot", "bbb 127.0.0.1:7002@17002 myself,master - 0 0 3 connected x\n", clusterNode{}, errNodes},
	} {
		got, err := parseSelf(tc.text)
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(clusterNode{}, slotRange{})); diff != "" || !errors.Is(err, tc.err) {
			t.Errorf("%s: %v\n%s", tc.name, err, diff)
		}
	}
}

func TestRollCall(t *testing.T) {
	all := clusterNode{id: "a", line: "a 1 0-16383", primary: true, slots: []slotRange{{0, clusterSlots - 1}}}
	low := clusterNode{id: "b", line: "b 1 0-9", primary: true, slots: []slotRange{{0, 5}, {6, 9}}, movingTo: []string{"c"}}
	high := clusterNode{id: "c", line: "c 1 10-16383", primary: true, slots: []slotRange{{10, clusterSlots - 1}}}
	lowReplica, none := low, clusterNode{id: "d", line: "d 1", primary: true}
	lowReplica.primary = false
	toNone := high
	toNone.movingTo = []string{"d"}
	for _, tc := range []struct {
		name   string
		nodes  []clusterNode
		slots  int
		names  string
		moving bool
		err    error
	}{
		{"one", []clusterNode{all}, clusterSlots, "a 1 0-16383", false, nil},
		{"two", []clusterNode{low, high}, clusterSlots, "b 1 0-9\nc 1 10-16383", false, nil},
		{"in another order", []clusterNode{none, high, low}, clusterSlots, "b 1 0-9\nc 1 10-16383", false, nil},
		{"not all, and a slot that moves to one unheard", []clusterNode{low}, 10, "b 1 0-9", true, nil},
		{"a slot that moves to one without slots", []clusterNode{low, none, toNone}, clusterSlots, "b 1 0-9\nc 1 10-16383", true, nil},
		{"a replica speaks for nobody", []clusterNode{lowReplica, high}, clusterSlots - 10, "c 1 10-16383", false, nil},
		{"two of one slot", []clusterNode{low, all}, 10, "a 1 0-16383\nb 1 0-9", true, errTwoPrimaries},
	} {
		var r rollCall
		var err error
		for _, n := range tc.nodes {
			err = errors.Join(err, r.add(n))
		}
		if r.slots != tc.slots || r.names() != tc.names || r.moving() != tc.moving || !errors.Is(err, tc.err) {
			t.Errorf("%s: %d slots, %q, moving %t, %v", tc.name, r.slots, r.names(), r.moving(), err)
		}
	}
}

// slotOf is that of a key, as the specification of Redis Cluster has it: the CRC16
// (XMODEM) of what stands between the first brace and the next that closes.
func slotOf(key string) int {
	_, key, _ = strings.Cut(key, "{")
	key, _, _ = strings.Cut(key, "}")
	var crc uint16
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			if carry := crc&0x8000 != 0; carry {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % clusterSlots)
}
