package main

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A hungProvider never answers. No real one can be had to hang for as long.
type hungProvider struct{ session.Provider }

func (hungProvider) Knows(string, string) bool { return true }

func (hungProvider) Revoke(ctx context.Context, _ coatcheck.Secret, _ coatcheck.TokenKind) error {
	<-ctx.Done()
	return ctx.Err()
}

// Whoever signs everybody out does not wait for a provider that hangs.
func TestEndingDoesNotWaitForTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const people = 3 * endBatch
		kept := memory.New()
		sessions := session.New(session.Options{
			Store: kept, Registry: kept, Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", true), Provider: hungProvider{},
			Tenant: tenant, Idle: 10 * time.Hour, Absolute: 10 * time.Hour, Escrow: true, Now: time.Now,
		})
		for i := range people {
			if _, err := sessions.Begin(t.Context(), http.Header{}, http.Header{}, &coatcheck.Session{
				State:    coatcheck.Authenticated,
				Identity: coatcheck.Identity{Issuer: "https://idp.example", Subject: strconv.Itoa(i)},
				Tokens:   coatcheck.Tokens{Refresh: "refresh-token"},
			}, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		var out, said bytes.Buffer
		e := ending{con: console{&out, &said}, seen: map[coatcheck.Ref]bool{}, sessions: sessions}
		began := time.Now()
		if err := e.report(e.all(t.Context(), session.Query{})); err != nil {
			t.Error(err)
		}
		if e.ended != people {
			t.Errorf("%d of %d sessions have ended", e.ended, people)
		}
		if took := time.Since(began); took > 2*revokePatience {
			t.Errorf("it took %v", took)
		}
		if n := strings.Count(said.String(), "note: 1000 refresh tokens could not be revoked at the provider"); n != 3 {
			t.Errorf("says %s", &said)
		}
	})
}
