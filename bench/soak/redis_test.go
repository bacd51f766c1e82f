package soak

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/redis"
)

// redisBackend is a Redis that nobody else uses.
type redisBackend struct {
	*testenv.Redis
	client rueidis.Client
}

func startRedis(t *testing.T) backend {
	r := testenv.StartRedis(t, testenv.RedisOptions{})
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{r.Addr()}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &redisBackend{r, client}
}

func (r *redisBackend) version() string {
	text, _ := r.Do("INFO", "server").ToString()
	_, rest, _ := strings.Cut(text, "redis_version:")
	version, _, _ := strings.Cut(rest, "\r\n")
	return "Redis " + version
}

func (r *redisBackend) nodes() int { return 3 }

func (r *redisBackend) config() string {
	return fmt.Sprintf("{driver: redis, redis: {url: %s, timeout: %s, key_prefix: 'soak:'}}", r.URL(), patient)
}

func (r *redisBackend) open(t *testing.T) store.Backend {
	s, err := redis.Open(t.Context(), redis.Options{URL: r.URL(), Timeout: patient, KeyPrefix: "soak:"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (r *redisBackend) left(ctx context.Context) (left, error) {
	l := left{}
	for cursor := uint64(0); ; {
		page, err := r.client.Do(ctx, r.client.B().Scan().Cursor(cursor).Count(1000).Build()).AsScanEntry()
		if err != nil {
			return nil, err
		}
		var asked rueidis.Commands
		for _, key := range page.Elements {
			asked = append(asked, r.client.B().Pttl().Key(key).Build())
		}
		for i, answer := range r.client.DoMulti(ctx, asked...) {
			ms, err := answer.AsInt64()
			if err != nil {
				return nil, err
			}
			if ms != -2 { // gone meanwhile
				l.add(ofKey(page.Elements[i]), time.Duration(ms)*time.Millisecond)
			}
		}
		if cursor = page.Cursor; cursor == 0 {
			return l, nil
		}
	}
}

// ofKey says what a key of Redis is, by its letter.
func ofKey(key string) string {
	letter, rest, _ := strings.Cut(strings.TrimPrefix(key, "soak:"), ":")
	switch letter {
	case "r", "t":
		return ofRecord(strings.Trim(rest, "{}"))
	case "a", "i", "s":
		return nobodys
	case "e":
		return journal
	default:
		return "keys " + letter
	}
}
