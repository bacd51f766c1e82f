package main

import (
	"net/http"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck/metrics"
	"github.com/coatcheck/coatcheck/upstream"
)

// apps are what a node has of the apps behind it, whatever the configuration says next: open
// connections, and the requests that are under way.
type apps struct {
	mu         sync.Mutex
	transports map[time.Duration]*http.Transport // by timeout; idle connections are shared
	bulkheads  map[string]*upstream.Bulkhead     // by URL
	bounds     map[string]int                    // of the apps that are configured
}

func newApps() *apps {
	return &apps{transports: map[time.Duration]*http.Transport{}, bulkheads: map[string]*upstream.Bulkhead{}}
}

// transport returns the transport for a timeout.
func (a *apps) transport(timeout time.Duration) http.RoundTripper {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.transports[timeout]
	if t == nil {
		t = upstream.NewTransport(timeout)
		a.transports[timeout] = t
	}
	return t
}

// bulkhead returns the bulkhead of an app, which has that bound if it is new.
func (a *apps) bulkhead(url string, bound int) *upstream.Bulkhead {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.bulkheads[url]
	if b == nil {
		b = upstream.NewBulkhead(bound)
		a.bulkheads[url] = b
	}
	return b
}

// keep sets the bounds of the apps that are configured from now on. Others are not forgotten:
// requests of before may be on their way to them, and they may be configured again.
func (a *apps) keep(bounds map[string]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bounds = bounds
	for url, bound := range bounds {
		a.bulkheads[url].Bound(bound)
	}
}

// list tells how the apps do that are configured.
func (a *apps) list() (list []metrics.Upstream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for url := range a.bounds {
		b := a.bulkheads[url]
		list = append(list, metrics.Upstream{URL: url, UnderWay: b.UnderWay(), Refused: b.Refused()})
	}
	return list
}
