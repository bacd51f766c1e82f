package redis

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

func TestTLSVerifiesTheServer(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS() // with a certificate that nobody signed
	defer server.Close()
	s := open(t, Options{URL: "rediss://" + server.Listener.Addr().String()})
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Ping of a server that proves nothing: %v", err)
	}
}

func TestTLS(t *testing.T) {
	certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartRedis(t, testenv.RedisOptions{Certificates: certs})
	ours := TLS{CAFile: certs.CAFile, CertFile: certs.CertFile, KeyFile: certs.KeyFile}
	with := func(change func(*TLS)) *TLS {
		c := ours
		change(&c)
		return &c
	}
	const refused = "store/redis: ping: " // in whatever words: the server may be gone before it is heard
	for _, tc := range []struct {
		name  string
		tls   *TLS
		fails string
	}{
		{"both proven", &ours, ""},
		{"another name of the server", with(func(c *TLS) { c.ServerName = "redis.test" }), ""},
		{"a name that is not the server's", with(func(c *TLS) { c.ServerName = "other.test" }), "not other.test"},
		{"another authority", with(func(c *TLS) { c.CAFile = others.CAFile }), "unknown authority"},
		{"the system's authorities", with(func(c *TLS) { c.CAFile = "" }), "unknown authority"},
		{"no certificate of ours", with(func(c *TLS) { c.CertFile, c.KeyFile = "", "" }), refused},
		{"ours signed by another", with(func(c *TLS) { c.CertFile, c.KeyFile = others.CertFile, others.KeyFile }), refused},
		{"nothing said", nil, "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := open(t, Options{URL: server.URL(), TLS: tc.tls}).Ping(t.Context())
			if tc.fails == "" && err != nil || tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)) {
				t.Errorf("Ping: %v, want %q", err, tc.fails)
			}
		})
	}
}

// A certificate that was renewed is used from the next connection on.
func TestTLSRenewed(t *testing.T) {
	certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartRedis(t, testenv.RedisOptions{Certificates: certs})
	dir := t.TempDir()
	install := func(c *testenv.Certificates) {
		for from, to := range map[string]string{c.CertFile: "/cert.pem", c.KeyFile: "/key.pem"} {
			pem, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(dir+to, pem, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	install(others)
	s := open(t, Options{URL: server.URL(), TLS: &TLS{CAFile: certs.CAFile, CertFile: dir + "/cert.pem", KeyFile: dir + "/key.pem"}})
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping with the old certificate succeeded")
	}
	install(certs)
	waitUp(t, s)
}
