package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// A Problem is one thing that is wrong with a configuration. None of its fields
// holds a secret.
type Problem struct {
	File    string // the configuration file as it was named to Load
	Path    string // the key, as in routes[1].upstream; empty for the file as a whole
	Line    int    // counted from 1; 0 if the file could not be read at all
	Column  int    // counted from 1, in characters
	Message string
	Excerpt string // the line with its number, and below it a caret; may be empty
}

// String returns "file:line:column: path: message" and the excerpt below it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column))
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Excerpt != "" {
		b.WriteString("\n" + p.Excerpt)
	}
	return b.String()
}

// Errors are all problems of a configuration, in the order of the file.
type Errors []Problem

// Error returns every problem, one below the other.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sort puts problems in the order of the file; those of one place keep theirs.
func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
