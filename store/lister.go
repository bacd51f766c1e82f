package store

import (
	"context"
	"iter"
)

// A Lister walks over all records. It is for tools that compare, not for requests.
type Lister interface {
	// Keys yields the keys of the live records that begin with prefix, as pages are read,
	// in no particular order; one that is created or deleted meanwhile may come or not,
	// and one may come twice. It blocks nobody. After an error it yields nothing more.
	Keys(ctx context.Context, prefix string) iter.Seq2[string, error]
}
