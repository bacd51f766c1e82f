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
// it. The error of one that is not says what to change. Those that don't answer are not
// in use either; one answers at least.
func (s *Store) check(ctx context.Context, client rueidis.Client, o rueidis.ClientOption) error {
	clustered := !o.ForceSingleClient && o.Sentinel.MasterSet == ""
	if clustered && client.Mode() != rueidis.ClientModeCluster {
		return errors.New("the server is not part of a cluster; say where it is by a url instead")
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	nodes := client.Nodes()
	type answer struct {
		addr     string
		settings map[string]string
		err      error
	}
	answers := make(chan answer, len(nodes))
	for addr, node := range nodes {
		go func() {
			settings, err := node.Do(ctx, node.B().ConfigGet().Parameter("timeout").Build()).AsStrMap()
			answers <- answer{addr, settings, err}
		}()
	}
	answered, forbidden := 0, answer{}
	var silent, wrong error
	for range len(nodes) {
		switch a := <-answers; {
		case a.err == nil:
			answered++
			wrong = errors.Join(wrong, s.checkIdleTimeout(a.addr, a.settings["timeout"]))
		case isRedisErr(a.err):
			answered++
			forbidden = a
		default:
			silent = a.err
		}
	}
	switch {
	case answered == 0:
		return silent
	case wrong != nil:
		return wrong
	case forbidden.err != nil:
		s.log.Warn("Redis does not tell its setting timeout (CONFIG GET); it must be 0, or longer than store.redis.timeout",
			"server", forbidden.addr, "error", stripped(forbidden.err))
	}
	return nil
}

func isRedisErr(err error) bool {
	_, is := rueidis.IsRedisErr(err)
	return is
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
