package redis

import (
	"fmt"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// countKeys returns how many keys come, and why no more.
func countKeys(t *testing.T, s *Store, prefix string) (n int, err error) {
	for _, err := range s.Keys(t.Context(), prefix) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Whoever compares, or takes a key out of use that no record needs, is not told of some
// records as of all (A-Z4).
func TestKeysOfAPartOfACluster(t *testing.T) {
	t.Parallel()
	env := testenv.StartRedisCluster(t, testenv.ClusterOptions{Empty: 1})
	opts := Options{Cluster: &Cluster{Addresses: env.Addresses()[:1]}, KeyPrefix: "part:"}
	s := open(t, opts)
	const records = 40
	for i := range records {
		if err := s.Create(t.Context(), fmt.Sprintf("keys-%02d", i), nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := countKeys(t, s, "keys-"); n != records || err != nil {
		t.Errorf("%d keys, %v; want %d", n, err, records)
	}

	// A slot on its way to a node that has none, and is in no client's list.
	slot, to := env.Slot(s.valueKey("keys-00")), env.Nodes()[3]
	env.BeginMigration(slot, to)
	env.MoveKeys(slot, to, 100)
	if n, err := countKeys(t, s, "keys-"); err == nil {
		t.Errorf("%d keys of %d and no error while a slot moves", n, records)
	}
	env.EndMigration(slot, to)
	eventually(t, "a client knows of all nodes again", func() bool {
		s = open(t, opts)
		n, err := countKeys(t, s, "keys-")
		return n == records && err == nil
	})

	// One that moves during the walk, maybe to where that has been already.
	var last error
	moved := false
	for _, last = range s.Keys(t.Context(), "keys-") {
		if !moved {
			env.Migrate(slot, env.Nodes()[0])
			moved = true
		}
	}
	if last == nil {
		t.Error("no error after a slot has moved")
	}
}
