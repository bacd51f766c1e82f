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
	configured []string                          // URLs
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

// keep says which apps are configured from now on, and how many requests may be under way to
// each. Others are not forgotten: requests of before may be on their way to them, and they may
// be configured again.
func (a *apps) keep(urls []string, bound int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.configured = urls
	for _, url := range urls {
		a.bulkheads[url].Bound(bound)
	}
}

// list tells how the apps do that are configured.
func (a *apps) list() (list []metrics.Upstream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, url := range a.configured {
		b := a.bulkheads[url]
		list = append(list, metrics.Upstream{URL: url, UnderWay: b.UnderWay(), Refused: b.Refused()})
	}
	return list
}
