package session

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
)

// goldenSession is what record-1.hex holds: what a record had at first.
func goldenSession() *coatcheck.Session {
	at := func(hour int) time.Time { return time.Date(2026, 1, 2, hour, 4, 5, 678e6, time.UTC) }
	return &coatcheck.Session{
		Tenant: "default", Provider: "corp", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{
			Issuer: "https://idp.example", Subject: "248289761001",
			Email: "alice@corp.example", EmailVerified: true,
			PreferredUsername: "alice", Name: "Alice Ünal", Groups: []string{"agent", "admins"},
		},
		ProviderSID: "08a5019c-17e1-4977-8f42-65a12843ea02",
		Tokens:      coatcheck.Tokens{ID: "id token", Access: "access token", Refresh: "refresh token", AccessExpiry: at(4)},
		AuthTime:    at(2), Created: at(3), Deadline: at(15),
	}
}

func goldenRecord(t testing.TB) []byte { return golden.Read(t, "record-1.hex") }

func TestRecordRoundTrip(t *testing.T) {
	// Any text, since a provider's need not be UTF-8.
	text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) }))
	rapid.Check(t, func(t *rapid.T) {
		secret := func(name string) coatcheck.Secret { return coatcheck.Secret(text.Draw(t, name)) }
		moment := func(name string) time.Time {
			return fromMillis(rapid.Int64Range(0, 1<<43).Draw(t, name))
		}
		want := &coatcheck.Session{
			Tenant: text.Draw(t, "tenant"), Provider: text.Draw(t, "provider"),
			State: rapid.SampledFrom([]coatcheck.State{coatcheck.Anonymous, coatcheck.Returning, coatcheck.Authenticated}).Draw(t, "state"),
			Identity: coatcheck.Identity{
				Issuer: text.Draw(t, "issuer"), Subject: text.Draw(t, "subject"),
				Email: text.Draw(t, "email"), EmailVerified: rapid.Bool().Draw(t, "verified"),
				PreferredUsername: text.Draw(t, "user name"), Name: text.Draw(t, "name"),
				Groups: rapid.SliceOfN(text, 0, 5).Draw(t, "groups"),
			},
			ProviderSID: text.Draw(t, "sid"),
			Tokens: coatcheck.Tokens{
				ID: secret("id"), Access: secret("access"), Refresh: secret("refresh"), AccessExpiry: moment("expiry"),
			},
			Renewal: coatcheck.Renewal{
				Attempt: text.Draw(t, "attempt"), AttemptAt: moment("attempt at"), NotBefore: moment("not before"),
				Failures: rapid.Int().Draw(t, "failures"), Checked: moment("checked"),
			},
			Origin:   coatcheck.Origin{App: text.Draw(t, "app"), IP: text.Draw(t, "ip"), UserAgent: text.Draw(t, "user agent"), Node: text.Draw(t, "node")},
			AuthTime: moment("auth time"), Created: moment("created"), Deadline: moment("deadline"),
		}
		if fields := rapid.MapOf(rapid.Int64Range(recordFields, 1<<40), text).Draw(t, "later fields"); len(fields) > 0 {
			want.Unknown = must(encMode.Marshal(fields))
		}
		data, err := encode(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("a record changed (-want +got):\n%s", diff)
		}
	})
}

// A time that is not known stays unknown.
func TestRecordWithoutTimes(t *testing.T) {
	data, err := encode(new(coatcheck.Session))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(new(coatcheck.Session), got); diff != "" {
		t.Errorf("an empty session changed (-want +got):\n%s", diff)
	}
	if !got.Tokens.AccessExpiry.IsZero() || !got.AuthTime.IsZero() || !got.Created.IsZero() || !got.Deadline.IsZero() {
		t.Errorf("an empty session has times: %+v", got)
	}
	var fields map[int]any
	if err := cbor.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	for _, optional := range []int{15, 16, 23, 24, 25, 26, 27} {
		if v, ok := fields[optional]; ok {
			t.Errorf("field %d says %v, where there is no time", optional, v)
		}
	}
}

// The fields that a version has are numbered without a gap, so that all others are known to
// be later ones.
func TestRecordFields(t *testing.T) {
	typ := reflect.TypeFor[record]()
	if typ.NumField() != recordFields {
		t.Errorf("record has %d fields, recordFields is %d", typ.NumField(), recordFields)
	}
	for i := range typ.NumField() {
		if number, _, _ := strings.Cut(typ.Field(i).Tag.Get("cbor"), ","); number != strconv.Itoa(i) {
			t.Errorf("%s has the number %s, want %d", typ.Field(i).Name, number, i)
		}
	}
}

// with returns the golden record with some of its fields changed; nil removes one.
func with(t testing.TB, changes map[any]any) []byte {
	t.Helper()
	fields := map[any]any{}
	if err := cbor.Unmarshal(goldenRecord(t), &fields); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if v == nil {
			delete(fields, k)
			continue
		}
		fields[k] = v
	}
	data, err := encMode.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// strangeRecords are records that this version can't read, and whether they say that
// they are of another one.
func strangeRecords(t testing.TB) map[string]struct {
	data    []byte
	version bool
} {
	golden := goldenRecord(t)
	type strange = struct {
		data    []byte
		version bool
	}
	first := uint64(0)
	return map[string]strange{
		"the next version":                    {with(t, map[any]any{first: 2}), true},
		"the next version, with a new field":  {with(t, map[any]any{first: 2, uint64(99): "x"}), true},
		"the next version, with another type": {with(t, map[any]any{first: 2, uint64(1): 5}), true},
		"no version":                          {with(t, map[any]any{first: nil}), true},
		"a negative version":                  {with(t, map[any]any{first: -1}), true},
		"a later field of another type":       {with(t, map[any]any{uint64(99): "x", uint64(1): 5}), false},
		"a later field with a tag":            {with(t, map[any]any{uint64(99): cbor.Tag{Number: 1000, Content: "x"}}), false},
		"a later field named by text":         {with(t, map[any]any{uint64(99): 1, "tenant": "x"}), false},
		"a later field twice":                 {append([]byte{golden[0] + 2}, append(golden[1:len(golden):len(golden)], 0x18, 99, 1, 0x18, 99, 1)...), false},
		"a field named by text":               {with(t, map[any]any{"tenant": "x"}), false},
		"another type":                        {with(t, map[any]any{uint64(5): 5}), false},
		"a state that is none":                {with(t, map[any]any{uint64(3): 3}), false},
		"a state that is no uint8":            {with(t, map[any]any{uint64(3): 258}), false},
		"a tag":                               {with(t, map[any]any{uint64(5): cbor.Tag{Number: 1000, Content: "x"}}), false},
		"a version that is text":              {with(t, map[any]any{first: "1"}), false},
		"a field twice":                       {append([]byte{golden[0] + 1}, append(golden[1:len(golden):len(golden)], 0, 1)...), false},
		"a field that is no number":           {append([]byte{golden[0] + 1}, append(golden[1:len(golden):len(golden)], 0xf3, 0x61, 'a')...), false},
		"an indefinite length":                {append([]byte{0xbf}, append(golden[1:len(golden):len(golden)], 0xff)...), false},
		"bytes behind it":                     {append(golden[:len(golden):len(golden)], 0), false},
		"cut off":                             {golden[:len(golden)-1], false},
		"nothing":                             {nil, false},
		"a list":                              {[]byte{0x80}, false},
		"text":                                {[]byte("not a record"), false},
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, strange := range strangeRecords(t) {
		t.Run(name, func(t *testing.T) {
			got, err := decode(strange.data)
			if got != nil || err == nil {
				t.Fatalf("decode = %+v, %v; want an error", got, err)
			}
			if errors.Is(err, errRecordVersion) != strange.version {
				t.Errorf("%v: is it about the version? want %t", err, strange.version)
			}
			for _, secret := range []string{"alice", "token", "248289761001"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error shows what the record holds: %v", err)
				}
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(goldenRecord(f))
	for _, strange := range strangeRecords(f) {
		f.Add(strange.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decode(data)
		if err != nil {
			if s != nil {
				t.Error("a session beside an error")
			}
			return
		}
		if s.State > coatcheck.Authenticated {
			t.Errorf("a session in state %v", s.State)
		}
		again, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		same, err := decode(again)
		if err != nil {
			t.Fatalf("a record does not read what it wrote: %v", err)
		}
		if diff := cmp.Diff(s, same, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("a session changed (-want +got):\n%s", diff)
		}
	})
}
