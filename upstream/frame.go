package upstream

import "encoding/binary"

// frames follows the frames of one direction of a WebSocket (RFC 6455 §5.2) as their
// bytes pass, to know where one ends. It looks at headers only.
type frames struct {
	head    [14]byte // longest header: 2, length 8, mask 4
	have    int      // bytes of it seen
	payload bool     // the header is complete
	left    uint64   // bytes of payload to come
}

const opcodeClose = 0x8

// boundary tells whether the bytes so far end with a whole frame.
func (f *frames) boundary() bool { return f.have == 0 }

// next takes bytes of p to the end of the current frame, or all. It returns how many
// and the opcode of the frame that ended with them; ended is false if none did.
func (f *frames) next(p []byte) (n int, opcode byte, ended bool) {
	for !f.payload {
		if n == len(p) {
			return n, 0, false
		}
		f.head[f.have] = p[n]
		f.have++
		n++
		if f.have == f.size() {
			f.payload, f.left = true, f.length()
		}
	}
	take := min(uint64(len(p)-n), f.left)
	n += int(take)
	f.left -= take
	if f.left > 0 {
		return n, 0, false
	}
	f.have, f.payload = 0, false
	return n, f.head[0] & 0x0f, true
}

// size returns the header's length as far as it is known.
func (f *frames) size() int {
	if f.have < 2 {
		return 2
	}
	size := 2
	switch f.head[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if f.head[1]&0x80 != 0 {
		size += 4
	}
	return size
}

func (f *frames) length() uint64 {
	switch n := f.head[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		return binary.BigEndian.Uint64(f.head[2:])
	default:
		return uint64(n)
	}
}
