package session

import (
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck"
)

// recordVersion is the version of the record's layout. A node that meets another one
// does not know what the session is; it does not call it invalid, since a node of
// another version wrote it and can read it.
const recordVersion = 1

var errRecordVersion = errors.New("record of another version of coatcheck")

// record is a session as it is sealed into the store: CBOR with small integer keys.
// Numbers are never used again for another meaning. Times are Unix milliseconds, 0
// for none.
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
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:   cbor.DupMapKeyEnforcedAPF,
		IndefLength: cbor.IndefLengthForbidden,
		// What a provider sends need not be UTF-8 (a form-encoded token answer, say), and
		// a session that could be begun must also load.
		UTF8:              cbor.UTF8DecodeInvalid,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

// must unwraps what can only fail if the options above contradict each other.
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
	})
	if err != nil {
		return nil, fmt.Errorf("session: encode record: %w", err)
	}
	return data, nil
}

// decode reads an opened record. It returns errRecordVersion for one of another
// version.
func decode(data []byte) (*coatcheck.Session, error) {
	var r record
	if err := decMode.Unmarshal(data, &r); err != nil || r.Version != recordVersion {
		// A later version may have fields we don't know, so look at the version alone.
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
		Origin:   coatcheck.Origin{App: r.App, IP: r.IP, UserAgent: r.UserAgent, Node: r.Node},
		AuthTime: fromMillis(r.AuthTime),
		Created:  fromMillis(r.Created),
		Deadline: fromMillis(r.Deadline),
	}, nil
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
