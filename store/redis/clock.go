package redis

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// clockScript reads the clock of the server that keeps one certain key, so that all nodes
// ask the same server of a Cluster.
var clockScript = rueidis.NewLuaScript(`return redis.call('TIME')`)

// Now implements store.Clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	parts, err := s.eval(ctx, clockScript, []string{s.prefix}, nil).AsStrSlice()
	if err != nil {
		return time.Time{}, wrap("now", err)
	}
	if len(parts) != 2 {
		return time.Time{}, wrap("now", errors.New("TIME did not answer with two numbers"))
	}
	seconds, err := strconv.ParseInt(parts[0], 10, 64)
	micros, err2 := strconv.ParseInt(parts[1], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return time.Time{}, wrap("now", err)
	}
	return time.Unix(seconds, micros*1000), nil
}
