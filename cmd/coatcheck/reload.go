package main

import (
	"context"
	"fmt"
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
	err := n.takeOver(ctx, start)
	n.failed.Store(err != nil)
	if err == nil {
		n.lastFail = ""
		return
	}
	if text := err.Error(); (asked || text != n.lastFail) && ctx.Err() == nil {
		n.lastFail = text
		n.logger.Error("the configuration can't be used: going on with the one of before", "file", n.file, "error", text)
	}
}

// takeOver builds what the configuration in the file comes to, beside what serves, and swaps
// them. An error leaves everything as it was.
func (n *node) takeOver(ctx context.Context, start func(*runtime)) error {
	cfg, err := config.Load(n.file)
	if err != nil {
		return err
	}
	before := n.current.Load()
	settings := before.cfg.Changes(cfg)
	if len(settings) == 0 {
		return nil
	}
	if fixed := config.Fixed(settings); len(fixed) > 0 {
		return fmt.Errorf("a running node can't change %s: restart it for that", strings.Join(fixed, ", "))
	}
	next, err := n.build(cfg, before)
	if err != nil {
		return err
	}
	if next.signIn.Ready() != nil && (before.signIn.Ready() == nil || next.signIn.Issuer != before.signIn.Issuer) {
		discovering, cancel := context.WithTimeout(ctx, discoverLimit)
		defer cancel()
		if err := next.signIn.Discover(discovering); err != nil {
			return err
		}
	}

	n.taking.Lock()
	defer n.taking.Unlock()
	if n.leaving {
		return nil
	}
	start(next)
	n.apps.keep(next.apps)
	n.level.Set(cfg.Log.Level)
	next.sessions.TakeOver()
	n.current.Store(next)
	before.stop()
	n.logger.Info("going by another configuration", "file", n.file, "changed", settings)
	for _, w := range cfg.Warnings() {
		n.logger.Warn("configuration", "warning", w)
	}
	return nil
}
