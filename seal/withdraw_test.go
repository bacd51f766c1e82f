package seal

import (
	"bytes"
	"errors"
	"testing"
)

// Nobody opens a record that was withdrawn, says that it is over, or seals it anew; whoever
// withdrew it finds what it was.
func TestWithdraw(t *testing.T) {
	ring := NewRing()
	place := Place{Purpose: "session", Tenant: "default", Cookie: "c", Key: "k"}
	secret := bytes.Repeat([]byte{7}, 32)
	sealed, err := ring.SealRecord(place, secret, []byte("body"), []byte("escrow"))
	if err != nil {
		t.Fatal(err)
	}
	value := Withdraw(sealed)
	if got, ok := Withdrawn(value); !ok || !bytes.Equal(got, sealed) {
		t.Errorf("Withdrawn = %x, %t", got, ok)
	}
	if _, ok := Withdrawn(sealed); ok {
		t.Error("a record counts as withdrawn")
	}
	if _, err := ring.OpenRecord(place, secret, value); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("OpenRecord: %v", err)
	}
	if _, err := ring.OpenEscrow(place, value); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("OpenEscrow: %v", err)
	}
	if _, ok := KeyID(value); ok {
		t.Error("it has a key's ID")
	}
	if ring.Outdated(value) {
		t.Error("it is outdated")
	}
	if err := ring.Holds(value); errors.Is(err, ErrRetired) {
		t.Errorf("Holds: %v", err)
	}
}
