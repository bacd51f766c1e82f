package config

import (
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// placeholder stands where something is hidden.
const placeholder = "[hidden]"

// A mask decides, line by line and without a YAML parser, what of a file may be
// shown, so that it holds for files that are no YAML too. It errs on the side of
// hiding: the value of a key shows only if the key is one of the configuration's own.
type mask struct {
	known map[string]bool // keys whose values are shown
}

func newMask() mask {
	m := mask{known: map[string]bool{}}
	m.learn(reflect.TypeFor[Config]())
	// Key material written in place, where keys.file or keys.env belongs.
	delete(m.known, "keys")
	return m
}

// learn adds the keys of t and of all structs below it.
func (m mask) learn(t reflect.Type) {
	for f := range fields(t) {
		if f.Type == reflect.TypeFor[coatcheck.Secret]() {
			continue
		}
		m.known[f.name] = true
		if inner := structOf(f.Type); inner != nil {
			m.learn(inner)
		}
	}
}

var (
	// assigned finds a word with the colon or equals sign behind it.
	assigned = regexp.MustCompile(`([\pL\pN_.\-]+)["']?[ ]*([:=])`)
	// leading finds the first word of a line.
	leading = regexp.MustCompile(`^[ ]*(?:\?[ ]+)?["']?([\pL\pN_.\-]+)["']?(?:[ ]+|$)`)
	// beginning finds a key, or a closing bracket, that a line begins with.
	beginning = regexp.MustCompile(`^[ ]*(?:-[ ]+)*(["']?[\pL\pN_.\-]+["']?[ ]*:(?:[ ]|$)|[\]}])`)
	port      = regexp.MustCompile(`^[0-9]{1,5}(?:[^\pL\pN]|$)`)
	telling   = regexp.MustCompile(`(?i)secret|passw|passphrase|pwd|token|credential|key|bearer`)
)

// sensitive reports whether a key's name says that its value is a secret, even
// where nothing else about the line makes sense.
func (m mask) sensitive(name string) bool {
	return !m.known[name] && telling.MatchString(name) &&
		!strings.HasSuffix(name, "_file") && !strings.HasSuffix(name, "_env")
}

// A span is a range of bytes [from, to) of a line.
type span struct{ from, to int }

// hide returns the ranges of each line that must not be shown, in order and without
// overlap.
func (m mask) hide(lines []string) [][]span {
	hidden := make([][]span, len(lines))
	var r region
	for i, line := range lines {
		if r.covers(line) {
			if strings.TrimSpace(line) != "" {
				hidden[i] = []span{{0, len(line)}}
			}
			continue
		}
		hidden[i] = userinfo(line)
		if key, value := m.secretValue(line); value >= 0 {
			hidden[i] = merge(hidden[i], span{value, len(line)})
			// A key inside the lines of a hidden mapping does not end that mapping early.
			if !r.open || r.column > key {
				r = region{open: true, column: key, keyRing: isKeyRing(line[key:])}
			}
			r.quote(line[value:])
		}
	}
	return hidden
}

// secretValue returns where in the line the first hidden value begins and where its
// key does, or -1, -1.
func (m mask) secretValue(line string) (key, value int) {
	for _, at := range assigned.FindAllStringSubmatchIndex(line, -1) {
		name, after := line[at[2]:at[3]], at[1]
		if strings.HasSuffix(line[:at[2]], "://") && port.MatchString(line[after:]) {
			continue // a host, as in https://keycloak:8443
		}
		// Where YAML takes a colon for the end of a key: before white space, at the
		// line's end, and after a quoted key.
		ends := line[at[4]] == ':' && (after == len(line) || strings.ContainsRune(" \t", rune(line[after])) ||
			strings.ContainsAny(line[at[3]:at[4]], `"'`))
		if m.sensitive(name) || ends && !m.known[name] {
			return at[2], after + spaces(line[after:])
		}
	}
	// The key stands alone, or its colon was forgotten.
	if at := leading.FindStringSubmatchIndex(line); at != nil && m.sensitive(line[at[2]:at[3]]) {
		return at[2], at[1] + spaces(line[at[1]:])
	}
	return -1, -1
}

// spaces returns how many spaces a text begins with.
func spaces(text string) int { return len(text) - len(strings.TrimLeft(text, " ")) }

// A region is the lines that belong to a hidden value, from its key to the next key
// that is indented no deeper.
type region struct {
	open    bool
	column  int  // of the key
	quoted  byte // the quote that is still open, or 0
	keyRing bool // the value of keys, whose file and env may be shown
}

// covers reports whether a line is wholly inside the region, and keeps track of
// where the region ends.
func (r *region) covers(line string) bool {
	switch {
	case !r.open:
		return false
	case r.quoted != 0:
		if closed(line, r.quoted) {
			r.quoted = 0
		}
		return true
	}
	if at := beginning.FindStringSubmatchIndex(line); at != nil {
		if at[2] <= r.column {
			r.open = false
			return false
		}
		if name, _, _ := strings.Cut(line[at[2]:], ":"); r.keyRing && (name == "file" || name == "env") {
			return false
		}
	}
	r.quote(line)
	return true
}

// quote remembers a quote that a value opens and does not close.
func (r *region) quote(value string) {
	value = strings.TrimLeft(value, " -{[")
	if value != "" && (value[0] == '"' || value[0] == '\'') && !closed(value[1:], value[0]) {
		r.quoted = value[0]
	}
}

// closed reports whether text, which begins inside quotes, leaves them.
func closed(text string, quote byte) bool {
	if quote == '"' {
		text = strings.ReplaceAll(strings.ReplaceAll(text, `\\`, ""), `\"`, "")
	} else {
		text = strings.ReplaceAll(text, `''`, "")
	}
	return strings.IndexByte(text, quote) >= 0
}

func isKeyRing(text string) bool {
	return strings.HasPrefix(text, "keys:")
}

// userinfo returns what stands between a URL's :// and its last @, password or not:
// passwords that must be percent-encoded often are not, so the @ is searched past
// slashes and spaces, up to what ends an entry of a YAML list.
func userinfo(line string) []span {
	var spans []span
	for from := 0; ; {
		i := strings.Index(line[from:], "://")
		if i < 0 {
			return spans
		}
		from += i + len("://")
		rest, _, _ := strings.Cut(line[from:], ", ")
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			spans = append(spans, span{from, from + at})
			from += at
		}
	}
}

// merge adds a span that reaches to the line's end.
func merge(spans []span, tail span) []span {
	i := slices.IndexFunc(spans, func(s span) bool { return s.to >= tail.from })
	if i < 0 {
		return append(spans, tail)
	}
	tail.from = min(tail.from, spans[i].from)
	return append(spans[:i], tail)
}
