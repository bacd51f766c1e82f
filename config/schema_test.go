package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
)

// A key is a key of the file with its place in a configuration that holds nothing
// but defaults.
type key struct {
	path string // as in routes[].allow.groups
	value
}

type value = reflect.Value

// leaves returns the keys below v that hold a value. Lists of structs count with one
// entry of defaults.
func leaves(path string, v reflect.Value) []key {
	if v.CanAddr() {
		if d, ok := v.Addr().Interface().(defaulter); ok {
			d.defaults()
		}
	}
	var all []key
	for f := range fields(v.Type()) {
		inner, at := v.FieldByIndex(f.Index), join(path, f.name)
		switch t := structOf(f.Type); {
		case f.Type == reflect.TypeFor[coatcheck.Secret]():
			// Never in a file.
		case t == nil:
			all = append(all, key{at, inner})
		case f.Type.Kind() == reflect.Slice:
			all = append(all, leaves(at+"[]", reflect.New(t).Elem())...)
		default:
			all = append(all, leaves(at, inner)...)
		}
	}
	return all
}

func allKeys() []key { return leaves("", reflect.ValueOf(new(Config)).Elem()) }

var index = regexp.MustCompile(`\[\d+\]`)

// TestFullFixtures holds testdata/full*.good.yaml to every key of the structs, each
// with another value than its default.
func TestFullFixtures(t *testing.T) {
	changed := map[string]bool{}
	for _, file := range fixtures(t, ".good.yaml") {
		if !strings.HasPrefix(filepath.Base(file), "full") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		v, err := parse("coatcheck.yaml", data)
		if err != nil {
			t.Fatal(err)
		}
		defaults := map[string]reflect.Value{}
		for _, k := range allKeys() {
			defaults[k.path] = k.value
		}
		for path := range v.places {
			plain := index.ReplaceAllString(path, "[]")
			if d, ok := defaults[plain]; ok && !reflect.DeepEqual(d.Interface(), lookup(t, v.cfg, path).Interface()) {
				changed[plain] = true
			}
		}
	}
	for _, k := range allKeys() {
		if !changed[k.path] {
			t.Errorf("no full*.good.yaml sets %s to another value than its default", k.path)
		}
	}
}

// lookup returns the value at a path such as routes[1].allow.
func lookup(t *testing.T, cfg *Config, path string) reflect.Value {
	t.Helper()
	v := reflect.ValueOf(cfg).Elem()
	for _, step := range strings.Split(path, ".") {
		name, at, _ := strings.Cut(step, "[")
		v, _ = fieldNamed(v, name)
		if at != "" {
			var i int
			if _, err := fmt.Sscanf(at, "%d]", &i); err != nil {
				t.Fatal(path, err)
			}
			v = v.Index(i)
		}
	}
	return v
}

// TestDocs holds the tables of docs/configuration.md to the structs: every key has a
// row, every row has a key, and the default is the one that the code has.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.\\[\\]]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(data), -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = strings.Trim(m[2], "` ")
	}
	for _, k := range allKeys() {
		text, ok := rows[k.path]
		if !ok {
			t.Errorf("docs/configuration.md has no row for %s", k.path)
			continue
		}
		delete(rows, k.path)
		if want, ok := defaultText(k.value); ok && !sameDefault(k.value, text, want) {
			t.Errorf("docs/configuration.md says that %s is %q by default; it is %q", k.path, text, want)
		}
	}
	for path := range rows {
		t.Errorf("docs/configuration.md has a row for %s, which is no key", path)
	}
}

// defaultText writes a default as it would stand in a file. It reports false for a
// default that is empty, of which the docs say in words what it means.
func defaultText(v reflect.Value) (string, bool) {
	if state, ok := v.Interface().(coatcheck.State); ok {
		return state.String(), true
	}
	switch v.Kind() {
	case reflect.Slice:
		if v.Len() == 0 {
			return "", false
		}
		return "[" + strings.Join(v.Interface().([]string), ", ") + "]", true
	case reflect.Bool:
		return fmt.Sprint(v.Bool()), true
	default:
		if v.IsZero() && v.Type() != reflect.TypeFor[time.Duration]() && v.Type().PkgPath() != "log/slog" {
			return "", false
		}
		return strings.ToLower(fmt.Sprint(v.Interface())), true
	}
}

func sameDefault(v reflect.Value, doc, want string) bool {
	if d, ok := v.Interface().(time.Duration); ok {
		got, err := time.ParseDuration(doc)
		return err == nil && got == d
	}
	return strings.ToLower(doc) == want
}
