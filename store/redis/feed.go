package redis

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

// Watch implements store.Watcher.
//
// Every connection has the server tell it of all changes of value keys, and of the end
// of the connection itself we hear as well. On one connection a server tells of a change
// before it answers whatever comes after that change was acknowledged. So once all
// primaries have answered a question that was put at T, on connections that stood before,
// all changes from before T have been told.
//
// A connection that is new is reason to ask before the next beat: until then nobody may
// serve what was read before, and after an outage that is everything.
func (s *Store) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	select {
	case <-s.reached:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !s.tracking {
		return store.ErrNoFeed
	}
	defer s.listen(&feed)()

	var under sync.WaitGroup
	defer under.Wait()
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	var heard hearing
	var quiet silence
	for {
		asOf, renewed := time.Now(), *s.renewed.Load()
		now, err := s.hear(ctx, &under)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if now != heard || now.moving {
				heard = now
				feed.Reset()
			}
			feed.Current(asOf)
		}
		quiet.log(s.log, asOf, err)
		select {
		case <-ticker.C:
		case <-renewed:
			time.Sleep(time.Until(asOf.Add(leastBeat)))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tolerance is how long nothing is heard before that is worth a line in the log: a
// connection that is new is reason to ask again, and no more.
const tolerance = time.Second

// A silence is a time in which nothing is heard. The log is told once of each that lasts.
type silence struct {
	began time.Time // zero while something is heard
	told  bool
}

// log takes what became of a question that was put at asked.
func (q *silence) log(log *slog.Logger, asked time.Time, err error) {
	if err == nil {
		if q.told {
			log.Info("the feed of changes is back")
		}
		*q = silence{}
		return
	}
	if q.began.IsZero() {
		q.began = asked
	}
	if !q.told && time.Since(q.began) >= tolerance {
		q.told = true
		log.Warn("the feed of changes is interrupted", "error", stripped(err))
	}
}

// leastBeat keeps a server that ends each connection after its first answer from being
// asked without a pause.
const leastBeat = 50 * time.Millisecond

// listen has feed told of what the connections tell, until stop returns.
func (s *Store) listen(feed *store.Feed) (stop func()) {
	s.feedsMu.Lock()
	defer s.feedsMu.Unlock()
	s.feeds[feed] = true
	return func() {
		s.feedsMu.Lock()
		defer s.feedsMu.Unlock()
		delete(s.feeds, feed)
	}
}

// connected is called with the first answer of a connection.
func (s *Store) connected() {
	s.answering.Add(1)
	renewed := make(chan struct{})
	close(*s.renewed.Swap(&renewed))
}

// invalidated is called by the goroutine that reads from a connection, before it hands
// over the next answer; with nil when the connection ends, or all keys are dropped.
func (s *Store) invalidated(names []rueidis.RedisMessage) {
	s.feedsMu.Lock()
	defer s.feedsMu.Unlock()
	if names == nil {
		for feed := range s.feeds {
			feed.Reset()
		}
		return
	}
	if len(s.feeds) == 0 {
		return
	}
	for _, message := range names {
		name, err := message.ToString()
		if err != nil {
			continue
		}
		key, ok := untag(strings.TrimPrefix(name, s.valuePrefix()))
		if !ok {
			continue
		}
		for feed := range s.feeds {
			feed.Changed(key)
		}
	}
}

// A hearing says on what connections, and from whom, changes are heard.
type hearing struct {
	connections int64  // how many have answered so far; a new one is not told of what came before
	primaries   string // of a cluster: who serves which slots
	moving      bool   // a slot is moving to a primary that was not asked
}

var (
	errReconnected = errors.New("a connection is new")
	errReplica     = errors.New("the server is a replica")
)

// hear asks every primary, and returns once they have answered. Its goroutines are under.
func (s *Store) hear(ctx context.Context, under *sync.WaitGroup) (hearing, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	client := s.redis()
	now := hearing{connections: s.answering.Load()}
	var err error
	if client.Mode() == rueidis.ClientModeCluster {
		now.primaries, now.moving, err = hearCluster(ctx, client, under)
	} else {
		err = hearPrimary(ctx, client)
	}
	// A connection that came up meanwhile may have answered, and was told nothing of
	// what came before it.
	if err == nil && s.answering.Load() != now.connections {
		err = errReconnected
	}
	return now, err
}

// protocol is the version of RESP that connections speak anyway.
const protocol = 3

// hearPrimary asks a server that is no part of a cluster.
func hearPrimary(ctx context.Context, client rueidis.Client) error {
	answer, err := client.Do(ctx, client.B().Hello().Protover(protocol).Build()).AsMap()
	if err != nil {
		return err
	}
	role := answer["role"]
	if name, err := role.ToString(); err != nil || name != "master" {
		return errReplica
	}
	return nil
}
