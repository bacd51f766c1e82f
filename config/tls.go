package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"strings"
)

// maxPEM bounds a file of certificates, in bytes. The bundles of systems are below it.
const maxPEM = 1 << 20

// certificates reads the files that TLS to the store needs, so that a wrong one is seen
// here and not at the first connection. The drivers read them again.
func (v *validator) certificates() {
	switch s := &v.cfg.Store; s.Driver {
	case DriverRedis:
		const path = "store.redis.tls"
		t := s.Redis.TLS
		v.authorities(path+".ca_file", t.CAFile)
		v.keyPair(path+".cert_file", t.CertFile, path+".key_file", t.KeyFile)
	case DriverPostgres:
		const path = "store.postgres.url"
		u, _, ok := parsePostgres(s.Postgres.URL)
		if !ok {
			return
		}
		query := u.Query()
		if file := query.Get("sslrootcert"); file != "system" {
			v.authorities(path, file)
		}
		v.keyPair(path, query.Get("sslcert"), path, query.Get("sslkey"))
	}
}

func (v *validator) authorities(path, file string) {
	if text, ok := v.certificatesIn(path, file); ok && !x509.NewCertPool().AppendCertsFromPEM(text) {
		v.refuse(path, "%s: holds no certificate in PEM", v.src.hide(file))
	}
}

// keyPair reads a certificate and its key, if they are named.
func (v *validator) keyPair(certPath, certFile, keyPath, keyFile string) {
	cert, certOK := v.certificatesIn(certPath, certFile)
	key, keyOK := v.pem(keyPath, keyFile)
	if !certOK || !keyOK {
		return
	}
	v.exposed(keyPath, keyFile)
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		v.refuse(certPath, "%s with the key %s: %s", v.src.hide(certFile), v.src.hide(keyFile), strings.TrimPrefix(err.Error(), "tls: "))
	}
}

// certificatesIn reads a file of certificates, if one is named. What crypto makes of one that
// is cut off is a shorter list.
func (v *validator) certificatesIn(path, file string) ([]byte, bool) {
	text, ok := v.pem(path, file)
	if ok && bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----")) != bytes.Count(text, []byte("-----END CERTIFICATE-----")) {
		v.refuse(path, "%s: is cut off in the midst of a certificate", v.src.hide(file))
		return nil, false
	}
	return text, ok
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
