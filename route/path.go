package route

import (
	"errors"
	"iter"
	"strings"
	"unicode/utf8"
)

var (
	errRelative  = errors.New("path does not begin with /")
	errByte      = errors.New("path with a backslash, control, space, # or non-ASCII byte")
	errEscape    = errors.New("path with a bad percent-encoding")
	errSeparator = errors.New("path with an encoded slash, backslash or control")
	errDouble    = errors.New("path encoded twice")
	errUTF8      = errors.New("path is not UTF-8")
	errSegment   = errors.New("path with an empty or dot segment")
)

// readPath decodes a raw path once and refuses what a server behind might read in
// another way. Bytes that RFC 3986 wants encoded and browsers send raw, such as | and
// ^, pass as they are: they have one reading.
func readPath(raw string) (string, error) {
	if raw == "" || raw[0] != '/' {
		return "", errRelative
	}
	encoded := false
	for i := range len(raw) {
		switch c := raw[i]; {
		case c == '%':
			encoded = true
		case c <= ' ' || c >= 0x7f || c == '\\' || c == '#':
			return "", errByte
		}
	}
	path := raw
	if encoded {
		var err error
		if path, err = decode(raw); err != nil {
			return "", err
		}
	}
	return path, checkSegments(path)
}

// decode removes one layer of percent-encoding (RFC 3986 §2.1).
func decode(raw string) (string, error) {
	path := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			var ok bool
			if c, ok = unhex(raw, i); !ok {
				return "", errEscape
			}
			i += 2
			if c == '/' || c == '\\' || isControl(c) {
				return "", errSeparator
			}
		}
		path = append(path, c)
	}
	decoded := string(path)
	for i := range len(decoded) {
		// A server that decodes again must not find structure there. Encoded letters
		// are for Match, which compares the routes of both readings.
		if c, ok := unhex(decoded, i); ok && (isControl(c) || c >= 0x80 || strings.IndexByte(`./\%;?#`, c) >= 0) {
			return "", errDouble
		}
	}
	if !utf8.ValidString(decoded) {
		return "", errUTF8
	}
	return decoded, nil
}

// checkSegments refuses empty segments but a last one (a trailing slash), and dot
// segments, which RFC 3986 §5.2.4 would remove. Servlet containers cut everything
// behind ";" from a segment before they look, so this does too: "/..;/" is "/../".
func checkSegments(path string) error {
	for rest, more := path[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		name, _, cut := strings.Cut(segment, ";")
		switch name {
		case ".", "..":
			return errSegment
		case "":
			if more || cut {
				return errSegment
			}
		}
	}
	return nil
}

func isControl(c byte) bool { return c < ' ' || c == 0x7f }

// unhex returns the byte that the percent-encoding at s[i:] stands for.
func unhex(s string, i int) (byte, bool) {
	if i+2 >= len(s) || s[i] != '%' {
		return 0, false
	}
	hi, ok1 := digit(s[i+1])
	lo, ok2 := digit(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func digit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// readings yields the other paths that a server behind might take a path for, each
// step on top of the one before: encoded letters decoded again, the rest behind a
// decoded "?" or "#" dropped, path parameters cut from every segment.
func readings(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if strings.IndexByte(path, '%') >= 0 {
			if path = decodeAgain(path); !yield(path) {
				return
			}
		}
		if i := strings.IndexAny(path, "?#"); i >= 0 {
			if path = path[:i]; !yield(path) {
				return
			}
		}
		if strings.IndexByte(path, ';') >= 0 {
			yield(cutParameters(path))
		}
	}
}

func decodeAgain(path string) string {
	again := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if d, ok := unhex(path, i); ok {
			c = d
			i += 2
		}
		again = append(again, c)
	}
	return string(again)
}

func cutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}
