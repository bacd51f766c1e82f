// Package metrics holds the name of every metric, and counts them. Labels come from
// closed lists and from the configuration, never from a request, so their number is
// bounded and nothing secret can get into one.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coatcheck/coatcheck/store"
)

// Metrics are the metrics of one node. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	sessionLoads *prometheus.CounterVec
	signIns      *prometheus.CounterVec
	storeOps     *prometheus.HistogramVec
}

// SessionLoad is what became of the session of a request.
type SessionLoad string

// The results of coatcheck_session_loads_total.
const (
	LoadNone    SessionLoad = "none"    // no session cookie
	LoadValid   SessionLoad = "valid"   // a live session
	LoadInvalid SessionLoad = "invalid" // a cookie without a live session, or malformed
	LoadUnknown SessionLoad = "unknown" // nobody could tell
)

// New returns metrics with a registry of their own, which also counts what the Go
// runtime and the process use. streams tells how many WebSockets and event streams
// are open, broken how many answers an app broke off so far.
func New(version string, streams func() int, broken func() int64) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_requests_total",
			Help: "Requests answered, by route (the path of its configuration, or coatcheck's own endpoint) and status code.",
		}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coatcheck_request_duration_seconds",
			Help:    "Time from the request's header to the end of its answer, upstream included. WebSockets are not counted.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 11),
		}, []string{"route"}),
		sessionLoads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_session_loads_total",
			Help: "Sessions looked up for a request, by result: none, valid, invalid, unknown.",
		}, []string{"result"}),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_sign_ins_total",
			Help: "Sign-ins that came back from the provider, by result: ok, or the code of the error.",
		}, []string{"result"}),
		storeOps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coatcheck_store_operation_duration_seconds",
			Help:    "Time of a call to the session store, by operation and result: ok, absent, conflict, error.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 3, 10),
		}, []string{"op", "result"}),
	}
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "coatcheck_build_info",
		Help:        "Always 1; the label tells the version.",
		ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "coatcheck_streams_open",
		Help: "WebSockets and event streams that are open now.",
	}, func() float64 { return float64(streams()) })
	brokenOff := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "coatcheck_upstream_answers_broken_total",
		Help: "Answers that an app broke off after their header; the client's connection was broken off too.",
	}, func() float64 { return float64(broken()) })
	m.registry.MustRegister(m.requests, m.duration, m.sessionLoads, m.signIns, m.storeOps, info, open, brokenOff,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics in Prometheus' text format. It belongs on the admin
// listener only.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Request counts one answered request.
func (m *Metrics) Request(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	if status != http.StatusSwitchingProtocols {
		m.duration.WithLabelValues(route).Observe(took.Seconds())
	}
}

// SessionLoad counts one look-up.
func (m *Metrics) SessionLoad(result SessionLoad) {
	m.sessionLoads.WithLabelValues(string(result)).Inc()
}

// SignIn counts one answer of a provider: "ok" or an error's code.
func (m *Metrics) SignIn(result string) { m.signIns.WithLabelValues(result).Inc() }

// Store returns s with every call timed.
func (m *Metrics) Store(s store.Store) store.Store { return &timedStore{Store: s, m: m} }

type timedStore struct {
	store.Store
	m *Metrics
}

func (t *timedStore) observe(op string, start time.Time, err error) {
	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, store.ErrNotFound):
		result = "absent"
	case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict):
		result = "conflict"
	default:
		result = "error"
	}
	t.m.storeOps.WithLabelValues(op, result).Observe(time.Since(start).Seconds())
}

func (t *timedStore) Get(ctx context.Context, key string) (store.Record, error) {
	start := time.Now()
	rec, err := t.Store.Get(ctx, key)
	t.observe("get", start, err)
	return rec, err
}

func (t *timedStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	start := time.Now()
	err := t.Store.Create(ctx, key, value, ttl)
	t.observe("create", start, err)
	return err
}

func (t *timedStore) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	start := time.Now()
	err := t.Store.Replace(ctx, key, revision, value, ttl)
	t.observe("replace", start, err)
	return err
}

func (t *timedStore) Touch(ctx context.Context, key string, ttl time.Duration) error {
	start := time.Now()
	err := t.Store.Touch(ctx, key, ttl)
	t.observe("touch", start, err)
	return err
}

func (t *timedStore) Delete(ctx context.Context, key string) error {
	start := time.Now()
	err := t.Store.Delete(ctx, key)
	t.observe("delete", start, err)
	return err
}
