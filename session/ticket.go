package session

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

const (
	ticketIDSize = 16 // random bytes: 128 bits (OWASP ASVS 7.2.3)
	secretSize   = 16
)

// A ticket is what the browser holds of a stored session. In the cookie it reads
//
//	{CookieName}-{id}.{secret}
//
// The part before the dot is the handle, under which the store keeps the record. The
// secret opens the record and is known to the browser alone.
type ticket struct {
	handle string
	secret [secretSize]byte
}

var errNotATicket = errors.New("not a ticket")

var base64url = base64.RawURLEncoding.Strict()

// newTicket returns a fresh random ticket for the cookie of that name. Neither half is
// ever taken from a request.
func newTicket(cookieName string) ticket {
	var id [ticketIDSize]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	t := ticket{handle: cookieName + "-" + hex.EncodeToString(id[:])}
	rand.Read(t.secret[:])
	return t
}

// parseTicket reads a cookie's value. Only the canonical spelling is a ticket: lower
// case hex, base64url without padding and without stray bits, this cookie's name. So
// no text but the one we handed out leads to a store key.
func parseTicket(cookieName, value string) (ticket, error) {
	handle, secret, ok := strings.Cut(value, ".")
	if !ok || !isHandle(cookieName, handle) {
		return ticket{}, errNotATicket
	}
	t := ticket{handle: handle}
	if len(secret) != base64url.EncodedLen(secretSize) {
		return ticket{}, errNotATicket
	}
	// Decode skips line breaks, so the length of what it wrote is checked too.
	if n, err := base64url.Decode(t.secret[:], []byte(secret)); err != nil || n != secretSize {
		return ticket{}, errNotATicket
	}
	return t, nil
}

// isHandle tells whether text is the handle of a session of this cookie's name.
func isHandle(cookieName, text string) bool {
	if len(text) != len(cookieName)+1+hex.EncodedLen(ticketIDSize) ||
		text[:len(cookieName)] != cookieName || text[len(cookieName)] != '-' {
		return false
	}
	for _, c := range []byte(text[len(cookieName)+1:]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// cookieValue returns the ticket as it stands in the cookie.
func (t ticket) cookieValue() string {
	return t.handle + "." + base64url.EncodeToString(t.secret[:])
}
