package metrics

import "github.com/prometheus/client_golang/prometheus"

// Keys adds whether the key ring's file could not be used when it was read last. It is
// called once.
func (m *Metrics) Keys(failed func() bool) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "coatcheck_keys_reload_failed",
		Help: "1 if the key ring's file could not be used when it was read last, so that the node goes on with the keys it had; else 0.",
	}, func() float64 {
		if failed() {
			return 1
		}
		return 0
	}))
}
