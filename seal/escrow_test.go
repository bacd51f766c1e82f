package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var token = []byte("a refresh token that somebody has to revoke")

func sealEscrow(t testing.TB, r *Ring, place Place, plaintext, escrowed []byte) []byte {
	t.Helper()
	sealed, err := r.SealRecord(place, secret, plaintext, escrowed)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// sectionOf returns where the escrow of a record begins and ends.
func sectionOf(sealed []byte) (from, to int) {
	from = recordHead + wrapSize
	return from, from + escrowHead + int(binary.BigEndian.Uint32(sealed[from:]))
}

func TestEscrowRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := NewRing()
		plain := rapid.SliceOfN(rapid.Byte(), 0, 2048).Draw(t, "plaintext")
		escrowed := rapid.SliceOfN(rapid.Byte(), 1, 2048).Draw(t, "escrowed")
		sealed, err := ring.SealRecord(here, secret, plain, escrowed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.OpenRecord(here, secret, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("OpenRecord = %q, %v", got, err)
		}
		if got, err := ring.OpenEscrow(here, sealed); err != nil || !bytes.Equal(got, escrowed) {
			t.Fatalf("OpenEscrow = %q, %v", got, err)
		}
		if id, ok := KeyID(sealed); !ok || id != ring.Current() {
			t.Fatalf("KeyID = %q, %v; want %q", id, ok, ring.Current())
		}
	})
}

// With nothing in escrow a record has the format that all nodes read.
func TestWithoutEscrow(t *testing.T) {
	ring := NewRing()
	for name, sealed := range map[string][]byte{
		"nothing":  sealRecord(t, ring, here, secret, text),
		"no bytes": sealEscrow(t, ring, here, text, []byte{}),
	} {
		if sealed[0] != formatPlain {
			t.Errorf("%s: format %d", name, sealed[0])
		}
		if got, err := ring.OpenRecord(here, secret, sealed); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: OpenRecord = %q, %v", name, got, err)
		}
		got, err := ring.OpenEscrow(here, sealed)
		wantErr(t, got, err, errNoEscrow)
	}
}

func TestEscrowIsNotShown(t *testing.T) {
	ring := NewRing()
	a, b := sealEscrow(t, ring, here, text, token), sealEscrow(t, ring, here, text, token)
	from, to := sectionOf(a)
	if bytes.Contains(a, token[:8]) || bytes.Contains(a, text[:8]) {
		t.Error("a record shows its plaintext")
	}
	if bytes.Equal(a[from:to], b[from:to]) {
		t.Error("one token is sealed twice alike")
	}
}

// A-C1: whichever bit changes, a record does not open; nor does its escrow where the bit
// is a part of it.
func TestChangedEscrow(t *testing.T) {
	ring := NewRing()
	sealed := sealEscrow(t, ring, here, text, token)
	from, to := sectionOf(sealed)
	for i := range sealed {
		for bit := range 8 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << bit

			got, err := ring.OpenRecord(here, secret, changed)
			later := i == 0 && changed[0] > formatEscrow
			want := ErrBroken
			if later || i > recordHead && i <= recordHead+kidSize {
				want = ErrUnknownKey
			}
			wantErr(t, got, err, want)

			got, err = ring.OpenEscrow(here, changed)
			switch ours := from + escrowHead; {
			case later, i == ours && changed[i] > formatEscrow, i > ours && i <= ours+kidSize:
				wantErr(t, got, err, ErrUnknownKey)
			case i < recordHead || i >= from && i < to:
				wantErr(t, got, err, ErrBroken)
			case err != nil || !bytes.Equal(got, token):
				t.Errorf("byte %d is not of the escrow, which does not open: %q, %v", i, got, err)
			}
		}
	}
	for n := range sealed {
		got, err := ring.OpenRecord(here, secret, sealed[:n])
		wantErr(t, got, err, ErrBroken)
		if got, err = ring.OpenEscrow(here, sealed[:n]); n < to+recordExtra {
			wantErr(t, got, err, ErrBroken)
		}
	}
}

// A-C5: what is in escrow belongs to its place and to its record.
func TestMovedEscrow(t *testing.T) {
	ring := NewRing()
	sealed := sealEscrow(t, ring, here, text, token)
	for name, move := range map[string]func(*Place){
		"purpose": func(p *Place) { p.Purpose = "login" },
		"tenant":  func(p *Place) { p.Tenant = "t2" },
		"cookie":  func(p *Place) { p.Cookie = "__Host-other" },
		"key":     func(p *Place) { p.Key += "0" },
	} {
		t.Run(name, func(t *testing.T) {
			place := here
			move(&place)
			got, err := ring.OpenEscrow(place, sealed)
			wantErr(t, got, err, ErrBroken)
			got, err = ring.OpenRecord(place, secret, sealed)
			wantErr(t, got, err, ErrBroken)
		})
	}

	plain := sealRecord(t, ring, here, secret, text)
	other := sealEscrow(t, ring, here, text, []byte("another token"))
	value, err := base64.RawURLEncoding.DecodeString(sealValue(t, ring, here, text))
	if err != nil {
		t.Fatal(err)
	}
	from, to := sectionOf(sealed)
	_, otherTo := sectionOf(other)
	withFormat := func(format byte, record []byte) []byte {
		record = bytes.Clone(record)
		record[0] = format
		return record
	}
	for name, record := range map[string][]byte{
		"of another record":          slices.Concat(sealed[:from], other[from:otherTo], sealed[to:]),
		"left out":                   slices.Concat(sealed[:from], sealed[to:]),
		"left out, in format 1":      withFormat(formatPlain, slices.Concat(sealed[:from], sealed[to:])),
		"called format 1":            withFormat(formatPlain, sealed),
		"of format 1, called 2":      withFormat(formatEscrow, plain),
		"given to one of format 1":   withFormat(formatEscrow, slices.Concat(plain[:from], sealed[from:to], plain[from:])),
		"empty":                      slices.Concat(sealed[:from], make([]byte, escrowHead), sealed[to:]),
		"longer than the record":     slices.Concat(sealed[:from], []byte{0xff, 0xff, 0xff, 0xff}, sealed[from+escrowHead:]),
		"up to the end":              slices.Concat(sealed[:from], binary.BigEndian.AppendUint32(nil, uint32(len(sealed)-from-escrowHead)), sealed[from+escrowHead:]),
		"a value of the same place":  slices.Concat(sealed[:from], binary.BigEndian.AppendUint32(nil, uint32(len(value))), value, sealed[to:]),
		"a value that says format 2": slices.Concat(sealed[:from], binary.BigEndian.AppendUint32(nil, uint32(len(value))), withFormat(formatEscrow, value), sealed[to:]),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ring.OpenRecord(here, secret, record)
			wantErr(t, got, err, ErrBroken)
			if name == "of another record" || name == "given to one of format 1" {
				return // it opens, and the record does not
			}
			got, err = ring.OpenEscrow(here, record)
			wantErr(t, got, err, ErrBroken, errNoEscrow)
		})
	}
	// Nor does it pass for a value.
	for _, format := range []byte{formatPlain, formatEscrow} {
		moved := withFormat(format, sealed[from+escrowHead:to])
		got, err := ring.OpenValue(here, base64.RawURLEncoding.EncodeToString(moved))
		wantErr(t, got, err, ErrBroken)
	}
}

func TestEscrowOfOtherKeys(t *testing.T) {
	older, newer := NewRing(), NewRing()
	sealed := sealEscrow(t, older, here, text, token)
	if got, err := ringOf(newer, older).OpenEscrow(here, sealed); err != nil || !bytes.Equal(got, token) {
		t.Errorf("with the key among others: %q, %v", got, err)
	}
	got, err := newer.OpenEscrow(here, sealed)
	wantErr(t, got, err, ErrUnknownKey)

	retired, err := ringOf(newer, older).Retired(older.Current(), retiredAt)
	if err != nil {
		t.Fatal(err)
	}
	got, err = retired.OpenEscrow(here, sealed)
	wantErr(t, got, err, ErrRetired)
}

// goldenRecord returns the golden ring, and one of its records.
func goldenRecord(t testing.TB, name string) (ring *Ring, record []byte) {
	t.Helper()
	ring, err := ReadRing("testdata/golden/keys-1.json")
	if err != nil {
		t.Fatal(err)
	}
	record, err = base64.RawURLEncoding.DecodeString(golden(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return ring, record
}

// The file was made by another implementation, as those of TestGolden.
func TestGoldenEscrow(t *testing.T) {
	ring, record := goldenRecord(t, "record-2-escrow.txt")
	got, err := ring.OpenRecord(goldenPlace, goldenTicket, record)
	if want := "the plaintext of a record"; err != nil || string(got) != want {
		t.Errorf("OpenRecord = %q, %v; want %q", got, err, want)
	}
	got, err = ring.OpenEscrow(goldenPlace, record)
	if want := "what is in escrow"; err != nil || string(got) != want {
		t.Errorf("OpenEscrow = %q, %v; want %q", got, err, want)
	}
}

func FuzzOpenEscrow(f *testing.F) {
	ring, err := ReadRing("testdata/golden/keys-1.json")
	if err != nil {
		f.Fatal(err)
	}
	// A fixed record, since a fuzz run has several processes.
	_, sealed := goldenRecord(f, "record-2-escrow.txt")
	_, plain := goldenRecord(f, "record-1.txt")
	from, to := sectionOf(sealed)
	f.Add(sealed)
	f.Add(plain)
	f.Add(sealed[:to])
	f.Add(slices.Concat(sealed[:from], []byte{0xff, 0xff, 0xff, 0xff}, sealed[from+escrowHead:]))
	f.Add(slices.Concat(sealed[:from], make([]byte, escrowHead), sealed[to:]))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		got, err := ring.OpenRecord(goldenPlace, goldenTicket, data)
		switch {
		case err == nil && !bytes.Equal(data, sealed) && !bytes.Equal(data, plain):
			t.Errorf("a record that nobody sealed opens: %q", got)
		case err != nil && (got != nil || !errors.Is(err, ErrBroken) && !errors.Is(err, ErrUnknownKey)):
			t.Errorf("OpenRecord = %q, %v", got, err)
		}
		got, err = ring.OpenEscrow(goldenPlace, data)
		switch {
		case err == nil && string(got) != "what is in escrow":
			t.Errorf("an escrow that nobody sealed: %q", got)
		case err != nil && (got != nil || !errors.Is(err, ErrBroken) && !errors.Is(err, ErrUnknownKey) && !errors.Is(err, errNoEscrow)):
			t.Errorf("OpenEscrow = %q, %v", got, err)
		}
		if id, ok := KeyID(data); ok && len(id) != 2*kidSize || !ok && id != "" {
			t.Errorf("KeyID = %q, %v", id, ok)
		}
		if !bytes.Equal(before, data) {
			t.Error("opening a record changed it")
		}
	})
}
