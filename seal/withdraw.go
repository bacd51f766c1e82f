package seal

import "bytes"

// formatWithdrawn is later than every format there will be.
const formatWithdrawn = 0xff

// Withdraw returns what takes the place of a record that is about to be deleted, so that
// nobody opens it, or seals it anew, before it is: to every node, of whatever version, it is
// unknown (ErrUnknownKey).
func Withdraw(sealed []byte) []byte { return append([]byte{formatWithdrawn}, sealed...) }

// Withdrawn returns the record that Withdraw was given. It is not ok for every other value.
func Withdrawn(value []byte) (sealed []byte, ok bool) {
	return bytes.CutPrefix(value, []byte{formatWithdrawn})
}
