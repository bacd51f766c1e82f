package redis

import (
	"encoding/binary"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A packed entry is what a script leaves of one in its user's hash, under its ID:
//
//	expires, started, seen   the entry's times, in milliseconds since 1970
//	listed                   until when the indexes list it
//	left                     until when an ending entry is left to whoever marked or claimed it
//	ending, seat, app        strings of up to 255 bytes
//	rest                     record, sid and data, which no script reads
//
// Times are six bytes, big endian.
const (
	timeLen = 6
	nTimes  = 5
)

// rest returns what no script reads.
func rest(e store.Entry) string {
	b := make([]byte, 0, 2*binary.MaxVarintLen16+len(e.Record)+len(e.SID)+len(e.Data))
	b = appendString(b, e.Record)
	b = appendString(b, e.SID)
	return string(append(b, e.Data...))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// unpack returns a packed entry, but for the names that its place says.
func unpack(packed string) (e store.Entry, err error) {
	r := reader{left: packed}
	e.Expires, e.Started, e.Seen = r.time(), r.time(), r.time()
	r.bytes((nTimes - 3) * timeLen)
	e.Ending = r.bytes(int(r.byte()))
	r.bytes(int(r.byte())) // the seat
	e.App = r.bytes(int(r.byte()))
	e.Record = r.string()
	e.SID = r.string()
	if r.short {
		return store.Entry{}, errForeign
	}
	e.Data = []byte(r.left)
	return e, nil
}

// A reader takes a packed entry apart. It reads zeros from where it is too short.
type reader struct {
	left  string
	short bool
}

func (r *reader) bytes(n int) string {
	if n < 0 || n > len(r.left) {
		r.left, r.short = "", true
		return ""
	}
	b := r.left[:n]
	r.left = r.left[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != "" {
		return b[0]
	}
	return 0
}

func (r *reader) time() time.Time {
	var ms int64
	for _, b := range []byte(r.bytes(timeLen)) {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

func (r *reader) string() string {
	n, width := binary.Uvarint([]byte(r.left[:min(len(r.left), binary.MaxVarintLen16)]))
	if width <= 0 {
		r.short = true
		return ""
	}
	r.bytes(width)
	return r.bytes(int(n))
}
