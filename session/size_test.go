package session

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A-C9: the largest session that a provider can make of what package oidc takes fits into a
// store, with its refresh token in escrow as well.
func TestLargestSession(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Escrow = true })
	token := coatcheck.Secret(strings.Repeat("x", 64<<10))
	s := user("alice")
	s.Tokens.ID, s.Tokens.Access, s.Tokens.Refresh = token, token, token
	for range 1000 {
		s.Identity.Groups = append(s.Identity.Groups, strings.Repeat("g", 256))
	}
	h := http.Header{}
	if _, err := r.Begin(t.Context(), h, http.Header{}, s, r.Now()); err != nil {
		t.Fatal(err)
	}
	value := r.cookieIn(h)
	if rec, ok := r.record(value); !ok || len(rec.Value) < 5*64<<10 || len(rec.Value) > store.MaxValue*3/4 {
		t.Errorf("the record has %d bytes, of %d", len(rec.Value), store.MaxValue)
	}
	r.wantUser("alice", value)
}
