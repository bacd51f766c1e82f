package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	"github.com/coatcheck/coatcheck/upstream"
)

// tenant is the name space of everything that is sealed and kept. There is one tenant
// until the configuration knows more.
const tenant = "default"

// newNode wires a node from its configuration, which is in that file. It is the one place
// where the parts meet; none of them knows the configuration or looks for another part itself.
//
// What is wired here stays for as long as the node runs, and what build wires is replaced
// with the configuration.
func newNode(ctx context.Context, file string, cfg *config.Config, out output) (*node, error) {
	driver, err := newDriver(cfg.Store, out.logger)
	if err != nil {
		return nil, err
	}
	return wireNode(ctx, file, cfg, driver, out)
}

// wireNode wires a node to a store, which it opens and closes.
func wireNode(ctx context.Context, file string, cfg *config.Config, driver driver, out output) (*node, error) {
	n := &node{file: file, output: out, apps: newApps(), streams: new(upstream.Streams), jar: newJar(cfg)}
	var err error
	if n.ring, err = openRing(cfg, n.logger); err != nil {
		return nil, err
	}
	n.counts = metrics.New(version(), n.streams.Count)
	kept, err := driver.open(ctx)
	if err != nil {
		return nil, err
	}
	guarded := guard.New(kept, guard.Options{
		Timeout:    2 * driver.timeout, // the driver's own comes first
		Concurrent: cfg.Store.MaxConcurrent,
		Logger:     n.logger,
	})
	n.store = n.counts.Store(guarded)
	n.readiness = proxy.NewReadiness(n.store)
	n.clock = cluster.NewClock(n.store, n.logger)
	n.events = audit.New(audit.Options{Journal: n.store, Logger: n.logger, Node: cfg.Node})
	n.events.Subscribe(n.counts.Events(cfg.Node))
	first, err := n.build(cfg, nil)
	if err != nil {
		return nil, errors.Join(err, n.store.Close())
	}
	n.current.Store(first)
	n.apps.keep(first.apps, cfg.Limits.UpstreamRequests)
	n.keys = newKeyring(cfg, n.ring, n.store, n.clock.Now, first.sessions.KeysChanged, n.logger)

	n.counts.Config(n.trouble.failed.Load)
	n.counts.Keys(n.keys.trouble.failed.Load)
	n.counts.SealingKey(n.ring.Current)
	n.counts.Upstreams(n.apps.list)
	n.counts.Providers(func() map[string]bool {
		signIn := n.current.Load().signIn
		return map[string]bool{signIn.Name: signIn.Ready() == nil}
	})
	n.counts.Cache(func() metrics.CacheStats { return metrics.CacheStats(first.sessions.CacheStats()) })
	n.counts.Breaker(
		func() int { reads, _ := guarded.States(); return int(reads) },
		func() int { _, writes := guarded.States(); return int(writes) })
	return n, nil
}

// build wires what serves requests by a configuration. Another one may serve beside it, which
// is before: what its sessions and its provider's discovery have come to is taken over. It is
// nil for a node's first.
func (n *node) build(cfg *config.Config, before *runtime) (*runtime, error) {
	sites, err := n.newRoutes(cfg)
	if err != nil {
		return nil, err
	}
	next := &runtime{cfg: cfg, apps: sites.apps}
	returns := oidc.NewReturns(cfg.PublicURL, sites.hosts...)
	party := relyingParty(cfg, oidc.Config{
		Returns: returns, Ring: n.ring, Jar: n.jar, Once: n.store, Logger: n.logger, Now: n.clock.Now,
	})
	if before == nil {
		next.signIn = oidc.New(party)
		next.sessions = newSessions(cfg, n.store, session.Options{
			Provider: next.signIn, Events: n.events, CountRefresh: n.counts.Refreshed,
			Ring: n.ring, Jar: n.jar, Now: n.clock.Now, Logger: n.logger,
		})
	} else {
		next.signIn = before.signIn.With(party)
		next.sessions = before.sessions.With(func(o *session.Options) {
			sessionRules(cfg, o)
			o.Provider = next.signIn
		})
	}
	access := n.access
	if !cfg.Log.Access || cfg.Log.Level > slog.LevelInfo {
		access = nil
	}
	next.front = proxy.New(proxy.Options{
		PublicURL: cfg.PublicURL,
		Prefix:    cfg.Endpoints.Prefix,
		Trusted:   cfg.TrustedProxies,
		Limits:    route.Limits{URI: cfg.Limits.URIBytes, Cookies: cfg.Limits.Cookies},
		Routes:    sites.table,
		Allow:     newRule("allow", cfg.Allow),
		Tenant:    tenant,
		Sessions:  next.sessions,
		SignIn:    next.signIn,
		Returns:   returns,
		Ring:      n.ring,
		Readiness: n.readiness,
		Metrics:   n.counts,
		Logger:    n.logger,
		// A form of ours is no longer than a header.
		BodyTimeout: cfg.Timeouts.ReadHeader,
		AccessLog:   access,
	})
	return next, nil
}

// relyingParty adds to the parts in o what the configuration says.
func relyingParty(cfg *config.Config, o oidc.Config) oidc.Config {
	provider := cfg.Providers[0]
	ours := cfg.PublicURL.String() + cfg.Endpoints.Prefix
	o.Tenant = tenant
	o.Name = provider.Name
	o.Issuer = provider.Issuer
	o.ClientID = provider.ClientID
	o.ClientSecret = provider.ClientSecret
	o.Scopes = provider.Scopes
	o.GroupsClaim = provider.GroupsClaim
	o.UnverifiedEmail = provider.InsecureUnverifiedEmail
	o.IDTokenHint = provider.InsecureIDTokenHint
	o.RedirectURL = ours + "/callback"
	o.PostLogoutURL = ours + "/sign_out/done"
	return o
}

// newSessions returns the manager of the sessions in a store. o has the parts, and what the
// configuration says is added.
func newSessions(cfg *config.Config, kept store.Backend, o session.Options) *session.Manager {
	o.Store, o.Registry, o.Feed, o.Leases = kept, kept, kept, kept
	o.Tenant, o.Node = tenant, cfg.Node
	o.CacheSize, o.CacheLease = cfg.Cache.SizeBytes, cfg.Cache.Lease
	sessionRules(cfg, &o)
	return session.New(o)
}

// sessionRules sets what may change while a node runs.
func sessionRules(cfg *config.Config, o *session.Options) {
	o.Idle, o.Absolute = cfg.Session.IdleTimeout, cfg.Session.AbsoluteTimeout
	o.Limits = newLimits(cfg.Session.Limits)
	o.Tombstones, o.OutageGrace = cfg.Session.Tombstones, cfg.Session.OutageGrace
	o.Escrow = cfg.Session.Escrow
	o.RotationGrace, o.Recheck = cfg.Providers[0].RotationGrace, cfg.Providers[0].Recheck
}

// newJar returns what knows the cookies of a site.
func newJar(cfg *config.Config) *cookie.Jar {
	return cookie.New(cfg.Session.Cookie.Name, cfg.Session.Cookie.Domain, cfg.InsecureHTTP)
}

func newLimits(cfg config.SessionLimits) store.Limits {
	return store.Limits{PerUser: cfg.PerUser, PerApp: cfg.PerApp, Total: cfg.Total, OnLimit: store.OnLimit(cfg.OnLimit)}
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

// checkRing says why the key ring of a configuration can't be used. It is no fault if a single
// node is still to make one.
func checkRing(cfg *config.Config) error {
	_, err := namedRing(cfg.Keys)
	if errors.Is(err, seal.ErrNoFile) && singleNode(cfg) {
		return nil
	}
	return err
}

func readRing(keys config.Keys) (*seal.Ring, error) {
	ring, err := namedRing(keys)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return ring, nil
}

// namedRing reads the key ring that a configuration names.
func namedRing(keys config.Keys) (*seal.Ring, error) {
	if keys.Env == "" {
		ring, err := seal.ReadRing(keys.File)
		if errors.Is(err, seal.ErrNoFile) {
			err = fmt.Errorf("%w: make it once, for all nodes: coatcheck key new %s", err, keys.File)
		}
		return ring, err
	}
	text, ok := os.LookupEnv(keys.Env)
	if !ok {
		return nil, fmt.Errorf("the environment variable %s is not set", keys.Env)
	}
	ring, err := seal.ParseRing([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("%w (in the environment variable %s)", err, keys.Env)
	}
	return ring, nil
}

// sites are what the routes of a configuration come to.
type sites struct {
	table *route.Table[proxy.Route]
	hosts []string // the hosts that are ours
	apps  []string // their URLs, each once
}

func (n *node) newRoutes(cfg *config.Config) (*sites, error) {
	s := new(sites)
	var entries []route.Entry[proxy.Route]
	for _, r := range cfg.Routes {
		name := routeName(cfg, r)
		target := proxy.Route{
			Name:          name,
			Require:       r.Require,
			Allow:         newRule("allow of the route "+name, r.Allow),
			MethodGuarded: methodGuarded(cfg.Routes, r),
		}
		if r.Upstream != nil {
			app := r.Upstream.String()
			if !slices.Contains(s.apps, app) {
				s.apps = append(s.apps, app)
			}
			target.Upstream = upstream.New(upstream.Options{
				URL:            r.Upstream,
				StripPrefix:    stripped(r),
				PreserveHost:   r.PreserveHost,
				Origins:        origins(r.WebSocketOrigins),
				Headers:        upstream.IdentityHeaders(cfg.Headers),
				Jar:            n.jar,
				Transport:      n.apps.transport(r.Timeout),
				Streams:        n.streams,
				Bulkhead:       n.apps.bulkhead(app, cfg.Limits.UpstreamRequests),
				Broken:         n.counts.AnswerBroken,
				UploadPatience: cfg.Timeouts.Upload,
			})
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

func newRule(name string, a config.Allow) policy.Rule {
	return policy.NewRule(name, a.Emails, a.EmailDomains, a.Groups)
}
