package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// check asks the servers that were reached whether they are set up as coatcheck needs
// it. The error of one that is not says what to change.
func (s *Store) check(ctx context.Context, client rueidis.Client, o rueidis.ClientOption) error {
	clustered := !o.ForceSingleClient && o.Sentinel.MasterSet == ""
	if clustered && client.Mode() != rueidis.ClientModeCluster {
		return errors.New("the server is not part of a cluster; say where it is by a url instead")
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	warned, answered := false, 0
	var silent error
	for addr, node := range client.Nodes() {
		settings, err := node.Do(ctx, node.B().ConfigGet().Parameter("timeout").Build()).AsStrMap()
		if said, is := rueidis.IsRedisErr(err); is {
			answered++
			if !warned {
				warned = true
				s.log.Warn("Redis does not tell its setting timeout (CONFIG GET); it must be 0, or longer than store.redis.timeout",
					"server", addr, "error", stripped(said))
			}
			continue
		}
		if err != nil {
			silent = err
			continue
		}
		answered++
		if err := s.checkIdleTimeout(addr, settings["timeout"]); err != nil {
			return err
		}
	}
	if answered == 0 {
		return silent
	}
	return nil
}

// checkIdleTimeout makes sure that the server does not end connections for being idle.
// An idle one is asked for a PONG every half of s.timeout, and counts as idle until the
// half in which it last answered is over.
func (s *Store) checkIdleTimeout(addr, setting string) error {
	seconds, err := strconv.Atoi(setting)
	if err != nil {
		return fmt.Errorf("%s: the setting timeout is not a number", addr)
	}
	idle := time.Duration(seconds) * time.Second
	if idle == 0 || s.timeout < idle {
		return nil
	}
	return fmt.Errorf("%s ends connections that are idle for %s (its setting timeout), and ours are kept awake every %s: "+
		"set timeout to 0 there (CONFIG SET timeout 0, and in redis.conf), or store.redis.timeout to less than %s",
		addr, idle, s.timeout, idle)
}
