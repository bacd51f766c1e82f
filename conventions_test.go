package coatcheck_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/coatcheck/coatcheck"

// source is one Go file of the tree.
type source struct {
	file    string // relative to the module, with slashes
	dir     string // "." for the root package
	pkg     string
	test    bool
	comment bool // it carries the package comment
	imports []string
}

func tree(t *testing.T) []source {
	t.Helper()
	var out []source
	walk(t, func(name string) {
		if path.Ext(name) != ".go" {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(name), nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		s := source{
			file: name, dir: path.Dir(name), pkg: f.Name.Name,
			test: strings.HasSuffix(name, "_test.go"), comment: f.Doc != nil,
		}
		for _, i := range f.Imports {
			s.imports = append(s.imports, strings.Trim(i.Path.Value, `"`))
		}
		out = append(out, s)
	})
	if len(out) < 20 {
		t.Fatalf("found only %d Go files: the test looks in the wrong place", len(out))
	}
	return out
}

// walk calls visit for every file of the repository but what tools put there.
func walk(t *testing.T, visit func(name string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == ".git" || base == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		visit(filepath.ToSlash(name))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// layer is a folder's place in the one direction in which imports run.
func layer(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	switch first {
	case ".":
		return "vocabulary"
	case "store", "seal", "cookie":
		if strings.Count(dir, "/") > 0 {
			return "driver"
		}
		return "ground"
	case "route", "session", "oidc", "policy", "audit", "upstream", "cluster":
		return "stage"
	case "proxy", "admin":
		return "line"
	case "config", "metrics", "cmd", "internal", "bench", "e2e", "examples":
		return first
	default:
		return ""
	}
}

// allowed says which layers a layer may import, and why not the others.
var allowed = map[string]struct {
	layers []string
	reason string
}{
	"vocabulary": {nil, "every package may import the root package, so it may import none"},
	"ground":     {[]string{"vocabulary"}, "store, seal and cookie know nothing of requests, so that each can be read and tested alone"},
	"driver":     {[]string{"vocabulary", "ground", "internal"}, "a backend sees sealed bytes and keys, and nothing else of coatcheck"},
	"stage":      {[]string{"vocabulary", "ground"}, "stages never import each other: a stage that needs another declares the one-method interface it needs"},
	"config":     {[]string{"vocabulary"}, "the configuration is data; whoever acts on it imports it, not the other way round"},
	"metrics":    {[]string{"vocabulary", "ground"}, "metrics are counted for everybody, so they must not pull anybody in"},
	"line":       {[]string{"vocabulary", "ground", "stage", "metrics"}, "proxy and admin get their parts from cmd, wired: they import neither drivers nor the configuration"},
	"cmd":        {[]string{"vocabulary", "ground", "driver", "stage", "line", "config", "metrics", "internal"}, "cmd does all the wiring"},
	"internal":   {[]string{"vocabulary", "ground", "internal"}, "development and test programs stand beside the product, not on it"},
	"bench":      {[]string{"vocabulary", "internal", "bench"}, "the benchmark drives the binary from outside"},
	"e2e":        {[]string{"vocabulary", "internal", "cmd", "e2e"}, "the stories drive the binary from outside"},
	"examples":   {nil, "examples are configuration"},
}

func TestImports(t *testing.T) {
	for _, s := range tree(t) {
		from := layer(s.dir)
		if from == "" {
			t.Errorf("%s: the folder has no place in the layout: give it one in layer(), and in docs/architecture.md", s.file)
			continue
		}
		if s.test {
			continue // a test may use whatever it takes
		}
		rule := allowed[from]
		for _, i := range s.imports {
			dir, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			if dir = strings.TrimPrefix(dir, "/"); dir == "" {
				dir = "."
			}
			if dir == s.dir || slices.Contains(rule.layers, layer(dir)) {
				continue
			}
			t.Errorf("%s imports %s: %s", s.file, i, rule.reason)
		}
	}
}

func TestRootImportsStandardLibraryOnly(t *testing.T) {
	for _, s := range tree(t) {
		if s.dir != "." || s.test {
			continue
		}
		for _, i := range s.imports {
			if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") {
				t.Errorf("%s imports %s: the vocabulary must cost its importers nothing", s.file, i)
			}
		}
	}
}

func TestNothingShippedImportsTesting(t *testing.T) {
	for _, s := range tree(t) {
		forTests := s.dir == "store/storetest" || strings.HasPrefix(s.dir, "internal/testenv") || strings.HasPrefix(s.dir, "e2e")
		if s.test || forTests {
			continue
		}
		if slices.Contains(s.imports, "testing") {
			t.Errorf("%s imports testing, which registers flags in the shipped program", s.file)
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	init := regexp.MustCompile(`(?m)^func init\(\)`)
	for _, s := range tree(t) {
		text, err := os.ReadFile(filepath.FromSlash(s.file))
		if err != nil {
			t.Fatal(err)
		}
		if init.Match(text) {
			t.Errorf("%s has an init function: what a program does begins in main, drivers are chosen in cmd/coatcheck/wire.go", s.file)
		}
	}
}

func TestOnePackageComment(t *testing.T) {
	comments := map[string][]string{}
	for _, s := range tree(t) {
		if s.test {
			continue
		}
		if _, ok := comments[s.dir]; !ok {
			comments[s.dir] = nil
		}
		if s.comment {
			comments[s.dir] = append(comments[s.dir], s.file)
		}
	}
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments %v: it needs one, in one file", dir, len(files), files)
		}
	}
}

func TestNamesOfPackages(t *testing.T) {
	for _, s := range tree(t) {
		for _, word := range []string{"util", "utils", "helper", "helpers", "types", "common", "misc"} {
			if s.pkg == word || path.Base(s.file) == word+".go" {
				t.Errorf("%s: %q says nothing: name it for the noun inside", s.file, word)
			}
		}
	}
}

var markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinksInDocs checks that every relative link in the docs leads to something.
func TestLinksInDocs(t *testing.T) {
	checked := 0
	walk(t, func(name string) {
		if path.Ext(name) != ".md" {
			return
		}
		text, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: link %q: %v", name, m[1], err)
				continue
			}
			if u.IsAbs() || u.Path == "" {
				continue
			}
			checked++
			if _, err := os.Stat(filepath.FromSlash(path.Join(path.Dir(name), u.Path))); err != nil {
				t.Errorf("%s: the link %q leads nowhere", name, m[1])
			}
		}
	})
	if checked == 0 {
		t.Error("found no relative link in any document")
	}
}

// TestMetricsInDocs checks that operators find every metric explained.
func TestMetricsInDocs(t *testing.T) {
	code, err := os.ReadFile("metrics/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`"(coatcheck_[a-z_]+)"`).FindAllStringSubmatch(string(code), -1)
	if len(names) < 5 {
		t.Fatalf("found only %d metrics", len(names))
	}
	for _, m := range names {
		if !strings.Contains(string(doc), "`"+m[1]+"`") {
			t.Errorf("docs/operations.md does not explain %s", m[1])
		}
	}
}
