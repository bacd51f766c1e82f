package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

// Each setting is told by the path that it has in the file, and nothing else.
func TestChanges(t *testing.T) {
	parse := func(text string) *Config {
		t.Helper()
		c, err := parsed("coatcheck.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const text = `
public_url: https://app.example.com
providers: [{name: corp, issuer: "https://idp.example.com", client_id: web}]
routes: [{path: /, upstream: "http://127.0.0.1:9"}]
`
	c := parse(text)
	if list := c.Changes(parse(text)); len(list) != 0 {
		t.Errorf("the same file: %v", list)
	}
	renamed, host := parse(text), parse(text)
	renamed.Node, renamed.namedByHost = "renamed", true
	if list := host.Changes(renamed); !slices.Equal(list, []string{"node"}) {
		t.Errorf("another name: %v", list)
	}
	host.namedByHost = true
	if list := host.Changes(renamed); len(list) != 0 {
		t.Errorf("another name of the host: %v", list)
	}
	next := parse(text + "session: {idle_timeout: 7m, cookie: {name: ticket}}\nstore: {max_concurrent: 5}\nallow: {groups: [a]}\n")
	next.Providers[0].ClientSecret = coatcheck.Secret("another")
	next.Store.Redis.Password, next.Store.Redis.PasswordFile = "another", "file"
	c.Store.Redis.PasswordFile = "file"
	next.Routes[0].Timeout = time.Second
	list := c.Changes(next)
	slices.Sort(list)
	want := []string{
		"allow.groups", "providers[0].client_secret_env", "routes[0].timeout", "session.cookie.name", "session.idle_timeout",
		"store.max_concurrent", "store.redis.password_file",
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	next.Routes = append(next.Routes, next.Routes...)
	if all := c.Changes(next); !slices.Contains(all, "routes") || slices.Contains(all, "routes[0].timeout") {
		t.Errorf("another route: %v", all)
	}
	if diff := cmp.Diff([]string{"session.cookie.name", "store.max_concurrent", "store.redis.password_file"}, Fixed(list)); diff != "" {
		t.Errorf("fixed (-want +got):\n%s", diff)
	}
}

// Every setting is told when it changes; and whoever adds one says whether it may change
// while a node runs.
func TestEverySettingChanges(t *testing.T) {
	free := map[string]bool{
		"trusted_proxies": true, "allow": true, "providers": true, "headers": true, "routes": true, "endpoints": true,
		"shutdown": true, "log": true,
		"session.idle_timeout": true, "session.absolute_timeout": true, "session.limits": true, "session.tombstones": true,
		"session.outage_grace": true, "session.escrow": true,
		"limits.uri_bytes": true, "limits.cookies": true, "limits.upstream_requests": true,
	}
	isFree := func(path string) bool {
		for p := path; ; {
			if free[p] {
				return true
			}
			i := strings.LastIndexByte(p, '.')
			if i < 0 {
				return false
			}
			p = p[:i]
		}
	}
	var leaves int
	var walk func(path string, v reflect.Value, root *Config)
	walk = func(path string, v reflect.Value, root *Config) {
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("yaml")
			if name == "" {
				continue
			}
			f := v.Field(i)
			if f.Kind() == reflect.Struct {
				walk(path+name+".", f, root)
				continue
			}
			leaves++
			before := reflect.New(f.Type()).Elem()
			before.Set(f)
			switch f.Kind() {
			case reflect.String:
				f.SetString(f.String() + "x")
			case reflect.Bool:
				f.SetBool(!f.Bool())
			case reflect.Int, reflect.Int64:
				f.SetInt(f.Int() + 1)
			case reflect.Slice:
				f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			default:
				t.Fatalf("%s%s is a %s", path, name, f.Kind())
			}
			setting := path + name
			if f.Type() == reflect.TypeFor[coatcheck.Secret]() {
				setting += "_env"
			}
			list := new(Config).Changes(root)
			if !slices.Equal(list, []string{setting}) {
				t.Errorf("%s changes, and told is %v", setting, list)
			}
			if fixed := len(Fixed(list)) > 0; fixed == isFree(setting) {
				t.Errorf("%s: may it change while a node runs? Fixed says %t", setting, !fixed)
			}
			f.Set(before)
		}
	}
	root := new(Config)
	walk("", reflect.ValueOf(root).Elem(), root)
	if leaves < 50 {
		t.Errorf("only %d settings were tried", leaves)
	}
}

// docs/configuration.md lists what needs a restart, and nothing else.
func TestDocsListFixed(t *testing.T) {
	data, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?m)^## Which settings need a restart\n(?:.+\n|\n)*?\n((?:[`a-z_., ]+\n)+)\n").FindSubmatch(data)
	if m == nil {
		t.Fatal("the docs have no such list")
	}
	var listed []string
	for name := range strings.SplitSeq(strings.Trim(string(m[1]), ".\n"), ",") {
		listed = append(listed, strings.Trim(name, "` \n"))
	}
	if diff := cmp.Diff(fixed, listed); diff != "" {
		t.Errorf("(-fixed +listed):\n%s", diff)
	}
}
