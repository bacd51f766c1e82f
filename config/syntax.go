package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxDepth bounds how deep lists and mappings nest; the deepest place of a real
// configuration is 5.
const maxDepth = 32

// parse returns the file's one document: plain mappings, lists and scalars. What
// YAML has beyond that is refused, because nobody needs it in a configuration and
// each part of it has been somebody's surprise: anchors that expand to gigabytes,
// tags that change a type, second documents that are silently left out.
func (s *source) parse(data []byte) (node ast.Node, err error) {
	if err := s.text(data); err != nil {
		return nil, err
	}
	// The reader is somebody else's code on somebody's input: a panic of its own is
	// a file that can't be read, not the end of a process that may be reloading.
	defer func() {
		if r := recover(); r != nil {
			node, err = nil, s.fail(1, 1, "can't be read as YAML")
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if err := s.plain(tokens); err != nil {
		return nil, err
	}
	// Duplicate keys are found with everything else that is wrong, not one by one.
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) && syntax.Token != nil {
			at := placeOf(syntax.Token)
			return nil, s.fail(at.line, at.column, "not valid YAML: %s", syntaxMessage(syntax.Message))
		}
		return nil, s.fail(1, 1, "can't be read as YAML")
	}
	if len(file.Docs) > 1 {
		at := place{1, 1}
		if second := file.Docs[1]; second.Start != nil {
			at = placeOf(second.Start)
		} else if second.Body != nil {
			at = start(second.Body)
		}
		return nil, s.fail(at.line, at.column, "a second document begins here: the configuration is one document")
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return nil, s.fail(1, 1, "the file is empty: it needs at least public_url, providers and routes")
	}
	return file.Docs[0].Body, nil
}

// text refuses what is not plain text of a sane size.
func (s *source) text(data []byte) error {
	switch {
	case len(data) > maxFile:
		return Errors{{File: s.name, Message: fmt.Sprintf("the file is larger than %d KiB", maxFile>>10)}}
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		return s.fail(1, 1, "the file begins with a byte order mark: save it as UTF-8 without one")
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return Errors{{File: s.name, Message: "the file is UTF-16: save it as UTF-8"}}
	}
	for i, line := range s.lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if tab := strings.IndexByte(indent, '\t'); tab >= 0 && len(indent) < len(line) {
			return s.fail(i+1, tab+1, "a tab can't indent YAML: use spaces")
		}
		column := 0
		for at, r := range line {
			column++
			if r == utf8.RuneError && !strings.HasPrefix(line[at:], "\uFFFD") {
				return s.fail(i+1, column, "the file is not UTF-8 text")
			}
			if r != '\t' && isControl(r) {
				return s.fail(i+1, column, "there is a control character (U+%04X) here", r)
			}
		}
	}
	return nil
}

// plain refuses what goes beyond mappings, lists and scalars, and nesting without end.
func (s *source) plain(tokens token.Tokens) error {
	var findings []finding
	seen := map[string]bool{}
	brackets, line, inLine := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, inLine = t.Position.Line, 0
		}
		what := ""
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets = max(brackets-1, 0)
		case token.SequenceEntryType, token.MappingValueType:
			if brackets == 0 {
				inLine++
			}
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			what = "anchors, aliases and merge keys"
		case token.TagType:
			what = "tags"
		case token.DirectiveType:
			what = "directives"
		case token.MappingKeyType:
			what = "keys written with a question mark"
		}
		at := placeOf(t)
		// Blocks nest by indentation, so that the column of a line's first token bounds
		// their depth, or by more than one indicator on a line.
		indented := brackets == 0 && inLine == 0 && t.Type != token.CommentType && at.column > 8*maxDepth
		if brackets > maxDepth || inLine > maxDepth || indented {
			return s.fail(at.line, at.column, "lists and mappings nest too deep here")
		}
		if what != "" && !seen[what] {
			seen[what] = true
			findings = append(findings, finding{place: at, message: what + " are not supported in this file"})
		}
	}
	if findings != nil {
		return s.errors(findings)
	}
	return nil
}

// syntaxMessage returns the reader's message, unless it quotes more of the file than
// a character: those are said to be about the place alone.
func syntaxMessage(message string) string {
	if strings.ContainsAny(message, "\"") {
		return "this can't stand here"
	}
	return message
}

func placeOf(t *token.Token) place { return place{t.Position.Line, t.Position.Column} }

// start returns where a node begins; the reader's own position of a block mapping
// is that of its first colon.
func start(n ast.Node) place {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return start(m.Values[0].Key)
	}
	return placeOf(n.GetToken())
}

func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }
