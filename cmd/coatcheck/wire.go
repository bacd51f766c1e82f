package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/metrics"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/proxy"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/guard"
	"github.com/coatcheck/coatcheck/store/postgres"
	"github.com/coatcheck/coatcheck/store/redis"
	"github.com/coatcheck/coatcheck/store/sqlite"
	"github.com/coatcheck/coatcheck/upstream"
)

// tenant is the name space of everything that is sealed and kept. There is one tenant
// until the configuration knows more.
const tenant = "default"

// newNode wires a node from its configuration. It is the one place where the parts
// meet; none of them knows the configuration or looks for another part itself. The lines of
// the access log go to access, if the configuration wants them, and all others to logger.
func newNode(ctx context.Context, cfg *config.Config, logger *slog.Logger, access io.Writer) (*node, error) {
	if !cfg.Log.Access || !logger.Enabled(ctx, slog.LevelInfo) {
		access = nil
	}
	ring, err := openRing(cfg, logger)
	if err != nil {
		return nil, err
	}
	jar := newJar(cfg)
	streams := new(upstream.Streams)
	sites, err := newRoutes(cfg, jar, streams)
	if err != nil {
		return nil, err
	}
	counts := metrics.New(version(), streams.Count, sites.broken)
	for url, b := range sites.bulkheads {
		counts.Upstream(url, b.UnderWay, b.Refused)
	}
	driver, err := openStore(ctx, cfg.Store, logger)
	if err != nil {
		return nil, err
	}
	guarded := guard.New(driver, guard.Options{
		Timeout:    2 * driverTimeout(cfg.Store), // the driver's own comes first
		Concurrent: cfg.Store.MaxConcurrent,
		Logger:     logger,
	})
	kept := counts.Store(guarded)
	clock := cluster.NewClock(kept, logger)
	events := audit.New(audit.Options{Journal: kept, Logger: logger, Node: cfg.Node})
	events.Subscribe(counts.Events(cfg.Node))
	returns := oidc.NewReturns(cfg.PublicURL, sites.hosts...)
	provider := cfg.Providers[0]
	ours := cfg.PublicURL.String() + cfg.Endpoints.Prefix
	signIn := oidc.New(oidc.Config{
		Tenant:          tenant,
		Name:            provider.Name,
		Issuer:          provider.Issuer,
		ClientID:        provider.ClientID,
		ClientSecret:    provider.ClientSecret,
		Scopes:          provider.Scopes,
		GroupsClaim:     provider.GroupsClaim,
		UnverifiedEmail: provider.InsecureUnverifiedEmail,
		IDTokenHint:     provider.InsecureIDTokenHint,
		RedirectURL:     ours + "/callback",
		PostLogoutURL:   ours + "/sign_out/done",
		Returns:         returns,
		Ring:            ring,
		Jar:             jar,
		Once:            kept,
		Logger:          logger,
		Now:             clock.Now,
	})
	sessions := newSessions(cfg, kept, session.Options{
		Provider: signIn, Events: events, Renewed: counts.Renewed,
		Ring: ring, Jar: jar, Now: clock.Now, Logger: logger,
	})
	keys := newKeyring(cfg, ring, kept, clock.Now, sessions.KeysChanged, logger)
	counts.Keys(keys.failed.Load)
	counts.Cache(func() metrics.CacheStats { return metrics.CacheStats(sessions.CacheStats()) })
	counts.Breaker(
		func() int { reads, _ := guarded.States(); return int(reads) },
		func() int { _, writes := guarded.States(); return int(writes) })

	front := proxy.New(proxy.Options{
		PublicURL: cfg.PublicURL,
		Prefix:    cfg.Endpoints.Prefix,
		Trusted:   cfg.TrustedProxies,
		Limits:    route.Limits{URI: cfg.Limits.URIBytes, Cookies: cfg.Limits.Cookies},
		Routes:    sites.table,
		Allow:     newRule(cfg.Allow),
		Tenant:    tenant,
		Sessions:  sessions,
		SignIn:    signIn,
		Returns:   returns,
		Ring:      ring,
		Store:     kept,
		Metrics:   counts,
		Logger:    logger,
		// A form of ours is no longer than a header.
		BodyTimeout: cfg.Timeouts.ReadHeader,
		AccessLog:   access,
	})
	return &node{
		cfg:      cfg,
		logger:   logger,
		front:    front,
		signIn:   signIn,
		sessions: sessions,
		events:   events,
		streams:  streams,
		store:    kept,
		clock:    clock,
		keys:     keys,
		metrics:  counts.Handler(),
	}, nil
}

// newSessions returns the manager of the sessions in a store. o has the parts, and what the
// configuration says is added.
func newSessions(cfg *config.Config, kept store.Backend, o session.Options) *session.Manager {
	o.Store, o.Registry, o.Feed, o.Leases = kept, kept, kept, kept
	o.Tenant, o.Node = tenant, cfg.Node
	o.Idle, o.Absolute = cfg.Session.IdleTimeout, cfg.Session.AbsoluteTimeout
	o.Limits = newLimits(cfg.Session.Limits)
	o.Tombstones, o.OutageGrace = cfg.Session.Tombstones, cfg.Session.OutageGrace
	o.Escrow = cfg.Session.Escrow
	o.CacheSize, o.Lease = cfg.Cache.SizeBytes, cfg.Cache.Lease
	o.RotationGrace, o.Recheck = cfg.Providers[0].RotationGrace, cfg.Providers[0].Recheck
	return session.New(o)
}

// newJar returns what knows the cookies of a site.
func newJar(cfg *config.Config) *cookie.Jar {
	return cookie.New(cfg.Session.Cookie.Name, cfg.Session.Cookie.Domain, cfg.InsecureHTTP)
}

// openStore is the switch between the drivers.
func openStore(ctx context.Context, cfg config.Store, logger *slog.Logger) (store.Backend, error) {
	switch cfg.Driver {
	case config.DriverSQLite:
		return sqlite.Open(ctx, sqlite.Options{File: cfg.SQLite.File})
	case config.DriverRedis:
		return redis.Open(ctx, redisOptions(cfg.Redis, logger))
	case config.DriverPostgres:
		return postgres.Open(ctx, postgresOptions(cfg.Postgres, logger))
	default:
		return nil, fmt.Errorf("store: no driver is called %q", cfg.Driver)
	}
}

// driverTimeout is how long a call of the driver may take; zero where it has no bound of its
// own.
func driverTimeout(cfg config.Store) time.Duration {
	switch cfg.Driver {
	case config.DriverRedis:
		return cfg.Redis.Timeout
	case config.DriverPostgres:
		return cfg.Postgres.Timeout
	default:
		return 0
	}
}

func redisOptions(cfg config.Redis, logger *slog.Logger) redis.Options {
	o := redis.Options{
		URL:       cfg.URL,
		Username:  cfg.Username,
		Password:  cfg.Password,
		KeyPrefix: cfg.KeyPrefix,
		Timeout:   cfg.Timeout,
		Logger:    logger,
	}
	if s := cfg.Sentinel; len(s.Addresses) > 0 {
		o.Sentinel = &redis.Sentinel{
			Addresses: s.Addresses,
			Master:    s.Master,
			Username:  s.Username,
			Password:  s.Password,
			Database:  s.Database,
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

func newLimits(cfg config.SessionLimits) store.Limits {
	onLimit := map[string]store.OnLimit{
		config.OnLimitEvictOldest: store.EvictOldest,
		config.OnLimitEvictIdle:   store.EvictIdle,
	}
	return store.Limits{PerUser: cfg.PerUser, PerApp: cfg.PerApp, Total: cfg.Total, OnLimit: onLimit[cfg.OnLimit]}
}

// openRing reads the key ring, or makes one where a single node keeps everything in
// one place: nodes that share a store must share a ring that somebody gave them.
func openRing(cfg *config.Config, logger *slog.Logger) (*seal.Ring, error) {
	ring, err := readRing(cfg.Keys)
	if !errors.Is(err, seal.ErrNoFile) || !singleNode(cfg) {
		return ring, err
	}
	file := cfg.Keys.File
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	ring = seal.NewRing()
	if err := ring.WriteNew(file); err != nil {
		return nil, err
	}
	logger.Info("made a new key ring", "file", file, "key", ring.KeyIDs()[0])
	return ring, nil
}

// singleNode tells whether the store can be used by one process alone.
func singleNode(cfg *config.Config) bool { return cfg.Store.Driver == config.DriverSQLite }

func readRing(keys config.Keys) (*seal.Ring, error) {
	if keys.Env == "" {
		ring, err := seal.ReadRing(keys.File)
		switch {
		case errors.Is(err, seal.ErrNoFile):
			return nil, fmt.Errorf("keys: %w\nMake it once, for all nodes: coatcheck key new %s", err, keys.File)
		case err != nil:
			return nil, fmt.Errorf("keys: %w", err)
		}
		return ring, nil
	}
	text, ok := os.LookupEnv(keys.Env)
	if !ok {
		return nil, fmt.Errorf("keys: the environment variable %s is not set", keys.Env)
	}
	ring, err := seal.ParseRing([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("keys: %w (in the environment variable %s)", err, keys.Env)
	}
	return ring, nil
}

// sites are what the routes of the configuration come to.
type sites struct {
	table *route.Table[proxy.Route]
	hosts []string // the hosts that are ours
	apps  []*upstream.Upstream
	// bulkheads has one for each app, by its URL.
	bulkheads map[string]*upstream.Bulkhead
}

// broken counts the answers that apps broke off.
func (s *sites) broken() int64 {
	var n int64
	for _, app := range s.apps {
		n += app.Broken()
	}
	return n
}

func newRoutes(cfg *config.Config, jar *cookie.Jar, streams *upstream.Streams) (*sites, error) {
	s := &sites{bulkheads: map[string]*upstream.Bulkhead{}}
	var entries []route.Entry[proxy.Route]
	transports := map[time.Duration]http.RoundTripper{} // idle connections are shared
	for _, r := range cfg.Routes {
		target := proxy.Route{
			Name:          routeName(cfg, r),
			Require:       r.Require,
			Allow:         newRule(r.Allow),
			MethodGuarded: methodGuarded(cfg.Routes, r),
		}
		if r.Upstream != nil {
			if transports[r.Timeout] == nil {
				transports[r.Timeout] = upstream.NewTransport(r.Timeout)
			}
			app := r.Upstream.String()
			if s.bulkheads[app] == nil {
				s.bulkheads[app] = upstream.NewBulkhead(cfg.Limits.UpstreamRequests)
			}
			target.Upstream = upstream.New(upstream.Options{
				URL:          r.Upstream,
				StripPrefix:  stripped(r),
				PreserveHost: r.PreserveHost,
				Origins:      origins(r.WebSocketOrigins),
				Headers:      upstream.IdentityHeaders(cfg.Headers),
				Jar:          jar,
				Transport:    transports[r.Timeout],
				Streams:      streams,
				Bulkhead:     s.bulkheads[app],
			})
			s.apps = append(s.apps, target.Upstream)
		}
		host := authority(cfg.PublicURL, r.Host)
		s.hosts = append(s.hosts, host)
		entries = append(entries, route.Entry[proxy.Route]{
			Pattern: route.Pattern{Host: host, Path: r.Path, Exact: r.Exact, Methods: r.Methods},
			Value:   target,
		})
	}
	var err error
	s.table, err = route.NewTable(entries)
	return s, err
}

// methodGuarded tells whether some request of the route would belong to another one if
// it had another method: it or a route below it names methods.
func methodGuarded(routes []config.Route, r config.Route) bool {
	return slices.ContainsFunc(routes, func(other config.Route) bool {
		return len(other.Methods) > 0 && other.Host == r.Host &&
			strings.HasPrefix(other.Path+"/", strings.TrimSuffix(r.Path, "/")+"/")
	})
}

func stripped(r config.Route) string {
	if r.StripPrefix {
		return r.Path
	}
	return ""
}

func origins(urls []*url.URL) []string {
	var list []string
	for _, u := range urls {
		list = append(list, u.String())
	}
	return list
}

// routeName is the route's path as configured, behind its host where that is not the
// site's own.
func routeName(cfg *config.Config, r config.Route) string {
	if authority := authority(cfg.PublicURL, r.Host); authority != cfg.PublicURL.Host {
		return authority + r.Path
	}
	return r.Path
}

// authority is a route's host as it stands in a Host header: all hosts of a site are
// reached on the port of its public URL.
func authority(public *url.URL, host string) string {
	switch {
	case host == "" || host == public.Hostname():
		return public.Host
	case public.Port() == "":
		return host
	default:
		return net.JoinHostPort(host, public.Port())
	}
}

func newRule(a config.Allow) policy.Rule {
	return policy.NewRule(a.Emails, a.EmailDomains, a.Groups)
}
