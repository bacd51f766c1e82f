package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	retiredAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	noon      = time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
)

// rotated returns a ring with one more key.
func rotated(t testing.TB, r *Ring, activate time.Time) *Ring {
	t.Helper()
	next, err := r.Rotated(activate)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func retired(t testing.TB, r *Ring, id string) *Ring {
	t.Helper()
	next, err := r.Retired(id, retiredAt)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// parsed returns the ring as a node reads it that has just started.
func parsed(t testing.TB, r *Ring) *Ring {
	t.Helper()
	next, err := ParseRing(r.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func always(string) bool { return true }

// A key seals when its time has come and everybody has it, and not before.
func TestPromote(t *testing.T) {
	first := NewRing()
	second := rotated(t, first, noon)
	ring := parsed(t, rotated(t, second, noon.Add(time.Hour)))
	ids := ring.KeyIDs() // newest first
	newest, middle, oldest := ids[0], ids[1], ids[2]
	if oldest != first.Current() || middle != second.KeyIDs()[0] {
		t.Fatalf("keys %v: want the newest first", ids)
	}
	only := func(id string) func(string) bool { return func(k string) bool { return k == id } }
	for _, step := range []struct {
		name  string
		now   time.Time
		known func(string) bool
		seals string
	}{
		{"at the start", time.Time{}, func(string) bool { return false }, oldest},
		{"too early, for single nodes", noon.Add(-1), nil, oldest},
		{"too early", noon.Add(-1), always, oldest},
		{"nobody has it", noon, func(string) bool { return false }, oldest},
		{"all have one whose time has not come", noon, only(newest), oldest},
		{"all have it", noon, only(middle), middle},
		{"all have an older one", noon.Add(2 * time.Hour), only(oldest), middle},
		{"not all have the newest", noon.Add(2 * time.Hour), only(middle), middle},
		{"the clock is turned back", time.Time{}, always, middle},
		{"a single node", noon.Add(time.Hour), nil, newest},
		{"nobody has it any more", noon.Add(time.Hour), func(string) bool { return false }, newest},
	} {
		before := ring.Current()
		changed := ring.Promote(step.now, step.known)
		if ring.Current() != step.seals || changed != (before != step.seals) {
			t.Errorf("%s: %s seals, want %s; changed is %v", step.name, ring.Current(), step.seals, changed)
		}
		sealed := sealRecord(t, ring, here, secret, text)
		if id, ok := KeyID(sealed); !ok || id != ring.Current() {
			t.Errorf("%s: a record is sealed by %s, %s seals", step.name, id, ring.Current())
		}
		if got, err := ring.OpenRecord(here, secret, sealRecord(t, parsed(t, ring), here, secret, text)); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: what a node seals that has just started does not open: %v", step.name, err)
		}
	}
}

// Of two keys whose time has come, the newest that all have seals, and those that come
// before it are asked for first.
func TestPromoteAsksForTheNewestFirst(t *testing.T) {
	ring := parsed(t, rotated(t, rotated(t, NewRing(), noon), noon.Add(time.Hour)))
	var asked []string
	ring.Promote(noon.Add(2*time.Hour), func(id string) bool {
		asked = append(asked, id)
		return false
	})
	if want := ring.KeyIDs()[:2]; !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}

// Keys without activate_at may seal at once, the first of the file before all others.
func TestPromoteWithoutTimes(t *testing.T) {
	ring, err := ReadRing("testdata/golden/keys-1.json")
	if err != nil {
		t.Fatal(err)
	}
	if ids := ring.KeyIDs(); ring.Current() != ids[1] {
		t.Errorf("%s seals at the start, want the oldest of %v", ring.Current(), ids)
	}
	ring.Promote(time.Now(), nil)
	if ids := ring.KeyIDs(); ring.Current() != ids[0] {
		t.Errorf("%s seals, want the first of %v", ring.Current(), ids)
	}
}

func TestReplace(t *testing.T) {
	first := NewRing()
	second := rotated(t, first, noon)
	third := rotated(t, second, noon)
	other := NewRing()
	for _, test := range []struct {
		name  string
		from  *Ring
		to    *Ring
		want  error
		seals string // if there is no error
	}{
		{"the same", first, first, nil, first.Current()},
		{"one more key, which waits", first, second, nil, first.Current()},
		{"without a key that does not seal", ringOf(second, other), second, nil, second.KeyIDs()[0]},
		{"another index key", first, other, ErrOtherIndex, ""},
		{"the same key with another index key", first, other.with(first.keys.Load()), ErrOtherIndex, ""},
		{"without the key that seals", first, first.with(newKeySet(slices.Clone(other.keys.Load().keys), nil)), ErrKeyMissing, ""},
		{"the key that seals is retired", first, retired(t, third, first.Current()), nil, third.KeyIDs()[1]},
	} {
		t.Run(test.name, func(t *testing.T) {
			ring := test.from.with(test.from.keys.Load())
			ring.Promote(noon, nil)
			before := ring.KeyIDs()
			next := parsed(t, test.to)
			next.Promote(noon.Add(24*time.Hour), nil) // as the reader's clock says; that does not count
			err := ring.Replace(next)
			if !errors.Is(err, test.want) {
				t.Fatalf("Replace = %v, want %v", err, test.want)
			}
			if err != nil {
				if !slices.Equal(ring.KeyIDs(), before) {
					t.Error("the ring changed")
				}
				return
			}
			if !slices.Equal(ring.KeyIDs(), test.to.KeyIDs()) {
				t.Errorf("keys %v, want %v", ring.KeyIDs(), test.to.KeyIDs())
			}
			if ring.Current() != test.seals {
				t.Errorf("%s seals, want %s", ring.Current(), test.seals)
			}
		})
	}
}

// Everybody who holds a ring has the new keys at once, and seals and opens meanwhile.
func TestReplaceIsSeenByAll(t *testing.T) {
	first := NewRing()
	second := rotated(t, first, noon)
	node, other := parsed(t, first), parsed(t, second)
	other.Promote(noon, nil)
	record := sealRecord(t, other, here, secret, text)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sealed, err := node.SealRecord(here, secret, text, nil)
				if err != nil {
					t.Error(err)
				}
				if _, err := node.OpenRecord(here, secret, sealed); err != nil {
					t.Error(err)
				}
				if _, err := other.OpenRecord(here, secret, sealed); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got, err := node.OpenRecord(here, secret, record)
	wantErr(t, got, err, ErrUnknownKey)
	for range 50 {
		if err := node.Replace(parsed(t, second)); err != nil {
			t.Error(err)
		}
		node.Promote(noon, always)
	}
	if _, err := node.OpenRecord(here, secret, record); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
}

// A-C14: what a retired key has sealed is over, and not just unknown.
func TestRetired(t *testing.T) {
	first := NewRing()
	second := rotated(t, first, noon)
	record, value := sealRecord(t, first, here, secret, text), sealValue(t, first, here, text)
	ring := retired(t, second, first.Current())
	for name, ring := range map[string]*Ring{"made": ring, "read": parsed(t, ring)} {
		t.Run(name, func(t *testing.T) {
			got, err := ring.OpenRecord(here, secret, record)
			wantErr(t, got, err, ErrRetired)
			got, err = ring.OpenValue(here, value)
			wantErr(t, got, err, ErrRetired)
			if ids := ring.KeyIDs(); !slices.Equal(ids, second.KeyIDs()[:1]) {
				t.Errorf("keys %v", ids)
			}
			if list := ring.RetiredKeys(); !slices.Equal(list, []RetiredKey{{first.Current(), retiredAt}}) {
				t.Errorf("retired keys %v", list)
			}
			foreign := sealRecord(t, NewRing(), here, secret, text)
			got, err = ring.OpenRecord(here, secret, foreign)
			wantErr(t, got, err, ErrUnknownKey)
			for _, test := range []struct {
				sealed []byte
				want   error
			}{{record, ErrRetired}, {foreign, ErrUnknownKey}, {sealRecord(t, ring, here, secret, text), nil}, {nil, ErrBroken}} {
				if err := ring.Holds(test.sealed); !errors.Is(err, test.want) {
					t.Errorf("Holds = %v, want %v", err, test.want)
				}
			}
		})
	}
	if got, err := second.OpenRecord(here, secret, record); err != nil || !bytes.Equal(got, text) {
		t.Errorf("the ring that a key was retired from changed: %q, %v", got, err)
	}
	if _, err := ring.Retired(first.Current(), retiredAt); err == nil {
		t.Error("a key is retired twice")
	}
	if _, err := ring.Retired(ring.Current(), retiredAt); err == nil {
		t.Error("the only key is retired")
	}
}

func TestBoundsOfARing(t *testing.T) {
	ring := NewRing()
	for range maxKeys - 1 {
		ring = rotated(t, ring, noon)
	}
	if _, err := ring.Rotated(noon); err == nil {
		t.Errorf("a ring of more than %d keys", maxKeys)
	}
	last := ""
	for range maxRetired + 3 {
		last = ring.Current()
		ring = rotated(t, retired(t, ring, last), noon)
	}
	list := parsed(t, ring).RetiredKeys()
	if len(list) != maxRetired || list[maxRetired-1].ID != last {
		t.Errorf("%d retired keys, the last of them %v, want %d and %s", len(list), list[len(list)-1], maxRetired, last)
	}
}

func TestOutdated(t *testing.T) {
	first := NewRing()
	second := rotated(t, first, noon)
	third := rotated(t, second, noon)
	ring := parsed(t, third)
	ring.Promote(noon, func(id string) bool { return id == second.KeyIDs()[0] })
	sealedBy := func(r *Ring) []byte {
		r = parsed(t, r)
		r.Promote(noon, nil)
		return sealRecord(t, r, here, secret, text)
	}
	for name, test := range map[string]struct {
		sealed []byte
		want   bool
	}{
		"an older key":              {sealedBy(first), true},
		"the key that seals":        {sealedBy(second), false},
		"a newer key":               {sealedBy(third), false},
		"another ring's":            {sealedBy(NewRing()), false},
		"junk":                      {[]byte("junk"), false},
		"an older key, with escrow": {sealEscrow(t, first, here, text, token), true},
	} {
		if got := ring.Outdated(test.sealed); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestKeyID(t *testing.T) {
	ring := NewRing()
	sealed := sealRecord(t, ring, here, secret, text)
	other := bytes.Clone(sealed[recordHead:][:wrapSize])
	other[0] = wrapTicket + 1
	later := bytes.Clone(sealed)
	later[0] = formatEscrow + 1
	for name, test := range map[string]struct {
		sealed []byte
		want   string
	}{
		"a record":                {sealed, ring.Current()},
		"a record with escrow":    {sealEscrow(t, ring, here, text, token), ring.Current()},
		"behind another wrap":     {rewrap(sealed, other, sealed[recordHead:][:wrapSize]), ring.Current()},
		"without a ticket's":      {rewrap(sealed, other), ""},
		"a later format":          {later, ""},
		"nothing":                 {nil, ""},
		"cut off in its head":     {sealed[:recordHead+kidSize], ""},
		"something else entirely": {[]byte(strings.Repeat("x", 500)), ""},
	} {
		if got, ok := KeyID(test.sealed); got != test.want || ok != (test.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, test.want)
		}
	}
}

func TestKeys(t *testing.T) {
	first := NewRing()
	ring := rotated(t, first, noon.Add(time.Millisecond))
	keys := parsed(t, ring).Keys()
	if len(keys) != 2 || !keys[0].ActivateAt.Equal(noon) || !keys[1].ActivateAt.IsZero() || keys[1].ID != first.Current() {
		t.Errorf("keys %+v", keys)
	}
	for _, k := range keys {
		if age := time.Since(k.Created); age < -time.Second || age > time.Hour {
			t.Errorf("a key was created %v ago", age)
		}
	}
}

// The file keeps its order among keys of one time, and has no key twice.
func TestParseRetired(t *testing.T) {
	ring := NewRing()
	entry := func(kid, at string) string { return fmt.Sprintf(`{"kid": %q, "at": %q}`, kid, at) }
	good := entry("0123456789abcdef", "2026-01-01T00:00:00Z")
	many := make([]string, maxRetired+1)
	for i := range many {
		many[i] = entry(fmt.Sprintf("%016x", i), "2026-01-01T00:00:00Z")
	}
	file := func(entries ...string) []byte {
		return bytes.Replace(ring.Marshal(), []byte(`"index_key"`),
			[]byte(`"retired": [`+strings.Join(entries, ", ")+`], "index_key"`), 1)
	}
	for name, test := range map[string]struct {
		entries []string
		want    bool
	}{
		"none":              {nil, true},
		"one":               {[]string{good}, true},
		"as many as may be": {many[:maxRetired], true},
		"too many":          {many, false},
		"twice":             {[]string{good, good}, false},
		"a key of the ring": {[]string{entry(ring.Current(), "2026-01-01T00:00:00Z")}, false},
		"upper case":        {[]string{entry("0123456789ABCDEF", "2026-01-01T00:00:00Z")}, false},
		"too short":         {[]string{entry("0123456789abcd", "2026-01-01T00:00:00Z")}, false},
		"no ID":             {[]string{entry("", "2026-01-01T00:00:00Z")}, false},
		"no time":           {[]string{entry("0123456789abcdef", "today")}, false},
		"an unknown field":  {[]string{`{"kid": "0123456789abcdef", "at": "2026-01-01T00:00:00Z", "why": ""}`}, false},
	} {
		got, err := ParseRing(file(test.entries...))
		if (err == nil) != test.want || (got == nil) == test.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "keys.json"), filepath.Join(dir, "link.json")
	first := NewRing()
	second := rotated(t, first, noon)
	for _, err := range []error{second.Write(file), second.TryWrite(file)} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("over no file: %v", err)
		}
	}
	if err := first.WriteNew(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("keys.json", link); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o640, 0o400} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if err := second.Write(link); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("the file has mode %v, want %v", info.Mode(), mode)
		}
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link is none any more: %v", err)
		}
		if err := first.Write(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := second.Write(link); err != nil {
		t.Fatal(err)
	}
	if err := first.TryWrite(link); err != nil {
		t.Error(err)
	}
	if got, err := ReadRing(file); err != nil || !slices.Equal(got.KeyIDs(), second.KeyIDs()) {
		t.Errorf("the file has %v, %v", got, err)
	}
	wantFiles(t, dir, "keys.json", "link.json")
}

// testdata/golden/keys-1-rotated.json is a file with all there is in one. It must never be made anew for
// this version.
func TestGoldenRing(t *testing.T) {
	data, err := os.ReadFile("testdata/golden/keys-1-rotated.json")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ParseRing(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := ring.Marshal(); !bytes.Equal(got, data) {
		t.Errorf("it is written as\n%s", got)
	}
	var f ringFile
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	seals := func() string { return base64.RawURLEncoding.EncodeToString(ring.current().secret[:]) }
	if seals() != f.Keys[1].Key {
		t.Error("another key seals at first than the oldest")
	}
	ring.Promote(f.Keys[0].ActivateAt, nil)
	if seals() != f.Keys[0].Key {
		t.Error("the newest key does not seal when its time has come")
	}
	if list := ring.RetiredKeys(); len(list) != 1 || list[0].ID != "66ad2b57d6fa5db2" {
		t.Errorf("retired keys %v", list)
	}
}
