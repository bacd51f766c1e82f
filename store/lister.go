package store

import (
	"context"
	"iter"
)

// A Lister walks over all records and all entries. It is for tools that compare, not for
// requests.
type Lister interface {
	// Keys yields the keys of the live records that begin with prefix, as pages are read,
	// in no particular order; one that is created or deleted meanwhile may come or not,
	// and one may come twice. It blocks nobody. After an error it yields nothing more.
	Keys(ctx context.Context, prefix string) iter.Seq2[string, error]

	// Entries is Keys for the entries of a tenant that have not expired, ending ones
	// included. It asks no index that a lost write may have left incomplete, so it yields
	// some that Find misses.
	Entries(ctx context.Context, tenant string) iter.Seq2[Entry, error]
}
