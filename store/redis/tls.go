package redis

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// TLS says whom to believe and who we are. Certificates are always verified, and
// nothing below TLS 1.2 is spoken.
//
// The files are read again for each connection that is made, so what is renewed needs no
// restart. While one of them is missing or wrong, or the key is not the certificate's, all
// of them count as they were read last. What is connected stays so.
type TLS struct {
	// CAFile holds the authorities that servers are signed by, in PEM. Empty means the
	// system's, as they were when the first connection was made.
	CAFile string
	// CertFile and KeyFile prove who we are, in PEM.
	CertFile, KeyFile string
	// ServerName is what the servers' certificates must be for. Empty means the host
	// that is connected to, which with Sentinel and Cluster is the one they announce.
	ServerName string
}

// config reads the files. It works on nil, too.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil
	}
	c.ServerName = t.ServerName
	if t.CAFile != "" {
		text, err := readCertificates(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("authorities: %s holds no certificate", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("of a certificate and its key only one is given")
	}
	if t.CertFile != "" {
		cert, err := t.certificate()
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		// Certificates would be held back from a server that does not name its authority.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return c, nil
}

func (t *TLS) certificate() (tls.Certificate, error) {
	text, err := readCertificates(t.CertFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := os.ReadFile(t.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(text, key)
}

// readCertificates reads a file of certificates in PEM. What crypto makes of one that is
// cut off, by a full disk or because it is being written, is a shorter list.
func readCertificates(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	begun := bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----"))
	if begun != bytes.Count(text, []byte("-----END CERTIFICATE-----")) {
		return nil, fmt.Errorf("%s is cut off in the midst of a certificate", file)
	}
	return text, nil
}

// A tlsFiles keeps what the files of a TLS held when all of them were right.
type tlsFiles struct {
	tls *TLS
	log *slog.Logger

	mu      sync.Mutex
	last    *tls.Config
	trouble string // why last is not what the files hold; empty if it is
}

// config reads the files and returns what they hold or, if that can't be used, what they
// held before. The log is told when it begins to be so, why, and when it is over.
func (f *tlsFiles) config() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.tls.config()
	if err != nil {
		if err.Error() != f.trouble {
			f.log.Warn("the TLS files of Redis can't be used; going on with what they held before", "error", err)
		}
		f.trouble = err.Error()
		return f.last
	}
	if f.trouble != "" {
		f.log.Info("the TLS files of Redis can be used again")
	}
	f.last, f.trouble = c, ""
	return c
}
