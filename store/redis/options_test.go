package redis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

const password = "of-the-test"

func TestPlaces(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{
		Password: password,
		Socket:   true,
		Config:   []string{"user app on >app-" + password + " ~app:* +@read +@write +@scripting +@connection"},
	})
	app := strings.Replace(server.URL(), "redis://", "redis://app@", 1)
	refused := func(user, from string) string {
		return server.Addr() + " does not accept user " + user + " with the password from " + from + ": WRONGPASS invalid username-password pair"
	}
	for _, tc := range []struct {
		name  string
		opts  Options
		place string // Options of one place see the same records
		fails string // what Ping says
	}{
		{"default user", Options{URL: server.URL(), Password: password}, "db 0", ""},
		{"default user by name", Options{URL: server.URL(), Username: "default", Password: password}, "db 0", ""},
		{"unix socket", Options{URL: server.SocketURL(), Password: password}, "db 0", ""},
		{"another database", Options{URL: strings.TrimSuffix(server.URL(), "0") + "3", Password: password}, "db 3", ""},
		{"its unix socket", Options{URL: server.SocketURL() + "?db=3", Password: password}, "db 3", ""},
		{"a prefix, and a user who may see no other", Options{URL: app, Password: "app-" + password, KeyPrefix: "app:"}, "app", ""},
		{"that user by option", Options{URL: server.URL(), Username: "app", Password: "app-" + password, KeyPrefix: "app:"}, "app", ""},
		{"that user elsewhere", Options{URL: app, Password: "app-" + password, KeyPrefix: "other:"}, "", "NOPERM"},
		{"no password", Options{URL: server.URL()}, "", "select the RESP protocol version at the same time: set store.redis.username and password_file"},
		{"wrong password", Options{URL: server.URL(), Password: "wrong-" + password, PasswordFrom: "a file"}, "", refused("default", "a file")},
		{"wrong password of a user of the url", Options{URL: app, Password: "wrong-" + password}, "", refused("app", "its options")},
		{"user of the url, overridden", Options{URL: app, Username: "nobody", Password: "app-" + password}, "", refused("nobody", "its options")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log logged
			tc.opts.Logger = log.logger()
			s := open(t, tc.opts)
			err := s.Ping(t.Context())
			if tc.fails != "" {
				if tc.fails != "NOPERM" && strings.Count(log.String(), tc.fails) != 1 {
					t.Errorf("log: %s; want %s once", log.String(), tc.fails)
				}
				if err == nil || !strings.Contains(err.Error(), tc.fails) || strings.Contains(err.Error(), password) {
					t.Errorf("Ping: %v, want %s", err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// The first in a place leaves a record there, which the others find.
			if err := s.Create(t.Context(), "k", []byte(tc.place), time.Hour); err != nil && !errors.Is(err, store.ErrExists) {
				t.Fatal(err)
			}
			if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != tc.place {
				t.Errorf("Get: %q, %v; want %q", r.Value, err, tc.place)
			}
		})
	}
}

// Sentinels that refuse a password take turns in saying so. The log is told once.
func TestCause(t *testing.T) {
	one, other := &refusedError{"a:1", "does not accept it"}, fmt.Errorf("wrapped: %w", &refusedError{"b:2", "does not accept it"})
	if cause(one) != cause(other) || cause(one) == cause(errors.New("another")) {
		t.Errorf("%q, %q", cause(one), cause(other))
	}
}

func TestURLs(t *testing.T) {
	for _, tc := range []struct{ url, want string }{
		{"redis://redis.example", "[redis.example:6379] 0 plain"},
		{"redis://redis.example:7000/", "[redis.example:7000] 0 plain"},
		{"redis://app@[::1]:7000/2", "[[::1]:7000] 2 plain app"},
		{"rediss://redis.example/1", "[redis.example:6379] 1 tls"},
		{"unix:///run/redis.sock", "[/run/redis.sock] 0 plain"},
		{"unix://app@/run/redis.sock?db=4", "[/run/redis.sock] 4 plain app"},

		{"", "error: exactly one of url, sentinel and cluster says where Redis is"},
		{"localhost:6379", "error: the url's scheme is none of redis, rediss, unix"},
		{"http://localhost", "error: the url's scheme is none of redis, rediss, unix"},
		{"redis://", "error: the url names no host"},
		{"redis://:of-the-test@localhost", "error: the url contains a password; it has an option of its own"},
		{"redis://app:@localhost", "error: the url contains a password; it has an option of its own"},
		{"redis://of-the-test:x", "error: the url can't be parsed"},
		{"redis://localhost/of-the-test", "error: the url's database is not a number"},
		{"redis://localhost/-1", "error: the url's database is not a number"},
		{"redis://localhost/1/2", "error: the url's database is not a number"},
		{"rediss://localhost?skip_verify=1", "error: the url has a query or a fragment that means nothing here"},
		{"redis://localhost/1?db=2", "error: the url has a query or a fragment that means nothing here"},
		{"redis://localhost/1#of-the-test", "error: the url has a query or a fragment that means nothing here"},
		{"unix://run/redis.sock", "error: the url of a unix socket has three slashes: unix:///path/to/redis.sock"},
		{"unix://", "error: the url of a unix socket has three slashes: unix:///path/to/redis.sock"},
	} {
		c, err := Options{URL: tc.url}.client()
		got := fmt.Sprint("error: ", err)
		if err == nil {
			got = fmt.Sprint(c.InitAddress, c.SelectDB)
			if c.TLSConfig == nil {
				got += " plain"
			} else {
				got += " tls"
			}
			got = strings.TrimSpace(got + " " + c.Username)
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.url, got, tc.want)
		}
		if err == nil {
			continue
		}
		if _, err := Open(t.Context(), Options{URL: tc.url}); err == nil || !strings.HasPrefix(err.Error(), "store/redis: open: ") {
			t.Errorf("Open of %s: %v", tc.url, err)
		}
	}
}

func TestWrongOptions(t *testing.T) {
	const at = "127.0.0.1:1"
	missing := filepath.Join(t.TempDir(), "missing.pem")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	certs := testenv.NewCertificates(t)
	sentinel := &Sentinel{Addresses: []string{at}, Master: "main"}
	cluster := &Cluster{Addresses: []string{at}}
	for want, opts := range map[string]Options{
		"exactly one of url, sentinel and cluster ":  {Sentinel: sentinel, Cluster: cluster},
		"exactly one of url, sentinel and cluster":   {URL: "redis://" + at, Sentinel: sentinel},
		"exactly one of url, sentinel and cluster  ": {URL: "redis://" + at, Cluster: cluster},
		"brace":                         {Cluster: cluster, KeyPrefix: "{tag}"},
		"which master":                  {Sentinel: &Sentinel{Addresses: []string{at}}},
		"no addresses":                  {Sentinel: &Sentinel{Master: "main"}},
		"no addresses ":                 {Cluster: &Cluster{}},
		"host:port":                     {Cluster: &Cluster{Addresses: []string{"127.0.0.1"}}},
		"database":                      {Sentinel: &Sentinel{Addresses: []string{at}, Master: "main", Database: -1}},
		"scheme is not rediss":          {URL: "redis://" + at, TLS: &TLS{}},
		"authorities: open ":            {Cluster: cluster, TLS: &TLS{CAFile: missing}},
		"holds no certificate":          {Cluster: cluster, TLS: &TLS{CAFile: empty}},
		"only one is given":             {Cluster: cluster, TLS: &TLS{CertFile: certs.CertFile}},
		"only one is given ":            {Cluster: cluster, TLS: &TLS{KeyFile: certs.KeyFile}},
		"certificate: open ":            {Cluster: cluster, TLS: &TLS{CertFile: missing, KeyFile: certs.KeyFile}},
		"certificate: tls: failed to f": {Cluster: cluster, TLS: &TLS{CertFile: empty, KeyFile: certs.KeyFile}},
	} {
		s, err := Open(t.Context(), opts)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), "store/redis: open: ") || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("Open: %v, want %s", err, want)
		}
	}
}

// A user needs the rights that the documentation names, and no others.
func TestRestrictedUser(t *testing.T) {
	t.Parallel()
	const rights = "user limited on >" + password + " ~app:* -@all +@read +@write +@scripting +@connection +time"
	try := func(t *testing.T, opts Options) {
		t.Helper()
		var log logged
		opts.Username, opts.Password, opts.KeyPrefix, opts.Logger = "limited", password, "app:", log.logger()
		s, ctx := open(t, opts), t.Context()
		if err := s.Create(ctx, "k", nil, time.Hour); err != nil {
			t.Fatalf("Create: %v; log: %s", err, log.String())
		}
		listen(t, s, testBeat).waitCurrent()
		if err := useAll(ctx, s, "a"); err != nil {
			t.Error(err)
		}
		for _, err := range s.Keys(ctx, "") {
			if err != nil {
				t.Error(err)
			}
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "CONFIG GET") {
			t.Errorf("log: %s; want one of CONFIG GET", log.String())
		}
	}
	t.Run("standalone", func(t *testing.T) {
		server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{rights}})
		try(t, Options{URL: server.URL()})
	})
	t.Run("Sentinel", func(t *testing.T) {
		env := testenv.StartSentinel(t, testenv.SentinelOptions{Redis: testenv.RedisOptions{Config: []string{rights + " +role"}}})
		try(t, Options{Sentinel: &Sentinel{Addresses: env.Addresses(), Master: testenv.SentinelMaster}})
	})
	t.Run("Cluster", func(t *testing.T) {
		env := testenv.StartRedisCluster(t, testenv.ClusterOptions{Redis: testenv.RedisOptions{Config: []string{rights + " +cluster|nodes +cluster|info +cluster|slots +cluster|shards"}}})
		try(t, Options{Cluster: &Cluster{Addresses: env.Addresses()}})
	})
}
