package session

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck"
)

// recordVersion is the version of the record's layout. A node that meets another one
// does not know what the session is; it does not call it invalid, since a node of
// another version wrote it and can read it.
//
// A later coatcheck may add fields without a new version, if nodes that don't know them may
// ignore them: they are kept when such a node writes the record anew.
const recordVersion = 1

var errRecordVersion = errors.New("record of another version of coatcheck")

// record is a session as it is sealed into the store: CBOR with small integer keys.
// Numbers are never used again for another meaning. Times are Unix milliseconds, 0
// for none. Fields that are added here are added to testdata/golden, as a further file.
type record struct {
	Version           int      `cbor:"0,keyasint"`
	Tenant            string   `cbor:"1,keyasint"`
	Provider          string   `cbor:"2,keyasint"`
	State             uint8    `cbor:"3,keyasint"`
	Issuer            string   `cbor:"4,keyasint"`
	Subject           string   `cbor:"5,keyasint"`
	Email             string   `cbor:"6,keyasint,omitempty"`
	EmailVerified     bool     `cbor:"7,keyasint,omitempty"`
	PreferredUsername string   `cbor:"8,keyasint,omitempty"`
	Name              string   `cbor:"9,keyasint,omitempty"`
	Groups            []string `cbor:"10,keyasint,omitempty"`
	ProviderSID       string   `cbor:"11,keyasint,omitempty"`
	IDToken           string   `cbor:"12,keyasint,omitempty"`
	AccessToken       string   `cbor:"13,keyasint,omitempty"`
	RefreshToken      string   `cbor:"14,keyasint,omitempty"`
	AccessExpiry      int64    `cbor:"15,keyasint,omitempty"`
	AuthTime          int64    `cbor:"16,keyasint,omitempty"`
	Created           int64    `cbor:"17,keyasint"`
	Deadline          int64    `cbor:"18,keyasint"`
	App               string   `cbor:"19,keyasint,omitempty"`
	IP                string   `cbor:"20,keyasint,omitempty"`
	UserAgent         string   `cbor:"21,keyasint,omitempty"`
	Node              string   `cbor:"22,keyasint,omitempty"`
	Attempt           string   `cbor:"23,keyasint,omitempty"`
	AttemptAt         int64    `cbor:"24,keyasint,omitempty"`
	NotBefore         int64    `cbor:"25,keyasint,omitempty"`
	Failures          int      `cbor:"26,keyasint,omitempty"`
	Checked           int64    `cbor:"27,keyasint,omitempty"`
}

// recordFields is the number of record's fields, which are numbered from 0 without a gap.
const recordFields = 28

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	// decMode ignores fields that a struct doesn't have, and strictMode refuses them.
	decMode    = must(decOptions(cbor.ExtraDecErrorNone).DecMode())
	strictMode = must(decOptions(cbor.ExtraDecErrorUnknownField).DecMode())
)

func decOptions(extra cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:   cbor.DupMapKeyEnforcedAPF,
		IndefLength: cbor.IndefLengthForbidden,
		// What a provider sends need not be UTF-8 (a form-encoded token answer, say), and
		// a session that could be begun must also load.
		UTF8:              cbor.UTF8DecodeInvalid,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: extra,
	}
}

// must unwraps what can't fail: constant options, and the coding of our own structs.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func encode(s *coatcheck.Session) ([]byte, error) {
	data, err := encMode.Marshal(record{
		Version:           recordVersion,
		Tenant:            s.Tenant,
		Provider:          s.Provider,
		State:             uint8(s.State),
		Issuer:            s.Identity.Issuer,
		Subject:           s.Identity.Subject,
		Email:             s.Identity.Email,
		EmailVerified:     s.Identity.EmailVerified,
		PreferredUsername: s.Identity.PreferredUsername,
		Name:              s.Identity.Name,
		Groups:            s.Identity.Groups,
		ProviderSID:       s.ProviderSID,
		IDToken:           s.Tokens.ID.Reveal(),
		AccessToken:       s.Tokens.Access.Reveal(),
		RefreshToken:      s.Tokens.Refresh.Reveal(),
		AccessExpiry:      millis(s.Tokens.AccessExpiry),
		AuthTime:          millis(s.AuthTime),
		Created:           millis(s.Created),
		Deadline:          millis(s.Deadline),
		App:               s.Origin.App,
		IP:                s.Origin.IP,
		UserAgent:         s.Origin.UserAgent,
		Node:              s.Origin.Node,
		Attempt:           s.Renewal.Attempt,
		AttemptAt:         millis(s.Renewal.AttemptAt),
		NotBefore:         millis(s.Renewal.NotBefore),
		Failures:          s.Renewal.Failures,
		Checked:           millis(s.Renewal.Checked),
	})
	if err == nil && len(s.Unknown) > 0 {
		data, err = join(data, s.Unknown)
	}
	if err != nil {
		return nil, fmt.Errorf("session: encode record: %w", err)
	}
	return data, nil
}

// decode reads an opened record. It returns errRecordVersion for one of another
// version.
func decode(data []byte) (*coatcheck.Session, error) {
	var r record
	var unknown []byte
	err := strictMode.Unmarshal(data, &r)
	if later := (*cbor.UnknownFieldError)(nil); errors.As(err, &later) {
		var known []byte
		if known, unknown, err = split(data); err == nil {
			err = strictMode.Unmarshal(known, &r)
		}
	}
	if err != nil || r.Version != recordVersion {
		// What another version says may not fit our fields, so look at the version alone.
		var head struct {
			Version int `cbor:"0,keyasint"`
		}
		if cbor.Unmarshal(data, &head) == nil && head.Version != recordVersion {
			return nil, fmt.Errorf("session: %w: %d", errRecordVersion, head.Version)
		}
		// cbor's error may quote what it read.
		return nil, errors.New("session: decode record: malformed")
	}
	if r.State > uint8(coatcheck.Authenticated) {
		// States are ordered: one we don't know would pass for more than any we know.
		return nil, fmt.Errorf("session: decode record: unknown state %d", r.State)
	}
	return &coatcheck.Session{
		Tenant:   r.Tenant,
		Provider: r.Provider,
		State:    coatcheck.State(r.State),
		Identity: coatcheck.Identity{
			Issuer:            r.Issuer,
			Subject:           r.Subject,
			Email:             r.Email,
			EmailVerified:     r.EmailVerified,
			PreferredUsername: r.PreferredUsername,
			Name:              r.Name,
			Groups:            r.Groups,
		},
		ProviderSID: r.ProviderSID,
		Tokens: coatcheck.Tokens{
			ID:           coatcheck.Secret(r.IDToken),
			Access:       coatcheck.Secret(r.AccessToken),
			Refresh:      coatcheck.Secret(r.RefreshToken),
			AccessExpiry: fromMillis(r.AccessExpiry),
		},
		Renewal: coatcheck.Renewal{
			Attempt:   r.Attempt,
			AttemptAt: fromMillis(r.AttemptAt),
			NotBefore: fromMillis(r.NotBefore),
			Failures:  r.Failures,
			Checked:   fromMillis(r.Checked),
		},
		Origin:   coatcheck.Origin{App: r.App, IP: r.IP, UserAgent: r.UserAgent, Node: r.Node},
		AuthTime: fromMillis(r.AuthTime),
		Created:  fromMillis(r.Created),
		Deadline: fromMillis(r.Deadline),
		Unknown:  unknown,
	}, nil
}

// split takes the fields that record doesn't have out of a record's coding. It is an error
// if there are none: then a field's name is no number, though it decodes to one.
func split(data []byte) (known, unknown []byte, err error) {
	var fields map[int64]cbor.RawMessage
	if err := decMode.Unmarshal(data, &fields); err != nil {
		return nil, nil, err
	}
	later := make(map[int64]cbor.RawMessage)
	for number, value := range fields {
		if number < 0 || number >= recordFields {
			later[number] = value
			delete(fields, number)
		}
	}
	if len(later) == 0 {
		return nil, nil, errors.New("a field that is not numbered")
	}
	if known, err = encMode.Marshal(fields); err != nil {
		return nil, nil, err
	}
	unknown, err = encMode.Marshal(later)
	return known, unknown, err
}

// join is split undone.
func join(known, unknown []byte) ([]byte, error) {
	var fields, ours map[int64]cbor.RawMessage
	if err := errors.Join(decMode.Unmarshal(unknown, &fields), decMode.Unmarshal(known, &ours)); err != nil {
		return nil, err
	}
	maps.Copy(fields, ours)
	return encMode.Marshal(fields)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
