package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A Proxy is a TCP proxy that makes trouble when it is told to. It works within the test's
// own process. Its methods are for one goroutine at a time; each holds for the connections
// that are open and for those to come, until Heal.
type Proxy struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// StartProxy starts a proxy to upstream on a loopback port. Connections to it go on as
// long as the test.
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics log past the logger they are given
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{t: t, proxy: toxiproxy.NewProxy(server, t.Name(), Loopback(FreePort(t)), upstream)}
	p.Restore()
	t.Cleanup(p.Cut)
	return p
}

// Addr returns the address that clients connect to. It stays the same.
func (p *Proxy) Addr() string { return p.proxy.Listen }

// Latency delays each answer by d.
func (p *Proxy) Latency(d time.Duration) {
	p.t.Helper()
	p.add("latency", "downstream", 1, map[string]int64{"latency": d.Milliseconds()})
}

// Reset breaks a share of the connections off, each with the next answer that it carries;
// 1 is all of them. The die is cast once for each connection: to break more of those that
// are open, Heal and call it again.
func (p *Proxy) Reset(share float32) {
	p.t.Helper()
	p.add("reset_peer", "downstream", share, map[string]int64{"timeout": 0})
}

// Swallow drops what is asked and what is answered, and keeps connections open. Heal breaks
// them off, since what was dropped is missing.
func (p *Proxy) Swallow() {
	p.t.Helper()
	p.add("timeout", "upstream", 1, map[string]int64{"timeout": 0})
	p.add("timeout", "downstream", 1, map[string]int64{"timeout": 0})
}

// Bandwidth bounds what is answered on each connection, in KB a second.
func (p *Proxy) Bandwidth(kilobytes int) {
	p.t.Helper()
	p.add("bandwidth", "downstream", 1, map[string]int64{"rate": int64(kilobytes)})
}

// add makes what flows in a direction pass through another toxic. There may be one of each
// kind.
func (p *Proxy) add(kind, stream string, share float32, attributes map[string]int64) {
	p.t.Helper()
	toxic, err := json.Marshal(map[string]any{
		"name": kind + " " + stream, "type": kind, "stream": stream, "toxicity": share, "attributes": attributes,
	})
	if err == nil {
		_, err = p.proxy.Toxics.AddToxicJson(bytes.NewReader(toxic))
	}
	if err != nil {
		p.t.Fatalf("testenv: toxiproxy: %s: %v", kind, err)
	}
}

// Heal ends all trouble but Cut.
func (p *Proxy) Heal() { p.proxy.Toxics.ResetToxics(context.Background()) }

// Cut ends all connections, and refuses new ones. It may be called again.
func (p *Proxy) Cut() { p.proxy.Stop() }

// Restore ends a Cut.
func (p *Proxy) Restore() {
	p.t.Helper()
	if err := p.proxy.Start(); err != nil {
		p.t.Fatalf("testenv: toxiproxy: %v", err)
	}
}
