package session

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
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
		for _, f := range a.Findings {
			switch f.Ref {
			case coatcheck.MakeRef(handle(gone)):
				if f.Entry == nil || f.Entry.Subject != "bob" {
					t.Errorf("%+v", f)
				}
			case coatcheck.MakeRef(handle(unlisted)):
				if f.Entry != nil {
					t.Errorf("%+v", f)
				}
			default:
				t.Errorf("%+v", f)
			}
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

// What has no difference any more when the audit looks again is no finding.
func TestAuditLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		ctx := t.Context()
		unlist := func(sub string) (value, handle string) {
			value = r.signIn(sub)
			for e := range r.Find(ctx, Query{Issuer: "https://idp.example", Subject: sub}) {
				if err := r.memory.Remove(ctx, e.listed); err != nil {
					t.Fatal(err)
				}
			}
			handle, _, _ = strings.Cut(value, ".")
			return value, handle
		}
		lose := func(sub string) (handle string, rec store.Record, e store.Entry) {
			value := r.signIn(sub)
			rec, _ = r.record(value)
			handle, _, _ = strings.Cut(value, ".")
			for listed := range r.Find(ctx, Query{Ref: coatcheck.MakeRef(handle)}) {
				e = listed.listed
			}
			if err := r.memory.Delete(ctx, handle); err != nil {
				t.Fatal(err)
			}
			return handle, rec, e
		}
		inUse, _ := unlist("alice")
		_, ending := unlist("bob")
		back, rec, _ := lose("carol")
		_, _, marked := lose("dave")
		var found Audit
		var audit sync.WaitGroup
		audit.Go(func() {
			var err error
			if found, err = r.Audit(ctx, r.memory, RepairPause); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(RepairPause - time.Second)
		r.wantUser("alice", inUse)
		_, err := r.memory.End(ctx, marked, string(coatcheck.ReasonRevoked))
		if err = errors.Join(err, r.memory.Delete(ctx, ending), r.memory.Create(ctx, back, rec.Value, idle)); err != nil {
			t.Fatal(err)
		}
		audit.Wait()
		if found.Listed != 2 || found.Records != 2 || len(found.Findings) != 0 {
			t.Errorf("%+v", found)
		}
	})
}

// indexless is a registry whose index by ID has lost everything.
type indexless struct{ store.Registry }

func (r indexless) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	if q.ID != "" {
		return func(func(store.Entry, error) bool) {}
	}
	return r.Registry.Find(ctx, q)
}

// What an index has lost is listed, and counted: nobody signs it out.
func TestAuditWithoutIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		alice, carol := r.signIn("alice"), r.signIn("carol")
		for e := range r.Find(t.Context(), Query{Issuer: "https://idp.example", Subject: "carol"}) {
			if err := r.memory.Remove(t.Context(), e.listed); err != nil {
				t.Fatal(err)
			}
		}
		r.Manager.Registry = indexless{r.memory}
		a, err := r.Audit(t.Context(), r.memory, AuditPause)
		if err != nil {
			t.Fatal(err)
		}
		if a.Listed != 1 || a.Records != 2 || len(a.Findings) != 1 {
			t.Fatalf("%+v", a)
		}
		if err := r.Repair(t.Context(), a.Findings[0]); err != nil {
			t.Fatal(err)
		}
		r.wantUser("alice", alice)
		r.wantInvalid(carol)
	})
}

// Between an audit and its repair a session in use may have listed itself again; and what the
// repair ends is over at this node at once.
func TestRepairLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newSilent(t)
		alice := r.signIn("alice")
		r.wantUser("alice", alice)
		handle, _, _ := strings.Cut(alice, ".")
		f := Finding{Ref: coatcheck.MakeRef(handle), record: handle}
		if err := r.Repair(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		r.wantKept(alice)
		for e := range r.Find(t.Context(), Query{}) {
			if err := r.memory.Remove(t.Context(), e.listed); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Repair(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		r.wantInvalid(alice)
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
