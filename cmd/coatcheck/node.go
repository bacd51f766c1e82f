package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/admin"
	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/metrics"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/proxy"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/upstream"
)

// A node is one running coatcheck.
type node struct {
	output
	file      string // of the configuration
	ring      *seal.Ring
	jar       *cookie.Jar
	apps      *apps
	streams   *upstream.Streams
	store     store.Backend
	readiness *proxy.Readiness
	clock     *cluster.Clock
	events    *audit.Log
	keys      *keyring
	counts    *metrics.Metrics

	// current serves the requests that come. A request is served by one configuration from
	// beginning to end (invariant 14).
	current atomic.Pointer[runtime]
	// taking is held while another runtime takes over, and when the node begins to leave.
	taking  sync.Mutex
	leaving bool
	trouble trouble // with the configuration's file
}

// An output is where a node says what it does.
type output struct {
	logger *slog.Logger
	level  *slog.LevelVar // of logger
	access io.Writer      // takes the lines of the access log, if the configuration wants them
}

// A runtime is what one configuration comes to, as far as it can change while a node runs.
type runtime struct {
	cfg      *config.Config
	apps     []string // their URLs, each once
	front    *proxy.Proxy
	signIn   *oidc.RelyingParty
	sessions *session.Manager
	stop     context.CancelFunc // ends what runs beside its requests
}

// ServeHTTP implements http.Handler.
func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.current.Load().front.ServeHTTP(w, r)
}

// run serves on public until ctx ends, then leaves without breaking anything off: /ready turns
// red, load balancers get shutdown.delay to notice, then requests get shutdown.grace to
// finish while WebSockets are closed with 1001.
//
// It closes the listener and the store.
func (n *node) run(ctx context.Context, public net.Listener) (err error) {
	defer func() { err = errors.Join(err, n.store.Close()) }()

	first := n.current.Load()
	servers := []*http.Server{n.server(n)}
	listeners := []net.Listener{public}
	if first.cfg.Admin.Listen != "" {
		l, err := net.Listen("tcp", first.cfg.Admin.Listen)
		if err != nil {
			return errors.Join(fmt.Errorf("admin.listen: %w", err), public.Close())
		}
		servers = append(servers, n.server(admin.New(n.counts.Handler(), l.Addr())))
		listeners = append(listeners, l)
		n.logger.Info("serving metrics", "address", l.Addr().String())
	}

	// A store that doesn't answer now is asked again; whoever comes meanwhile needs it too.
	if err := n.clock.Measure(ctx); err != nil {
		n.logger.Warn("going by this node's own clock until the store tells the time", "error", err)
	}
	n.keys.start(ctx)
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	tasks.Go(func() { n.clock.Run(background) })
	tasks.Go(func() { n.keys.run(background) })
	tasks.Go(func() { first.sessions.Run(background) })
	start := func(r *runtime) {
		ctx, stop := context.WithCancel(background)
		r.stop = stop
		tasks.Go(func() { r.signIn.Run(ctx) })
	}
	start(first)
	tasks.Go(func() {
		followFile(background, n.file, n.logger, func(asked bool) { n.reload(background, asked, start) })
	})
	tasks.Go(func() { n.follow(background) })
	tasks.Go(func() { tuneCollector(background) })
	defer tasks.Wait()
	defer stop()

	failed := make(chan error, len(servers))
	for i, s := range servers {
		tasks.Go(func() {
			if err := s.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	n.logger.Info("serving", "address", public.Addr().String(), "public_url", first.cfg.PublicURL.String(),
		"node", first.cfg.Node, "store", first.cfg.Store.Driver, "version", version())

	select {
	case <-ctx.Done():
		n.drain(servers)
		return nil
	case err := <-failed:
		for _, s := range servers {
			err = errors.Join(err, s.Close())
		}
		return err
	}
}

// follow hears the events of all nodes until ctx ends.
func (n *node) follow(ctx context.Context) {
	for ctx.Err() == nil {
		if err := n.events.Run(ctx); err != nil && ctx.Err() == nil {
			n.logger.Warn("not hearing the events of other nodes, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// drain ends the servers, the public one first. What is not done when the grace is
// over is cut off.
func (n *node) drain(servers []*http.Server) {
	n.taking.Lock()
	n.leaving = true
	last := n.current.Load()
	n.taking.Unlock()
	shutdown := last.cfg.Shutdown
	n.logger.Info("draining", "delay", shutdown.Delay.String(), "grace", shutdown.Grace.String())
	last.front.Drain()
	time.Sleep(shutdown.Delay)

	grace, cancel := context.WithTimeout(context.Background(), shutdown.Grace)
	defer cancel()
	var streams sync.WaitGroup
	streams.Go(func() { n.streams.Drain(grace) }) // Shutdown does not know of hijacked connections
	for _, s := range servers {
		if err := s.Shutdown(grace); err != nil {
			n.logger.Warn("the grace is over, cutting off what is left", "error", err)
			_ = s.Close()
		}
	}
	streams.Wait()
	n.logger.Info("drained")
}

// server has no limit on the time of a body, in either direction: uploads, downloads
// and event streams take what they take. Headers and idle connections are bounded.
func (n *node) server(h http.Handler) *http.Server {
	cfg := n.current.Load().cfg
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            cfg.Timeouts.ReadHeader,
		IdleTimeout:                  cfg.Timeouts.Idle,
		MaxHeaderBytes:               cfg.Limits.HeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(n.logger.Handler(), slog.LevelDebug),
	}
}
