package route

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/coatcheck/coatcheck"
)

// A Pattern says which requests belong to a route.
type Pattern struct {
	// Host is a host as Request.Host has it. Empty: every host, after the routes
	// that name the request's.
	Host string
	// Path is decoded, as in Request.Path. It takes in itself and everything below
	// it: "/shop" and "/shop/" both match /shop, /shop/ and /shop/x, not /shopping.
	Path string
	// Exact makes Path match itself alone.
	Exact bool
	// Methods are the methods that belong to the route, as they stand in a request
	// line. Empty: all. For others the route is passed over.
	Methods []string
}

// An Entry is one route of a table.
type Entry[T any] struct {
	Pattern Pattern
	Value   T
}

// A Table finds the route of a request. It is immutable and safe for concurrent use.
type Table[T any] struct {
	entries []Entry[T]
	hosts   map[string]*site
	methods []string // all that patterns name, sorted
}

// site holds the routes of one host, as they are and with their case folded.
type site struct{ plain, folded index }

// index finds patterns by path. A prefix is kept without its last slash, "/" as "".
type index struct {
	exact, prefix map[string][]candidate
	longest       int // length of the longest prefix
}

type candidate struct {
	methods []string
	entry   int
}

// NewTable checks the patterns and returns their table. It is an error for a path not
// to be canonical, and for two patterns to take in the same request with nothing to
// choose between them.
func NewTable[T any](entries []Entry[T]) (*Table[T], error) {
	t := &Table[T]{entries: slices.Clone(entries), hosts: make(map[string]*site)}
	for i, e := range t.entries {
		p := e.Pattern
		if err := p.check(); err != nil {
			return nil, err
		}
		s := t.hosts[p.Host]
		if s == nil {
			s = &site{plain: newIndex(), folded: newIndex()}
			t.hosts[p.Host] = s
		}
		c := candidate{methods: p.Methods, entry: i}
		if other := s.plain.conflict(p.Path, p.Exact, c); other >= 0 {
			return nil, fmt.Errorf("route: patterns %v and %v take in the same requests", t.entries[other].Pattern, p)
		}
		s.plain.add(p.Path, p.Exact, c)
		s.folded.add(foldCase(p.Path), p.Exact, c)
		t.methods = append(t.methods, p.Methods...)
	}
	slices.Sort(t.methods)
	t.methods = slices.Compact(t.methods)
	return t, nil
}

func (p Pattern) check() error {
	if p.Path == "" || p.Path[0] != '/' || strings.ContainsAny(p.Path, `\%?#;`) || !utf8.ValidString(p.Path) ||
		strings.ContainsFunc(p.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) || checkSegments(p.Path) != nil {
		return fmt.Errorf("route: pattern path %q is not canonical", p.Path)
	}
	if p.Host != "" {
		if host, err := readHost(p.Host, ""); err != nil || host != p.Host {
			return fmt.Errorf("route: pattern host %q is not canonical", p.Host)
		}
	}
	for _, m := range p.Methods {
		if m == "" || !isToken(m) {
			return fmt.Errorf("route: pattern method %q is not a method", m)
		}
	}
	return nil
}

// Match returns the value of the route that r belongs to: the most specific by host,
// then exact before prefix, then the longest prefix. Of two routes for one path, the
// one that names r's method goes before the one for all methods.
//
// Errors are *coatcheck.Error. CodeNotFound: no route takes r in, or, with its case
// folded, the path belongs to a more specific route than it does as it stands. A
// server that ignores case would serve that one's content, so a path is never freed by
// writing it in capitals. CodeMalformed: another reading of the path, without its path
// parameters, say, or of the method, in capitals, belongs to another route.
func (t *Table[T]) Match(r Request) (*T, error) {
	entry, err := t.find(r.Host, r.Path, r.Method)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(r.Path, "%?#;") {
		for other := range readings(r.Path) {
			if e, err := t.find(r.Host, other, r.Method); err != nil || e != entry {
				return nil, coatcheck.E(coatcheck.CodeMalformed, "route.match", errReading)
			}
		}
	}
	// Methods are told apart by case (RFC 9110 §9.1), but not by every framework: what
	// some take for a POST must not pass by the route for POST.
	if upper := strings.ToUpper(r.Method); upper != r.Method {
		r.Method = upper
		if other, err := t.Match(r); err != nil || other != &t.entries[entry].Value {
			return nil, coatcheck.E(coatcheck.CodeMalformed, "route.match", errMethodCase)
		}
	}
	return &t.entries[entry].Value, nil
}

var (
	errReading    = errors.New("path belongs to another route when read otherwise")
	errMethodCase = errors.New("method belongs to another route when written in capitals")
)

func (t *Table[T]) find(host, path, method string) (int, error) {
	folded := foldCase(path)
	for _, s := range [...]*site{t.hosts[host], t.hosts[""]} {
		if s == nil {
			continue
		}
		// The folded index is asked for paths in small letters too: a route may be
		// written in capitals.
		entry, rank := s.plain.find(path, method)
		if _, other := s.folded.find(folded, method); other > rank {
			break
		}
		if entry >= 0 {
			return entry, nil
		}
	}
	return -1, coatcheck.E(coatcheck.CodeNotFound, "route.match", nil)
}

// Knows tells whether any route takes in requests for host.
func (t *Table[T]) Knows(host string) bool {
	return t.hosts[host] != nil || t.hosts[""] != nil
}

// Covers tells whether every path of host, with every method, belongs to some route.
func (t *Table[T]) Covers(host string) bool {
	for _, s := range [...]*site{t.hosts[host], t.hosts[""]} {
		if s != nil && pick(s.plain.prefix[""], "") >= 0 {
			return true
		}
	}
	return false
}

// Methods returns every method that a pattern names. Each other one leads to the same
// route as "". The slice must not be changed.
func (t *Table[T]) Methods() []string { return t.methods }

// All yields the value of every route that takes in requests for host, in the order
// the table was made of.
func (t *Table[T]) All(host string) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := range t.entries {
			e := &t.entries[i]
			if (e.Pattern.Host == "" || e.Pattern.Host == host) && !yield(&e.Value) {
				return
			}
		}
	}
}

func newIndex() index {
	return index{exact: make(map[string][]candidate), prefix: make(map[string][]candidate)}
}

func (x *index) slot(path string, exact bool) (map[string][]candidate, string) {
	if exact {
		return x.exact, path
	}
	return x.prefix, strings.TrimSuffix(path, "/")
}

// add keeps the candidates that name methods before the one that does not.
func (x *index) add(path string, exact bool, c candidate) {
	slots, key := x.slot(path, exact)
	if len(c.methods) > 0 {
		slots[key] = slices.Insert(slots[key], 0, c)
	} else {
		slots[key] = append(slots[key], c)
	}
	if !exact {
		x.longest = max(x.longest, len(key))
	}
}

// conflict returns the entry that competes with c for some method, or -1.
func (x *index) conflict(path string, exact bool, c candidate) int {
	slots, key := x.slot(path, exact)
	for _, other := range slots[key] {
		if len(c.methods) == 0 && len(other.methods) == 0 ||
			slices.ContainsFunc(c.methods, func(m string) bool { return slices.Contains(other.methods, m) }) {
			return other.entry
		}
	}
	return -1
}

// find returns the entry for path and how specific it is: the number of its segments,
// and more than any number if it is exact. Without one, both are -1.
func (x *index) find(path, method string) (entry, rank int) {
	if e := pick(x.exact[path], method); e >= 0 {
		return e, math.MaxInt
	}
	end := len(path)
	if end > x.longest {
		// Nothing longer can match; cut there, or at the segment boundary before.
		if end = x.longest; path[end] != '/' {
			end = strings.LastIndexByte(path[:end], '/')
		}
	}
	for ; end > 0; end = strings.LastIndexByte(path[:end], '/') {
		if e := pick(x.prefix[path[:end]], method); e >= 0 {
			return e, strings.Count(path[:end], "/")
		}
	}
	if e := pick(x.prefix[""], method); e >= 0 {
		return e, 0
	}
	return -1, -1
}

func pick(candidates []candidate, method string) int {
	for _, c := range candidates {
		if len(c.methods) == 0 || slices.Contains(c.methods, method) {
			return c.entry
		}
	}
	return -1
}

// foldCase maps paths to one that differ in case only. Upper case first: some letters
// share their capital with an ASCII letter (ſ and s), others their small one (K, the
// Kelvin sign, and k).
func foldCase(path string) string {
	for i := range len(path) {
		if path[i] >= 0x80 {
			return strings.ToLower(strings.ToUpper(path))
		}
	}
	return strings.ToLower(path)
}
