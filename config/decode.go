package config

import (
	"fmt"
	"iter"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/coatcheck/coatcheck"
)

// A decoder writes a YAML document over structs. It goes on after a problem, so that
// all of them come to light, and remembers where each key stood for the checks that
// come later.
type decoder struct {
	src      *source
	places   map[string]place // of the values, by path
	failed   map[string]bool  // paths whose value could not be taken
	problems []finding
}

func newDecoder(src *source) *decoder {
	return &decoder{src: src, places: map[string]place{}, failed: map[string]bool{}}
}

// document decodes the root of a file.
func (d *decoder) document(n ast.Node, cfg *Config) {
	d.places[""] = start(n)
	d.value("", n, reflect.ValueOf(cfg).Elem())
}

// defaulter is a struct that has defaults; they are set before the file's values.
type defaulter interface{ defaults() }

func (d *decoder) value(path string, n ast.Node, v reflect.Value) {
	d.places[path] = start(n)
	if v.CanAddr() {
		if x, ok := v.Addr().Interface().(defaulter); ok {
			x.defaults()
		}
	}
	if n.Type() == ast.NullType {
		d.fail(path, "has no value: remove the key, or give it one")
		return
	}
	if v.Type() == reflect.TypeFor[coatcheck.Secret]() {
		key := path[strings.LastIndexByte(path, '.')+1:]
		d.fail(path, "a secret must not stand in this file: name a file that holds it with %s_file, or an environment variable with %s_env", key, key)
		return
	}
	if parse := scalarOf(v.Type()); parse != nil {
		d.scalar(path, n, v, parse)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.String:
		text, ok := text(n)
		if !ok {
			d.fail(path, "must be text; what YAML takes for something else goes in quotes")
			return
		}
		v.SetString(text)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fail(path, "must be true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int:
		number, ok := whole(n)
		if !ok {
			d.fail(path, "must be a whole number in decimal digits")
			return
		}
		v.SetInt(number)
	default:
		panic("config: a field of type " + v.Type().String() + " can't be decoded")
	}
}

func (d *decoder) mapping(path string, n ast.Node, v reflect.Value) {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		if path == "" {
			d.fail(path, "the file must be a mapping, as in public_url: https://app.example.com")
		} else {
			d.fail(path, "must be a mapping; its keys are: %s", strings.Join(keys(v.Type()), ", "))
		}
		return
	}
	seen := map[string]place{}
	for _, pair := range m.Values {
		name := pair.Key.GetToken().Value
		at := start(pair.Key)
		inner := join(path, printable(name))
		if first, twice := seen[name]; twice {
			d.add(at, inner, "stands here a second time; the first is on line %d", first.line)
			continue
		}
		seen[name] = at
		field, ok := fieldNamed(v, name)
		if !ok {
			d.add(at, inner, "unknown key%s", suggestion(name, keys(v.Type())))
			continue
		}
		d.value(inner, pair.Value, field)
	}
}

func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(path, "must be a list, also if it has one entry: write it in [ ]")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	for i, item := range s.Values {
		d.value(element(path, i), item, v.Index(i))
	}
}

func (d *decoder) scalar(path string, n ast.Node, v reflect.Value, parse func(string) (any, error)) {
	text, ok := text(n)
	if !ok {
		// 30 and 1.5 are numbers to YAML; the type's own parser says what is missing.
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode:
			text = n.GetToken().Value
		default:
			d.fail(path, "must be a single value, not a list, a mapping or true or false")
			return
		}
	}
	value, err := parse(text)
	if err != nil {
		d.fail(path, "%v", err)
		return
	}
	if value != nil {
		v.Set(reflect.ValueOf(value))
	}
}

// fail records that the value at path could not be taken.
func (d *decoder) fail(path, format string, args ...any) {
	d.failed[path] = true
	d.add(d.places[path], path, format, args...)
}

func (d *decoder) add(at place, path, format string, args ...any) {
	d.problems = append(d.problems, finding{place: at, path: path, message: fmt.Sprintf(format, args...)})
}

// text returns the text of a string, however it is quoted.
func text(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	default:
		return "", false
	}
}

// whole returns a number written in decimal digits; YAML's other spellings, of which
// 010 means two different numbers in its two versions, are refused.
func whole(n ast.Node) (int64, bool) {
	if _, ok := n.(*ast.IntegerNode); !ok {
		return 0, false
	}
	written := n.GetToken().Value
	i, err := strconv.ParseInt(written, 10, 64)
	return i, err == nil && strconv.FormatInt(i, 10) == written
}

// A field is a struct's field under its name in the file.
type field struct {
	reflect.StructField
	name string
}

// fields yields those fields of a struct that stand in the file.
func fields(t reflect.Type) iter.Seq[field] {
	return func(yield func(field) bool) {
		for i := range t.NumField() {
			f := t.Field(i)
			if name := f.Tag.Get("yaml"); name != "" && !yield(field{f, name}) {
				return
			}
		}
	}
}

func keys(t reflect.Type) []string {
	var names []string
	for f := range fields(t) {
		names = append(names, f.name)
	}
	return names
}

func fieldNamed(v reflect.Value, name string) (reflect.Value, bool) {
	for f := range fields(v.Type()) {
		if f.name == name {
			return v.FieldByIndex(f.Index), true
		}
	}
	return reflect.Value{}, false
}

// structOf returns the struct that t is, or is a list of, or nil if it is none that
// holds keys of the file.
func structOf(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || scalarOf(t) != nil {
		return nil
	}
	return t
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// suggestion returns "; did you mean …?" if one of the keys is spelt nearly like name.
func suggestion(name string, keys []string) string {
	plain := strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name))
	best, least := "", 3
	for _, key := range keys {
		n := distance(plain, strings.ReplaceAll(key, "_", ""))
		// Two changes make any short word of another.
		if n < least && n*3 <= len(key) {
			best, least = key, n
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance returns how many letters must be inserted, deleted, changed or swapped
// with their neighbour to make b of a. It says 3 where lengths differ by more than 2,
// so that a key of any length costs little.
func distance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			n := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}
