package session

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

func TestAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events notebook
		r := newRig(t, func(o *Options) { o.Events = &events })
		good, gone, unlisted := r.signIn("alice"), r.signIn("bob"), r.signIn("carol")
		handle := func(value string) string { h, _, _ := strings.Cut(value, "."); return h }
		if err := r.memory.Delete(t.Context(), handle(gone)); err != nil {
			t.Fatal(err)
		}
		for e := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName(), User: r.userName("https://idp.example", "carol")}) {
			if err := r.memory.Remove(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		// No sessions: a tombstone, and what remembers that a sign-in was used.
		for _, key := range []string{"tombstone-1", r.Jar.Name("login-0123456789abcdef0123456789abcdef")} {
			if err := r.memory.Create(t.Context(), key, nil, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		// What begins and ends meanwhile is no difference.
		ending := r.signIn("dave")
		if err := r.memory.Delete(t.Context(), handle(ending)); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			for e := range r.Find(context.Background(), Query{Issuer: "https://idp.example", Subject: "dave"}) {
				_ = r.memory.Remove(context.Background(), e.listed)
			}
		}()

		events.told()
		a, err := r.Audit(t.Context(), r.memory, AuditPause)
		if err != nil {
			t.Fatal(err)
		}
		if a.Listed != 3 || a.Records != 2 || len(a.Findings) != 2 {
			t.Fatalf("%+v", a)
		}
		if f := a.Findings[0]; f.Entry == nil || f.Entry.Subject != "bob" || f.Ref != coatcheck.MakeRef(handle(gone)) {
			t.Errorf("%+v", f)
		}
		if f := a.Findings[1]; f.Entry != nil || f.Ref != coatcheck.MakeRef(handle(unlisted)) {
			t.Errorf("%+v", f)
		}
		for _, f := range a.Findings {
			if err := r.Repair(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		r.wantKept(good)
		events.want(t, "session.ended bob lost")
		r.wantInvalid(unlisted)
		r.wantUser("alice", good)
		if a, err := r.Audit(t.Context(), r.memory, AuditPause); err != nil || len(a.Findings) != 0 {
			t.Errorf("after the repair: %+v, %v", a, err)
		}
	})
}

func TestAuditFails(t *testing.T) {
	r := newRig(t)
	r.signIn("alice")
	r.probe.forget(failing("get"))
	if _, err := r.Audit(t.Context(), r.memory, AuditPause); err == nil {
		t.Error("a store that does not answer has no differences")
	}
	r.probe.forget(failing("delete"))
	if err := r.Repair(t.Context(), Finding{Ref: coatcheck.MakeRef("x"), record: "x"}); err == nil {
		t.Error("a repair that failed went well")
	}
}
