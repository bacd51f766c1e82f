package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pair returns a certificate that vouches for itself, and its key, in PEM.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// loadStore loads a configuration with this store, from a folder with certificates.
func loadStore(t *testing.T, store string) (cfg *Config, dir string, err error) {
	t.Helper()
	dir = t.TempDir()
	cert, key := pair(t)
	_, otherKey := pair(t)
	write(t, dir, "cert.pem", cert, 0o644)
	write(t, dir, "key.pem", key, 0o600)
	write(t, dir, "open.pem", key, 0o644)
	write(t, dir, "other-key.pem", otherKey, 0o600)
	write(t, dir, "cut.pem", cert+cert[:len(cert)/2], 0o644)
	write(t, dir, "words", "hunter2\n", 0o600)
	write(t, dir, "large.pem", strings.Repeat("#", maxPEM+1), 0o600)
	cfg, err = Load(write(t, dir, "coatcheck.yaml", fmt.Sprintf(`
public_url: https://app.example.com
keys: {file: keys.json}
store: %s
providers: [{name: corp, issuer: "https://idp.example.com", client_id: web}]
routes: [{path: /}]
`, strings.ReplaceAll(store, "DIR", dir)), 0o644))
	return cfg, dir, err
}

// TestTLS: whether TLS is on is said by the URL, or else by enabled.
func TestTLS(t *testing.T) {
	for store, want := range map[string]TLS{
		"{driver: redis}": {},
		`{driver: redis, redis: {sentinel: {addresses: ["a:1"], master: m}, tls: {}}}`:                                                    {},
		`{driver: redis, redis: {url: "REDISS://redis.internal"}}`:                                                                        {Enabled: true},
		`{driver: redis, redis: {cluster: {addresses: ["a:1"]}, tls: {enabled: true}}}`:                                                   {Enabled: true},
		`{driver: redis, redis: {sentinel: {addresses: ["a:1"], master: m}, tls: {enabled: true, ca_file: cert.pem}}}`:                    {Enabled: true, CAFile: "DIR/cert.pem"},
		`{driver: redis, redis: {url: "rediss://192.0.2.1", tls: {cert_file: cert.pem, key_file: key.pem, server_name: Redis.internal}}}`: {Enabled: true, CertFile: "DIR/cert.pem", KeyFile: "DIR/key.pem", ServerName: "redis.internal"},
	} {
		cfg, dir, err := loadStore(t, store)
		if err != nil {
			t.Fatal(store, err)
		}
		got := cfg.Store.Redis.TLS
		for _, file := range []*string{&got.CAFile, &got.CertFile, &got.KeyFile} {
			*file = strings.Replace(*file, dir, "DIR", 1)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", store, diff)
		}
	}
}

// TestCertificates: files that can't be used are seen when the configuration is loaded.
func TestCertificates(t *testing.T) {
	for _, tt := range []struct {
		name, store string
		want        []string
	}{
		{
			"missing", `{driver: redis, redis: {url: "rediss://a", tls: {ca_file: nowhere, cert_file: cert.pem, key_file: nokey}}}`,
			[]string{
				"store.redis.tls.ca_file: DIR/nowhere: no such file or directory",
				"store.redis.tls.key_file: DIR/nokey: no such file or directory",
			},
		},
		{
			"no certificates", `{driver: redis, redis: {url: "rediss://a", tls: {ca_file: words, cert_file: words, key_file: key.pem}}}`,
			[]string{
				"store.redis.tls.ca_file: DIR/words: holds no certificate in PEM",
				"store.redis.tls.cert_file: DIR/words with the key DIR/key.pem: failed to find any PEM data in certificate input",
			},
		},
		{
			"odd", `{driver: redis, redis: {url: "rediss://a", tls: {ca_file: large.pem, cert_file: ., key_file: key.pem}}}`,
			[]string{
				"store.redis.tls.ca_file: DIR/large.pem: the file is too large",
				"store.redis.tls.cert_file: DIR: not a regular file",
			},
		},
		{
			"cut off", `{driver: redis, redis: {url: "rediss://a", tls: {ca_file: cut.pem, cert_file: cut.pem, key_file: key.pem}}}`,
			[]string{
				"store.redis.tls.ca_file: DIR/cut.pem: is cut off in the midst of a certificate",
				"store.redis.tls.cert_file: DIR/cut.pem: is cut off in the midst of a certificate",
			},
		},
		{
			"another key", `{driver: redis, redis: {url: "rediss://a", tls: {cert_file: cert.pem, key_file: other-key.pem}}}`,
			[]string{"store.redis.tls.cert_file: DIR/cert.pem with the key DIR/other-key.pem: private key does not match public key"},
		},
		{
			"half a pair", `{driver: redis, redis: {url: "rediss://a", tls: {cert_file: nowhere}}}`,
			[]string{"store.redis.tls.cert_file: needs key_file, which holds the key to this certificate"},
		},
		{
			"postgres", `{driver: postgres, postgres: {url: "postgres://a@127.0.0.1/b?sslrootcert=DIR/words&sslcert=DIR/cert.pem&sslkey=DIR/other-key.pem"}}`,
			[]string{"store.postgres.url: DIR/words: holds no certificate in PEM"},
		},
		{
			"postgres, another key", `{driver: postgres, postgres: {url: "postgres://a@127.0.0.1/b?sslcert=DIR/cert.pem&sslkey=DIR/other-key.pem"}}`,
			[]string{"store.postgres.url: DIR/cert.pem with the key DIR/other-key.pem: private key does not match public key"},
		},
		{"postgres, no URL", `{driver: postgres, postgres: {url: here}}`, []string{"store.postgres.url: must be a postgres URL, as in " + postgresExample}},
		{"postgres, good", `{driver: postgres, postgres: {url: "postgres://a@127.0.0.1/b?sslrootcert=DIR/cert.pem&sslcert=DIR/cert.pem&sslkey=DIR/key.pem"}}`, nil},
		{"postgres, the system's", `{driver: postgres, postgres: {url: "postgres://a@127.0.0.1/b?sslrootcert=system"}}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, dir, err := loadStore(t, tt.store)
			var got []string
			if problems, ok := err.(Errors); ok {
				for _, p := range problems {
					if p.Line != 4 {
						t.Errorf("%s is said about line %d", p.Path, p.Line)
					}
					got = append(got, p.Path+": "+strings.ReplaceAll(p.Message, dir, "DIR"))
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("what a file holds is in the message:\n%v", err)
			}
		})
	}
}

func TestReadableTLSKeyIsNoted(t *testing.T) {
	cfg, _, err := loadStore(t, `{driver: redis, redis: {url: "rediss://a", tls: {cert_file: cert.pem, key_file: open.pem}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cfg.Warnings()[0], "store.redis.tls.key_file: every user of this machine can read the file: chmod o-r"; got != want {
		t.Errorf("the first warning is %q, want %q", got, want)
	}
}

func TestStoreWarnings(t *testing.T) {
	const (
		redisURL = "store.redis.url: the connection to another machine is not encrypted: rediss:// is"
		user     = "store.redis.url: there is no password_file or password_env: the part before @ is a user name, not a password"
		redis    = "store.redis: the connections to other machines are not encrypted: with tls: {enabled: true} they are"
		plain    = "store.postgres.url: the connection to another machine may go unencrypted: with sslmode=verify-full it does not, and the server is verified"
		unknown  = "store.postgres.url: whose server it is that answers on another machine is not verified: with sslmode=verify-full it is"
	)
	t.Setenv("TEST_PASSWORD", "hunter2-env")
	for store, want := range map[string]string{
		`{driver: redis, redis: {url: "redis://redis.internal"}}`:                                    redisURL,
		`{driver: redis, redis: {url: "redis://LOCALHOST"}}`:                                         "",
		`{driver: redis, redis: {url: "rediss://redis.internal"}}`:                                   "",
		`{driver: redis, redis: {url: "redis://s3cret@localhost/0"}}`:                                user,
		`{driver: redis, redis: {url: "redis://localhost/0", username: web}}`:                        "",
		`{driver: redis, redis: {url: "rediss://s3cret@redis.internal/0"}}`:                          user,
		`{driver: redis, redis: {url: "redis://web@localhost", password_file: words}}`:               "",
		`{driver: redis, redis: {url: "redis://web@localhost", password_env: TEST_PASSWORD}}`:        "",
		`{driver: redis, redis: {cluster: {addresses: ["127.0.0.1:1", "a:1"]}}}`:                     redis,
		`{driver: redis, redis: {sentinel: {addresses: ["127.0.0.1:1", "a:1"], master: m}}}`:         redis,
		`{driver: redis, redis: {sentinel: {addresses: ["127.0.0.1:1", "Localhost:1"], master: m}}}`: "",
		`{driver: redis, redis: {sentinel: {addresses: ["a:1"], master: m}, tls: {enabled: true}}}`:  "",
		`{driver: postgres, postgres: {url: "postgres://a@127.0.0.1,[::1]/b"}}`:                      "",
		`{driver: postgres, postgres: {url: "postgres://a@127.0.0.1,db-2/b?sslmode=disable"}}`:       plain,
		`{driver: postgres, postgres: {url: "postgres://a@127.0.0.1,db-2/b"}}`:                       "",
		`{driver: postgres, postgres: {url: "postgres://a@db-1/b?sslmode=prefer"}}`:                  plain,
		`{driver: postgres, postgres: {url: "postgres://a@db-1/b?sslmode=require"}}`:                 unknown,
		`{driver: postgres, postgres: {url: "postgres://a@db-1/b?sslmode=verify-ca"}}`:               unknown,
		`{driver: postgres, postgres: {url: "postgres://a@db-1/b?sslmode=verify-full"}}`:             "",
		`{driver: postgres, postgres: {url: "postgres://a@db-1/b?sslrootcert=system"}}`:              "",
	} {
		cfg, _, err := loadStore(t, store)
		if err != nil {
			t.Fatal(store, err)
		}
		got := ""
		for _, w := range cfg.Warnings() {
			if strings.HasPrefix(w, "store") {
				got += w
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", store, got, want)
		}
	}
}

func TestStorePasswords(t *testing.T) {
	t.Setenv("TEST_PASSWORD", "hunter2-env")
	cfg, _, err := loadStore(t, `{driver: redis, redis: {sentinel: {addresses: ["127.0.0.1:1"], master: m, password_file: words}, password_env: TEST_PASSWORD}}`)
	if err != nil {
		t.Fatal(err)
	}
	r := cfg.Store.Redis
	if r.URL != "" || r.Password.Reveal() != "hunter2-env" || r.Sentinel.Password.Reveal() != "hunter2" {
		t.Errorf("Redis = %q with %q and %q", r.URL, r.Password.Reveal(), r.Sentinel.Password.Reveal())
	}
	cfg, _, err = loadStore(t, `{driver: postgres, postgres: {url: "postgres://a@127.0.0.1/b", password_file: words}}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Store.Postgres.Password.Reveal(); got != "hunter2" {
		t.Errorf("the password is %q", got)
	}
}

// TestNode: a node that the file gives no name has that of its host.
func TestNode(t *testing.T) {
	cfg, dir, err := loadStore(t, "{driver: redis}")
	if err != nil {
		t.Fatal(err)
	}
	if name, err := os.Hostname(); err != nil || cfg.Node != name {
		t.Errorf("Node = %q, want %q (%v)", cfg.Node, name, err)
	}
	if got := mustParse(t, "testdata/smallest.good.yaml").Node; got != "" {
		t.Errorf("parsing asks the machine for its name: %q", got)
	}
	file := filepath.Join(dir, "coatcheck.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err = Load(write(t, dir, "named.yaml", "node: a\n"+string(text), 0o644))
	if err != nil || cfg.Node != "a" {
		t.Errorf("Load = %v, %v; want the node a", cfg, err)
	}
}

// TestNodeOfOddHost: a machine's name that can't be a node's is said, and not used.
func TestNodeOfOddHost(t *testing.T) {
	for name, failure := range map[string]error{"": os.ErrPermission, "two words": nil} {
		v, err := parse("coatcheck.yaml", []byte("public_url: https://app.example.com"))
		if err != nil {
			t.Fatal(err)
		}
		v.host(func() (string, error) { return name, failure })
		if !v.refused("node") || v.cfg.Node != "" {
			t.Errorf("%q, %v: Node = %q, problems %v", name, failure, v.cfg.Node, v.problems)
		}
	}
}
