package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// kid names a key of the ring. It is computed from the key, so two nodes that call
// different keys by one name can't exist.
type kid [kidSize]byte

func (k kid) String() string { return hex.EncodeToString(k[:]) }

type key struct {
	kid     kid
	secret  [keySize]byte
	created time.Time
}

// A Ring is the server's keys: the first seals, all of them open. It is immutable
// and safe for concurrent use. Every node of a cluster has the same ring.
type Ring struct {
	keys  []key
	index [keySize]byte // of Index; stays when the keys rotate
}

// maxKeys bounds a ring. Rotation keeps a few old keys for as long as sessions live.
const maxKeys = 64

// ErrNoFile: the file that should hold the key ring does not exist.
var ErrNoFile = errors.New("seal: no key ring file")

// ringFile is the JSON form: the current key first.
type ringFile struct {
	Version  int       `json:"version"`
	Keys     []keyFile `json:"keys"`
	IndexKey string    `json:"index_key"` // 32 bytes, unpadded base64url
}

type keyFile struct {
	Key     string    `json:"key"` // 32 bytes, unpadded base64url
	Created time.Time `json:"created"`
}

// NewRing returns a ring of one random key, and a random index key.
func NewRing() *Ring {
	k := key{created: time.Now().UTC().Truncate(time.Second)}
	rand.Read(k.secret[:]) // never fails (crypto/rand)
	k.kid = fingerprint(k.secret[:])
	r := &Ring{keys: []key{k}}
	rand.Read(r.index[:])
	return r
}

func fingerprint(secret []byte) kid {
	sum := sha256.Sum256(append([]byte("coatcheck key id\x00"), secret...))
	return kid(sum[:kidSize])
}

// ParseRing reads the JSON form of a ring. No error shows a key.
func ParseRing(data []byte) (*Ring, error) {
	const op = "seal: key ring"
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var f ringFile
	if err := dec.Decode(&f); err != nil {
		// encoding/json may quote a string that has the wrong type.
		return nil, fmt.Errorf(`%s: not a key ring: want {"version": 1, "keys": [{"key": "…", "created": "…"}], "index_key": "…"}`, op)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: text after the end", op)
	}
	switch {
	case f.Version != 1:
		return nil, fmt.Errorf("%s: version is %d, this coatcheck reads version 1", op, f.Version)
	case len(f.Keys) == 0:
		return nil, fmt.Errorf("%s: no keys", op)
	case len(f.Keys) > maxKeys:
		return nil, fmt.Errorf("%s: %d keys, at most %d can be kept", op, len(f.Keys), maxKeys)
	}
	r := &Ring{}
	for i, kf := range f.Keys {
		secret, ok := decodeBase64(kf.Key)
		if !ok || len(secret) != keySize {
			return nil, fmt.Errorf("%s: keys[%d] is not %d bytes in unpadded base64url", op, i, keySize)
		}
		if bytes.Equal(secret, make([]byte, keySize)) {
			return nil, fmt.Errorf("%s: keys[%d] is all zeros", op, i)
		}
		k := key{kid: fingerprint(secret), secret: [keySize]byte(secret), created: kf.Created}
		if _, dup := r.find(k.kid); dup {
			return nil, fmt.Errorf("%s: keys[%d] stands there twice", op, i)
		}
		r.keys = append(r.keys, k)
	}
	if f.IndexKey == "" {
		return nil, fmt.Errorf("%s: it has no index_key: coatcheck key new makes a ring that has one, and with a new ring everybody signs in again: see docs/operations.md, The key ring", op)
	}
	index, ok := decodeBase64(f.IndexKey)
	if !ok || len(index) != keySize {
		return nil, fmt.Errorf("%s: index_key is not %d bytes in unpadded base64url", op, keySize)
	}
	if bytes.Equal(index, make([]byte, keySize)) {
		return nil, fmt.Errorf("%s: index_key is all zeros", op)
	}
	r.index = [keySize]byte(index)
	return r, nil
}

// ReadRing reads a ring from a file. It returns an error that wraps ErrNoFile if the
// file does not exist.
func ReadRing(file string) (*Ring, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoFile, file)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	r, err := ParseRing(data)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, file)
	}
	return r, nil
}

// Marshal returns the JSON form of the ring, which holds its secrets.
func (r *Ring) Marshal() []byte {
	f := ringFile{Version: 1, IndexKey: base64.RawURLEncoding.EncodeToString(r.index[:])}
	for _, k := range r.keys {
		f.Keys = append(f.Keys, keyFile{
			Key:     base64.RawURLEncoding.EncodeToString(k.secret[:]),
			Created: k.created,
		})
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		panic(err) // strings and times always marshal
	}
	return append(data, '\n')
}

// WriteNew writes the ring to a file that must not exist yet, readable by its owner
// alone. The file appears whole or not at all, so that a second process that starts
// at the same moment never reads half a ring.
func (r *Ring) WriteNew(file string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".keys-*") // mode 0600
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(r.Marshal())
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Link(tmp.Name(), file) // fails if the file exists
	}
	if err != nil {
		return fmt.Errorf("seal: write key ring: %w", err)
	}
	return nil
}

// KeyIDs returns the names of the ring's keys, the current one first. A name tells
// nothing about the key.
func (r *Ring) KeyIDs() []string {
	ids := make([]string, len(r.keys))
	for i, k := range r.keys {
		ids[i] = k.kid.String()
	}
	return ids
}

// Format implements fmt.Formatter: a ring shows the names of its keys, whatever the
// verb.
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

func (r *Ring) current() *key { return &r.keys[0] }

func (r *Ring) find(id kid) (*key, bool) {
	for i := range r.keys {
		if r.keys[i].kid == id {
			return &r.keys[i], true
		}
	}
	return nil, false
}
