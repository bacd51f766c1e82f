package soak

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
)

// A backend is the server that all nodes share.
type backend interface {
	version() string
	config() string                  // of a node's store
	open(t *testing.T) store.Backend // beside the nodes
	// left counts the keys or rows that are there.
	left(ctx context.Context) (left, error)
}

var backends = map[string]func(*testing.T) backend{"redis": startRedis, "postgres": startPostgres}

// left says what a store holds, by kind.
type left map[string]kind

// A kind is a number of keys or rows, and how long the last of them lives; negative if one
// has no end.
type kind struct {
	Count int           `json:"count"`
	Last  time.Duration `json:"last_ns"`
}

// The kinds that expire in a time of their own, which is not the session's. A used sign-in
// is remembered for a quarter of an hour, and its value key in Redis for twice that; the
// journal for store.JournalLife. In Redis, a node that is killed in the midst of a
// sign-in leaves an index that names nobody, and that ends by itself.
const (
	claims  = "used sign-ins"
	journal = "journal"
	nobodys = "indexes that name nobody"
)

var ownTime = map[string]time.Duration{
	claims:  30 * time.Minute,
	journal: store.JournalLife,
	nobodys: 3 * time.Minute,
}

func (l left) add(name string, last time.Duration) {
	k := l[name]
	if k.Count++; k.Last >= 0 && (last < 0 || last > k.Last) {
		k.Last = last
	}
	l[name] = k
}

// all is how much there is.
func (l left) all() (n int) {
	for _, k := range l {
		n += k.Count
	}
	return n
}

// ours is how much there is of sessions, or of anything that will not be gone in its own
// time.
func (l left) ours() (n int) {
	for name, k := range l {
		if bound, ok := ownTime[name]; !ok || k.Last < 0 || k.Last > bound {
			n += k.Count
		}
	}
	return n
}

func (l left) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, fmt.Sprintf("%s %d (%s)", name, l[name].Count, l[name].Last.Round(time.Second)))
	}
	return strings.Join(parts, ", ")
}

// ofRecord says what a record is, by its key.
func ofRecord(key string) string {
	switch {
	case strings.HasPrefix(key, "tombstone-"):
		return "tombstones"
	case strings.HasPrefix(key, "coatcheck-login-"):
		return claims
	default:
		return "records"
	}
}

// redisBackend is a Redis that nobody else uses.
type redisBackend struct {
	*testenv.Redis
	client rueidis.Client
}

const patient = 5 * time.Second

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

// postgresBackend is a PostgreSQL that nobody else uses.
type postgresBackend struct {
	*testenv.Postgres
	conn *pgx.Conn
}

func startPostgres(t *testing.T) backend {
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Config: []string{"shared_buffers=256MB", "max_wal_size=4GB"}})
	conn, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	b := &postgresBackend{p, conn}
	s, err := postgres.Open(t.Context(), postgres.Options{URL: p.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *postgresBackend) version() string {
	version, _, _ := strings.Cut(p.conn.PgConn().ParameterStatus("server_version"), " ")
	return "PostgreSQL " + version
}

func (p *postgresBackend) config() string {
	return fmt.Sprintf("{driver: postgres, postgres: {url: %s, timeout: %s}}", strconv.Quote(p.URL()), patient)
}

func (p *postgresBackend) open(t *testing.T) store.Backend {
	s, err := postgres.Open(t.Context(), postgres.Options{URL: p.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// left looks at every table but the one that notes migrations.
func (p *postgresBackend) left(ctx context.Context) (left, error) {
	l := left{}
	rows, err := p.conn.Query(ctx, `SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename <> 'schema_migrations'`, postgres.DefaultSchema)
	if err != nil {
		return nil, err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		name, lives := `''`, `NULL::interval`
		from := pgx.Identifier{postgres.DefaultSchema, table}.Sanitize()
		switch table {
		case "records":
			name, lives = `convert_from(key, 'UTF8')`, `expires - clock_timestamp()`
		case "bodies": // a body has the end of its record
			name, lives = `convert_from(key, 'UTF8')`, `expires - clock_timestamp()`
			from += ` LEFT JOIN ` + pgx.Identifier{postgres.DefaultSchema, "records"}.Sanitize() + ` USING (key)`
		case "events":
			lives = fmt.Sprintf(`at + interval '%s' - clock_timestamp()`, store.JournalLife)
		}
		rows, err := p.conn.Query(ctx, `SELECT `+name+`, `+lives+` FROM `+from)
		if err != nil {
			return nil, err
		}
		var key string
		var ends *time.Duration
		_, err = pgx.ForEachRow(rows, []any{&key, &ends}, func() error {
			last := time.Duration(-1)
			if ends != nil {
				last = max(*ends, 0)
			}
			switch table {
			case "records", "bodies":
				l.add(ofRecord(key), last)
			case "events":
				l.add(journal, last)
			default:
				l.add(table, last)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}
