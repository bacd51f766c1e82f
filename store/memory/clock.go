package memory

import (
	"context"
	"time"
)

// Clock implements store.Clock: it is this process's.
func (s *Store) Clock(ctx context.Context) (time.Time, error) { return time.Now(), ctx.Err() }
