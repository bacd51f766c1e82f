package soak

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/postgres"
)

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
	if _, _, err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *postgresBackend) version() string {
	version, _, _ := strings.Cut(p.conn.PgConn().ParameterStatus("server_version"), " ")
	return "PostgreSQL " + version
}

func (p *postgresBackend) nodes() int { return 3 }

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
