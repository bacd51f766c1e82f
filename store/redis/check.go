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
// it. The error of one that is not says what to change. Those that don't answer, or can't
// for now, are not asked again; one answers at least.
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
	answered, untold := 0, answer{}
	var silent, wrong error
	for range len(nodes) {
		a := <-answers
		if a.err == nil {
			var idle time.Duration
			if idle, a.err = idleTimeout(a.settings); a.err == nil {
				answered++
				wrong = errors.Join(wrong, s.checkIdleTimeout(a.addr, idle))
				continue
			}
		}
		if refuses(a.err) {
			answered++
			untold = a
		} else {
			silent = a.err
		}
	}
	switch {
	case answered == 0:
		return silent
	case wrong != nil:
		return wrong
	case untold.err != nil:
		s.log.Warn("Redis does not tell its setting timeout (CONFIG GET); it must be 0, or longer than store.redis.timeout",
			"server", untold.addr, "error", stripped(untold.err))
	}
	return nil
}

var errUntold = errors.New("the answer has no such setting")

// idleTimeout returns after how long a server with these settings ends idle connections;
// zero: it never does.
func idleTimeout(settings map[string]string) (time.Duration, error) {
	seconds, err := strconv.Atoi(settings["timeout"])
	if err != nil {
		return 0, errUntold
	}
	return time.Duration(seconds) * time.Second, nil
}

// refuses says whether err is that of a server that does not tell its settings, now or later.
func refuses(err error) bool {
	said, is := rueidis.IsRedisErr(err)
	return err == errUntold || is && !passing(said.Error())
}

// checkIdleTimeout makes sure that the server does not end connections for being idle.
// An idle one is asked for a PONG every half of s.timeout, and counts as idle until the
// half in which it last answered is over.
func (s *Store) checkIdleTimeout(addr string, idle time.Duration) error {
	if idle == 0 || s.timeout < idle {
		return nil
	}
	return fmt.Errorf("%s ends connections that are idle for %s (its setting timeout), and ours are kept awake every %s: "+
		"set timeout to 0 there (CONFIG SET timeout 0, and in redis.conf), or store.redis.timeout to less than %s",
		addr, idle, s.timeout, idle)
}
