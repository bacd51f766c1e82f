package redis

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"

	"github.com/redis/rueidis"
)

// scanCount is how many keys a server looks at for one page.
const scanCount = 500

// Keys implements store.Lister. It walks over all keys of the database, those of others
// among them.
func (s *Store) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		err := s.scan(ctx, s.valuePrefix(), func(names []string) (more bool, err error) {
			live, err := s.liveKeys(ctx, names, prefix)
			for _, key := range live {
				if !yield(key, nil) {
					return false, nil
				}
			}
			return true, err
		})
		if err != nil {
			yield("", wrap("keys", err))
		}
	}
}

// scan calls page with the names of the database's keys that begin with prefix, a page at a
// time, until that returns false. It fails unless all slots of a cluster stayed where they are:
// some keys would be missing without a word.
func (s *Store) scan(ctx context.Context, prefix string, page func(names []string) (more bool, err error)) error {
	client := s.redis()
	before, err := s.settledSlots(ctx, client)
	if err != nil {
		return err
	}
	if more, err := s.scanNodes(ctx, client, prefix, page); err != nil || !more {
		return err
	}
	after, err := s.settledSlots(ctx, client)
	if err == nil && after != before {
		err = errMoving
	}
	return err
}

var errMoving = errors.New("slots of the cluster move: try again when they have")

// settledSlots returns what changes when slots of a cluster do, or who serves them. It fails
// while some move, or are served by nobody.
func (s *Store) settledSlots(ctx context.Context, client rueidis.Client) (string, error) {
	if client.Mode() != rueidis.ClientModeCluster {
		return "", nil
	}
	var asked sync.WaitGroup
	defer asked.Wait()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	primaries, _, err := hearCluster(ctx, client, &asked)
	if err == nil && strings.Contains(primaries, "->-") {
		err = errMoving
	}
	return primaries, err
}

// scanNodes is scan for the nodes that are known. A replica has the keys of its primary, if
// not the last ones.
func (s *Store) scanNodes(ctx context.Context, client rueidis.Client, prefix string, page func(names []string) (more bool, err error)) (more bool, err error) {
	primaries := 0
	for _, node := range client.Nodes() {
		if err := hearPrimary(ctx, node); err == errReplica {
			continue
		} else if err != nil {
			return false, err
		}
		primaries++
		for cursor := uint64(0); ; {
			scanned, err := s.scanPage(ctx, node, cursor, prefix)
			if err != nil {
				return false, err
			}
			if more, err := page(scanned.Elements); err != nil || !more {
				return false, err
			}
			if cursor = scanned.Cursor; cursor == 0 {
				break
			}
		}
	}
	if primaries == 0 {
		return false, errReplica // or what is there would be taken for nothing
	}
	return true, nil
}

func (s *Store) scanPage(ctx context.Context, node rueidis.Client, cursor uint64, prefix string) (rueidis.ScanEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return node.Do(ctx, node.B().Scan().Cursor(cursor).Match(globEscaper.Replace(prefix)+"*").Count(scanCount).Build().Pin()).AsScanEntry()
}

// liveKeys returns the keys of the live records among the values called by names, as far as
// they begin with prefix.
func (s *Store) liveKeys(ctx context.Context, names []string, prefix string) (live []string, err error) {
	var keys []string
	var calls []call
	for _, name := range names {
		if key, ok := untag(strings.TrimPrefix(name, s.valuePrefix())); ok && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
			calls = append(calls, call{command: "EXISTS", key: s.deadlineKey(key)})
		}
	}
	for i, answer := range s.doPage(ctx, calls...) {
		there, err := answer.AsBool()
		if err != nil {
			return nil, err
		}
		if there {
			live = append(live, keys[i])
		}
	}
	return live, nil
}

// globEscaper makes a prefix literal in a pattern of SCAN.
var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
