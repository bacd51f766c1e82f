package session

import (
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// An Entry is a session as the registry lists it: what people who run a site may see of
// it. There is nothing secret in it.
type Entry struct {
	Ref      coatcheck.Ref
	Tenant   string
	Provider string
	Issuer   string
	Subject  string
	SID      string // the provider's own session id; empty where it sends none, or a very long one
	State    coatcheck.State
	Origin   coatcheck.Origin
	Started  time.Time // by the store's clock, as Seen and Expires
	Seen     time.Time // the last use that was written down
	Expires  time.Time // the idle end, if nobody uses it
	Deadline time.Time // the absolute end
	// Ending says why the session is being ended; empty while it lives.
	Ending coatcheck.Reason

	verifier []byte
	listed   store.Entry
}

// description is what the registry keeps of an entry beside its names: CBOR with small
// integer keys, as in record. All of it can be made anew from the record, and nobody but the
// node that began the session writes it, unless the registry has lost it: Renew leaves that of
// a listed entry alone. So a node takes nothing away from what one of a later version wrote.
type description struct {
	Version   int    `cbor:"0,keyasint"`
	Provider  string `cbor:"1,keyasint"`
	Issuer    string `cbor:"2,keyasint"`
	Subject   string `cbor:"3,keyasint"`
	SID       string `cbor:"4,keyasint,omitempty"`
	State     uint8  `cbor:"5,keyasint"`
	App       string `cbor:"6,keyasint,omitempty"`
	IP        string `cbor:"7,keyasint,omitempty"`
	UserAgent string `cbor:"8,keyasint,omitempty"`
	Node      string `cbor:"9,keyasint,omitempty"`
	Deadline  int64  `cbor:"10,keyasint"`
	Verifier  []byte `cbor:"11,keyasint"`
	Created   int64  `cbor:"12,keyasint,omitempty"` // the registry says when it was listed, perhaps again
}

const (
	descriptionVersion = 1
	// maxSID bounds what is described of a provider's session id, in bytes. It is found by
	// its hash, whatever its length.
	maxSID = 256
)

// listing returns the entry of a session as it is given to the registry.
func (m *Manager) listing(s *coatcheck.Session, handle string, verifier []byte) store.Entry {
	d := description{
		Version:   descriptionVersion,
		Provider:  s.Provider,
		Issuer:    s.Identity.Issuer,
		Subject:   s.Identity.Subject,
		SID:       s.ProviderSID,
		State:     uint8(s.State),
		App:       s.Origin.App,
		IP:        s.Origin.IP,
		UserAgent: s.Origin.UserAgent,
		Node:      s.Origin.Node,
		Deadline:  millis(s.Deadline),
		Verifier:  verifier,
		Created:   millis(s.Created),
	}
	if len(d.SID) > maxSID {
		d.SID = ""
	}
	e := store.Entry{
		ID:     string(coatcheck.MakeRef(handle)),
		Tenant: m.tenantName(),
		User:   m.userName(s.Identity.Issuer, s.Identity.Subject),
		Record: handle,
		Data:   must(encMode.Marshal(d)),
	}
	if s.Origin.App != "" {
		e.App = m.name("app", s.Origin.App)
	}
	if s.ProviderSID != "" {
		e.SID = m.sidName(s.Identity.Issuer, s.ProviderSID)
	}
	return e
}

// ErrUndescribed: what the registry has of a session is of another version of coatcheck, or
// broken. The session may be alive and well, and can be revoked.
var ErrUndescribed = errors.New("session: the description of a listed session is of another version of coatcheck, or broken")

// describe reads an entry that the registry returned. With ErrUndescribed the Entry says what
// the registry itself knows.
func (m *Manager) describe(listed store.Entry) (Entry, error) {
	e := Entry{
		Ref:     coatcheck.Ref(listed.ID),
		Tenant:  m.Tenant,
		Started: listed.Started,
		Seen:    listed.Seen,
		Expires: listed.Expires.Add(-listedLonger),
		Ending:  coatcheck.Reason(listed.Ending),
		listed:  listed,
	}
	var d description
	if err := decMode.Unmarshal(listed.Data, &d); err != nil || d.Version != descriptionVersion || d.State > uint8(coatcheck.Authenticated) {
		return e, ErrUndescribed
	}
	e.Provider, e.Issuer, e.Subject, e.SID = d.Provider, d.Issuer, d.Subject, d.SID
	e.State = coatcheck.State(d.State)
	e.Origin = coatcheck.Origin{App: d.App, IP: d.IP, UserAgent: d.UserAgent, Node: d.Node}
	e.Deadline = fromMillis(d.Deadline)
	e.verifier = d.Verifier
	if d.Created != 0 {
		e.Started = fromMillis(d.Created)
	}
	return e, nil
}

// The names under which the registry keeps things are keyed hashes: they tell nothing,
// nobody can guess them, and no text of a provider's or a browser's gets into a key.

func (m *Manager) tenantName() string { return m.name("tenant") }

func (m *Manager) userName(issuer, subject string) string { return m.name("user", issuer, subject) }

func (m *Manager) sidName(issuer, sid string) string { return m.name("sid", issuer, sid) }

func (m *Manager) name(purpose string, parts ...string) string {
	sum := m.Ring.Index(purpose, append([]string{m.Tenant}, parts...)...)
	return hex.EncodeToString(sum[:16])
}

// legibleUserAgent is what is kept of a User-Agent header: valid UTF-8, not too long.
func legibleUserAgent(s string) string {
	if len(s) > coatcheck.MaxUserAgent {
		s = s[:coatcheck.MaxUserAgent]
	}
	return strings.ToValidUTF8(s, "")
}
