package redis

import (
	"context"
	"iter"
	"strings"

	"github.com/redis/rueidis"
)

// scanCount is how many keys a server looks at for one page.
const scanCount = 500

// Keys implements store.Lister. It walks over all keys of the database, those of others
// among them.
func (s *Store) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, node := range s.redis().Nodes() {
			if err := hearPrimary(ctx, node); err == errReplica {
				continue
			} else if err != nil {
				yield("", wrap("keys", err))
				return
			}
			for cursor := uint64(0); ; {
				page, next, err := s.page(ctx, node, cursor, prefix)
				if err != nil {
					yield("", wrap("keys", err))
					return
				}
				for _, key := range page {
					if !yield(key, nil) {
						return
					}
				}
				if cursor = next; cursor == 0 {
					break
				}
			}
		}
	}
}

// page returns the keys of the live records among those that a server scans next.
func (s *Store) page(ctx context.Context, node rueidis.Client, cursor uint64, prefix string) (page []string, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	scanned, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(globEscaper.Replace(s.valuePrefix())+"*").Count(scanCount).Build().Pin()).AsScanEntry()
	if err != nil {
		return nil, 0, err
	}
	client := s.redis()
	var keys []string
	var asked rueidis.Commands
	for _, name := range scanned.Elements {
		if key, ok := untag(strings.TrimPrefix(name, s.valuePrefix())); ok && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
			asked = append(asked, client.B().Exists().Key(s.deadlineKey(key)).Build().Pin())
		}
	}
	for i, answer := range client.DoMulti(ctx, asked...) {
		live, err := answer.AsBool()
		if err != nil {
			return nil, 0, err
		}
		if live {
			page = append(page, keys[i])
		}
	}
	return page, scanned.Cursor, nil
}

// globEscaper makes a prefix literal in a pattern of SCAN.
var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
