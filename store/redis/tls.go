package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLS says whom to believe and who we are. Certificates are always verified, and
// nothing below TLS 1.2 is spoken.
type TLS struct {
	// CAFile holds the authorities that servers are signed by, in PEM. Empty means the
	// system's.
	CAFile string
	// CertFile and KeyFile prove who we are, in PEM. They are read again for each
	// connection, so that a renewed certificate needs no restart.
	CertFile, KeyFile string
	// ServerName is what the servers' certificates must be for. Empty means the host
	// that is connected to, which with Sentinel and Cluster is the one they announce.
	ServerName string
}

// config works on nil, too.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil
	}
	c.ServerName = t.ServerName
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities: %s holds no certificate", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("of a certificate and its key only one is given")
	}
	if t.CertFile != "" {
		read := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("certificate: %w", err)
			}
			return &cert, nil
		}
		if _, err := read(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }
	}
	return c, nil
}
