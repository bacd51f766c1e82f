package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

func write(t *testing.T, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	// Whatever the umask says.
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func mustParse(t *testing.T, file string) *Config {
	t.Helper()
	cfg, err := parseFixture(t, file)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestSmallest reads the smallest useful file and what it means.
func TestSmallest(t *testing.T) {
	text, err := os.ReadFile("testdata/smallest.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines != 5 {
		t.Errorf("the smallest file has %d lines, not 5", lines)
	}
	dir := t.TempDir()
	secret := write(t, dir, "client-secret", "hunter2\n", 0o600)
	cfg, err := Load(write(t, dir, "coatcheck.yaml", string(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.PublicURL.String(); got != "https://app.example.com" {
		t.Errorf("PublicURL = %s", got)
	}
	if cfg.Listen != "127.0.0.1:4180" || cfg.Admin.Listen != "" || cfg.Endpoints.Prefix != "/oauth2" {
		t.Errorf("listeners and endpoints: %q %q %q", cfg.Listen, cfg.Admin.Listen, cfg.Endpoints.Prefix)
	}
	if want := filepath.Join(dir, "coatcheck.db"); cfg.Store.SQLite.File != want || cfg.Store.Driver != DriverSQLite {
		t.Errorf("Store = %+v, want the file %s", cfg.Store, want)
	}
	if want := (Keys{File: filepath.Join(dir, "keys.json")}); cfg.Keys != want {
		t.Errorf("Keys = %+v, want %+v", cfg.Keys, want)
	}
	p := cfg.Providers[0]
	if p.ClientSecretFile != secret || p.ClientSecret.Reveal() != "hunter2" || p.GroupsClaim != "groups" {
		t.Errorf("provider: %q %q %q", p.ClientSecretFile, p.ClientSecret.Reveal(), p.GroupsClaim)
	}
	if diff := cmp.Diff([]string{"openid", "profile", "email"}, p.Scopes); diff != "" {
		t.Error(diff)
	}
	r := cfg.Routes[0]
	if r.Host != "app.example.com" || r.Upstream.String() != "http://127.0.0.1:8080" ||
		!r.PreserveHost || r.Require != coatcheck.Authenticated || r.Timeout != time.Minute {
		t.Errorf("route: %+v", r)
	}
	want := []string{
		"allow: everybody the provider knows may sign in: no allow rule",
	}
	if diff := cmp.Diff(want, cfg.Warnings()); diff != "" {
		t.Error(diff)
	}
}

func TestFullValues(t *testing.T) {
	cfg := mustParse(t, "testdata/full.good.yaml")
	got := map[string]any{
		"public":  cfg.PublicURL.String(),
		"proxies": cfg.TrustedProxies,
		"domain":  cfg.Session.Cookie.Domain,
		"domains": cfg.Allow.EmailDomains,
		"keys":    cfg.Keys.File,
		"redis":   cfg.Store.Redis.PasswordFile,
		"host":    cfg.Routes[0].Host,
		"origin":  cfg.Routes[0].WebSocketOrigins[1].String(),
		"require": cfg.Routes[1].Require,
		"up":      cfg.Routes[1].Upstream.String(),
		"no up":   cfg.Routes[2].Upstream == nil,
		"level":   cfg.Log.Level,
		"delay":   cfg.Shutdown.Delay,
	}
	want := map[string]any{
		"public":  "https://app.example.com:8443",
		"proxies": []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32")},
		"domain":  "example.com",
		"domains": []string{"corp.example"},
		"keys":    "/etc/coatcheck/keys.json",
		"redis":   "redis-password",
		"host":    "shop.example.com",
		"origin":  "http://localhost:3000",
		"require": coatcheck.Anonymous,
		"up":      "http://[::1]:8080",
		"no up":   true,
		"level":   slog.LevelWarn,
		"delay":   time.Duration(0),
	}
	comparePrefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Error(diff)
	}
}

func TestCanonicalOrigin(t *testing.T) {
	if got := mustParse(t, "testdata/methods.good.yaml").PublicURL.String(); got != "https://app.example.com" {
		t.Errorf("PublicURL = %s", got)
	}
	for text, want := range map[string]string{
		"http://LOCALHOST:80":     "http://localhost",
		"http://localhost:443":    "http://localhost:443",
		"https://[0:0::1]:443":    "https://[::1]",
		"https://[2001:DB8::]:80": "https://[2001:db8::]:80",
	} {
		u, err := parseOrigin(text)
		if err != nil || fmt.Sprint(u) != want {
			t.Errorf("parseOrigin(%q) = %v, %v; want %s", text, u, err, want)
		}
	}
}

func TestRedisUser(t *testing.T) {
	r := mustParse(t, "testdata/full-env.good.yaml").Store.Redis
	if r.Username != "web" || r.URL != "redis://127.0.0.1:6379" {
		t.Errorf("Redis = %q at %q, want the user apart from the URL", r.Username, r.URL)
	}
}

func TestPathsAreResolvedAgainstTheFile(t *testing.T) {
	data, err := os.ReadFile("testdata/smallest.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data) + "store: {sqlite: {file: data/c.db}}\n"
	cfg, err := parsed(filepath.Join("etc", "c.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{cfg.Store.SQLite.File, cfg.Keys.File, cfg.Providers[0].ClientSecretFile}
	want := []string{filepath.Join("etc", "data", "c.db"), filepath.Join("etc", "data", "keys.json"), filepath.Join("etc", "client-secret")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		file string
		want []string
	}{
		{"full.good.yaml", []string{
			"session.outage_grace: while a node can't reach the store, it goes on serving the sessions it knows for up to 5m, also those that are ended meanwhile",
			"session.escrow: whoever has both the store and the key ring can read refresh tokens, without anybody's cookie",
			"providers[0].insecure_unverified_email: e-mail addresses are believed as people typed them",
			"providers[0].insecure_id_token_hint: ID tokens stand in the URL of a sign-out, and so in histories and logs",
			"providers[0].insecure_issuer_http: anybody on the way to the provider can sign in as anybody",
			"routes[1] (app.example.com/health): open to everybody, signed in or not",
		}},
		{"full-single.good.yaml", []string{
			"insecure_http: sessions and sign-ins cross the network in plain text",
			"allow: everybody the provider knows may sign in: no allow rule",
		}},
		{"full-sentinel-env.good.yaml", []string{
			"session.limits.on_limit: it says who gives way at per_user and per_app, and neither of them is set",
			"providers[0]: a public client, without client secret: PKCE alone protects its sign-ins",
			"allow: everybody the provider knows may sign in: no allow rule",
		}},
		{"full-cluster.good.yaml", []string{
			"store.redis: the connections to other machines are not encrypted: with tls: {enabled: true} they are",
			"providers[0]: a public client, without client secret: PKCE alone protects its sign-ins",
			"allow: everybody the provider knows may sign in: no allow rule",
		}},
		{"full-env.good.yaml", []string{
			"providers[0]: a public client, without client secret: PKCE alone protects its sign-ins",
			"allow: everybody the provider knows may sign in: no allow rule",
		}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, mustParse(t, "testdata/"+tt.file).Warnings()); diff != "" {
				t.Error(diff)
			}
		})
	}
	data, err := os.ReadFile("testdata/full-env.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), "web@127.0.0.1", "redis.internal", 1) + "admin: {listen: \":4181\"}\n"
	cfg, err := parsed("coatcheck.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"admin.listen: metrics can be read from other machines: nobody is asked to sign in there",
		"store.redis.url: the connection to another machine is not encrypted: rediss:// is",
	}
	if diff := cmp.Diff(want, cfg.Warnings()[:2]); diff != "" {
		t.Error(diff)
	}
}

// TestSecrets reads secrets from every source, good and bad.
func TestSecrets(t *testing.T) {
	const head = `public_url: https://app.example.com
keys: {env: KEYS}
store: {driver: redis, redis: {%s}}
providers:
  - {name: corp, issuer: https://idp.example.com, client_id: web, %s}
routes: [{path: /}]
`
	for _, tt := range []struct {
		name             string
		redis, client    string
		password, secret string
		want             []string // what the error says, in order; nothing for no error
	}{
		{
			name:  "files",
			redis: "password_file: password", client: "client_secret_file: crlf",
			password: "hunter2-password", secret: "hunter2 crlf",
		},
		{
			name:  "environment",
			redis: "password_env: TEST_PASSWORD", client: "client_secret_env: TEST_SECRET",
			password: "hunter2-env", secret: "hunter2-env\xff",
		},
		{
			name:  "missing",
			redis: "password_file: nowhere", client: "client_secret_env: TEST_UNSET",
			want: []string{
				"coatcheck.yaml:3:47: store.redis.password_file: DIR/nowhere: no such file or directory",
				"coatcheck.yaml:5:86: providers[0].client_secret_env: the environment variable is not set",
			},
		},
		{
			name:  "empty",
			redis: "password_env: TEST_EMPTY", client: "client_secret_file: newline",
			want: []string{
				"coatcheck.yaml:3:46: store.redis.password_env: the environment variable is empty",
				"coatcheck.yaml:5:87: providers[0].client_secret_file: the file is empty",
			},
		},
		{
			name:  "odd",
			redis: "password_file: .", client: "client_secret_file: lines",
			want: []string{
				"coatcheck.yaml:3:47: store.redis.password_file: DIR: not a regular file",
				"coatcheck.yaml:5:87: providers[0].client_secret_file: the file holds more than one line, or a control character",
			},
		},
		{
			name:  "large",
			redis: "password_file: large", client: "client_secret_file: crlf, client_secret_env: TEST_SECRET",
			want: []string{
				"coatcheck.yaml:3:47: store.redis.password_file: DIR/large: the file is too large",
				"coatcheck.yaml:5:112: providers[0].client_secret_env: a file is named too: remove one",
			},
		},
		{
			// The source is wrong in itself: nothing is read, nothing said twice.
			name:  "no name",
			redis: "password_file: 5", client: "client_secret_env: A B",
			want: []string{
				"coatcheck.yaml:3:47: store.redis.password_file: must be text; what YAML takes for something else goes in quotes",
				"coatcheck.yaml:5:86: providers[0].client_secret_env: must be the name of an environment variable: letters, digits and underscores",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "password", "hunter2-password", 0o600)
			write(t, dir, "crlf", "hunter2 crlf\r\n", 0o600)
			write(t, dir, "newline", "\n", 0o600)
			write(t, dir, "lines", "hunter2\nhunter2\n", 0o600)
			write(t, dir, "large", strings.Repeat("hunter2", maxSecret), 0o600)
			t.Setenv("TEST_PASSWORD", "hunter2-env")
			t.Setenv("TEST_SECRET", "hunter2-env\xff")
			t.Setenv("TEST_EMPTY", "")
			cfg, err := Load(write(t, dir, "coatcheck.yaml", fmt.Sprintf(head, tt.redis, tt.client), 0o644))
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if got := cfg.Store.Redis.Password.Reveal(); got != tt.password {
					t.Errorf("password = %q, want %q", got, tt.password)
				}
				if got := cfg.Providers[0].ClientSecret.Reveal(); got != tt.secret {
					t.Errorf("client secret = %q, want %q", got, tt.secret)
				}
				return
			}
			if cfg != nil || err == nil {
				t.Fatalf("Load = %v, %v; want an error", cfg, err)
			}
			var got []string
			for _, p := range err.(Errors) {
				p.Excerpt = ""
				got = append(got, strings.ReplaceAll(strings.Replace(p.String(), dir+string(filepath.Separator), "", 1), dir, "DIR"))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is in the message:\n%v", err)
			}
		})
	}
}

func TestReadableSecretIsNoted(t *testing.T) {
	text, err := os.ReadFile("testdata/smallest.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "client-secret", "hunter2", 0o644)
	write(t, dir, "keys.json", "{}", 0o644)
	cfg, err := Load(write(t, dir, "coatcheck.yaml", string(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"keys.file: every user of this machine can read the file: chmod o-r",
		"providers[0].client_secret_file: every user of this machine can read the file: chmod o-r",
	}
	if diff := cmp.Diff(want, cfg.Warnings()[:len(want)]); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
}

func TestLoadSaysAllAtOnce(t *testing.T) {
	_, err := Load("testdata/unknown.bad.yaml")
	if problems, ok := err.(Errors); !ok || len(problems) < 5 || problems[0].File != "testdata/unknown.bad.yaml" {
		t.Errorf("Load = %v", err)
	}
	_, err = Load("testdata/syntax.bad.yaml")
	if problems, ok := err.(Errors); !ok || len(problems) != 1 || problems[0].Line != 4 {
		t.Errorf("Load = %v", err)
	}
}

// What is wrong with the key ring stands among the other problems, where it is named.
func TestKeyRingIsAProblemAmongOthers(t *testing.T) {
	const rest = "public_url: https://a.example.com\nproviders: [{name: corp, issuer: 'https://idp.example.com', client_id: web}]\nroutes: [{path: /}]\n"
	wrong := errors.New("it is empty")
	for name, test := range map[string]struct {
		keys string
		err  error
		want []string
	}{
		"a good ring":            {"keys: {file: keys.json}\n", nil, nil},
		"a file":                 {"keys: {file: keys.json}\n", wrong, []string{"keys.file: 4:14: it is empty"}},
		"a variable":             {"keys: {env: RING}\n", wrong, []string{"keys.env: 4:13: it is empty"}},
		"where none is named":    {"", wrong, []string{"keys.file: 1:1: it is empty"}},
		"beside another problem": {"keys: {file: keys.json}\ncolor: red\n", wrong, []string{"keys.file: 4:14: it is empty", "color: 5:1: "}},
		"both":                   {"keys: {file: keys.json, env: RING}\n", wrong, []string{"keys.env: 4:30: a file is named too"}},
		"none with Redis":        {"store: {driver: redis}\n", wrong, []string{"keys: 1:1: is required with redis"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadWithKeys(write(t, t.TempDir(), "coatcheck.yaml", rest+test.keys, 0o600), func(*Config) error { return test.err })
			problems, _ := err.(Errors)
			if len(problems) != len(test.want) {
				t.Fatalf("LoadWithKeys = %v, want %q", err, test.want)
			}
			for i, p := range problems {
				if got := fmt.Sprintf("%s: %d:%d: %s", p.Path, p.Line, p.Column, p.Message); !strings.HasPrefix(got, test.want[i]) {
					t.Errorf("%q, want %q", got, test.want[i])
				}
			}
		})
	}
}

func TestPublicClient(t *testing.T) {
	text := "public_url: https://a.example.com\nproviders: [{name: corp, issuer: 'https://idp.example.com', client_id: web}]\nroutes: [{path: /}]\n"
	cfg, err := Load(write(t, t.TempDir(), "coatcheck.yaml", text, 0o600))
	if err != nil || cfg.Providers[0].ClientSecret.Reveal() != "" {
		t.Errorf("Load = %v; want a provider without secret", err)
	}
}

func TestLevels(t *testing.T) {
	for text, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	} {
		if got, err := parseLevel(text); err != nil || got != want {
			t.Errorf("parseLevel(%q) = %v, %v", text, got, err)
		}
	}
}

func TestLoadFailures(t *testing.T) {
	dir := t.TempDir()
	large := write(t, dir, "large.yaml", strings.Repeat("#\n", maxFile), 0o644)
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "no such file or directory",
		dir:                             "not a regular file",
		large:                           "the file is too large",
	} {
		_, err := Load(path)
		if problems, ok := err.(Errors); !ok || len(problems) != 1 || err.Error() != path+": "+want {
			t.Errorf("Load(%s) = %v, want %q", path, err, want)
		}
	}
	if _, err := parsed("c.yaml", make([]byte, 10<<20)); err == nil || err.Error() != "c.yaml: the file is larger than 256 KiB" {
		t.Errorf("parsed of 10 MiB = %v", err)
	}
}

// TestRoutesWithoutRule: where some routes have a rule, those without one are named.
func TestRoutesWithoutRule(t *testing.T) {
	cfg, err := parsed("coatcheck.yaml", []byte(`
public_url: https://app.example.com
providers:
  - {name: corp, issuer: https://idp.example.com, client_id: web, client_secret_env: SECRET}
routes:
  - {path: /, upstream: http://127.0.0.1:8080}
  - {path: /admin, upstream: http://127.0.0.1:8080, allow: {groups: [admins]}}
  - {path: /reports, upstream: http://127.0.0.1:8080}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"allow: everybody the provider knows may sign in, and pass at routes[0] (app.example.com/), routes[2] (app.example.com/reports): no allow rule",
	}
	if diff := cmp.Diff(want, cfg.Warnings()); diff != "" {
		t.Error(diff)
	}
}

// TestTotalBelowOneUser: a total that one user can use up is worth a word.
func TestTotalBelowOneUser(t *testing.T) {
	const want = "session.limits.total: it is reached before per_user or per_app is: one user can take all places"
	for limits, warned := range map[string]bool{
		"{total: 2, per_user: 3}":             true,
		"{total: 2, per_app: 3}":              true,
		"{total: 3, per_user: 3, per_app: 2}": false,
		"{total: 2}":                          false,
		"{per_user: 3}":                       false,
	} {
		cfg, err := parsed("coatcheck.yaml", []byte(`
public_url: https://app.example.com
session: {limits: `+limits+`}
providers:
  - {name: corp, issuer: https://idp.example.com, client_id: web, client_secret_env: SECRET}
routes:
  - {path: /, upstream: http://127.0.0.1:8080}
`))
		if err != nil {
			t.Fatal(limits, err)
		}
		if got := slices.Contains(cfg.Warnings(), want); got != warned {
			t.Errorf("%s: warned %v, want %v", limits, got, warned)
		}
	}
}
