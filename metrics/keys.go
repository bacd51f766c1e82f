package metrics

import "github.com/prometheus/client_golang/prometheus"

var sealingKey = prometheus.NewDesc("coatcheck_sealing_key",
	"Always 1; the label tells the ID of the key that this node seals with.", []string{"key"}, nil)

// SealingKey adds which key seals. It is called once.
func (m *Metrics) SealingKey(current func() string) {
	m.registry.MustRegister(sealing(current))
}

type sealing func() string

// Describe implements prometheus.Collector.
func (s sealing) Describe(descs chan<- *prometheus.Desc) { descs <- sealingKey }

// Collect implements prometheus.Collector.
func (s sealing) Collect(values chan<- prometheus.Metric) {
	values <- prometheus.MustNewConstMetric(sealingKey, prometheus.GaugeValue, 1, s())
}
