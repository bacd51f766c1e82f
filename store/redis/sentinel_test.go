package redis

import (
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// Everything at once: TLS and passwords on both sides, a database, a failover.
func TestSentinel(t *testing.T) {
	t.Parallel()
	certs := testenv.NewCertificates(t)
	env := testenv.StartSentinel(t, testenv.SentinelOptions{
		Replicas:         2, // one for each failover
		Redis:            testenv.RedisOptions{Password: password, Certificates: certs},
		SentinelPassword: "sentinels-" + password,
	})
	opts := Options{
		Sentinel: &Sentinel{
			Addresses: env.Addresses(), Master: testenv.SentinelMaster, Password: "sentinels-" + password, Database: 2,
		},
		TLS:      &TLS{CAFile: certs.CAFile, CertFile: certs.CertFile, KeyFile: certs.KeyFile},
		Password: password,
	}
	failover := storetest.Outage{Name: "failover", Begin: func(t testing.TB) func() {
		old := env.Primary()
		old.Must("WAIT", "1", "4000") // what was acknowledged is there afterwards
		old.Kill()
		return func() { env.WaitFailover(old) }
	}}

	t.Run("Refused", func(t *testing.T) {
		wrongMaster, wrongPassword := opts, opts
		wrongMaster.Sentinel = &Sentinel{Addresses: env.Addresses(), Master: "other", Password: opts.Sentinel.Password}
		wrongPassword.PasswordFrom = "a file"
		wrongPassword.Sentinel = &Sentinel{
			Addresses: env.Addresses(), Master: testenv.SentinelMaster,
			Password: "wrong-" + password, PasswordFrom: "another file",
		}
		wrongPrimary := opts
		wrongPrimary.Password, wrongPrimary.PasswordFrom = "wrong-"+password, "a file"
		for want, opts := range map[string]Options{
			"No such master": wrongMaster,
			"does not accept user default with the password from another file: WRONGPASS":                   wrongPassword,
			env.Primary().Addr() + " does not accept user default with the password from a file: WRONGPASS": wrongPrimary,
		} {
			if err := open(t, opts).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), password) {
				t.Errorf("Ping: %v, want %s", err, want)
			}
		}
	})

	t.Run("DownAtOpen", func(t *testing.T) {
		for _, sentinel := range env.Sentinels() {
			sentinel.Stop()
		}
		s := open(t, opts)
		if err := s.Ping(t.Context()); err == nil {
			t.Error("Ping succeeded without sentinels")
		}
		for _, sentinel := range env.Sentinels() {
			sentinel.Restart()
		}
		waitUp(t, s)
	})

	t.Run("TLSRenewed", func(t *testing.T) { testTLSRenewed(t, opts, certs) }) // A-Z9

	t.Run("Conformance", func(t *testing.T) {
		storetest.RunWatcher(t, storetest.WatcherHarness{Open: opener[storetest.WatchedStore](opts)})
	})

	// One that answers is enough, and the others don't keep it waiting for longer than the
	// timeout says.
	t.Run("HungSentinel", func(t *testing.T) {
		hasty := opts
		hasty.Timeout = time.Second
		env.Sentinels()[0].Pause()
		defer env.Sentinels()[0].Resume()
		began := time.Now()
		waitUp(t, open(t, hasty))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("took %s", took)
		}
	})

	t.Run("Feed", func(t *testing.T) {
		here, there := open(t, opts), open(t, opts)
		e := listen(t, here, testBeat)
		stop := changing(t, e, there)
		old := env.Primary()
		old.Kill()
		env.WaitFailover(old)
		waitUp(t, there)
		e.waitCurrent()
		stop()
		e.waitCurrent()
	})

	t.Run("Failover", func(t *testing.T) {
		storetest.Run(t, storetest.Harness{Open: opener[store.Store](opts), Outages: []storetest.Outage{failover}})
	})
}
