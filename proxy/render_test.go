package proxy

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"html"
	"net/http"
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

// TestSignInUnknown: who comes back from the provider while the store is down has no session
// to be told about, and begins again from a button that keeps the goal where it is known.
func TestSignInUnknown(t *testing.T) {
	for call, goal := range map[int]string{1: `"/oauth2/start"`, 2: `"/oauth2/start?rd=%2Fcart%3Fitem%3D7"`} {
		r := newRig(t)
		_, alice := r.signedIn(t, "alice")
		start := r.serveHTTP("GET", "/oauth2/start?rd=%2Fcart%3Fitem%3D7", "")
		pair, _, _ := strings.Cut(start.Header().Get("Set-Cookie"), ";")
		back := r.authorize(t, start.Header().Get("Location"), "alice")
		calls := 0
		r.store.fault = func() {
			if calls++; calls == call {
				r.store.err = errors.New("the store is down")
			}
		}
		w := r.serveHTTP("GET", back, "", http.Header{"Cookie": {pair}}, page200)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("call %d fails: %d, Retry-After %q", call, w.Code, w.Header().Get("Retry-After"))
		}
		for _, want := range []string{signInUnknown.title, html.EscapeString(signInUnknown.text), signInUnknown.next, goal + ">Sign in again<"} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("call %d fails: the page does not say %q:\n%s", call, want, w.Body)
			}
		}
		if !strings.Contains(r.log.String(), `"code":"session_unknown"`) {
			t.Errorf("call %d fails: the log:\n%s", call, r.log)
		}

		script := r.serveHTTP("GET", back, "", http.Header{"Cookie": {pair}}, http.Header{"Accept": {"application/json"}})
		if call == 1 && !strings.Contains(script.Body.String(), signInUnknown.text+" "+signInUnknown.next) {
			t.Errorf("a script is told %s", script.Body)
		}
		elsewhere := r.serveHTTP("GET", "/x", "", alice, page200)
		if !strings.Contains(elsewhere.Body.String(), "You have not been signed out.") {
			t.Errorf("elsewhere: %s", elsewhere.Body)
		}
	}
}
