package redis

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// Where the next primary's clock is behind, fences rise all the same.
func TestFenceOfAClockBehind(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s, ctx := open(t, Options{URL: server.URL()}), t.Context()
	ahead := uint64(time.Now().Add(time.Minute).UnixMicro())
	last := binary.BigEndian.AppendUint64(nil, ahead)
	server.Must("SET", "l:name", string(append(last, make([]byte, timeLen)...)), "PX", "10000")
	for i := range uint64(3) {
		lease, err := s.Acquire(ctx, "name", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if lease.Fence() != ahead+1+i {
			t.Errorf("fence %d, want %d", lease.Fence(), ahead+1+i)
		}
		if err := lease.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m := server.Must("PTTL", "l:name")
	if ms, err := m.AsInt64(); err != nil || time.Duration(ms)*time.Millisecond > fenceMemory {
		t.Errorf("a released lease is remembered for %d ms; %v", ms, err)
	}
}
