package session

import (
	"context"
	"slices"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// Whoever ends sessions and does not run takes back what they were granted when they ask for it.
func TestRevokeGranted(t *testing.T) {
	p := new(revoker)
	r := newRig(t, func(o *Options) { o.Provider, o.Leases, o.Escrow = p, o.Registry.(store.Leaser), true })
	end := func() {
		t.Helper()
		for range 3 {
			r.mustBegin("alice", "")
		}
		if n, err := r.EndAll(t.Context(), Query{Issuer: issuer, Subject: "alice"}, "", coatcheck.ReasonRevoked); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	}
	end()
	if got := p.take(); got != nil {
		t.Errorf("revoked are %q before anybody asks", got)
	}
	const token = "refresh_token refresh token of alice"
	for _, want := range [][]string{{token, token, token}, nil} {
		left, err := r.RevokeGranted(t.Context())
		if got := p.take(); left != 0 || err != nil || !slices.Equal(got, want) {
			t.Errorf("revoked are %q, left %d, %v; want %q", got, left, err, want)
		}
	}

	end()
	p.fail(&coatcheck.RenewalError{Outcome: coatcheck.OutcomeUnknown, Err: errDown})
	if left, err := r.RevokeGranted(t.Context()); left != 3 || err == nil || p.tried() != 6 {
		t.Errorf("left %d, %v, %d tries; want 3, an error and no second try", left, err, p.tried())
	}
	p.fail(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if left, err := r.RevokeGranted(ctx); left != 0 || err != nil {
		t.Errorf("nothing is left to be revoked: %d, %v", left, err)
	}
}
