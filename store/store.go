// Package store defines what coatcheck asks of a place to keep sessions: sealed
// bytes under opaque keys, with an expiry the place itself enforces; a registry of who
// is signed in; leases; a feed of changes; and a journal of events.
//
// Storage is untrusted with secrets. It sees no token and no ticket's secret, and a
// record is opened under a key that only the ticket's holder and the key ring together
// can make. The names under which the registry keeps its entries are keyed hashes; what
// an entry and an event describe, the person and the device, is there in clear text for
// those who may look at the list.
//
// Each backend is a package below this one, and passes the conformance suite in
// package storetest with real servers.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors that callers decide on. Every other error, a timeout and a cancelled
// context among them, means that the outcome is unknown: the record may be there or
// not, and a write may have happened or not.
var (
	// ErrNotFound: there is no live record under this key. An expired record is
	// absent, from the instant its time is over.
	ErrNotFound = errors.New("store: not found")
	// ErrExists: Create found a live record under the key.
	ErrExists = errors.New("store: exists")
	// ErrConflict: Replace found another revision than the one it was given.
	ErrConflict = errors.New("store: revision conflict")
	// ErrRefused: the backend answered, and does not take this write now: it is full, say.
	// As with every other unknown error the write may have happened or not, but there is no
	// use in waiting for the backend to answer.
	ErrRefused = errors.New("store: write refused")
	// ErrTooLarge: the key is over MaxKey, or empty, or the value is over MaxValue. Nothing
	// was sent to the backend.
	ErrTooLarge = errors.New("store: key or value too large")
)

// IsOutcome tells whether err is what the backend has to say of a call, so that its outcome
// is known: one of ErrNotFound, ErrExists, ErrConflict, ErrEnding, ErrHeld, ErrLost, or a
// *LimitError.
func IsOutcome(err error) bool {
	for _, outcome := range []error{ErrNotFound, ErrExists, ErrConflict, ErrEnding, ErrHeld, ErrLost} {
		if errors.Is(err, outcome) {
			return true
		}
	}
	return errors.As(err, new(*LimitError))
}

// Bounds that hold for every backend, checked before anything is sent.
const (
	MaxKey   = 512     // bytes of a key; a key is also never empty
	MaxValue = 1 << 20 // bytes of a value
)

// MinTTL is the shortest lifetime a record may be given. A shorter one, zero or a
// negative one is raised to it, so that no record is ever kept for ever by accident.
const MinTTL = time.Millisecond

// A Record is one stored value.
type Record struct {
	Value []byte
	// Revision changes with every Replace and is never reused for a key while its
	// record lives. It says nothing between keys.
	Revision uint64
	// TTL is what is left of the record's life by the store's own clock when it was
	// read; always positive.
	TTL time.Duration
}

// A Store keeps records. All methods are safe for concurrent use, honour the
// context's deadline, and neither keep nor change the slices they are given; what
// they return belongs to the caller.
//
// Lifetimes are durations, not instants: the store's clock decides when a record
// ends, so that nodes whose clocks differ agree.
type Store interface {
	// Get returns the live record under key, or ErrNotFound.
	Get(ctx context.Context, key string) (Record, error)
	// Create writes a record where none lives, or returns ErrExists and changes
	// nothing.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Replace writes value over the revision that was read. It returns ErrNotFound
	// where no record lives and ErrConflict where another revision does, and in
	// both cases changes nothing: it never creates, so that a late write can't
	// bring an ended session back.
	Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error
	// Touch extends the record's life to ttl from now. It never shortens it and
	// never creates; where no record lives it returns ErrNotFound.
	Touch(ctx context.Context, key string, ttl time.Duration) error
	// Delete ends the record. An absent one is not an error.
	Delete(ctx context.Context, key string) error
	// Ping returns nil if the store answers reads. One that refuses writes for a while,
	// full or in the midst of a failover, still serves who is signed in.
	Ping(ctx context.Context) error
	// Close releases what the store holds. No other method may be called after it.
	Close() error
}

// CheckKey returns ErrTooLarge if key is empty or over MaxKey. Backends call it
// first.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return ErrTooLarge
	}
	return nil
}

// CheckWrite is CheckKey for a write, and also checks the value's size.
func CheckWrite(key string, value []byte) error {
	if len(value) > MaxValue {
		return ErrTooLarge
	}
	return CheckKey(key)
}
