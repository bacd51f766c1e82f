package proxy

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// An accessLog writes a line for each request, in one Write. The lines are like those of
// slog.JSONHandler, among which they stand, but are made without its attributes: nothing
// else that is done for a request costs as much.
type accessLog struct{ to io.Writer }

var linePool = sync.Pool{New: func() any { return &line{buf: make([]byte, 0, 1<<10)} }}

// write writes the line of an exchange that has ended. It never has the query: codes and
// states come in it.
func (a accessLog) write(x *exchange, level slog.Level, status int, took time.Duration) {
	l := linePool.Get().(*line)
	l.buf = append(l.buf[:0], `{"time":"`...)
	l.buf = x.start.Add(took).AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(l.buf, `","level":"`...)
	l.buf = append(l.buf, level.String()...)
	l.buf = append(l.buf, `","msg":"request"`...)
	l.text("request_id", x.id)
	l.text("client", x.client.ip)
	l.text("method", x.r.Method)
	l.text("host", legible(x.r.Host))
	l.text("path", legible(x.r.URL.Path))
	l.text("route", x.routeName())
	l.number("status", int64(status))
	l.optional("code", string(x.code))
	l.number("bytes", x.w.bytes)
	l.key("ms")
	l.buf = strconv.AppendFloat(l.buf, float64(took.Microseconds())/1000, 'f', -1, 64)
	l.optional("session", x.ref())
	l.optional("user", x.user())
	if x.unverified > 0 {
		l.number("unverified", int64(x.unverified))
	}
	l.text("user_agent", legible(x.r.UserAgent()))
	l.buf = append(l.buf, "}\n"...)
	_, _ = a.to.Write(l.buf) // there is nowhere to say that it failed
	if cap(l.buf) <= 8<<10 {
		linePool.Put(l)
	}
}

// A line is an object in JSON (RFC 8259) that is being written.
type line struct{ buf []byte }

func (l *line) key(name string) {
	l.buf = append(l.buf, `,"`...)
	l.buf = append(l.buf, name...)
	l.buf = append(l.buf, `":`...)
}

func (l *line) number(name string, n int64) {
	l.key(name)
	l.buf = strconv.AppendInt(l.buf, n, 10)
}

// optional writes nothing for what is empty.
func (l *line) optional(name, s string) {
	if s != "" {
		l.text(name, s)
	}
}

func (l *line) text(name, s string) {
	l.key(name)
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			l.quote(s)
			return
		}
	}
	l.buf = append(l.buf, '"')
	l.buf = append(l.buf, s...)
	l.buf = append(l.buf, '"')
}

// quote writes a string that JSON can't hold as it is.
func (l *line) quote(s string) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // a string always can
	l.buf = append(l.buf, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}
