package seal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// kid names a key of the ring. It is computed from the key, so two nodes that call
// different keys by one name can't exist.
type kid [kidSize]byte

func (k kid) String() string { return hex.EncodeToString(k[:]) }

type key struct {
	kid      kid
	secret   [keySize]byte
	created  time.Time
	activate time.Time // zero: at once
}

type retiredKey struct {
	kid kid
	at  time.Time
}

// A Ring is the server's keys: one seals, all of them open. Every node of a cluster has
// the same ring. It is safe for concurrent use; Replace and Promote change it for
// everybody who holds it, and no other method waits for them.
type Ring struct {
	index [keySize]byte // of Index; stays when the keys rotate

	mu   sync.Mutex // held by whoever changes keys
	keys atomic.Pointer[keySet]
}

// A keySet is immutable.
type keySet struct {
	keys    []key // newest first: by activate, then as they stand in the file
	seals   int   // the index of the one that seals
	retired []retiredKey
}

// Errors of Replace that callers may want to tell apart.
var (
	// ErrOtherIndex: the two rings have different index keys, so one of them finds none of
	// the other's sessions.
	ErrOtherIndex = errors.New("seal: another index_key")
	// ErrKeyMissing: the key that seals now is neither among the keys of the next ring nor
	// among those it has retired, so what was sealed a moment ago would be unknown.
	ErrKeyMissing = errors.New("seal: the key that seals now is missing")
)

// A Key is what may be told of a key.
type Key struct {
	ID      string
	Created time.Time
	// ActivateAt is from when the key may seal; zero for at once.
	ActivateAt time.Time
}

// A RetiredKey is one that was taken out of use.
type RetiredKey struct {
	ID string
	At time.Time
}

// NewRing returns a ring of one random key, and a random index key.
func NewRing() *Ring {
	r := &Ring{}
	rand.Read(r.index[:]) // never fails (crypto/rand)
	r.keys.Store(newKeySet([]key{newKey(time.Time{})}, nil))
	return r
}

func newKey(activate time.Time) key {
	k := key{created: time.Now().UTC().Truncate(time.Second), activate: activate}
	rand.Read(k.secret[:])
	k.kid = fingerprint(k.secret[:])
	return k
}

func fingerprint(secret []byte) kid {
	sum := sha256.Sum256(append([]byte("coatcheck key id\x00"), secret...))
	return kid(sum[:kidSize])
}

// newKeySet sorts keys, of which the oldest seals until somebody promotes another one.
func newKeySet(keys []key, retired []retiredKey) *keySet {
	slices.SortStableFunc(keys, func(a, b key) int { return b.activate.Compare(a.activate) })
	return &keySet{keys: keys, seals: len(keys) - 1, retired: retired}
}

// Rotated returns a ring with one more key, which opens at once and may seal from
// activate on. r stays as it is.
func (r *Ring) Rotated(activate time.Time) (*Ring, error) {
	s := r.keys.Load()
	if len(s.keys) == maxKeys {
		return nil, fmt.Errorf("seal: the ring has %d keys, and no more can be kept: retire one", maxKeys)
	}
	return r.with(newKeySet(append([]key{newKey(activate.UTC().Truncate(time.Second))}, s.keys...), s.retired)), nil
}

// Retired returns a ring without the key of that ID, which is noted as retired: what it
// has sealed is known to be over, and not just unknown. r stays as it is. It fails for a
// key that the ring does not have, and for its only one.
func (r *Ring) Retired(id string, at time.Time) (*Ring, error) {
	s := r.keys.Load()
	i := slices.IndexFunc(s.keys, func(k key) bool { return k.kid.String() == id })
	switch {
	case i < 0:
		return nil, fmt.Errorf("seal: the ring has no key %q", id)
	case len(s.keys) == 1:
		return nil, fmt.Errorf("seal: %s is the only key of the ring", id)
	}
	keys := slices.Delete(slices.Clone(s.keys), i, i+1)
	retired := append(slices.Clone(s.retired), retiredKey{s.keys[i].kid, at.UTC().Truncate(time.Second)})
	// The oldest of too many is long forgotten by everybody.
	retired = retired[max(0, len(retired)-maxRetired):]
	return r.with(newKeySet(keys, retired)), nil
}

func (r *Ring) with(s *keySet) *Ring {
	next := &Ring{index: r.index}
	next.keys.Store(s)
	return next
}

// Replace gives the ring the keys of next, for all who hold it. The key that seals goes on
// to seal, unless next has retired it: then it is the oldest of next's. Replace changes
// nothing if it fails, with ErrOtherIndex or ErrKeyMissing.
func (r *Ring) Replace(next *Ring) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if subtle.ConstantTimeCompare(r.index[:], next.index[:]) != 1 {
		return ErrOtherIndex
	}
	seals := r.keys.Load().current().kid
	s := *next.keys.Load()
	switch _, err := s.find(seals); {
	case err == nil:
		s.seals = slices.IndexFunc(s.keys, func(k key) bool { return k.kid == seals })
	case errors.Is(err, ErrRetired):
		s.seals = len(s.keys) - 1
	default:
		return fmt.Errorf("%w: %s", ErrKeyMissing, seals)
	}
	r.keys.Store(&s)
	return nil
}

// Promote lets the newest key seal whose time has come and of which known says that all
// who have to open what it seals have it. known is asked for keys that are newer than the
// one that seals, the newest first; where it is nil there is nobody to wait for. Promote
// tells whether another key seals now. It never goes back to an older one.
func (r *Ring) Promote(now time.Time, known func(id string) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := *r.keys.Load()
	for i, k := range s.keys[:s.seals] {
		if !k.activate.After(now) && (known == nil || known(k.kid.String())) {
			s.seals = i
			r.keys.Store(&s)
			return true
		}
	}
	return false
}

// Current returns the ID of the key that seals.
func (r *Ring) Current() string { return r.keys.Load().current().kid.String() }

// KeyIDs returns the IDs of the ring's keys, the newest first. An ID tells nothing about
// the key.
func (r *Ring) KeyIDs() []string {
	keys := r.keys.Load().keys
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.kid.String()
	}
	return ids
}

// Keys returns what may be told of the ring's keys, the newest first.
func (r *Ring) Keys() []Key {
	keys := r.keys.Load().keys
	list := make([]Key, len(keys))
	for i, k := range keys {
		list[i] = Key{k.kid.String(), k.created, k.activate}
	}
	return list
}

// RetiredKeys returns the keys that were taken out of use, in the order of the file.
func (r *Ring) RetiredKeys() []RetiredKey {
	retired := r.keys.Load().retired
	list := make([]RetiredKey, len(retired))
	for i, k := range retired {
		list[i] = RetiredKey{k.kid.String(), k.at}
	}
	return list
}

// Outdated tells whether a record was sealed by a key that is older than the one that
// seals now, so that it should be sealed anew.
func (r *Ring) Outdated(sealed []byte) bool {
	id, ok := ticketKey(sealed)
	if !ok {
		return false
	}
	s := r.keys.Load()
	return slices.ContainsFunc(s.keys[s.seals+1:], func(k key) bool { return k.kid == id })
}

// Holds returns nil if the ring has the key that sealed a record, and otherwise ErrRetired,
// ErrUnknownKey or ErrBroken, as OpenRecord would.
func (r *Ring) Holds(sealed []byte) error {
	id, ok := ticketKey(sealed)
	if !ok {
		return ErrBroken
	}
	_, err := r.find(id)
	return err
}

// Format implements fmt.Formatter: a ring shows the IDs of its keys, whatever the verb.
func (r *Ring) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "key ring %v", r.KeyIDs()) }

// Index returns a keyed hash of parts, for names in a store that must tell nothing and
// that nobody else can make: equal for equal parts alone, whatever stands in them. purpose
// keeps hashes of different things apart. It is as secret as what is done with it; the key
// can't be told from it. It stays the same when keys rotate.
func (r *Ring) Index(purpose string, parts ...string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, r.index[:])
	for _, part := range append([]string{purpose}, parts...) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		mac.Write(size[:])
		mac.Write([]byte(part))
	}
	return [sha256.Size]byte(mac.Sum(nil))
}

func (r *Ring) current() *key { return r.keys.Load().current() }

func (r *Ring) find(id kid) (*key, error) { return r.keys.Load().find(id) }

func (s *keySet) current() *key { return &s.keys[s.seals] }

// find returns ErrRetired or ErrUnknownKey.
func (s *keySet) find(id kid) (*key, error) {
	for i := range s.keys {
		if s.keys[i].kid == id {
			return &s.keys[i], nil
		}
	}
	if slices.ContainsFunc(s.retired, func(k retiredKey) bool { return k.kid == id }) {
		return nil, ErrRetired
	}
	return nil, ErrUnknownKey
}
