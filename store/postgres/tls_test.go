package postgres

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Certificates: certs})
	plain := strings.TrimSuffix(server.URL(), "?sslmode=disable")
	ours := "&sslcert=" + certs.CertFile + "&sslkey=" + certs.KeyFile
	for _, tc := range []struct{ name, url, fails string }{
		{"verified", plain + "?sslmode=verify-full&sslrootcert=" + certs.CAFile + ours, ""},
		{"another name", strings.Replace(plain, "127.0.0.1", "localhost", 1) + "?sslmode=verify-full&sslrootcert=" + certs.CAFile + ours, "certificate"},
		{"another authority", plain + "?sslmode=verify-full&sslrootcert=" + others.CAFile + ours, "certificate"},
		{"the system's authorities", plain + "?sslmode=verify-full" + ours, "certificate"},
		{"without a certificate", plain + "?sslmode=verify-full&sslrootcert=" + certs.CAFile, "certificate"},
		{"without encryption", plain + "?sslmode=disable", "no pg_hba.conf entry"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, Options{URL: tc.url})
			switch err := s.Ping(t.Context()); {
			case err == nil:
				t.Error("Ping without a schema succeeded")
			case tc.fails == "" && !strings.Contains(err.Error(), howTo):
				t.Errorf("Ping: %v", err)
			case !strings.Contains(err.Error(), tc.fails):
				t.Errorf("Ping: %v, want %q", err, tc.fails)
			}
		})
	}
}

// A tlsServer is a server whose certificates can be replaced, with a node that runs.
type tlsServer struct {
	*testenv.Postgres
	t     testing.TB
	admin *pgx.Conn
	files testenv.Certificates // of the node
	log   logged
	node  *Store
	feed  *feed
}

// startTLS starts a node that reaches its server as hosts and sslmode say.
func startTLS(t *testing.T, certs *testenv.Certificates, hosts, sslmode string) *tlsServer {
	t.Helper()
	dir := t.TempDir()
	server := &tlsServer{
		Postgres: testenv.StartPostgres(t, testenv.PostgresOptions{Certificates: certs}),
		t:        t,
		files:    testenv.Certificates{CAFile: dir + "/ca.pem", CertFile: dir + "/cert.pem", KeyFile: dir + "/key.pem"},
	}
	var err error
	server.admin, err = pgx.Connect(t.Context(), server.url(server.Addr(), "verify-full", certs))
	must(t, err)
	t.Cleanup(func() { _ = server.admin.Close(context.Background()) })

	server.install(certs)
	server.node = openAll(t, Options{
		URL:    server.url(hosts+server.Addr(), sslmode, &server.files) + "&application_name=node",
		Logger: server.log.logger(),
	}, 1)[0]
	wantPing(t, server.node, "")
	ctx, cancel := context.WithCancel(t.Context())
	server.feed = watch(ctx, t, server.node)
	t.Cleanup(func() { cancel(); server.feed.done() })
	server.feed.waitCurrent()
	return server
}

func (server *tlsServer) url(hosts, sslmode string, c *testenv.Certificates) string {
	return fmt.Sprintf("postgres://%s@%s/postgres?sslmode=%s&sslrootcert=%s&sslcert=%s&sslkey=%s",
		testenv.PostgresUser, hosts, sslmode, c.CAFile, c.CertFile, c.KeyFile)
}

func (server *tlsServer) read(file string) string {
	server.t.Helper()
	text, err := os.ReadFile(file)
	must(server.t, err)
	return string(text)
}

func (server *tlsServer) write(file, text string) {
	server.t.Helper()
	must(server.t, os.WriteFile(file, []byte(text), 0o600))
}

// install renews the node's files.
func (server *tlsServer) install(c *testenv.Certificates) {
	server.t.Helper()
	server.write(server.files.CAFile, server.read(c.CAFile))
	server.write(server.files.CertFile, server.read(c.CertFile))
	server.write(server.files.KeyFile, server.read(c.KeyFile))
}

// present makes the server prove itself with other certificates, and ask for the like.
func (server *tlsServer) present(c *testenv.Certificates) {
	server.t.Helper()
	for setting, from := range map[string]string{"ssl_ca_file": c.CAFile, "ssl_cert_file": c.CertFile, "ssl_key_file": c.KeyFile} {
		var file string
		must(server.t, server.admin.QueryRow(server.t.Context(), "SHOW "+setting).Scan(&file))
		server.write(file, server.read(from))
	}
	exec(server.t, server.admin, "SELECT pg_reload_conf()")
	eventually(server.t, "the server proves itself with other certificates", func() error {
		conn, err := pgx.Connect(server.t.Context(), server.url(server.Addr(), "verify-full", c))
		if err == nil {
			_ = conn.Close(context.Background())
		}
		return err
	})
}

// hangUp ends the connections of the node.
func (server *tlsServer) hangUp() {
	server.t.Helper()
	var pids []int32
	must(server.t, server.admin.QueryRow(server.t.Context(),
		"SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE application_name = 'node'").Scan(&pids))
	exec(server.t, server.admin, "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
	eventually(server.t, "the connections end", func() error {
		var left int
		err := server.admin.QueryRow(server.t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)", pids).Scan(&left)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are left", left)
		}
		return err
	})
}

// reconnect makes the node connect anew, to call and to listen.
func (server *tlsServer) reconnect() {
	server.t.Helper()
	server.hangUp()
	server.waitUp()
}

func (server *tlsServer) waitUp() {
	server.t.Helper()
	eventually(server.t, "Ping", func() error { return server.node.Ping(server.t.Context()) })
	server.feed.waitCurrent()
}

const (
	tlsWarning = `level=WARN msg="the TLS files of PostgreSQL can't be used; `
	tlsOver    = `level=INFO msg="the TLS files of PostgreSQL can be used again`
)

// Authority, certificate and key are renewed under a node that runs. A-Z9
func TestTLSRenewed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, hosts, sslmode string }{
		{"one server", "", "verify-full"},
		{"another server", "127.0.0.1:1,", "verify-full"},
		{"without its name", "", "verify-ca"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			old, renewed := testenv.NewCertificates(t), testenv.NewCertificates(t)
			server := startTLS(t, old, tc.hosts, tc.sslmode)
			connected, resets := server.node.pool.Stat().NewConnsCount(), server.feed.resets.Load()
			server.present(renewed)
			server.install(renewed)
			wantPing(t, server.node, "")
			server.feed.waitCurrent()
			if n := server.node.pool.Stat().NewConnsCount(); n != connected || server.feed.resets.Load() != resets {
				t.Errorf("%d new connections, %d resets of the feed", n-connected, server.feed.resets.Load()-resets)
			}
			server.reconnect()
			migrate(t, server.node)
			server.log.wait(t, "TLS files", 0)
		})
	}
}

// Files that are wrong change nothing, and the log is told once what is wrong. A-Z9
func TestTLSBroken(t *testing.T) {
	t.Parallel()
	old, certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := startTLS(t, old, "", "verify-full")
	server.present(certs)
	server.install(certs)
	server.reconnect()
	files := server.files
	cut := func(text string) string { return text[:len(text)-10] }
	breaks := []struct {
		name, says string
		make       func()
	}{
		{"no authority", "ca.pem: no such file", func() { must(t, os.Remove(files.CAFile)) }},
		{"no certificate", "cert.pem: no such file", func() { must(t, os.Remove(files.CertFile)) }},
		{"no key", "key.pem: no such file", func() { must(t, os.Remove(files.KeyFile)) }},
		{"an empty authority", "unable to add CA", func() { server.write(files.CAFile, "") }},
		{"half of two authorities", "ca.pem is cut off", func() {
			server.write(files.CAFile, server.read(others.CAFile)+cut(server.read(certs.CAFile)))
		}},
		{"half of a chain", "cert.pem is cut off", func() {
			server.write(files.CertFile, server.read(others.CertFile)+cut(server.read(others.CAFile)))
			server.write(files.KeyFile, server.read(others.KeyFile))
		}},
		{"half of a key", "failed to decode sslkey", func() { server.write(files.KeyFile, cut(server.read(certs.KeyFile))) }},
		{"the key of another certificate", "private key does not match", func() {
			server.write(files.CertFile, server.read(others.CertFile))
			server.write(files.CAFile, server.read(others.CAFile)) // which is right in itself
		}},
	}
	for i, b := range breaks {
		b.make()
		for range 2 {
			server.reconnect()
		}
		server.log.wait(t, tlsWarning, i+1)
		server.log.wait(t, b.says, 1)
		server.install(certs)
		for range 2 {
			server.reconnect()
		}
		server.log.wait(t, tlsOver, i+1)
	}

	must(t, os.Remove(files.CAFile))
	server.reconnect()
	server.write(files.CAFile, "")
	server.reconnect()
	server.log.wait(t, tlsWarning, len(breaks)+2) // one trouble became another
}

// Servers are verified by what was renewed. A-Z9
func TestTLSRenewedVerifies(t *testing.T) {
	t.Parallel()
	certs, others := testenv.NewCertificates(t), testenv.NewCertificates(t)
	server := startTLS(t, certs, "", "verify-full")
	refused := func(name string) {
		t.Helper()
		server.hangUp()
		eventually(t, name+" is refused", func() error {
			if err := server.node.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
				return fmt.Errorf("Ping: %v", err)
			}
			return nil
		})
	}
	server.write(server.files.CAFile, server.read(others.CAFile))
	refused("a server of the old authority")
	server.install(certs)
	server.waitUp()
	server.present(others)
	refused("a server of a foreign authority")
	server.present(certs)
	server.waitUp()
}
