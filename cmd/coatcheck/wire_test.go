package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/redis"
)

// None of these settings is the default.
const unusual = `
public_url: http://app.example.com:8080
insecure_http: true
trusted_proxies: [10.0.0.0/8]
session: {cookie: {name: ticket, domain: example.com}, idle_timeout: 7m, absolute_timeout: 7h}
providers:
  - {name: corp, issuer: http://127.0.0.1:9, client_id: web, client_secret_file: secret, scopes: [openid, roles], groups_claim: roles}
routes:
  - {path: /, require: anonymous, upstream: "http://127.0.0.1:9", websocket_origins: ["https://friend.example"]}
  - {path: /shop, methods: [POST], host: shop.example.com, upstream: "http://127.0.0.1:9"}
endpoints: {prefix: /auth}
limits: {header_bytes: 8192, uri_bytes: 1000, cookies: 20}
timeouts: {read_header: 3s, idle: 4s}
log: {access: false}
`

// TestNewNode: what the configuration says arrives at the part that acts on it.
func TestNewNode(t *testing.T) {
	n := wired(t, unusual)
	front, signIn, sessions, server := n.current.Load().front, n.current.Load().signIn, n.current.Load().sessions, n.server(nil)
	for name, values := range map[string][2]any{
		"trusted_proxies":            {fmt.Sprint(front.Trusted), "[10.0.0.0/8]"},
		"limits":                     {front.Limits, route.Limits{URI: 1000, Cookies: 20}},
		"limits.header_bytes":        {server.MaxHeaderBytes, 8192},
		"timeouts.read_header":       {server.ReadHeaderTimeout, 3 * time.Second},
		"timeouts.read_header, body": {front.BodyTimeout, 3 * time.Second},
		"timeouts.idle":              {server.IdleTimeout, 4 * time.Second},
		"log.access":                 {front.AccessLog, nil},
		"idle_timeout":               {sessions.Idle, 7 * time.Minute},
		"absolute_timeout":           {sessions.Absolute, 7 * time.Hour},
		"cookie.name":                {sessions.Jar.Session(), "ticket"},
		"client_id":                  {signIn.ClientID, "web"},
		"client_secret":              {signIn.ClientSecret.Reveal(), "a secret of the tests"},
		"scopes":                     {signIn.Scopes, []string{"openid", "roles"}},
		"groups_claim":               {signIn.GroupsClaim, "roles"},
		"insecure_unverified_email":  {signIn.UnverifiedEmail, false},
		"insecure_id_token_hint":     {signIn.IDTokenHint, false},
		"redirect_uri":               {signIn.RedirectURL, "http://app.example.com:8080/auth/callback"},
		"post_logout_redirect_uri":   {signIn.PostLogoutURL, "http://app.example.com:8080/auth/sign_out/done"},
	} {
		if diff := cmp.Diff(values[1], values[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	// Each of the two alone, so that they can't be mixed up.
	for _, setting := range []string{"insecure_unverified_email", "insecure_id_token_hint"} {
		n := wired(t, strings.Replace(unusual, "groups_claim", setting+": true, groups_claim", 1))
		if got := [2]bool{n.current.Load().signIn.UnverifiedEmail, n.current.Load().signIn.IDTokenHint}; got != [2]bool{setting == "insecure_unverified_email", setting == "insecure_id_token_hint"} {
			t.Errorf("%s: %v", setting, got)
		}
	}

	// The app is down, so 502 is as far as an allowed WebSocket gets.
	for origin, status := range map[string]int{"https://friend.example": 502, "https://enemy.example": 403} {
		r := httptest.NewRequest(http.MethodGet, "/socket", nil)
		r.Host = "app.example.com:8080"
		r.Header = http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Origin": {origin},
			"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("a WebSocket from %s: %d, want %d", origin, w.Code, status)
		}
	}

	// The app's host is the browser's, unless it is to be its own.
	var host string
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host = r.Host }))
	t.Cleanup(app.Close)
	for preserve, want := range map[string]string{"true": "app.example.com:8080", "false": strings.TrimPrefix(app.URL, "http://")} {
		n := wired(t, strings.Replace(unusual, `upstream: "http://127.0.0.1:9"`, "preserve_host: "+preserve+", upstream: "+app.URL, 1))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = "app.example.com:8080"
		if n.ServeHTTP(httptest.NewRecorder(), r); host != want {
			t.Errorf("preserve_host: %s: the app is asked for %q, want %q", preserve, host, want)
		}
	}

	// Other hosts are reached on the port of public_url.
	for host, want := range map[string]string{"app.example.com:8080": "/", "shop.example.com:8080": "shop.example.com:8080/shop"} {
		got, err := front.Routes.Match(route.Request{Method: http.MethodPost, Host: host, Path: "/shop"})
		if err != nil || got.Name != want {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
}

// TestSessionSettings: each setting of sessions, and of the near cache, arrives at the part
// that acts on it, and at no other. A setting that is new must be added here.
func TestSessionSettings(t *testing.T) {
	const second = time.Second
	want := map[string]map[string]any{
		"Session.Cookie.Name":        {"Jar": nil},
		"Session.Cookie.Domain":      {"Jar": nil},
		"Session.IdleTimeout":        {"Idle": second},
		"Session.AbsoluteTimeout":    {"Absolute": second},
		"Session.Limits.PerUser":     {"Limits.PerUser": 1},
		"Session.Limits.PerApp":      {"Limits.PerApp": 1},
		"Session.Limits.Total":       {"Limits.Total": 1},
		"Session.Limits.OnLimit":     {"Limits.OnLimit": store.OnLimit("other")},
		"Session.Tombstones":         {"Tombstones": second},
		"Session.OutageGrace":        {"OutageGrace": second},
		"Session.Escrow":             {"Escrow": true},
		"Cache.SizeBytes":            {"CacheSize": 1},
		"Cache.Lease":                {"CacheLease": second},
		"Providers[0].RotationGrace": {"RotationGrace": second},
		"Providers[0].Recheck":       {"Recheck": second},
		"Node":                       {"Node": "other"},
	}
	options := func(cfg *config.Config) map[string]any {
		m := newSessions(cfg, nil, session.Options{Ring: seal.NewRing(), Jar: newJar(cfg)})
		all := map[string]any{"Jar": *m.Jar}
		eachLeaf("", reflect.ValueOf(m.Options), func(name string, v reflect.Value) {
			switch v.Kind() {
			case reflect.Func, reflect.Pointer, reflect.Interface: // the parts
			default:
				all[name] = v.Interface()
			}
		})
		return all
	}
	empty := func() *config.Config { return &config.Config{Providers: make([]config.Provider, 1)} }
	before := options(empty())

	cfg := empty()
	settings := map[string]reflect.Value{}
	for name, v := range map[string]any{"Session": &cfg.Session, "Cache": &cfg.Cache, "Providers[0].RotationGrace": &cfg.Providers[0].RotationGrace, "Providers[0].Recheck": &cfg.Providers[0].Recheck, "Node": &cfg.Node} {
		eachLeaf(name, reflect.ValueOf(v).Elem(), func(name string, v reflect.Value) { settings[name] = v })
	}
	for name, v := range settings {
		switch v.Interface().(type) {
		case time.Duration:
			v.Set(reflect.ValueOf(second))
		case int:
			v.SetInt(1)
		case bool:
			v.SetBool(true)
		case string:
			v.SetString("other")
		default:
			t.Fatalf("%s is a %s", name, v.Type())
		}
		changed := map[string]any{}
		for option, is := range options(cfg) {
			if reflect.DeepEqual(is, before[option]) {
				continue
			}
			if changed[option] = is; option == "Jar" {
				changed[option] = nil
			}
		}
		if diff := cmp.Diff(want[name], changed); diff != "" {
			t.Errorf("%s sets (-want +got):\n%s", name, diff)
		}
		v.SetZero()
	}
	for name := range want {
		if _, ok := settings[name]; !ok {
			t.Errorf("there is no setting %s", name)
		}
	}
}

// eachLeaf calls visit with v, or with all fields below it, and their paths.
func eachLeaf(path string, v reflect.Value, visit func(path string, v reflect.Value)) {
	if v.Kind() != reflect.Struct {
		visit(path, v)
		return
	}
	for f := range v.Type().Fields() {
		eachLeaf(strings.TrimPrefix(path+"."+f.Name, "."), v.FieldByIndex(f.Index), visit)
	}
}

// TestOpenStoreRedis: however Redis is reached, the rights that docs/stores.md names are
// enough for a user who sees nothing outside the prefix, and nothing is missed.
func TestOpenStoreRedis(t *testing.T) {
	docs, err := os.ReadFile("../../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile(`(?m)^user coatcheck .* ~coatcheck:\* (.*)$`).FindSubmatch(docs)
	if rights == nil {
		t.Fatal("docs/stores.md does not say what a Redis user needs")
	}
	user := testenv.RedisOptions{Config: []string{"user app on >of-the-test ~app:* " + string(rights[1])}}
	for name, start := range map[string]func(t *testing.T) config.Redis{
		"one server": func(t *testing.T) config.Redis {
			return config.Redis{URL: testenv.StartRedis(t, user).URL()}
		},
		"Sentinel": func(t *testing.T) config.Redis {
			servers := testenv.StartSentinel(t, testenv.SentinelOptions{Redis: user, SentinelPassword: "of-sentinels"})
			return config.Redis{Sentinel: config.Sentinel{
				Addresses: servers.Addresses(), Master: testenv.SentinelMaster, Password: "of-sentinels",
			}}
		},
		"Cluster": func(t *testing.T) config.Redis {
			servers := testenv.StartRedisCluster(t, testenv.ClusterOptions{Redis: user})
			return config.Redis{Cluster: config.Cluster{Addresses: servers.Addresses()[:1]}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := start(t)
			cfg.Username, cfg.Password, cfg.KeyPrefix, cfg.Timeout = "app", "of-the-test", "app:", 5*time.Second
			var log bytes.Buffer
			s, err := openStore(t.Context(), config.Store{Driver: config.DriverRedis, Redis: cfg}, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			tryStore(t, s)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if log.Len() > 0 {
				t.Errorf("something is missed:\n%s", &log)
			}
		})
	}
}

// tryStore has a store do something of everything.
func tryStore(t *testing.T, s store.Backend) {
	t.Helper()
	ctx := t.Context()
	entry := store.Entry{ID: "id", Tenant: "tenant", User: "user", App: "app", SID: "sid", Record: "key"}
	for _, step := range []struct {
		op string
		do func() error
	}{
		{"ping", func() error { return s.Ping(ctx) }},
		{"create", func() error { return s.Create(ctx, "key", []byte("value"), time.Minute) }},
		{"admit", func() error {
			_, err := s.Admit(ctx, entry, time.Minute, store.Limits{PerUser: 1, PerApp: 1, Total: 1}, "")
			return err
		}},
		{"renew", func() error { return s.Renew(ctx, entry, time.Hour) }},
		{"touch", func() error { return s.Touch(ctx, "key", time.Hour) }},
		{"replace", func() error {
			r, err := s.Get(ctx, "key")
			return errors.Join(err, s.Replace(ctx, "key", r.Revision, []byte("other"), time.Minute))
		}},
		{"end", func() error { _, err := s.End(ctx, entry, "reason"); return err }},
		{"delete", func() error { return s.Delete(ctx, "key") }},
		{"append", func() error { return s.Append(ctx, []byte("event")) }},
		{"find", func() error {
			for _, err := range s.Find(ctx, store.Query{Tenant: "tenant"}) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"remove", func() error { return s.Remove(ctx, entry) }},
		{"reap", func() error { _, err := s.Reap(ctx, 1); return err }},
		{"lease", func() error {
			lease, err := s.Acquire(ctx, "lease", time.Minute)
			if err != nil {
				return err
			}
			return errors.Join(lease.Renew(ctx, time.Minute), lease.Release(ctx))
		}},
		{"watch", func() error {
			watching, stop := context.WithTimeout(ctx, time.Minute)
			defer stop()
			heard := false
			err := s.Watch(watching, 100*time.Millisecond, store.Feed{
				Changed: func(string) {}, Reset: func() {}, Current: func(time.Time) { heard = true; stop() },
			})
			if !heard {
				return err
			}
			return nil
		}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.op, err)
		}
	}
}

// TestRedisOptions: every setting arrives, whichever of the three ways leads to Redis.
func TestRedisOptions(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	common := redis.Options{Username: "u", Password: "p", PasswordFrom: "store.redis.password_file", KeyPrefix: "k:", Timeout: time.Minute, Logger: logger}
	cfg := config.Redis{Username: "u", Password: "p", KeyPrefix: "k:", Timeout: time.Minute}

	byURL, url := cfg, common
	byURL.URL, url.URL = "redis://127.0.0.1", "redis://127.0.0.1"

	bySentinel, sentinel := cfg, common
	bySentinel.Sentinel = config.Sentinel{Addresses: []string{"a:1"}, Master: "m", Database: 2, Username: "su", Password: "sp", PasswordEnv: "S"}
	sentinel.Sentinel = &redis.Sentinel{Addresses: []string{"a:1"}, Master: "m", Database: 2, Username: "su", Password: "sp", PasswordFrom: "store.redis.sentinel.password_env"}

	byCluster, cluster := cfg, common
	byCluster.Cluster = config.Cluster{Addresses: []string{"b:2"}}
	byCluster.TLS = config.TLS{Enabled: true, CAFile: "ca", CertFile: "cert", KeyFile: "key", ServerName: "s"}
	cluster.Cluster = &redis.Cluster{Addresses: []string{"b:2"}}
	cluster.TLS = &redis.TLS{CAFile: "ca", CertFile: "cert", KeyFile: "key", ServerName: "s"}

	for _, tt := range []struct {
		cfg  config.Redis
		want redis.Options
	}{{byURL, url}, {bySentinel, sentinel}, {byCluster, cluster}} {
		got := redisOptions(tt.cfg, logger)
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("redisOptions(%+v) = %+v, want %+v", tt.cfg, got, tt.want)
		}
	}
}

// TestLimits: every setting arrives, and what on_limit says is what a store understands.
func TestLimits(t *testing.T) {
	for said, want := range map[string]store.OnLimit{
		config.OnLimitDeny:        store.Deny,
		config.OnLimitEvictOldest: store.EvictOldest,
		config.OnLimitEvictIdle:   store.EvictIdle,
	} {
		got := newLimits(config.SessionLimits{PerUser: 3, PerApp: 2, Total: 4, OnLimit: said})
		if want := (store.Limits{PerUser: 3, PerApp: 2, Total: 4, OnLimit: want}); got != want {
			t.Errorf("newLimits with %s = %+v, want %+v", said, got, want)
		}
	}
}

// wired returns the node of a configuration.
func wired(t *testing.T, text string) *node {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"coatcheck.yaml": text, "secret": "a secret of the tests"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "coatcheck.yaml")
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(t.Context(), file, cfg, output{slog.New(slog.DiscardHandler), new(slog.LevelVar), io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.store.Close() })
	return n
}
