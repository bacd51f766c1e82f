package proxy

import (
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
)

// A page of one node's is sent to another, of another version perhaps.
func TestGoldenFormToken(t *testing.T) {
	r := newRig(t)
	ring, err := seal.ParseRing(golden.Keys)
	if err != nil {
		t.Fatal(err)
	}
	r.Ring = ring
	x := &exchange{r: httptest.NewRequest("POST", "/oauth2/sign_out", nil), live: &session.Live{Ref: coatcheck.Ref("ref of the golden session")}}
	x.r.PostForm = url.Values{"token": {string(golden.Read(t, "form-1-token.txt"))}}
	golden.Check(t, "form-1-token.txt", true, r.tokenFits(x, formSignOut), nil)
	if r.tokenFits(x, formSessions) {
		t.Error("it fits another form")
	}
}
