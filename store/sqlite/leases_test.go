package sqlite

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// Fences rise from holder to holder: within an instant, from one process to the next, and
// where the clock was set back in between.
func TestFencesRise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "coatcheck.db")
		var last uint64
		for range 2 {
			s, err := Open(t.Context(), Options{File: file})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				l, err := s.Acquire(t.Context(), "l", time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				if l.Fence() <= last {
					t.Errorf("fence %d after %d", l.Fence(), last)
				}
				last = l.Fence()
				if err := l.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Acquire(t.Context(), "l", 0); err != nil {
				t.Fatal(err)
			}
			const ahead = 1e6 * 3600
			s.query(t, `UPDATE leases SET fence = fence + ?`, int64(ahead))
			last += ahead
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
	})
}
