package memory

import (
	"context"
	"time"
)

// Now implements store.Clock: it is this process's.
func (s *Store) Now(ctx context.Context) (time.Time, error) { return time.Now(), ctx.Err() }
