package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	here   = Place{Purpose: "session", Tenant: "default", Cookie: "__Host-coatcheck", Key: "__Host-coatcheck-00ff"}
	secret = bytes.Repeat([]byte{7}, 16)
	text   = []byte("the tokens stay behind the counter")
)

// ringOf returns a ring of the given rings' keys, of which the first seals.
func ringOf(rings ...*Ring) *Ring {
	var keys []key
	for _, one := range rings {
		keys = append(keys, one.keys.Load().keys...)
	}
	r := rings[0].with(newKeySet(keys, nil))
	r.Promote(time.Now(), nil)
	return r
}

func sealRecord(t testing.TB, r *Ring, place Place, secret, plaintext []byte) []byte {
	t.Helper()
	sealed, err := r.SealRecord(place, secret, plaintext, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func sealValue(t testing.TB, r *Ring, place Place, plaintext []byte) string {
	t.Helper()
	sealed, err := r.SealValue(place, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// wantErr fails the test unless got is nothing and err is one of the errors.
func wantErr(t testing.TB, got []byte, err error, want ...error) {
	t.Helper()
	if got != nil {
		t.Errorf("opened: %q", got)
	}
	if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
		t.Errorf("error %v, want one of %v", err, want)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := NewRing()
		part := rapid.StringN(0, 20, 80)
		place := Place{part.Draw(t, "purpose"), part.Draw(t, "tenant"), part.Draw(t, "cookie"), part.Draw(t, "key")}
		secret := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "secret")
		plain := rapid.SliceOfN(rapid.Byte(), 0, 4096).Draw(t, "plaintext")

		record, err := ring.SealRecord(place, secret, plain, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.OpenRecord(place, secret, record); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("OpenRecord = %q, %v", got, err)
		}
		value, err := ring.SealValue(place, plain)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.OpenValue(place, value); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("OpenValue = %q, %v", got, err)
		}

		elsewhere := Place{part.Draw(t, "purpose"), part.Draw(t, "tenant"), part.Draw(t, "cookie"), part.Draw(t, "key")}
		if elsewhere == place {
			return
		}
		if _, err := ring.OpenRecord(elsewhere, secret, record); !errors.Is(err, ErrBroken) {
			t.Fatalf("a record of %+v opened at %+v: %v", place, elsewhere, err)
		}
		if _, err := ring.OpenValue(elsewhere, value); !errors.Is(err, ErrBroken) {
			t.Fatalf("a value of %+v opened at %+v: %v", place, elsewhere, err)
		}
	})
}

func TestNothingIsSealedTwiceAlike(t *testing.T) {
	ring := NewRing()
	if a, b := sealRecord(t, ring, here, secret, text), sealRecord(t, ring, here, secret, text); bytes.Equal(a, b) {
		t.Error("two records are equal")
	}
	if a, b := sealValue(t, ring, here, text), sealValue(t, ring, here, text); a == b {
		t.Error("two values are equal")
	}
	if bytes.Contains(sealRecord(t, ring, here, secret, text), text[:8]) {
		t.Error("a record shows its plaintext")
	}
}

// A-C1: whichever byte changes, and however, a record is unknown or broken.
func TestChangedRecord(t *testing.T) {
	ring := NewRing()
	sealed := sealRecord(t, ring, here, secret, text)
	for i := range sealed {
		for bit := range 8 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << bit
			got, err := ring.OpenRecord(here, secret, changed)
			want := ErrBroken
			if i == 0 && changed[0] > formatEscrow || i > recordHead && i <= recordHead+kidSize {
				want = ErrUnknownKey
			}
			wantErr(t, got, err, want)
		}
	}
	for n := range sealed {
		got, err := ring.OpenRecord(here, secret, sealed[:n])
		wantErr(t, got, err, ErrBroken)
	}
	got, err := ring.OpenRecord(here, secret, append(bytes.Clone(sealed), 0))
	wantErr(t, got, err, ErrBroken)
}

// A-C1: whichever byte changes, a value is unknown or broken, at the level of the
// bytes and at that of the text.
func TestChangedValue(t *testing.T) {
	ring := NewRing()
	value := sealValue(t, ring, here, text)
	sealed, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << bit
			got, err := ring.OpenValue(here, base64.RawURLEncoding.EncodeToString(changed))
			want := ErrBroken
			if i == 0 && changed[0] > formatEscrow || i > 0 && i <= kidSize {
				want = ErrUnknownKey
			}
			wantErr(t, got, err, want)
		}
	}
	for i := range len(value) {
		for b := range 256 {
			if byte(b) == value[i] {
				continue
			}
			got, err := ring.OpenValue(here, value[:i]+string([]byte{byte(b)})+value[i+1:])
			wantErr(t, got, err, ErrBroken, ErrUnknownKey)
		}
		got, err := ring.OpenValue(here, value[:i])
		wantErr(t, got, err, ErrBroken)
	}
}

// A value has one spelling.
func TestOtherSpellingsOfAValue(t *testing.T) {
	ring := NewRing()
	value := ""
	for value == "" || !strings.ContainsAny(value, "-_") { // nearly every value has one
		value = sealValue(t, ring, here, text)
	}
	if len(value)%4 == 0 {
		t.Fatal("the value has no room for stray bits; take another plaintext")
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, value[len(value)-1])
	for name, other := range map[string]string{
		"padding":              value + strings.Repeat("=", 4-len(value)%4),
		"stray bits":           value[:len(value)-1] + alphabet[last+1:last+2],
		"line break":           value[:9] + "\n" + value[9:],
		"line break, CR":       value[:9] + "\r" + value[9:],
		"line break at end":    value + "\n",
		"space":                value + " ",
		"quotes":               `"` + value + `"`,
		"the other alphabet":   strings.NewReplacer("-", "+", "_", "/").Replace(value),
		"one character more":   value + "A",
		"four characters more": value + "AAAA",
		"twice":                value + value,
		"nothing":              "",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ring.OpenValue(here, other)
			wantErr(t, got, err, ErrBroken)
		})
	}
}

// A-C5, A-C6, invariant 12: every part of the place counts.
func TestMoved(t *testing.T) {
	ring := NewRing()
	record, value := sealRecord(t, ring, here, secret, text), sealValue(t, ring, here, text)
	for name, move := range map[string]func(*Place){
		"purpose": func(p *Place) { p.Purpose = "login" },
		"tenant":  func(p *Place) { p.Tenant = "t2" },
		"cookie":  func(p *Place) { p.Cookie = "__Host-other" },
		"key":     func(p *Place) { p.Key += "0" },
		"no key":  func(p *Place) { p.Key = "" },
	} {
		t.Run(name, func(t *testing.T) {
			place := here
			move(&place)
			got, err := ring.OpenRecord(place, secret, record)
			wantErr(t, got, err, ErrBroken)
			got, err = ring.OpenValue(place, value)
			wantErr(t, got, err, ErrBroken)
		})
	}
}

// A-T5: places whose parts make the same text when they are strung together are
// different places.
func TestPlacesAreUnambiguous(t *testing.T) {
	ring := NewRing()
	for _, pair := range [][2]Place{
		{{Tenant: "a", Cookie: "bc"}, {Tenant: "ab", Cookie: "c"}},
		{{Tenant: "a:b", Cookie: "c"}, {Tenant: "a", Cookie: "b:c"}},
		{{Purpose: "x", Tenant: ""}, {Purpose: "", Tenant: "x"}},
		{{Cookie: "x", Key: ""}, {Cookie: "", Key: "x"}},
		{{Tenant: "a\x00", Cookie: "b"}, {Tenant: "a", Cookie: "\x00b"}},
		{{Purpose: "a", Tenant: "b"}, {Purpose: "a\x00\x00\x00\x01b"}},
		{{Key: "k"}, {Key: "k\x00"}},
	} {
		for _, p := range [][2]Place{pair, {pair[1], pair[0]}} {
			got, err := ring.OpenRecord(p[1], secret, sealRecord(t, ring, p[0], secret, text))
			wantErr(t, got, err, ErrBroken)
			got, err = ring.OpenValue(p[1], sealValue(t, ring, p[0], text))
			wantErr(t, got, err, ErrBroken)
		}
	}
}

func TestWrongTicketSecret(t *testing.T) {
	ring := NewRing()
	record := sealRecord(t, ring, here, secret, text)
	for _, wrong := range [][]byte{bytes.Repeat([]byte{8}, 16), secret[:15], append(bytes.Clone(secret), 0), {}, nil} {
		got, err := ring.OpenRecord(here, wrong, record)
		wantErr(t, got, err, ErrBroken)
	}
}

// A record is none of a value's business, and the other way round.
func TestFormsAreKeptApart(t *testing.T) {
	ring := NewRing()
	got, err := ring.OpenValue(here, base64.RawURLEncoding.EncodeToString(sealRecord(t, ring, here, secret, text)))
	wantErr(t, got, err, ErrBroken, ErrUnknownKey)
	value, err := base64.RawURLEncoding.DecodeString(sealValue(t, ring, here, text))
	if err != nil {
		t.Fatal(err)
	}
	got, err = ring.OpenRecord(here, secret, value)
	wantErr(t, got, err, ErrBroken)
}

func TestRotation(t *testing.T) {
	older, newer, foreign := NewRing(), NewRing(), NewRing()
	rotated := ringOf(newer, older)

	// What the older key sealed opens, A-C14.
	record, value := sealRecord(t, older, here, secret, text), sealValue(t, older, here, text)
	if got, err := rotated.OpenRecord(here, secret, record); err != nil || !bytes.Equal(got, text) {
		t.Errorf("a record of the older key: %q, %v", got, err)
	}
	if got, err := rotated.OpenValue(here, value); err != nil || !bytes.Equal(got, text) {
		t.Errorf("a value of the older key: %q, %v", got, err)
	}

	// The first key seals.
	record, value = sealRecord(t, rotated, here, secret, text), sealValue(t, rotated, here, text)
	if _, err := newer.OpenRecord(here, secret, record); err != nil {
		t.Errorf("the new key does not open a new record: %v", err)
	}
	if _, err := newer.OpenValue(here, value); err != nil {
		t.Errorf("the new key does not open a new value: %v", err)
	}

	// A ring without the key can't tell.
	for _, ring := range []*Ring{older, foreign} {
		got, err := ring.OpenRecord(here, secret, record)
		wantErr(t, got, err, ErrUnknownKey)
		got, err = ring.OpenValue(here, value)
		wantErr(t, got, err, ErrUnknownKey)
	}
}

// The key that a value names is the one that is tried, though another one of the ring
// would open it.
func TestOneKeyIsTried(t *testing.T) {
	a, b := NewRing(), NewRing()
	ring := ringOf(a, b)
	record := sealRecord(t, a, here, secret, text)
	copy(record[recordHead+1:], b.current().kid[:])
	got, err := ring.OpenRecord(here, secret, record)
	wantErr(t, got, err, ErrBroken)

	value, err := base64.RawURLEncoding.DecodeString(sealValue(t, a, here, text))
	if err != nil {
		t.Fatal(err)
	}
	copy(value[1:], b.current().kid[:])
	got, err = ring.OpenValue(here, base64.RawURLEncoding.EncodeToString(value))
	wantErr(t, got, err, ErrBroken)
}

// rewrap returns the record with the given wraps in place of its own.
func rewrap(record []byte, wraps ...[]byte) []byte {
	out := []byte{record[0], byte(len(wraps))}
	for _, w := range wraps {
		out = append(out, w...)
	}
	return append(out, record[recordHead+wrapSize:]...)
}

func TestWraps(t *testing.T) {
	ring := NewRing()
	record := sealRecord(t, ring, here, secret, text)
	ours := record[recordHead:][:wrapSize]
	other := bytes.Clone(ours)
	other[0] = wrapTicket + 1
	for _, test := range []struct {
		name   string
		record []byte
		want   error
	}{
		{"its own", rewrap(record, ours), nil},
		{"behind one of another kind", rewrap(record, other, ours), nil},
		{"before one of another kind", rewrap(record, ours, other), nil},
		{"as many as there may be", rewrap(record, slices.Concat(slices.Repeat([][]byte{other}, maxWraps-1), [][]byte{ours})...), nil},
		{"more than there may be", rewrap(record, slices.Repeat([][]byte{ours}, maxWraps+1)...), ErrBroken},
		{"none", rewrap(record), ErrBroken},
		{"of another kind only", rewrap(record, other), ErrBroken},
		{"announced and not there", append([]byte{formatPlain, 2}, record[recordHead:]...), ErrBroken},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ring.OpenRecord(here, secret, test.record)
			if test.want != nil {
				wantErr(t, got, err, test.want)
			} else if err != nil || !bytes.Equal(got, text) {
				t.Errorf("OpenRecord = %q, %v", got, err)
			}
		})
	}
}

// A-C5: nor does a body open under another record's wrap, though one secret and one
// place serve both.
func TestBodyOfAnotherRecord(t *testing.T) {
	ring := NewRing()
	a, b := sealRecord(t, ring, here, secret, text), sealRecord(t, ring, here, secret, text)
	got, err := ring.OpenRecord(here, secret, slices.Concat(a[:recordHead+wrapSize], b[recordHead+wrapSize:]))
	wantErr(t, got, err, ErrBroken)
}

// The place is in the body's additional data too, so that no wrap opens a body that
// was meant for somewhere else.
func TestBodyIsBoundToItsPlace(t *testing.T) {
	ring := NewRing()
	record := sealRecord(t, ring, here, secret, text)
	dataKey, err := ring.unwrap(here, formatPlain, secret, record[recordHead+1:][:wrapSize-1])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := newGCM(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := here
	elsewhere.Key += "0"
	for place, want := range map[Place]error{here: nil, elsewhere: ErrBroken} {
		moved := sealRandom(bytes.Clone(record[:recordHead+wrapSize]), aead, text, place.tuple(formatPlain, "body", kid{}))
		if got, err := ring.OpenRecord(here, secret, moved); !errors.Is(err, want) || (want == nil) != bytes.Equal(got, text) {
			t.Errorf("a body sealed for %q: %q, %v; want %v", place.Key, got, err, want)
		}
	}
}

// goldenValue is the place of testdata/golden/value-1.txt.
var goldenValue = Place{Purpose: "login", Tenant: "default", Cookie: "__Host-coatcheck-login"}

// goldenPlace is the place of testdata/golden/record-1.txt and testdata/golden/record-2-escrow.txt, and goldenTicket
// the ticket's secret that opens them.
var (
	goldenPlace = Place{
		Purpose: "session", Tenant: "default", Cookie: "__Host-coatcheck",
		Key: "__Host-coatcheck-000102030405060708090a0b0c0d0e0f",
	}
	goldenTicket = func() []byte { sum := sha256.Sum256([]byte("test ticket")); return sum[:16] }()
)

func golden(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/golden/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(data), "\n")
}

// What is sealed stays readable. The files were made by another implementation, from
// the description of the format alone; they must never be made anew for this version.
func TestGolden(t *testing.T) {
	ring, record := goldenRecord(t, "record-1.txt")
	got, err := ring.OpenRecord(goldenPlace, goldenTicket, record)
	if want := "the plaintext of a record"; err != nil || string(got) != want {
		t.Errorf("OpenRecord = %q, %v; want %q", got, err, want)
	}
	got, err = ring.OpenValue(goldenValue, golden(t, "value-1.txt"))
	if want := "the plaintext of a value"; err != nil || string(got) != want {
		t.Errorf("OpenValue = %q, %v; want %q", got, err, want)
	}
	if got, want := ring.KeyIDs(), []string{"87b65fd043eb4234", "ac83d467213f73b0"}; !slices.Equal(got, want) {
		t.Errorf("KeyIDs = %v, want %v", got, want)
	}
}

func FuzzOpenRecord(f *testing.F) {
	ring, err := ReadRing("testdata/golden/keys-1.json")
	if err != nil {
		f.Fatal(err)
	}
	sealed := sealRecord(f, ring, here, secret, text)
	other := bytes.Clone(sealed[recordHead:][:wrapSize])
	other[0] = wrapTicket + 1
	f.Add(sealed)
	f.Add(rewrap(sealed, other, sealed[recordHead:][:wrapSize]))
	f.Add(rewrap(sealed))
	f.Add(sealed[:recordHead+wrapSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		got, err := ring.OpenRecord(here, secret, data)
		switch {
		case err == nil && !bytes.Equal(got, text):
			t.Errorf("a plaintext that nobody sealed: %q", got)
		case err != nil && (got != nil || !errors.Is(err, ErrBroken) && !errors.Is(err, ErrUnknownKey)):
			t.Errorf("OpenRecord = %q, %v", got, err)
		}
		if !bytes.Equal(before, data) {
			t.Error("OpenRecord changed its argument")
		}
	})
}

func FuzzOpenValue(f *testing.F) {
	ring, err := ReadRing("testdata/golden/keys-1.json")
	if err != nil {
		f.Fatal(err)
	}
	// A fixed value, since a fuzz run has several processes.
	value := golden(f, "value-1.txt")
	f.Add(value)
	f.Add(value[:40] + "\n" + value[40:])
	f.Add(value + "=")
	f.Add(value[:valueHead])
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ring.OpenValue(goldenValue, text)
		switch {
		case err == nil && text != value:
			t.Errorf("%q opens to %q, and is not what was sealed", text, got)
		case err != nil && (got != nil || !errors.Is(err, ErrBroken) && !errors.Is(err, ErrUnknownKey)):
			t.Errorf("OpenValue = %q, %v", got, err)
		}
	})
}

func BenchmarkSealRecord(b *testing.B) {
	ring, plain := NewRing(), bytes.Repeat([]byte("x"), 2048)
	b.ReportAllocs()
	for b.Loop() {
		sealRecord(b, ring, here, secret, plain)
	}
}

func BenchmarkOpenRecord(b *testing.B) {
	ring := NewRing()
	sealed := sealRecord(b, ring, here, secret, bytes.Repeat([]byte("x"), 2048))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.OpenRecord(here, secret, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenValue(b *testing.B) {
	ring := NewRing()
	value := sealValue(b, ring, here, bytes.Repeat([]byte("x"), 2048))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.OpenValue(here, value); err != nil {
			b.Fatal(err)
		}
	}
}
