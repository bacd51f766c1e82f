package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

// A driver is the store that a configuration has chosen, before anything looks for it.
type driver struct {
	setting string // says where the store is
	dial    func(context.Context) (store.Backend, error)
	timeout time.Duration // how long a call may take; zero where the driver does not bound it
	// migrate brings tables to what this version needs and says what it did.
	migrate func(context.Context) (did string, err error)
}

// newDriver is the switch between the drivers. There is no other one.
func newDriver(cfg config.Store, logger *slog.Logger) (driver, error) {
	switch cfg.Driver {
	case config.DriverSQLite:
		return driver{
			setting: "store.sqlite.file",
			dial: func(ctx context.Context) (store.Backend, error) {
				return sqlite.Open(ctx, sqliteOptions(cfg.SQLite, logger))
			},
			migrate: nothing("SQLite needs no migration: a node sees to its tables when it starts."),
		}, nil
	case config.DriverRedis:
		return driver{
			setting: redisSetting(cfg.Redis),
			dial: func(ctx context.Context) (store.Backend, error) {
				return redis.Open(ctx, redisOptions(cfg.Redis, logger))
			},
			timeout: cfg.Redis.Timeout,
			migrate: nothing("Redis needs no migration: it has no tables."),
		}, nil
	case config.DriverPostgres:
		return driver{
			setting: "store.postgres.url",
			dial: func(ctx context.Context) (store.Backend, error) {
				return postgres.Open(ctx, postgresOptions(cfg.Postgres, logger))
			},
			timeout: cfg.Postgres.Timeout,
			migrate: func(ctx context.Context) (string, error) {
				return migratePostgres(ctx, postgresOptions(cfg.Postgres, logger))
			},
		}, nil
	default:
		return driver{}, fmt.Errorf("store: no driver is called %q", cfg.Driver)
	}
}

// open opens the store. Its errors name the setting.
func (d driver) open(ctx context.Context) (store.Backend, error) {
	kept, err := d.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.setting, err)
	}
	return kept, nil
}

func openStore(ctx context.Context, cfg config.Store, logger *slog.Logger) (store.Backend, error) {
	d, err := newDriver(cfg, logger)
	if err != nil {
		return nil, err
	}
	return d.open(ctx)
}

// nothing is the migration of a store that needs none.
func nothing(why string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return why, nil }
}

func migratePostgres(ctx context.Context, o postgres.Options) (did string, err error) {
	kept, err := postgres.Open(ctx, o)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	switch from, to, err := kept.Migrate(ctx); {
	case err != nil:
		return "", err
	case from == 0:
		return fmt.Sprintf("Made the tables in PostgreSQL, version %d.", to), nil
	case from < to:
		return fmt.Sprintf("Brought the tables in PostgreSQL from version %d to %d.", from, to), nil
	default:
		return fmt.Sprintf("Nothing to do: the tables in PostgreSQL have version %d already.", to), nil
	}
}

func sqliteOptions(cfg config.SQLite, logger *slog.Logger) sqlite.Options {
	return sqlite.Options{File: cfg.File, Logger: logger}
}

func redisSetting(cfg config.Redis) string {
	switch {
	case len(cfg.Sentinel.Addresses) > 0:
		return "store.redis.sentinel.addresses"
	case len(cfg.Cluster.Addresses) > 0:
		return "store.redis.cluster.addresses"
	default:
		return "store.redis.url"
	}
}

func redisOptions(cfg config.Redis, logger *slog.Logger) redis.Options {
	o := redis.Options{
		URL:          cfg.URL,
		Username:     cfg.Username,
		Password:     cfg.Password,
		PasswordFrom: passwordFrom("store.redis", cfg.PasswordEnv),
		KeyPrefix:    cfg.KeyPrefix,
		Timeout:      cfg.Timeout,
		Logger:       logger,
	}
	if s := cfg.Sentinel; len(s.Addresses) > 0 {
		o.Sentinel = &redis.Sentinel{
			Addresses:    s.Addresses,
			Master:       s.Master,
			Username:     s.Username,
			Password:     s.Password,
			PasswordFrom: passwordFrom("store.redis.sentinel", s.PasswordEnv),
			Database:     s.Database,
		}
	}
	if len(cfg.Cluster.Addresses) > 0 {
		o.Cluster = &redis.Cluster{Addresses: cfg.Cluster.Addresses}
	}
	if t := cfg.TLS; t.Enabled {
		o.TLS = &redis.TLS{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName}
	}
	return o
}

// passwordFrom names the setting that says where a password is.
func passwordFrom(path, env string) string {
	if env != "" {
		return path + ".password_env"
	}
	return path + ".password_file"
}

func postgresOptions(cfg config.Postgres, logger *slog.Logger) postgres.Options {
	return postgres.Options{
		URL:      cfg.URL,
		Password: cfg.Password,
		Timeout:  cfg.Timeout,
		MaxConns: cfg.MaxConnections,
		Logger:   logger,
	}
}
