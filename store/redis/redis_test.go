package redis

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	var opened atomic.Int64
	storetest.Run(t, storetest.Harness{
		Open: func(t testing.TB, nodes int) []store.Store {
			prefix := fmt.Sprintf("test%d:", opened.Add(1))
			stores := make([]store.Store, nodes)
			for i := range stores {
				stores[i] = open(t, Options{URL: server.URL(), KeyPrefix: prefix, Timeout: time.Second})
			}
			return stores
		},
		Outages: []storetest.Outage{
			{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
			{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
			{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
		},
	})
}

func BenchmarkGet(b *testing.B) {
	server := testenv.StartRedis(b, testenv.RedisOptions{})
	storetest.BenchmarkGet(b, open(b, Options{URL: server.URL(), KeyPrefix: "bench:"}))
}
