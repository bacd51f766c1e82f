package storetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// BenchmarkGet measures Get of a record of 2 KiB, the size of a session with its
// tokens: one caller at a time, and many at once. Beside the wall time it reports
// this process's CPU time per call.
func BenchmarkGet(b *testing.B, s store.Store) {
	const records = 1024
	ctx := context.Background()
	keys := make([]string, records)
	for i := range keys {
		keys[i] = fmt.Sprintf("coatcheck-%032x", i)
		if err := s.Create(ctx, keys[i], make([]byte, 2<<10), time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	get := func(b *testing.B, ctx context.Context, n uint64) {
		// Steps of a prime length visit the keys out of order.
		if _, err := s.Get(ctx, keys[n*389%records]); err != nil {
			b.Error(err)
		}
	}
	b.Run("serial", func(b *testing.B) {
		ctx, cancel := context.WithCancel(ctx) // as a request's is
		defer cancel()
		b.ReportAllocs()
		began, n := cpuTime(), uint64(0)
		for b.Loop() {
			get(b, ctx, n)
			n++
		}
		b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
	})
	b.Run("parallel", func(b *testing.B) {
		var n atomic.Uint64
		b.ReportAllocs()
		b.SetParallelism(32)
		began := cpuTime()
		b.RunParallel(func(pb *testing.PB) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			for pb.Next() {
				get(b, ctx, n.Add(1))
			}
		})
		b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
	})
}

// cpuTime returns the user and system time this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
