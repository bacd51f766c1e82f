package metrics

import "github.com/prometheus/client_golang/prometheus"

// Config adds whether the configuration could not be used when it was read last. It is
// called once.
func (m *Metrics) Config(failed func() bool) {
	m.reload("coatcheck_config_reload_failed",
		"1 if the configuration could not be used when it was read last, so that the node goes on with the one it had; else 0.", failed)
}

// Keys adds whether the key ring's file could not be used when it was read last. It is
// called once.
func (m *Metrics) Keys(failed func() bool) {
	m.reload("coatcheck_keys_reload_failed",
		"1 if the key ring's file could not be used when it was read last, so that the node goes on with the keys it had; else 0.", failed)
}

func (m *Metrics) reload(name, help string, failed func() bool) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		if failed() {
			return 1
		}
		return 0
	}))
}
