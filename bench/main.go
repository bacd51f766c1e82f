// Command bench measures what coatcheck costs. It starts real processes on loopback
// (a small app, a bare reverse proxy, coatcheck with each store, a Redis), sends the
// same requests through each in turn, and compares the processor time that the
// process in the middle took. RESULT.md, which it writes, explains the numbers.
//
// Processor times on shared machines differ from minute to minute by more than what
// is measured here, so everything is a ratio between processes that took turns.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if code, ok := serveRole(os.Args[1:]); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A reader of our output that goes away must not end us before what was started is
	// stopped.
	signal.Ignore(syscall.SIGPIPE)
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		stop()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings say how much is measured.
type settings struct {
	Runs        int `json:"runs"`
	Requests    int `json:"requests"` // per run and target
	Connections int `json:"connections"`
	Sessions    int `json:"sessions"`
	AtRandom    int `json:"sessions_at_random"`
	Starts      int `json:"starts"`           // per store
	Crowd       int `json:"open_connections"` // while memory under load is read
	// AccessLife is how long access tokens live that are refreshed, in seconds. A run takes
	// place in the last fifth of that.
	AccessLife int `json:"access_token_seconds"`
}

var (
	full  = settings{Runs: 5, Requests: 20_000, Connections: 64, Sessions: 1000, AtRandom: 10_000, Starts: 5, Crowd: 256, AccessLife: 80}
	quick = settings{Runs: 1, Requests: 1000, Connections: 16, Sessions: 10, AtRandom: 20, Starts: 1, Crowd: 32, AccessLife: 20}
)

// run measures and writes result.json and RESULT.md.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	short := flags.Bool("quick", false, "a short run that shows that everything works; its numbers mean nothing")
	runs := flags.Int("runs", 0, "`number` of interleaved runs (5)")
	requests := flags.Int("requests", 0, "`number` of requests per run and target (20000)")
	sessions := flags.Int("sessions", 0, "`number` of sessions that are used in turn (1000)")
	out := flags.String("out", "bench", "`folder` for result.json and RESULT.md")
	hot := flags.Bool("hot", false, "measure hot sessions in Redis only, also while their tokens are being refreshed, and write no files")
	profiles := flags.String("profile", "", "`folder` for profiles of coatcheck; their top functions are printed, and nothing else is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	s := full
	if *short {
		s = quick
	}
	if *runs > 0 {
		s.Runs = *runs
	}
	if *requests > 0 {
		s.Requests = *requests
	}
	if *sessions > 0 {
		s.Sessions = *sessions
	}

	dir, err := os.MkdirTemp("", "coatcheck-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if *hot {
		s.AtRandom = 1
	}
	l := &lab{dir: dir, settings: s, hot: *hot, progress: stderr}
	defer l.stop()
	if err := l.build(ctx); err != nil {
		return err
	}
	if *profiles != "" {
		return l.profile(ctx, *profiles, stdout)
	}
	r, err := l.measure(ctx)
	if err != nil {
		return err
	}
	if *hot {
		return r.table(stdout)
	}
	if err := r.write(filepath.Join(*out, "result.json"), filepath.Join(*out, "RESULT.md")); err != nil {
		return err
	}
	return r.table(stdout)
}
