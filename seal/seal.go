// Package seal encrypts what leaves a node: records in a store, and values in
// cookies. Everything is bound to its place, so that a value moved to another
// tenant, purpose, cookie or store key is garbage, and everything names the one key
// that opens it, so that keys can be rotated and none is ever tried in turn.
//
// Two forms exist. A record ([Ring.SealRecord]) is opened by a ticket's secret
// together with a key of the ring: neither the store nor the cookie nor the ring
// alone suffices. A value ([Ring.SealValue]) is opened by the ring alone.
//
// Both are AES-256-GCM under keys from HKDF-SHA256 (RFC 5869), with a key
// commitment, since GCM alone lets a crafted ciphertext open under two keys.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors that callers decide on.
var (
	// ErrUnknownKey: the value names a key that is not in the ring, or a record says
	// that it has a later format. Another node may have the key or know the format:
	// nothing is known of the value but that this node can't open it.
	ErrUnknownKey = errors.New("seal: sealed by a key that is not in this ring, or in a later format")
	// ErrBroken: the value is not one of ours, was changed, or belongs to another
	// place. The causes are not told apart.
	ErrBroken = errors.New("seal: does not open")
)

// A Place says where a sealed value belongs. It is not stored but authenticated:
// whoever opens a value must know where it was meant to be.
type Place struct {
	Purpose string // what it is for, as in "session" or "login"
	Tenant  string // whose it is
	Cookie  string // the name of the cookie it hangs on
	Key     string // the store key of a record; "" for a cookie's value
}

const (
	formatVersion = 1

	keySize    = 32
	kidSize    = 8
	commitSize = 32
	nonceSize  = 12
	tagSize    = 16
	saltSize   = 24

	// wrapTicket marks the wrap that a ticket's secret opens. Others will stand
	// beside it for hand-off and escrow.
	wrapTicket = 1
	wrapSize   = 1 + kidSize + commitSize + nonceSize + keySize + tagSize

	recordHead  = 2 // version, number of wraps
	maxWraps    = 8
	recordExtra = nonceSize + tagSize
	valueHead   = 1 + kidSize + saltSize + commitSize
)

// tuple is the unambiguous form of a place, with what the key schedule adds to it:
// every part behind its length. It is both the HKDF info and the additional data.
func (p Place) tuple(part string, kid kid) []byte {
	b := make([]byte, 0, 32+len(p.Purpose)+len(p.Tenant)+len(p.Cookie)+len(p.Key))
	b = append(b, formatVersion)
	for _, s := range [...]string{part, p.Purpose, p.Tenant, p.Cookie, p.Key, string(kid[:])} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// derive returns the cipher for (secret, salt, info), and the commitment to its key.
func derive(secret, salt, info []byte) (cipher.AEAD, []byte, error) {
	okm, err := hkdf.Key(sha256.New, secret, salt, string(info), keySize+commitSize)
	if err != nil {
		return nil, nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := newGCM(okm[:keySize])
	return aead, okm[keySize:], err
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead, nil
}

// SealRecord seals plaintext for the store: the body under a random data key, the
// data key under a key made of the ticket's secret and the ring's current key. The
// secret must be random and belong to this record alone.
func (r *Ring) SealRecord(place Place, secret, plaintext []byte) ([]byte, error) {
	current := r.current()
	info := place.tuple("wrap", current.kid)
	kek, commit, err := derive(secret, current.secret[:], info)
	if err != nil {
		return nil, err
	}
	var dataKey [keySize]byte
	rand.Read(dataKey[:]) // never fails (crypto/rand)
	body, err := newGCM(dataKey[:])
	if err != nil {
		return nil, err
	}

	out := make([]byte, 0, recordHead+wrapSize+recordExtra+len(plaintext))
	out = append(out, formatVersion, 1, wrapTicket)
	out = append(out, current.kid[:]...)
	out = append(out, commit...)
	out = sealRandom(out, kek, dataKey[:], info)
	return sealRandom(out, body, plaintext, place.tuple("body", kid{})), nil
}

// OpenRecord opens what SealRecord made at the same place with the same secret. It
// returns ErrUnknownKey or ErrBroken.
func (r *Ring) OpenRecord(place Place, secret, sealed []byte) ([]byte, error) {
	if len(sealed) < recordHead {
		return nil, ErrBroken
	}
	if sealed[0] > formatVersion { // a later coatcheck runs beside this one
		return nil, ErrUnknownKey
	}
	if sealed[0] != formatVersion {
		return nil, ErrBroken
	}
	wraps := int(sealed[1])
	if wraps > maxWraps || len(sealed) < recordHead+wraps*wrapSize+recordExtra {
		return nil, ErrBroken
	}
	body := sealed[recordHead+wraps*wrapSize:]
	for i := range wraps {
		wrap := sealed[recordHead+i*wrapSize:][:wrapSize]
		if wrap[0] != wrapTicket {
			continue
		}
		dataKey, err := r.unwrap(place, secret, wrap[1:])
		if err != nil {
			return nil, err
		}
		aead, err := newGCM(dataKey)
		if err != nil {
			return nil, err
		}
		return openRandom(aead, body, place.tuple("body", kid{}))
	}
	return nil, ErrBroken
}

// unwrap returns the data key. The wrap names one key of the ring, and only that one
// is tried.
func (r *Ring) unwrap(place Place, secret, wrap []byte) ([]byte, error) {
	id := kid(wrap[:kidSize])
	k, ok := r.find(id)
	if !ok {
		return nil, ErrUnknownKey
	}
	info := place.tuple("wrap", id)
	kek, commit, err := derive(secret, k.secret[:], info)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(commit, wrap[kidSize:kidSize+commitSize]) != 1 {
		return nil, ErrBroken
	}
	return openRandom(kek, wrap[kidSize+commitSize:], info)
}

// SealValue seals plaintext for a cookie or a form field, as base64url. Each value
// has a key of its own, derived from the ring's current key and a random salt, so the
// number of values that one ring key may seal is not bounded by GCM's nonces.
func (r *Ring) SealValue(place Place, plaintext []byte) (string, error) {
	current := r.current()
	info := place.tuple("value", current.kid)
	var salt [saltSize]byte
	rand.Read(salt[:])
	aead, commit, err := derive(current.secret[:], salt[:], info)
	if err != nil {
		return "", err
	}
	out := make([]byte, 0, valueHead+tagSize+len(plaintext))
	out = append(out, formatVersion)
	out = append(out, current.kid[:]...)
	out = append(out, salt[:]...)
	out = append(out, commit...)
	// The key serves this one message, so the nonce may be constant.
	out = aead.Seal(out, make([]byte, nonceSize), plaintext, info)
	return base64.RawURLEncoding.EncodeToString(out), nil
}

// ValueSize returns the length of the text that SealValue makes of n bytes.
func ValueSize(n int) int { return base64.RawURLEncoding.EncodedLen(valueHead + tagSize + n) }

// OpenValue opens what SealValue made at the same place. It returns ErrUnknownKey or
// ErrBroken.
func (r *Ring) OpenValue(place Place, value string) ([]byte, error) {
	sealed, ok := decodeBase64(value)
	if !ok || len(sealed) < valueHead+tagSize || sealed[0] != formatVersion {
		return nil, ErrBroken
	}
	id := kid(sealed[1 : 1+kidSize])
	k, ok := r.find(id)
	if !ok {
		return nil, ErrUnknownKey
	}
	info := place.tuple("value", id)
	rest := sealed[1+kidSize:]
	aead, commit, err := derive(k.secret[:], rest[:saltSize], info)
	if err != nil {
		return nil, err
	}
	rest = rest[saltSize:]
	if subtle.ConstantTimeCompare(commit, rest[:commitSize]) != 1 {
		return nil, ErrBroken
	}
	plaintext, err := aead.Open(nil, make([]byte, nonceSize), rest[commitSize:], info)
	if err != nil {
		return nil, ErrBroken
	}
	return plaintext, nil
}

// decodeBase64 decodes the canonical spelling of unpadded base64url alone: the decoder
// refuses stray bits but skips line breaks, which the length shows.
func decodeBase64(text string) ([]byte, bool) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return data, err == nil && len(text) == base64.RawURLEncoding.EncodedLen(len(data))
}

// sealRandom appends nonce and ciphertext to out, under a random nonce.
func sealRandom(out []byte, aead cipher.AEAD, plaintext, additional []byte) []byte {
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	out = append(out, nonce[:]...)
	return aead.Seal(out, nonce[:], plaintext, additional)
}

// openRandom opens what sealRandom appended; the caller has checked that sealed is at
// least a nonce long.
func openRandom(aead cipher.AEAD, sealed, additional []byte) ([]byte, error) {
	plaintext, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], additional)
	if err != nil {
		return nil, ErrBroken
	}
	return plaintext, nil
}
