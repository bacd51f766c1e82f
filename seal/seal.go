// Package seal encrypts what leaves a node: records in a store, and values in
// cookies. Everything is bound to its place, so that a value moved to another
// tenant, purpose, cookie or store key is garbage, and everything names the one key
// that opens it, so that keys can be rotated and none is ever tried in turn.
//
// Two forms exist. A record ([Ring.SealRecord]) is opened by a ticket's secret
// together with a key of the ring: neither the store nor the cookie nor the ring
// alone suffices. One part of it may be sealed to the ring alone besides, in escrow
// ([Ring.OpenEscrow]). A value ([Ring.SealValue]) is opened by the ring alone.
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
	// ErrUnknownKey: the value names a key that is not in the ring, or says that it has a
	// later format. Another node may have the key or know the format: nothing is known of
	// the value but that this node can't open it.
	ErrUnknownKey = errors.New("seal: sealed by a key that is not in this ring, or in a later format")
	// ErrRetired: the value was sealed by a key that was taken out of use. No node opens it
	// any more.
	ErrRetired = errors.New("seal: sealed by a key that is retired")
	// ErrBroken: the value is not one of ours, was changed, or belongs to another
	// place. The causes are not told apart.
	ErrBroken = errors.New("seal: does not open")
)

var errNoEscrow = errors.New("seal: record without escrow")

// A Place says where a sealed value belongs. It is not stored but authenticated:
// whoever opens a value must know where it was meant to be.
type Place struct {
	Purpose string // what it is for, as in "session" or "login"
	Tenant  string // whose it is
	Cookie  string // the name of the cookie it hangs on
	Key     string // the store key of a record; "" for a cookie's value
}

const (
	// formatPlain is the format of values, and of records without escrow.
	formatPlain = 1
	// formatEscrow is formatPlain with one more section, between wraps and body: the size of
	// what follows, and what was escrowed in the form of a value.
	formatEscrow = 2

	keySize    = 32
	kidSize    = 8
	commitSize = 32
	nonceSize  = 12
	tagSize    = 16
	saltSize   = 24

	// wrapTicket marks the wrap that a ticket's secret opens. Others may stand beside it.
	wrapTicket = 1
	wrapSize   = 1 + kidSize + commitSize + nonceSize + keySize + tagSize

	recordHead  = 2 // version, number of wraps
	maxWraps    = 8
	recordExtra = nonceSize + tagSize
	escrowHead  = 4 // size of the section behind it
	valueHead   = 1 + kidSize + saltSize + commitSize
)

// tuple is the unambiguous form of a place, with what the key schedule adds to it:
// every part behind its length. It is both the HKDF info and the additional data.
func (p Place) tuple(format byte, part string, kid kid) []byte {
	b := make([]byte, 0, 32+len(p.Purpose)+len(p.Tenant)+len(p.Cookie)+len(p.Key))
	b = append(b, format)
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
// data key under a key made of the ticket's secret and the key of the ring that seals now.
// The secret must be random and belong to this record alone.
//
// Unless it is empty, escrowed is sealed besides so that OpenEscrow opens it without the
// secret. Nodes of a version that does not know of escrow do not open such a record.
func (r *Ring) SealRecord(place Place, secret, plaintext, escrowed []byte) ([]byte, error) {
	k, format := r.current(), byte(formatPlain)
	var section []byte // of what is in escrow
	if len(escrowed) > 0 {
		sealed, err := k.sealValue(place, formatEscrow, "escrow", escrowed)
		if err != nil {
			return nil, err
		}
		format = formatEscrow
		section = binary.BigEndian.AppendUint32(make([]byte, 0, escrowHead+len(sealed)), uint32(len(sealed)))
		section = append(section, sealed...)
	}
	info := place.tuple(format, "wrap", k.kid)
	kek, commit, err := derive(secret, k.secret[:], info)
	if err != nil {
		return nil, err
	}
	var dataKey [keySize]byte
	rand.Read(dataKey[:]) // never fails (crypto/rand)
	body, err := newGCM(dataKey[:])
	if err != nil {
		return nil, err
	}

	out := make([]byte, 0, recordHead+wrapSize+len(section)+recordExtra+len(plaintext))
	out = append(out, format, 1, wrapTicket)
	out = append(out, k.kid[:]...)
	out = append(out, commit...)
	out = sealRandom(out, kek, dataKey[:], info)
	out = append(out, section...)
	return sealRandom(out, body, plaintext, bodyInfo(place, format, section)), nil
}

// bodyInfo is the additional data of a body. The section with what is in escrow is a part
// of it, so that it can't be taken from another record, nor left out.
func bodyInfo(place Place, format byte, section []byte) []byte {
	return append(place.tuple(format, "body", kid{}), section...)
}

// OpenRecord opens what SealRecord made at the same place with the same secret. It returns
// ErrUnknownKey, ErrRetired or ErrBroken.
func (r *Ring) OpenRecord(place Place, secret, sealed []byte) ([]byte, error) {
	rec, err := parseRecord(sealed)
	if err != nil {
		return nil, err
	}
	wrap, ok := rec.ticketWrap()
	if !ok {
		return nil, ErrBroken
	}
	dataKey, err := r.unwrap(place, rec.format, secret, wrap)
	if err != nil {
		return nil, err
	}
	aead, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	return openRandom(aead, rec.body, bodyInfo(place, rec.format, rec.section))
}

// OpenEscrow opens what SealRecord put in escrow at the same place. It returns ErrUnknownKey,
// ErrRetired, ErrBroken, or another error where nothing is in escrow. Only OpenRecord can
// tell whether the body beside it was changed.
func (r *Ring) OpenEscrow(place Place, sealed []byte) ([]byte, error) {
	rec, err := parseRecord(sealed)
	if err != nil {
		return nil, err
	}
	if rec.format != formatEscrow {
		return nil, errNoEscrow
	}
	return r.openValue(place, formatEscrow, "escrow", rec.section[escrowHead:])
}

// KeyID returns the ID of the key that a record was sealed by, as far as its head tells:
// nothing is opened. It is not ok if the head is none of ours, or in a later format.
func KeyID(sealed []byte) (id string, ok bool) {
	k, ok := ticketKey(sealed)
	if !ok {
		return "", false
	}
	return k.String(), true
}

func ticketKey(sealed []byte) (kid, bool) {
	rec, err := parseRecord(sealed)
	if err != nil {
		return kid{}, false
	}
	wrap, ok := rec.ticketWrap()
	if !ok {
		return kid{}, false
	}
	return kid(wrap[:kidSize]), true
}

// A sealedRecord is a record's parts, none of them verified.
type sealedRecord struct {
	format  byte
	wraps   []byte // whole ones
	section []byte // with its size; nil in formatPlain
	body    []byte // nonce, ciphertext and tag
}

// parseRecord returns ErrUnknownKey for a later format, and ErrBroken.
func parseRecord(sealed []byte) (sealedRecord, error) {
	if len(sealed) < recordHead {
		return sealedRecord{}, ErrBroken
	}
	rec := sealedRecord{format: sealed[0]}
	if rec.format > formatEscrow { // a later coatcheck runs beside this one
		return sealedRecord{}, ErrUnknownKey
	}
	wraps := int(sealed[1])
	if rec.format < formatPlain || wraps > maxWraps || len(sealed) < recordHead+wraps*wrapSize {
		return sealedRecord{}, ErrBroken
	}
	rec.wraps, rec.body = sealed[recordHead:][:wraps*wrapSize], sealed[recordHead+wraps*wrapSize:]
	if rec.format == formatEscrow {
		if len(rec.body) < escrowHead {
			return sealedRecord{}, ErrBroken
		}
		size := uint64(binary.BigEndian.Uint32(rec.body))
		if size > uint64(len(rec.body)-escrowHead) {
			return sealedRecord{}, ErrBroken
		}
		rec.section, rec.body = rec.body[:escrowHead+size], rec.body[escrowHead+size:]
	}
	if len(rec.body) < recordExtra {
		return sealedRecord{}, ErrBroken
	}
	return rec, nil
}

// ticketWrap returns the wrap that the ticket's secret opens, without its mark.
func (rec sealedRecord) ticketWrap() ([]byte, bool) {
	for wraps := rec.wraps; len(wraps) > 0; wraps = wraps[wrapSize:] {
		if wraps[0] == wrapTicket {
			return wraps[1:wrapSize], true
		}
	}
	return nil, false
}

// unwrap returns the data key. The wrap names one key of the ring, and only that one
// is tried.
func (r *Ring) unwrap(place Place, format byte, secret, wrap []byte) ([]byte, error) {
	k, err := r.find(kid(wrap[:kidSize]))
	if err != nil {
		return nil, err
	}
	info := place.tuple(format, "wrap", k.kid)
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
// has a key of its own, derived from the key of the ring that seals now and a random salt,
// so the number of values that one ring key may seal is not bounded by GCM's nonces.
func (r *Ring) SealValue(place Place, plaintext []byte) (string, error) {
	sealed, err := r.current().sealValue(place, formatPlain, "value", plaintext)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sealed), nil
}

// sealValue seals something to the ring alone. part keeps apart what it is a part of.
func (k *key) sealValue(place Place, format byte, part string, plaintext []byte) ([]byte, error) {
	info := place.tuple(format, part, k.kid)
	var salt [saltSize]byte
	rand.Read(salt[:])
	aead, commit, err := derive(k.secret[:], salt[:], info)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, valueHead+tagSize+len(plaintext))
	out = append(out, format)
	out = append(out, k.kid[:]...)
	out = append(out, salt[:]...)
	out = append(out, commit...)
	// The key serves this one message, so the nonce may be constant.
	return aead.Seal(out, make([]byte, nonceSize), plaintext, info), nil
}

// OpenValue opens what SealValue made at the same place. It returns ErrUnknownKey,
// ErrRetired or ErrBroken.
func (r *Ring) OpenValue(place Place, value string) ([]byte, error) {
	sealed, ok := decodeBase64(value)
	if !ok {
		return nil, ErrBroken
	}
	return r.openValue(place, formatPlain, "value", sealed)
}

// openValue opens what sealValue made of the same part.
func (r *Ring) openValue(place Place, format byte, part string, sealed []byte) ([]byte, error) {
	switch {
	case len(sealed) < valueHead+tagSize:
		return nil, ErrBroken
	case sealed[0] > formatEscrow: // a later coatcheck runs beside this one
		return nil, ErrUnknownKey
	case sealed[0] != format:
		return nil, ErrBroken
	}
	k, err := r.find(kid(sealed[1 : 1+kidSize]))
	if err != nil {
		return nil, err
	}
	info := place.tuple(format, part, k.kid)
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
