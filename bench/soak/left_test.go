package soak

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A backend is the store that all nodes share.
type backend interface {
	version() string
	nodes() int                      // that may share it
	config() string                  // of a node's store
	open(t *testing.T) store.Backend // beside the nodes; nil where that can't be
	// left counts the keys or rows that are there.
	left(ctx context.Context) (left, error)
}

var backends = map[string]func(*testing.T) backend{"redis": startRedis, "postgres": startPostgres, "sqlite": startSQLite}

// left says what a store holds, by kind.
type left map[string]kind

// A kind is a number of keys or rows, and how long the last of them lives; negative if one
// has no end.
type kind struct {
	Count int           `json:"count"`
	Last  time.Duration `json:"last_ns"`
}

// The kinds that expire in a time of their own, which is not the session's. A used sign-in
// is remembered for a quarter of an hour, and its value key in Redis for twice that; the
// journal for store.JournalLife. In Redis, a node that is killed in the midst of a
// sign-in leaves an index that names nobody, and that ends by itself. The list of live
// nodes is there for as long as nodes are.
const (
	claims  = "used sign-ins"
	journal = "journal"
	nobodys = "indexes that name nobody"
	nodes   = "live nodes"
)

var ownTime = map[string]time.Duration{
	claims:  30 * time.Minute,
	journal: store.JournalLife,
	nobodys: 3 * time.Minute,
	nodes:   2 * time.Minute,
}

func (l left) add(name string, last time.Duration) {
	k := l[name]
	if k.Count++; k.Last >= 0 && (last < 0 || last > k.Last) {
		k.Last = last
	}
	l[name] = k
}

// all is how much there is that does not tell of nodes that still run.
func (l left) all() (n int) {
	for name, k := range l {
		if name != nodes {
			n += k.Count
		}
	}
	return n
}

// ours is how much there is of sessions, or of anything that will not be gone in its own
// time.
func (l left) ours() (n int) {
	for name, k := range l {
		if bound, ok := ownTime[name]; !ok || k.Last < 0 || k.Last > bound {
			n += k.Count
		}
	}
	return n
}

func (l left) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, fmt.Sprintf("%s %d (%s)", name, l[name].Count, l[name].Last.Round(time.Second)))
	}
	return strings.Join(parts, ", ")
}

// ofRecord says what a record is, by its key.
func ofRecord(key string) string {
	switch {
	case strings.HasPrefix(key, "tombstone-"):
		return "tombstones"
	case strings.HasPrefix(key, "coatcheck-login-"):
		return claims
	case strings.HasPrefix(key, "nodes:"):
		return nodes
	default:
		return "records"
	}
}

// patient is a timeout of a store that a busy machine does not reach.
const patient = 5 * time.Second
