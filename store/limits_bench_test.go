package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

// BenchmarkGiveWay is the sign-in at which a limit first holds for somebody who has many
// sessions. A driver may hold a lock meanwhile.
func BenchmarkGiveWay(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			counted := make([]store.Entry, n)
			for i := range counted {
				counted[i] = live(fmt.Sprintf("%024x", i), i*7919%n, 0)
			}
			for b.Loop() {
				victims, err := store.GiveWay(slices.Clone(counted), "a", store.Limits{PerUser: 3, OnLimit: store.EvictOldest})
				if err != nil || len(victims) != n-2 {
					b.Fatal(len(victims), err)
				}
			}
		})
	}
}
