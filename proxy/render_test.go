package proxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
)

// declaredCodes reads the constants of type Code out of the root package's source, so
// that a new one can't be forgotten here.
func declaredCodes(t *testing.T) []coatcheck.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []coatcheck.Code
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Code" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, coatcheck.Code(text))
		return true
	})
	if len(codes) < 20 {
		t.Fatalf("found only %d codes", len(codes))
	}
	return codes
}

func TestEveryCodeHasAnAnswer(t *testing.T) {
	codes := declaredCodes(t)
	for _, code := range codes {
		a, ok := answers[code]
		if !ok {
			t.Errorf("%s has no row in answers", code)
			continue
		}
		if a.status < 400 || a.title == "" || a.text == "" || a.next == "" {
			t.Errorf("%s: %+v is not complete", code, a)
		}
		for _, sentence := range []string{a.text, a.next} {
			if !strings.HasSuffix(sentence, ".") {
				t.Errorf("%s: %q is no sentence", code, sentence)
			}
		}
	}
	if len(answers) != len(codes) {
		t.Errorf("%d answers for %d codes: a row has a code that no longer exists", len(answers), len(codes))
	}
}

// TestUnknownIsNeitherLogoutNorAccess holds the statuses that clients depend on.
func TestUnknownIsNeitherLogoutNorAccess(t *testing.T) {
	for code, want := range map[coatcheck.Code]int{
		coatcheck.CodeUnknown:         503,
		coatcheck.CodeNotReady:        503,
		coatcheck.CodeSignInRequired:  401,
		coatcheck.CodeSessionEnded:    401,
		coatcheck.CodeLimit:           403,
		coatcheck.CodeForbidden:       403,
		coatcheck.CodeMisdirected:     421,
		coatcheck.CodeUpstreamFailed:  502,
		coatcheck.CodeUpstreamTimeout: 504,
		coatcheck.CodeUpstreamBusy:    503,
	} {
		if got := answers[code].status; got != want {
			t.Errorf("%s: status %d, want %d", code, got, want)
		}
	}
}
