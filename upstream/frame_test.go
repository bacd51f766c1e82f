package upstream

import (
	"bytes"
	"encoding/binary"
	"net"
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
		h.prepare(goodbye)
		h.prepare(goingAway.frame())
		if rapid.Bool().Draw(t, "at once") {
			h.leave()
		}
		step(leaveAt, len(in))
		h.leave()

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

// A peer is one side of a tunnel, and answers as soon as it gets anything.
type peer struct {
	net.Conn
	got    []byte
	answer func()
}

func (p *peer) Write(b []byte) (int, error) {
	p.got = append(p.got, b...)
	p.answer()
	return len(b), nil
}

// However fast a side answers its close frame, the other one gets ours: the client is told
// why, and the app sees a client that is going away.
func TestLeaveIsNotOvertaken(t *testing.T) {
	why := closing{1008, "over"}
	for i := range 200 {
		one, other := net.Pipe()
		client, app := &peer{Conn: one, answer: func() {}}, &peer{Conn: other, answer: func() {}}
		tun := &tunnel{ex: &exchange{done: make(chan struct{})}, client: client, app: app, started: make(chan struct{})}
		tun.down = half{to: client, closed: make(chan struct{})}
		tun.up = half{to: app, closed: make(chan struct{})}
		client.answer = func() { _, _ = tun.up.Write(masked(why.frame())) }
		app.answer = func() { _, _ = tun.down.Write(goingAway.frame()) }
		later := &client.answer // one answers at once
		if i%2 == 0 {
			later = &app.answer
		}
		answer := *later
		*later = func() { go answer() }
		close(tun.started)
		go func() {
			_, _ = other.Read(make([]byte, 1)) // until the tunnel is cut
			close(tun.ex.done)
		}()
		tun.leave(t.Context(), why)
		if !bytes.Equal(client.got, why.frame()) || len(app.got) != len(masked(goingAway.frame())) {
			t.Fatalf("the client gets %q, the app %q", client.got, app.got)
		}
	}
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
