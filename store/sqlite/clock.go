package sqlite

import (
	"context"
	"time"
)

// Now implements store.Clock. All processes that share a file share a machine, and its
// clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) { return time.Now(), ctx.Err() }
