package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/admin"
	"github.com/coatcheck/coatcheck/audit"
	"github.com/coatcheck/coatcheck/cluster"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/proxy"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/upstream"
)

// A node is one running coatcheck.
type node struct {
	cfg      *config.Config
	logger   *slog.Logger
	front    *proxy.Proxy
	signIn   *oidc.RelyingParty
	sessions *session.Manager
	events   *audit.Log
	streams  *upstream.Streams
	store    store.Store
	clock    *cluster.Clock
	keys     *keyring
	metrics  http.Handler
}

// run serves on public until ctx ends, then leaves without breaking anything off: /ready turns
// red, load balancers get cfg.Shutdown.Delay to notice, then requests get
// cfg.Shutdown.Grace to finish while WebSockets are closed with 1001.
//
// It closes the listener and the store.
func (n *node) run(ctx context.Context, public net.Listener) (err error) {
	defer func() { err = errors.Join(err, n.store.Close()) }()

	servers := []*http.Server{n.server(n.front)}
	listeners := []net.Listener{public}
	if n.cfg.Admin.Listen != "" {
		l, err := net.Listen("tcp", n.cfg.Admin.Listen)
		if err != nil {
			return errors.Join(fmt.Errorf("admin.listen: %w", err), public.Close())
		}
		servers = append(servers, n.server(admin.New(n.metrics)))
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
	tasks.Go(func() { n.signIn.Run(background) })
	tasks.Go(func() { n.sessions.Run(background) })
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
	n.logger.Info("serving", "address", public.Addr().String(), "public_url", n.cfg.PublicURL.String(),
		"store", n.cfg.Store.Driver, "version", version())

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
	n.logger.Info("draining", "delay", n.cfg.Shutdown.Delay.String(), "grace", n.cfg.Shutdown.Grace.String())
	n.front.Drain()
	time.Sleep(n.cfg.Shutdown.Delay)

	grace, cancel := context.WithTimeout(context.Background(), n.cfg.Shutdown.Grace)
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
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            n.cfg.Timeouts.ReadHeader,
		IdleTimeout:                  n.cfg.Timeouts.Idle,
		MaxHeaderBytes:               n.cfg.Limits.HeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(n.logger.Handler(), slog.LevelDebug),
	}
}
