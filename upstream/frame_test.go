package upstream

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// frame writes a frame with a length of the shortest form.
func frame(opcode byte, masked bool, payload []byte) []byte {
	b := []byte{0x80 | opcode, 0}
	switch n := len(payload); {
	case n < 126:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if masked {
		b[1] |= 0x80
		b = append(b, 0x88, 0x02, 0x88, 0x02)
	}
	return append(b, payload...)
}

// However the bytes of a direction are cut up and whenever it is told to leave: what
// goes out is whole frames, then at most one close frame, and nothing behind it.
func TestHalf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		goodbye := closing{1008, "over"}.frame()
		var in []byte
		var ends []int // where frames end
		closeEnd := -1
		for range rapid.IntRange(1, 6).Draw(t, "frames") {
			size := rapid.SampledFrom([]int{0, 1, 2, 125, 126, 127, 300, 65535, 65536}).Draw(t, "size")
			opcode := rapid.SampledFrom([]byte{0, 1, 2, 9, 10, 1, 2, opcodeClose}).Draw(t, "opcode")
			in = append(in, frame(opcode, rapid.Bool().Draw(t, "masked"), bytes.Repeat([]byte{0x88}, size))...)
			ends = append(ends, len(in))
			if opcode == opcodeClose && closeEnd < 0 {
				closeEnd = len(in)
			}
		}
		leaveAt := rapid.IntRange(0, len(in)).Draw(t, "leave at")
		var out bytes.Buffer
		h := half{to: &out, closed: make(chan struct{})}
		step := func(from, to int) {
			for from < to {
				n := min(rapid.SampledFrom([]int{1, 2, 3, 7, 100, 1 << 20}).Draw(t, "write"), to-from)
				if got, err := h.Write(in[from : from+n]); got != n || err != nil {
					t.Fatalf("Write = %d, %v", got, err)
				}
				from += n
			}
		}
		step(0, leaveAt)
		h.leave(goodbye)
		h.leave(goingAway.frame())
		step(leaveAt, len(in))

		end := 0 // the first boundary at or behind leaveAt
		if leaveAt > 0 {
			for _, e := range ends {
				if end = e; e >= leaveAt {
					break
				}
			}
		}
		want := append(bytes.Clone(in[:end]), goodbye...)
		if closeEnd >= 0 && closeEnd <= end {
			want = in // the sender closed by itself
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("%d bytes went out, want %d", out.Len(), len(want))
		}
		select {
		case <-h.closed:
			if closeEnd < 0 {
				t.Fatal("a close frame was seen where none is")
			}
		default:
			if closeEnd >= 0 {
				t.Fatal("the close frame was not seen")
			}
		}
	})
}

func TestCloseFrame(t *testing.T) {
	if got := goingAway.frame(); string(got) != "\x88\x02\x03\xe9" {
		t.Errorf("the frame of goingAway is %q", got)
	}
	if got := (closing{1008, "over"}).frame(); string(got) != "\x88\x06\x03\xf0over" {
		t.Errorf("the frame of 1008 is %q", got)
	}
	got := masked(closing{1008, "over"}.frame())
	if len(got) != 12 || got[0] != 0x88 || got[1] != 0x86 {
		t.Fatalf("masked: %q", got)
	}
	for i, c := range []byte("\x03\xf0over") {
		if got[6+i]^got[2+i%4] != c {
			t.Errorf("masked: %q, wrong at %d", got, i)
		}
	}
}
