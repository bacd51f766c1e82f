// Package metrics holds the name of every metric, and counts them. Labels come from
// closed lists and from the configuration, never from a request, so their number is
// bounded and nothing secret can get into one.
package metrics

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Metrics are the metrics of one node. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	codes    [600]string // status codes as labels; the last one stands for all beyond

	answers    atomic.Pointer[map[answered]answerCounts]
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	loads      map[SessionLoad]prometheus.Counter
	unverified prometheus.Counter
	broken     prometheus.Counter
	signIns    *prometheus.CounterVec
	events     *prometheus.CounterVec
	ended      *prometheus.CounterVec
	denied     *prometheus.CounterVec
	refreshes  *prometheus.CounterVec
	storeOps   *prometheus.HistogramVec
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
// are open.
func New(version string, streams func() int) *Metrics {
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
		loads: map[SessionLoad]prometheus.Counter{},
		unverified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coatcheck_session_unverified_total",
			Help: "Sessions served in the outage grace: from the near cache, while the store could not be reached.",
		}),
		broken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coatcheck_upstream_answers_broken_total",
			Help: "Answers that an app broke off after their header; the client's connection was broken off too.",
		}),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_sign_ins_total",
			Help: "Sign-ins that came back from the provider, by result: ok, or the code of the error.",
		}, []string{"result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_session_events_total",
			Help: "Events that this node was the first to tell of, by type.",
		}, []string{"type"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_sessions_ended_total",
			Help: "Sessions whose end this node was the first to tell of, by reason.",
		}, []string{"reason"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_session_limit_denials_total",
			Help: "Sign-ins that this node refused because of a limit, by limit: per_user, per_app, total.",
		}, []string{"limit"}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coatcheck_token_refreshes_total",
			Help: "Refresh tokens redeemed, by result: ok, or the outcome: none, refused, misconfigured, unknown.",
		}, []string{"result"}),
		storeOps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coatcheck_store_operation_duration_seconds",
			Help:    "Time of a call to the store, by operation and result: ok, absent, conflict, limit, ending, held, error.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 3, 10),
		}, []string{"op", "result"}),
	}
	m.answers.Store(&map[answered]answerCounts{})
	for i := range m.codes {
		m.codes[i] = strconv.Itoa(i)
	}
	loads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "coatcheck_session_loads_total",
		Help: "Sessions looked up for a request, by result: none, valid, invalid, unknown.",
	}, []string{"result"})
	// What may never happen is there from the start, or its first time would be no rise.
	for _, result := range []SessionLoad{LoadNone, LoadValid, LoadInvalid, LoadUnknown} {
		m.loads[result] = loads.WithLabelValues(string(result))
	}
	for _, t := range eventTypes() {
		m.events.WithLabelValues(string(t))
	}
	for _, reason := range coatcheck.Reasons() {
		m.ended.WithLabelValues(string(reason))
	}
	for _, result := range []string{
		"ok", coatcheck.OutcomeNone.String(), coatcheck.OutcomeRefused.String(),
		coatcheck.OutcomeMisconfigured.String(), coatcheck.OutcomeUnknown.String(),
	} {
		m.refreshes.WithLabelValues(result)
	}
	for _, limit := range limits() {
		m.denied.WithLabelValues(string(limit))
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
	m.registry.MustRegister(m.requests, m.duration, loads, m.unverified, m.signIns, m.events, m.ended, m.denied, m.refreshes,
		m.storeOps, info, open, m.broken,
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
	answer := answered{route, min(max(status, 0), len(m.codes)-1)}
	counts, ok := (*m.answers.Load())[answer]
	if !ok {
		counts = m.answer(answer)
	}
	counts.requests.Inc()
	if counts.duration != nil {
		counts.duration.Observe(took.Seconds())
	}
}

// answered is a kind of answer. There are as many as routes and status codes.
type answered struct {
	route  string
	status int
}

// answerCounts count the answers of a kind. They are looked up by their labels once.
type answerCounts struct {
	requests prometheus.Counter
	duration prometheus.Observer // nil for WebSockets
}

func (m *Metrics) answer(a answered) answerCounts {
	counts := answerCounts{requests: m.requests.WithLabelValues(a.route, m.codes[a.status])}
	if a.status != http.StatusSwitchingProtocols {
		counts.duration = m.duration.WithLabelValues(a.route)
	}
	for {
		known := m.answers.Load()
		next := maps.Clone(*known)
		next[a] = counts
		if m.answers.CompareAndSwap(known, &next) {
			return counts
		}
	}
}

// SessionLoad counts one look-up.
func (m *Metrics) SessionLoad(result SessionLoad) {
	m.loads[result].Inc()
}

// Unverified counts one session that was served in the outage grace.
func (m *Metrics) Unverified() { m.unverified.Inc() }

// AnswerBroken counts one answer that an app broke off.
func (m *Metrics) AnswerBroken() { m.broken.Inc() }

// SignIn counts one answer of a provider: "ok" or an error's code.
func (m *Metrics) SignIn(result string) { m.signIns.WithLabelValues(result).Inc() }

// Refreshed counts one refresh token that was redeemed: "ok", or a coatcheck.Outcome's name.
func (m *Metrics) Refreshed(result string) { m.refreshes.WithLabelValues(result).Inc() }

// Events returns a function that counts those events that the node called by that name told
// of first, so that the sum over all nodes counts each once. It is to be told each once.
func (m *Metrics) Events(node string) func(coatcheck.Event) {
	return func(e coatcheck.Event) {
		if e.Node != node {
			return
		}
		m.events.WithLabelValues(listed(e.Type, eventTypes()...)).Inc()
		switch e.Type {
		case coatcheck.EventEnded:
			m.ended.WithLabelValues(listed(e.Reason, coatcheck.Reasons()...)).Inc()
		case coatcheck.EventLimitDenied:
			m.denied.WithLabelValues(listed(store.LimitKind(e.Limit), limits()...)).Inc()
		}
	}
}

func eventTypes() []coatcheck.EventType {
	return []coatcheck.EventType{
		coatcheck.EventStarted, coatcheck.EventRenewed, coatcheck.EventEnded, coatcheck.EventLimitDenied,
	}
}

func limits() []store.LimitKind {
	return []store.LimitKind{store.LimitUser, store.LimitApp, store.LimitTotal}
}

// listed returns value as a label if it is in the list, and "other" if not: events come
// through a journal, in which others may write.
func listed[T ~string](value T, list ...T) string {
	if slices.Contains(list, value) {
		return string(value)
	}
	return "other"
}

// CacheStats say how the near cache of sessions does; all but Bytes and Hearing only rise.
type CacheStats struct {
	Hits    uint64 // sessions served from it
	Misses  uint64 // sessions that it did not hold
	Stale   uint64 // sessions that it held, and that had to be read again
	Bytes   int
	Hearing bool // the store's feed is heard
}

// Cache adds the near cache, which stats tells of at any time. It is called once.
func (m *Metrics) Cache(stats func() CacheStats) {
	for result, count := range map[string]func(CacheStats) uint64{
		"hit":   func(s CacheStats) uint64 { return s.Hits },
		"miss":  func(s CacheStats) uint64 { return s.Misses },
		"stale": func(s CacheStats) uint64 { return s.Stale },
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "coatcheck_session_cache_requests_total",
			Help:        "Sessions looked up in the near cache, by result: hit, miss, stale (held, and read again).",
			ConstLabels: prometheus.Labels{"result": result},
		}, func() float64 { return float64(count(stats())) }))
	}
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "coatcheck_session_cache_bytes",
			Help: "Size of the near cache of sessions.",
		}, func() float64 { return float64(stats().Bytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "coatcheck_store_feed_up",
			Help: "1 while the store's feed of changes is heard, so that the near cache may be served from; else 0.",
		}, func() float64 {
			if stats().Hearing {
				return 1
			}
			return 0
		}))
}

// An Upstream is an app, by its configured URL, and how it does.
type Upstream struct {
	URL      string
	UnderWay int    // requests under way to it
	Refused  uint64 // requests that found no place among them so far
}

// Upstreams adds the apps, which list tells of at any time; they may change. It is called once.
func (m *Metrics) Upstreams(list func() []Upstream) { m.registry.MustRegister(upstreams(list)) }

type upstreams func() []Upstream

var (
	upstreamUnderWay = prometheus.NewDesc("coatcheck_upstream_requests",
		"Requests under way to an app now, without open WebSockets and event streams.", []string{"upstream"}, nil)
	upstreamRefused = prometheus.NewDesc("coatcheck_upstream_refused_total",
		"Requests that were refused because as many as may be were under way to the app.", []string{"upstream"}, nil)
)

// Describe implements prometheus.Collector.
func (upstreams) Describe(descs chan<- *prometheus.Desc) {
	descs <- upstreamUnderWay
	descs <- upstreamRefused
}

// Collect implements prometheus.Collector.
func (list upstreams) Collect(values chan<- prometheus.Metric) {
	for _, u := range list() {
		values <- prometheus.MustNewConstMetric(upstreamUnderWay, prometheus.GaugeValue, float64(u.UnderWay), u.URL)
		values <- prometheus.MustNewConstMetric(upstreamRefused, prometheus.CounterValue, float64(u.Refused), u.URL)
	}
}

// Providers adds which sign-in providers are known, by their configured names; list tells of
// them at any time, and they may change. It is called once.
func (m *Metrics) Providers(list func() map[string]bool) { m.registry.MustRegister(providers(list)) }

type providers func() map[string]bool

var providerReady = prometheus.NewDesc("coatcheck_provider_ready",
	"1 once discovery of a sign-in provider has succeeded, until then 0.", []string{"provider"}, nil)

// Describe implements prometheus.Collector.
func (providers) Describe(descs chan<- *prometheus.Desc) { descs <- providerReady }

// Collect implements prometheus.Collector.
func (list providers) Collect(values chan<- prometheus.Metric) {
	for name, ready := range list() {
		value := 0.0
		if ready {
			value = 1
		}
		values <- prometheus.MustNewConstMetric(providerReady, prometheus.GaugeValue, value, name)
	}
}

// Breaker adds the state of the breakers in front of the store, of calls that read and of
// those that write: 0 closed, 1 half-open, 2 open. It is called once.
func (m *Metrics) Breaker(reads, writes func() int) {
	for calls, state := range map[string]func() int{"read": reads, "write": writes} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "coatcheck_store_breaker_state",
			Help:        "What becomes of calls to the store, by kind, read or write: 0 they pass, 1 a few are tried, 2 they are refused.",
			ConstLabels: prometheus.Labels{"calls": calls},
		}, func() float64 { return float64(state()) }))
	}
}
