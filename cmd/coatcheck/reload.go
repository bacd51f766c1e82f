package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck/config"
)

// discoverLimit bounds how long a provider may take to be discovered anew before the node
// goes by it.
const discoverLimit = 10 * time.Second

// reload reads the configuration again and goes by it, or says why not and goes on with the
// one it has. start begins what runs beside the requests of a runtime.
func (n *node) reload(ctx context.Context, asked bool, start func(*runtime)) {
	if n.isLeaving() {
		return
	}
	changed, err := n.takeOver(ctx, start)
	if err != nil && ctx.Err() != nil {
		return
	}
	tell, over := n.trouble.note(err, asked)
	switch {
	case tell:
		n.logger.Error("the configuration can't be used: going on with the one it had", "file", n.file, "error", explainLoad(err))
	case err == nil && changed == nil && over:
		n.logger.Info("the configuration is the one that the node goes by again", "file", n.file)
	case err == nil && changed == nil && asked:
		n.logger.Info("the configuration has not changed", "file", n.file)
	}
}

func (n *node) isLeaving() bool {
	n.taking.Lock()
	defer n.taking.Unlock()
	return n.leaving
}

// explainLoad is an error of takeOver in one line.
func explainLoad(err error) string {
	var problems config.Errors
	if !errors.As(err, &problems) {
		return err.Error()
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		p.File, p.Excerpt = "", ""
		lines[i] = strings.TrimLeft(p.String(), ": ")
	}
	return strings.Join(lines, "; ")
}

// takeOver builds what the configuration in the file comes to, beside what serves, and swaps
// them. It returns the settings that have changed. An error leaves everything as it was.
func (n *node) takeOver(ctx context.Context, start func(*runtime)) (changed []string, err error) {
	cfg, err := config.Load(n.file)
	if err != nil {
		return nil, err
	}
	before := n.current.Load()
	changed = before.cfg.Changes(cfg)
	if len(changed) == 0 {
		return nil, nil
	}
	if fixed := config.Fixed(changed); len(fixed) > 0 {
		return nil, fmt.Errorf("a running node can't change %s: restart it for that", strings.Join(fixed, ", "))
	}
	next, err := n.build(cfg, before)
	if err != nil {
		return nil, err
	}
	if next.signIn.Ready() != nil && (before.signIn.Ready() == nil || next.signIn.Issuer != before.signIn.Issuer) {
		discovering, cancel := context.WithTimeout(ctx, discoverLimit)
		defer cancel()
		if err := next.signIn.Discover(discovering); err != nil {
			return nil, err
		}
	}

	n.taking.Lock()
	defer n.taking.Unlock()
	if n.leaving {
		return nil, nil
	}
	start(next)
	n.apps.keep(next.apps, cfg.Limits.UpstreamRequests)
	n.level.Set(cfg.Log.Level)
	next.sessions.TakeOver()
	n.current.Store(next)
	before.stop()
	n.logger.Info("going by another configuration", "file", n.file, "changed", changed)
	for _, w := range cfg.Warnings() {
		if !slices.Contains(before.cfg.Warnings(), w) {
			n.logger.Warn("configuration", "warning", w)
		}
	}
	return changed, nil
}
