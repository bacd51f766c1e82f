package scale

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
)

// A server is one kind of store with a number of sessions. What it is asked through is the
// driver that ships.
type server struct {
	store.Backend
	version string
	workers int // that fill it
	noise   []byte

	// size returns what it takes to keep what is there, by part, in bytes.
	size func(context.Context) (map[string]int64, error)
	// pids returns its processes.
	pids func(context.Context) ([]int, error)
	// settle does what a server does by itself, some time after it was filled.
	settle func(context.Context) error

	filled int // sessions 0 to filled-1 are there
	made   int // the last session that was begun on top
	batch  []session
	reaps  int // how many calls of Reap the batch is for
}

var starters = map[string]func(testing.TB) *server{"redis": startRedis, "postgres": startPostgres}

// patient is a timeout that a busy machine does not reach.
const patient = 30 * time.Second

func startRedis(t testing.TB) *server {
	t.Helper()
	r := testenv.StartRedis(t, testenv.RedisOptions{})
	driver, err := redis.Open(t.Context(), redis.Options{URL: r.URL(), Timeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = driver.Close() })
	info := func(section, field string) (string, error) {
		text, err := r.Do("INFO", section).ToString()
		if err != nil {
			return "", err
		}
		_, rest, ok := strings.Cut("\r\n"+text, "\r\n"+field+":")
		if !ok {
			return "", fmt.Errorf("INFO %s has no %s", section, field)
		}
		value, _, _ := strings.Cut(rest, "\r\n")
		return value, nil
	}
	version, err := info("server", "redis_version")
	if err != nil {
		t.Fatal(err)
	}
	return &server{
		Backend: driver, version: "Redis " + version, workers: 128, noise: newNoise(),
		size: func(context.Context) (map[string]int64, error) {
			text, err := info("memory", "used_memory")
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseInt(text, 10, 64)
			return map[string]int64{"memory": n}, err
		},
		pids: func(context.Context) ([]int, error) {
			text, err := info("server", "process_id")
			if err != nil {
				return nil, err
			}
			pid, err := strconv.Atoi(text)
			return []int{pid}, err
		},
		settle: func(context.Context) error { return nil },
	}
}

func startPostgres(t testing.TB) *server {
	t.Helper()
	const workers = 16
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Config: []string{"shared_buffers=1GB", "max_wal_size=8GB"}})
	driver, err := postgres.Open(t.Context(), postgres.Options{URL: p.URL(), Timeout: patient, MaxConns: workers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = driver.Close() })
	if _, _, err := driver.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	var version string
	if err := conn.QueryRow(t.Context(), `SHOW server_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	version, _, _ = strings.Cut(version, " ")
	return &server{
		Backend: driver, version: "PostgreSQL " + version, workers: workers, noise: newNoise(),
		size: func(ctx context.Context) (map[string]int64, error) {
			rows, err := conn.Query(ctx, `
				SELECT relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
				WHERE nspname = $1 AND relkind = 'r' AND relname IN ('records', 'bodies', 'entries', 'seats')`, postgres.DefaultSchema)
			if err != nil {
				return nil, err
			}
			sizes := map[string]int64{}
			var table string
			var bytes int64
			_, err = pgx.ForEachRow(rows, []any{&table, &bytes}, func() error { sizes[table] = bytes; return nil })
			return sizes, err
		},
		// Those that answer calls. What the others do, they do once in a while for all.
		pids: func(ctx context.Context) ([]int, error) {
			rows, err := conn.Query(ctx, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`)
			if err != nil {
				return nil, err
			}
			return pgx.CollectRows(rows, pgx.RowTo[int])
		},
		settle: func(ctx context.Context) error {
			_, err := conn.Exec(ctx, `VACUUM (ANALYZE) `+postgres.DefaultSchema+`.records, `+
				postgres.DefaultSchema+`.bodies, `+postgres.DefaultSchema+`.entries`)
			if err == nil {
				_, err = conn.Exec(ctx, `CHECKPOINT`)
			}
			return err
		},
	}
}

// cpu returns the processor time that each process has taken so far, user and system, by
// the scheduler's own count.
func (s *server) cpu(ctx context.Context) (map[int]time.Duration, error) {
	pids, err := s.pids(ctx)
	if err != nil {
		return nil, err
	}
	taken := map[int]time.Duration{}
	for _, pid := range pids {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			first, _, _ := strings.Cut(string(data), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			taken[pid] += time.Duration(ns)
		}
	}
	return taken, nil
}
