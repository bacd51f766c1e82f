package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMarshalParse(t *testing.T) {
	ring := ringOf(NewRing(), NewRing(), NewRing())
	got, err := ParseRing(ring.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.keys.Load().keys, ring.keys.Load().keys) {
		t.Error("a ring changed on its way through JSON")
	}
	if got.Index("p", "a") != ring.Index("p", "a") {
		t.Error("the index key changed on its way through JSON")
	}
	if !slices.Equal(got.KeyIDs(), ring.KeyIDs()) || got.KeyIDs()[0] != ring.Current() {
		t.Error("the keys changed their order")
	}
}

func TestNewRingsDiffer(t *testing.T) {
	if a, b := NewRing(), NewRing(); a.Current() == b.Current() {
		t.Error("two new rings have one key")
	}
}

// A-T5: what stands in the parts moves nothing from one part to another, and nobody
// without the key can make a hash.
func TestIndex(t *testing.T) {
	ring := NewRing()
	seen := map[[32]byte]string{}
	for _, parts := range [][]string{
		{"user"},
		{"user", ""},
		{"user", "", ""},
		{"user", "a:b", "c"},
		{"user", "a", "b:c"},
		{"user", "ab", "c"},
		{"user", "a", "bc"},
		{"sid", "a", "bc"},
		{"user", "a\x00b", "c"},
		{"user", "a", "\x00b", "c"},
	} {
		sum := ring.Index(parts[0], parts[1:]...)
		if sum != ring.Index(parts[0], parts[1:]...) {
			t.Errorf("%q has two hashes", parts)
		}
		if other, taken := seen[sum]; taken {
			t.Errorf("%q and %q have one hash", parts, other)
		}
		seen[sum] = fmt.Sprintf("%q", parts)
	}
	if ring.Index("user", "a") == NewRing().Index("user", "a") {
		t.Error("two rings make one hash")
	}
	rotated := ring.with(NewRing().keys.Load())
	if rotated.Index("user", "a") != ring.Index("user", "a") {
		t.Error("the index key rotates with the ring")
	}
}

// Neither a bad file nor a good ring shows a key, invariant 13.
func TestParseRingRefuses(t *testing.T) {
	key := bytes.Repeat([]byte{0xfe, 0xed, 0x0c}, 11)[:keySize]
	text := base64.RawURLEncoding.EncodeToString(key)
	padded := base64.URLEncoding.EncodeToString(key)
	entry := func(key string) string { return fmt.Sprintf(`{"key": %q, "created": "2026-01-01T00:00:00Z"}`, key) }
	file := func(entries ...string) string {
		return `{"version": 1, "keys": [` + strings.Join(entries, ", ") + `], "index_key": "` + strings.Repeat("I", 42) + `A"}`
	}
	indexed := func(index string) string {
		return strings.Replace(file(entry(text)), strings.Repeat("I", 42)+"A", index, 1)
	}
	if _, err := ParseRing([]byte(file(entry(text)))); err != nil {
		t.Fatalf("a good ring is refused: %v", err)
	}
	many := make([]string, maxKeys+1)
	for i := range many {
		k := bytes.Clone(key)
		k[0] = byte(i)
		many[i] = entry(base64.RawURLEncoding.EncodeToString(k))
	}
	if _, err := ParseRing([]byte(file(many[:maxKeys]...))); err != nil {
		t.Fatalf("a ring of %d keys is refused: %v", maxKeys, err)
	}
	for name, data := range map[string]string{
		"nothing":                   ``,
		"white space":               " \n",
		"not JSON":                  text,
		"a key as JSON":             `"` + text + `"`,
		"a list":                    `[` + entry(text) + `]`,
		"cut off":                   file(entry(text))[:60],
		"null":                      `null`,
		"text behind it":            file(entry(text)) + text,
		"a second ring behind it":   file(entry(text)) + file(entry(text)),
		"no version":                `{"keys": [` + entry(text) + `]}`,
		"another version":           strings.Replace(file(entry(text)), "1", "2", 1),
		"version as text":           strings.Replace(file(entry(text)), "1", `"`+text+`"`, 1),
		"an unknown field":          strings.Replace(file(entry(text)), `"keys"`, `"current": "`+text+`", "keys"`, 1),
		"an unknown field of a key": strings.Replace(file(entry(text)), `"created"`, `"`+text+`"`, 1),
		"a field named by a key":    `{"` + text + `": 1}`,
		"a date that is none":       strings.Replace(file(entry(text)), "2026-01-01T00:00:00Z", text, 1),
		"no keys":                   file(),
		"no index key":              `{"version": 1, "keys": [` + entry(text) + `]}`,
		"an empty index key":        indexed(""),
		"a short index key":         indexed(text[:42]),
		"an index key of zeros":     indexed(strings.Repeat("A", 43)),
		"an index key in hex":       indexed(hex.EncodeToString(key)),
		"keys that are text":        `{"version": 1, "keys": "` + text + `"}`,
		"keys that are null":        `{"version": 1, "keys": null}`,
		"too many keys":             file(many...),
		"an empty key":              file(entry("")),
		"a key as a number":         strings.Replace(file(entry("1")), `"1"`, `1`, 1),
		"a short key":               file(entry(text[:42])),
		"a long key":                file(entry(text + "AA")),
		"a padded key":              file(entry(padded)),
		"a key in hex":              file(entry(hex.EncodeToString(key))),
		"a key with stray bits":     file(entry(text[:42] + string(text[42]+1))),
		"a key with a line break":   file(entry(text[:20] + "\n" + text[20:])),
		"the other alphabet":        file(entry(base64.RawStdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, keySize)))),
		"a key of zeros":            file(entry(strings.Repeat("A", 43))),
		"a key twice":               file(entry(text), entry(text)),
		"a bad key behind a good":   file(entry(text), entry(text[:20])),
	} {
		t.Run(name, func(t *testing.T) {
			ring, err := ParseRing([]byte(data))
			if ring != nil || err == nil {
				t.Fatalf("ParseRing = %v, %v; want an error", ring, err)
			}
			for n := 8; n <= len(text); n += 8 {
				if part := text[n-8 : n]; strings.Contains(err.Error(), part) {
					t.Errorf("the error shows a part of the key: %v", err)
				}
			}
			if !strings.HasPrefix(err.Error(), "seal: key ring: ") {
				t.Errorf("the error does not say what it is about: %v", err)
			}
		})
	}
}

// Whoever has a damaged file is told what is wrong with it.
func TestParseRingTellsTheCause(t *testing.T) {
	whole := string(NewRing().Marshal())
	for name, test := range map[string]struct{ data, want string }{
		"nothing":                 {"", "it is empty"},
		"white space":             {" \n", "it is empty"},
		"copied in part":          {whole[:100], "it ends too early, after 100 bytes: was it copied only in part?"},
		"without its last byte":   {strings.TrimSuffix(whole, "}\n"), "was it copied only in part?"},
		"YAML":                    {"version: 1\nkeys:\n- key: x\n", "it is not JSON, from line 1, column 1 on: want {"},
		"a comma too many":        {"{\n  \"version\": 1,\n  }", "it is not JSON, from line 3, column 3 on: want {"},
		"keys as text":            {`{"version": 1, "keys": "x"}`, "it has a wrong type at keys: want {"},
		"a time as a number":      {`{"keys": [{"created": 1}]}`, "it has a time that is none: "},
		"a key as a number":       {`{"version": 1, "keys": [{"key": 1}]}`, "it has a wrong type at keys.key: want {"},
		"a list":                  {`[]`, "it is another kind of JSON: want {"},
		"index_key misspelled":    {strings.Replace(whole, "index_key", "indexkey", 1), "is its name misspelled?"},
		"no index_key":            {regexp.MustCompile(`,\s*"index_key": "[^"]*"`).ReplaceAllString(whole, ""), "it has no index_key: "},
		"another field beside it": {strings.Replace(whole, `"version"`, `"color": "red", "version"`, 1), "it has a field that no key ring has: want {"},
		"a time that is none":     {regexp.MustCompile(`"created": "[^"]*"`).ReplaceAllString(whole, `"created": "now"`), "it has a time that is none: "},
	} {
		if _, err := ParseRing([]byte(test.data)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// Invariant 13.
func TestRingIsNotPrinted(t *testing.T) {
	ring := NewRing()
	raw := ring.current().secret[:]
	holder := struct{ Ring *Ring }{ring}
	forms := []string{
		string(raw), hex.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
		strings.Trim(fmt.Sprint(raw), "[]"), strings.TrimPrefix(fmt.Sprintf("%#v", raw), "[]byte"),
	}
	for _, v := range []any{ring, holder, &holder} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			got := fmt.Sprintf(verb, v)
			for _, form := range forms {
				if strings.Contains(got, form) {
					t.Errorf("%s of %T shows the key: %s", verb, v, got)
				}
			}
			if !strings.Contains(got, ring.KeyIDs()[0]) {
				t.Errorf("%s of %T does not name the key: %s", verb, v, got)
			}
		}
	}
	data, err := json.Marshal(holder)
	if err != nil || string(data) != `{"Ring":{}}` {
		t.Errorf("JSON of a ring: %s, %v", data, err)
	}
}

func TestReadRing(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.json")
	if _, err := ReadRing(missing); !errors.Is(err, ErrNoFile) || !strings.Contains(err.Error(), missing) {
		t.Errorf("no file: %v, want ErrNoFile and the file's name", err)
	}
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRing(bad); err == nil || errors.Is(err, ErrNoFile) || !strings.Contains(err.Error(), bad) {
		t.Errorf("a bad file: %v, want an error with the file's name", err)
	}
	if _, err := ReadRing(dir); err == nil || errors.Is(err, ErrNoFile) {
		t.Errorf("a folder: %v, want an error that is not ErrNoFile", err)
	}
}

func TestWriteNew(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "keys.json")
	first, second := NewRing(), NewRing()
	if err := first.WriteNew(file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the file has mode %v, want 0600", info.Mode())
	}
	if err := second.WriteNew(file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second write: %v, want %v", err, fs.ErrExist)
	}
	got, err := ReadRing(file)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.KeyIDs(), first.KeyIDs()) {
		t.Error("the second write changed the file")
	}
	if err := first.WriteNew(filepath.Join(dir, "missing", "keys.json")); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), ".keys-") {
		t.Errorf("a folder that does not exist: %v", err)
	}
	wantFiles(t, dir, "keys.json")
}

// Nodes that start at the same moment agree on one ring, and none reads half of one.
func TestWriteNewRaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "keys.json")
	const nodes = 16
	var (
		wg   sync.WaitGroup
		won  = make([]bool, nodes)
		read = make([]*Ring, nodes)
	)
	for i := range nodes {
		wg.Go(func() {
			ring := NewRing()
			switch err := ring.WriteNew(file); {
			case err == nil:
				won[i] = true
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
			var err error
			if read[i], err = ReadRing(file); err != nil {
				t.Error(err)
			}
			if won[i] && err == nil && !slices.Equal(read[i].KeyIDs(), ring.KeyIDs()) {
				t.Error("the winner's ring is not the one in the file")
			}
		})
		wg.Go(func() { // somebody who only reads
			if _, err := ReadRing(file); err != nil && !errors.Is(err, ErrNoFile) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	winners := 0
	for i := range nodes {
		if won[i] {
			winners++
		}
		if read[i] != nil && read[0] != nil && read[i].KeyIDs()[0] != read[0].KeyIDs()[0] {
			t.Error("two nodes have different rings")
		}
	}
	if winners != 1 {
		t.Errorf("%d nodes wrote the ring, want 1", winners)
	}
	wantFiles(t, dir, "keys.json")
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

func FuzzParseRing(f *testing.F) {
	good, err := os.ReadFile("testdata/golden/keys-1.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	full, err := os.ReadFile("testdata/golden/keys-1-rotated.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte(`{"version": 1, "keys": [{"key": "` + strings.Repeat("A", 43) + `", "created": "2026-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"version": 1, "keys": null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ring, err := ParseRing(data)
		if err != nil {
			if ring != nil {
				t.Error("a ring beside an error")
			}
			return
		}
		if n := len(ring.KeyIDs()); n < 1 || n > maxKeys {
			t.Fatalf("a ring of %d keys", n)
		}
		again, err := ParseRing(ring.Marshal())
		if err != nil {
			t.Fatalf("a ring does not read what it wrote: %v", err)
		}
		sameTime := func(a, b time.Time) bool { return a.Equal(b) }
		if !slices.EqualFunc(again.Keys(), ring.Keys(), func(a, b Key) bool {
			return a.ID == b.ID && sameTime(a.Created, b.Created) && sameTime(a.ActivateAt, b.ActivateAt)
		}) || !slices.EqualFunc(again.RetiredKeys(), ring.RetiredKeys(), func(a, b RetiredKey) bool {
			return a.ID == b.ID && sameTime(a.At, b.At)
		}) {
			t.Error("the keys changed")
		}
		if !slices.Contains(ring.KeyIDs(), ring.Current()) {
			t.Error("a key seals that is not in the ring")
		}
		if err := ring.Replace(again); err != nil {
			t.Errorf("a ring can't be replaced by itself: %v", err)
		}
	})
}
