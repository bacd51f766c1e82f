package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"

	"github.com/coatcheck/coatcheck/config"
)

type serveCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
}

// errLogged: the command has failed, and its log says why.
var errLogged = errors.New("see the log")

// Run serves until the context ends, then drains. Once the configuration is known, all that
// there is to say stands in the log.
func (c serveCmd) Run(ctx context.Context, con console) error {
	defer catchHangups()()
	cfg, err := loadWithKeys(c.Config)
	if err != nil {
		return err
	}
	lines := newLineWriter(con.err)
	defer lines.Close()
	level := new(slog.LevelVar)
	level.Set(cfg.Log.Level)
	logger := slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: level}))
	// net/http's transport tells the standard logger about bytes that an app sends
	// unasked, and quotes them. They are not for the log, nor would the line be JSON.
	log.SetOutput(io.Discard)
	for _, w := range cfg.Warnings() {
		logger.Warn("configuration", "warning", w)
	}
	err = c.serve(ctx, cfg, output{logger, level, lines})
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Canceled): // told to stop while it began
		return nil
	default:
		logger.Error("the node can't serve", "error", err)
		return errLogged
	}
}

func (c serveCmd) serve(ctx context.Context, cfg *config.Config, out output) error {
	public, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	n, err := newNode(ctx, c.Config, cfg, out)
	if err != nil {
		return errors.Join(err, public.Close())
	}
	return n.run(ctx, public)
}

type checkCmd struct {
	Config string `required:"" short:"c" placeholder:"FILE" help:"The configuration."`
}

// Run says everything that is wrong with a configuration, or that nothing is and what
// it means. It opens no connection and changes nothing.
func (c checkCmd) Run(con console) error {
	cfg, err := loadWithKeys(c.Config)
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(con.out, "note: %s\n", w)
	}
	fmt.Fprintf(con.out, "%s is valid. Routes: %d. Store: %s. Provider: %s.\n",
		c.Config, len(cfg.Routes), cfg.Store.Driver, cfg.Providers[0].Issuer)
	return nil
}

// load reads a configuration, for those who don't serve by it.
func load(file string) (*config.Config, error) { return explained(config.Load(file)) }

// loadWithKeys reads a configuration, and looks at its key ring.
func loadWithKeys(file string) (*config.Config, error) {
	return explained(config.LoadWithKeys(file, checkRing))
}

// explained has the problems of a configuration, which are many lines, begin on a line of
// their own.
func explained(cfg *config.Config, err error) (*config.Config, error) {
	var problems config.Errors
	if errors.As(err, &problems) {
		return nil, fmt.Errorf("the configuration can't be used\n%w", err)
	}
	return cfg, err
}
