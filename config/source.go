package config

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A source is the text of a configuration file, for messages about it.
type source struct {
	name  string
	lines []string
	mask  mask
}

func newSource(name string, data []byte) *source {
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSuffix(line, "\r")
	}
	return &source{name: name, lines: lines, mask: newMask()}
}

// A place is a line and a column in a source, counted from 1, in characters.
type place struct{ line, column int }

// A finding is a problem before its excerpt is made.
type finding struct {
	place
	path    string
	message string
}

// errors returns the findings with their excerpts, in the order of the file.
func (s *source) errors(findings []finding) Errors {
	hidden := s.mask.hide(s.lines)
	problems := make(Errors, len(findings))
	for i, f := range findings {
		line := min(max(f.line, 1), len(s.lines))
		problems[i] = Problem{
			File:    s.name,
			Path:    hideKey(f.path, s.lines[line-1], hidden[line-1]),
			Line:    line,
			Column:  max(f.column, 1),
			Message: f.message,
			Excerpt: excerpt(line, s.lines[line-1], hidden[line-1], max(f.column, 1)),
		}
	}
	problems.sort()
	return problems
}

// fail returns the errors of a file that can't be read as YAML.
func (s *source) fail(line, column int, format string, args ...any) Errors {
	return s.errors([]finding{{place: place{line, column}, message: fmt.Sprintf(format, args...)}})
}

// hideKey returns a path without its last key if that stands in a line of which nothing is
// shown: where a file is broken, what was to be a secret may read as a key.
func hideKey(path, line string, hidden []span) string {
	i := strings.LastIndexByte(path, '.') + 1
	if key := path[i:]; key != "" && len(hidden) > 0 && hidden[0] == (span{0, len(line)}) && strings.Contains(line, key) {
		return path[:i] + placeholder
	}
	return path
}

// hide returns text without what the file's mask would hide in a line.
func (s *source) hide(text string) string {
	hidden := s.mask.hide([]string{text})
	shown, _ := cut(text, hidden[0], 0)
	return string(shown)
}

// width bounds what is shown of a line, in characters.
const width = 120

// excerpt returns a line with its number in front, and a caret under the column.
func excerpt(number int, line string, hidden []span, column int) string {
	shown, caret := cut(line, hidden, column-1)
	from := 0
	if len(shown) > width {
		from = min(max(caret-width/2, 0), len(shown)-width)
		shown = shown[from : from+width]
	}
	for i, r := range shown {
		// Nothing in a file may steer the operator's terminal.
		if r == '\t' {
			shown[i] = '→'
		} else if !unicode.IsPrint(r) {
			shown[i] = utf8.RuneError
		}
	}
	caret = min(caret-from, len(shown))
	gutter := fmt.Sprintf("%5d", number)
	return gutter + " | " + string(shown) + "\n" +
		strings.Repeat(" ", len(gutter)) + " | " + strings.Repeat(" ", caret) + "^"
}

// cut returns the characters of line with the hidden spans replaced, and where the
// character that was at index caret is now.
func cut(line string, hidden []span, caret int) (shown []rune, moved int) {
	add := func(text string) {
		n := utf8.RuneCountInString(text)
		if caret >= n {
			moved += n
		} else if caret > 0 {
			moved += caret
		}
		caret -= n
		shown = append(shown, []rune(text)...)
	}
	from := 0
	for _, h := range hidden {
		if h.from == h.to {
			continue
		}
		add(line[from:h.from])
		if caret > 0 {
			// Inside what is hidden the caret stays at its beginning, behind it the
			// placeholder counts.
			n := utf8.RuneCountInString(line[h.from:h.to])
			if caret >= n {
				moved += len(placeholder)
			}
			caret = max(caret-n, 0)
		}
		shown = append(shown, []rune(placeholder)...)
		from = h.to
	}
	add(line[from:])
	return shown, moved
}

// printable returns a key's name for a message: names are short and plain, and
// whatever else stands where a key should is not repeated.
func printable(name string) string {
	if len(name) > 40 || name == "" {
		return "…"
	}
	for _, c := range name {
		if c != '_' && c != '-' && c != '.' && (c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c)) {
			return "…"
		}
	}
	return name
}

// element returns the path of a list's entry.
func element(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}
