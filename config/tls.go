package config

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
)

// maxPEM bounds a file of certificates, in bytes. The bundles of systems are below it.
const maxPEM = 1 << 20

// certificates reads the files that TLS to the store needs, so that a wrong one is seen
// here and not at the first connection.
func (v *validator) certificates() {
	switch s := &v.cfg.Store; {
	case s.Driver == DriverRedis && s.Redis.encrypted():
		const path = "store.redis.tls"
		t := &s.Redis.TLS
		t.Config = &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    v.authorities(path+".ca_file", t.CAFile),
			ServerName: t.ServerName,
		}
		if pair, ok := v.keyPair(path+".cert_file", t.CertFile, path+".key_file", t.KeyFile); ok {
			t.Config.Certificates = []tls.Certificate{pair}
		}
	case s.Driver == DriverPostgres:
		const path = "store.postgres.url"
		u, _, ok := parsePostgres(s.Postgres.URL)
		if !ok || v.refused(path) {
			return
		}
		// The driver reads them again.
		query := u.Query()
		if file := query.Get("sslrootcert"); file != "system" {
			v.authorities(path, file)
		}
		v.keyPair(path, query.Get("sslcert"), path, query.Get("sslkey"))
	}
}

// authorities returns the certificates of a file, or nil, which are the system's.
func (v *validator) authorities(path, file string) *x509.CertPool {
	text, ok := v.pem(path, file)
	if !ok {
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		v.refuse(path, "%s: holds no certificate in PEM", v.src.hide(file))
	}
	return pool
}

// keyPair reads a certificate and its key, if both are named and can be read.
func (v *validator) keyPair(certPath, certFile, keyPath, keyFile string) (pair tls.Certificate, ok bool) {
	if certFile == "" || keyFile == "" {
		return pair, false
	}
	cert, certOK := v.pem(certPath, certFile)
	key, keyOK := v.pem(keyPath, keyFile)
	if !certOK || !keyOK {
		return pair, false
	}
	v.exposed(keyPath, keyFile)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		v.refuse(certPath, "%s with the key %s: %s", v.src.hide(certFile), v.src.hide(keyFile), strings.TrimPrefix(err.Error(), "tls: "))
	}
	return pair, err == nil
}

// pem reads a file, if one is named.
func (v *validator) pem(path, file string) ([]byte, bool) {
	if file == "" || v.refused(path) {
		return nil, false
	}
	text, err := readFile(file, maxPEM)
	if err != nil {
		v.refuse(path, "%s: %s", v.src.hide(file), reason(err))
	}
	return text, err == nil
}
