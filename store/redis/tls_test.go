package redis

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
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

// A folder holds the files of a TLS, which are replaced.
type folder struct {
	TLS
	t testing.TB
}

func newTLSFiles(t testing.TB, now *testenv.Certificates) *folder {
	t.Helper()
	dir := t.TempDir()
	f := &folder{TLS{CAFile: dir + "/ca.pem", CertFile: dir + "/cert.pem", KeyFile: dir + "/key.pem"}, t}
	f.install(now)
	return f
}

func (f *folder) install(now *testenv.Certificates) {
	f.t.Helper()
	f.write(f.CAFile, f.read(now.CAFile))
	f.write(f.CertFile, f.read(now.CertFile))
	f.write(f.KeyFile, f.read(now.KeyFile))
}

func (f *folder) read(file string) string {
	f.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(text)
}

func (f *folder) write(file, text string) {
	f.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// present makes a server prove itself with other certificates, and ask for the like.
func present(server *testenv.Redis, c *testenv.Certificates) {
	server.Must("CONFIG", "SET", "tls-ca-cert-file", c.CAFile, "tls-cert-file", c.CertFile, "tls-key-file", c.KeyFile)
}

// hangUp ends the connections to a server.
func hangUp(server *testenv.Redis) { server.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }

// reconnect makes a Store connect anew, and waits until it has.
func reconnect(t testing.TB, s *Store, server *testenv.Redis) {
	t.Helper()
	before := s.answering.Load()
	hangUp(server)
	eventually(t, "there is another connection, which works", func() bool {
		return s.Ping(t.Context()) == nil && s.answering.Load() > before
	})
}

// Authority, certificate and key are renewed under a node that runs. A-Z9
func TestTLSRenewed(t *testing.T) {
	t.Parallel()
	old, renewed := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartRedis(t, testenv.RedisOptions{Certificates: old})
	files := newTLSFiles(t, old)
	var log logged
	s := open(t, Options{URL: server.URL(), TLS: &files.TLS, Logger: log.logger()})
	waitUp(t, s)

	connected := s.answering.Load()
	present(server, renewed)
	files.install(renewed)
	if err := s.Ping(t.Context()); err != nil || s.answering.Load() != connected {
		t.Errorf("Ping of what is connected: %v; %d connections more", err, s.answering.Load()-connected)
	}
	reconnect(t, s, server)
	if log.String() != "" {
		t.Errorf("the log is told of files that are right:\n%s", &log)
	}
}

// Files that are wrong change nothing, and the log is told once what is wrong. A-Z9
func TestTLSBroken(t *testing.T) {
	t.Parallel()
	old, certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartRedis(t, testenv.RedisOptions{Certificates: old})
	files := newTLSFiles(t, old)
	var log logged
	s := open(t, Options{URL: server.URL(), TLS: &files.TLS, Logger: log.logger()})
	waitUp(t, s)
	present(server, certs)
	files.install(certs)
	reconnect(t, s, server)

	const warning, over = "level=WARN msg=\"the TLS files of Redis can't be used; ", "level=INFO msg=\"the TLS files of Redis can be used again"
	remove := func(file string) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(text string) string { return text[:len(text)-10] }
	breaks := []struct {
		name, says string
		make       func()
	}{
		{"no authority", "ca.pem: no such file", func() { remove(files.CAFile) }},
		{"no certificate", "cert.pem: no such file", func() { remove(files.CertFile) }},
		{"no key", "key.pem: no such file", func() { remove(files.KeyFile) }},
		{"an empty authority", "ca.pem holds no certificate", func() { files.write(files.CAFile, "") }},
		{"half of two authorities", "ca.pem is cut off", func() {
			files.write(files.CAFile, files.read(others.CAFile)+cut(files.read(certs.CAFile)))
		}},
		{"half of a chain", "cert.pem is cut off", func() {
			files.write(files.CertFile, files.read(others.CertFile)+cut(files.read(others.CAFile)))
			files.write(files.KeyFile, files.read(others.KeyFile))
		}},
		{"half of a key", "certificate: tls: ", func() { files.write(files.KeyFile, cut(files.read(certs.KeyFile))) }},
		{"the key of another certificate", "private key does not match", func() {
			files.write(files.CertFile, files.read(others.CertFile))
			files.write(files.CAFile, files.read(others.CAFile)) // which is right in itself
		}},
	}
	for i, b := range breaks {
		b.make()
		for range 3 {
			reconnect(t, s, server)
		}
		if n := strings.Count(log.String(), warning); n != i+1 || !strings.Contains(log.String(), b.says) {
			t.Errorf("%s: %d warnings, want %d, and %q:\n%s", b.name, n, i+1, b.says, &log)
		}
		files.install(certs)
		for range 2 {
			reconnect(t, s, server)
		}
		if n := strings.Count(log.String(), over); n != i+1 {
			t.Errorf("%s: it is over %d times, want %d:\n%s", b.name, n, i+1, &log)
		}
	}

	remove(files.CAFile)
	reconnect(t, s, server)
	files.write(files.CAFile, "")
	reconnect(t, s, server)
	if n := strings.Count(log.String(), warning); n != len(breaks)+2 {
		t.Errorf("%d warnings after one trouble became another, want %d:\n%s", n, len(breaks)+2, &log)
	}
}

// Connections that are made at once share what is read, and one warning.
func TestTLSBrokenAtOnce(t *testing.T) {
	files := newTLSFiles(t, testenv.NewCertificates(t))
	before, err := files.config()
	if err != nil {
		t.Fatal(err)
	}
	files.write(files.CAFile, "")
	var log logged
	r := tlsFiles{tls: &files.TLS, log: log.logger(), last: before}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if r.config() != before {
				t.Error("what was read before is not used")
			}
		})
	}
	wg.Wait()
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, &log)
	}
}

// Servers are verified by what was renewed. A-Z9
func TestTLSRenewedVerifies(t *testing.T) {
	t.Parallel()
	certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartRedis(t, testenv.RedisOptions{Certificates: certs})
	files := newTLSFiles(t, certs)
	s := open(t, Options{URL: server.URL(), TLS: &files.TLS})
	waitUp(t, s)

	refused := func(name string) {
		t.Helper()
		connected := s.answering.Load()
		hangUp(server)
		eventually(t, name+" is refused", func() bool {
			err := s.Ping(t.Context())
			return err != nil && strings.Contains(err.Error(), "unknown authority")
		})
		if n := s.answering.Load(); n != connected {
			t.Errorf("%s: %d connections more", name, n-connected)
		}
	}
	files.write(files.CAFile, files.read(others.CAFile))
	refused("a server of the old authority")
	files.install(certs)
	waitUp(t, s)
	present(server, others)
	refused("a server of a foreign authority")
	present(server, certs)
	waitUp(t, s)
}

// testTLSRenewed lets a Store begin with files that are of no use, and renews them.
func testTLSRenewed(t *testing.T, opts Options, certs *testenv.Certificates) {
	files := newTLSFiles(t, testenv.NewCertificates(t))
	opts.TLS = &files.TLS
	s := open(t, opts)
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("Ping with the old files: %v", err)
	}
	files.install(certs)
	waitUp(t, s)
}
