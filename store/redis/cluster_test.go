package redis

import (
	"context"
	"errors"
	"fmt"
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
		Timeout:   500 * time.Millisecond,
	}

	// No operation of the suite names keys of two slots.
	t.Run("Conformance", func(t *testing.T) {
		storetest.RunBackend(t, storetest.BackendHarness{Open: opener[store.Backend](opts)})
	})

	// A-Z4
	t.Run("Reshard", func(t *testing.T) {
		here, there := open(t, opts), open(t, opts)
		ctx := t.Context()
		// A hundred records of one slot, which moves to a node that has none.
		var keys []string
		slot := env.Slot(here.valueKey("k0"))
		for i := 0; len(keys) < 20; i++ {
			if key := fmt.Sprint("k", i); env.Slot(here.valueKey(key)) == slot {
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
		env.MoveKeys(slot, to, len(keys)) // half of them, for each has two
		check("half moved")
		replaced, err := there.Get(ctx, keys[0])
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // waits for its two keys to come together
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			err := context.DeadlineExceeded
			for errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "TRYAGAIN") {
				err = e.change(keys[0], func() error { return there.Replace(ctx, keys[0], replaced.Revision, []byte(keys[0]), time.Hour) })
			}
			if err != nil {
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

	t.Run("DownAtOpen", func(t *testing.T) {
		for _, node := range env.Nodes() {
			node.Stop()
		}
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

// A slot on its way to a primary that has answered is heard of there; on its way to one
// that serves nothing yet it is not.
func TestSummary(t *testing.T) {
	a := clusterNode{id: "a", line: "a 1 0-10", movingTo: []string{"b"}}
	b := clusterNode{id: "b", line: "b 2 11-20"}
	first, moving := summary([]clusterNode{a, b})
	if second, _ := summary([]clusterNode{b, a}); first != second || moving {
		t.Errorf("summary: %q and %q, moving %t", first, second, moving)
	}
	a.movingTo = []string{"c"}
	if _, moving := summary([]clusterNode{a, b}); !moving {
		t.Error("a slot that moves to a stranger is not moving")
	}
}
