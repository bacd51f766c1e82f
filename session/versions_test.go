package session

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// goldenWhole is what record-1-whole.hex holds: everything that a session may have.
func goldenWhole() *coatcheck.Session {
	s := goldenSession()
	s.Origin = coatcheck.Origin{App: "shop.example", IP: "192.0.2.7", UserAgent: "Mozilla/5.0 (golden)", Node: "node-a"}
	s.Renewal = coatcheck.Renewal{
		Attempt: "ATTEMPT23456723456723456AB", AttemptAt: s.Created.Add(50 * time.Minute),
		NotBefore: s.Created.Add(55 * time.Minute), Failures: 3, Checked: s.Created.Add(-time.Second),
	}
	return s
}

// goldenRig is a Manager with the golden key ring, at a time when the golden session lives.
func goldenRig(t *testing.T) *rig {
	t.Helper()
	ring, err := seal.ParseRing(golden.Keys)
	if err != nil {
		t.Fatal(err)
	}
	return newRig(t, func(o *Options) {
		o.Ring, o.Tombstones = ring, time.Hour
		o.Now = func() time.Time { return goldenWhole().Created.Add(time.Hour) }
	})
}

func TestGoldenRecords(t *testing.T) {
	for name, want := range map[string]*coatcheck.Session{
		"record-1.hex":       goldenSession(),
		"record-1-whole.hex": goldenWhole(),
	} {
		got, err := decode(golden.Read(t, name))
		golden.Check(t, name, want, got, err)
		data, err := encode(want)
		golden.Written(t, name, data, err)
	}
}

// stored is a session as a store and a browser have it.
type stored struct {
	Cookie       string // what the browser sends
	Value        string // of the record, in hex
	Escrow       string // the same with the refresh token in escrow
	Entry        store.Entry
	TombstoneKey string
	Tombstone    string // in hex
	// Names of other things that are kept for the session or for its person.
	SIDBarrier, UserBarrier, RefreshLease string
}

func goldenStored(t *testing.T) stored {
	t.Helper()
	var s stored
	if err := json.Unmarshal(golden.Read(t, "stored-1.json"), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A session that is in a store and in a browser is loaded, found and ended, and its tombstone
// is read.
func TestGoldenStored(t *testing.T) {
	const file = "stored-1.json"
	kept := goldenStored(t)
	for _, value := range []string{kept.Value, kept.Escrow} {
		r := goldenRig(t)
		ctx, request := t.Context(), http.Header{"Cookie": {kept.Cookie}}
		if err := r.Store.Create(ctx, kept.Entry.Record, unhex(t, value), idle); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Registry.Admit(ctx, kept.Entry, idle, store.Limits{}, ""); err != nil {
			t.Fatal(err)
		}
		live, err := r.Load(ctx, request)
		if err != nil {
			t.Fatalf("%v\n%s", err, golden.Advice)
		}
		golden.Check(t, file, goldenWhole(), live.Session, nil)

		// What this version calls things is what the other called them.
		entry := r.listing(live.Session, live.handle, live.verifier)
		golden.Check(t, file, kept.Entry, entry, nil, cmpopts.IgnoreFields(store.Entry{}, "Data")) // which has grown
		golden.Check(t, file, kept.TombstoneKey, r.tombstoneKey(live.handle), nil)
		golden.Check(t, file, kept.SIDBarrier, sidBarrier(entry.SID), nil)
		golden.Check(t, file, kept.UserBarrier, userBarrier(entry.User), nil)
		golden.Check(t, file, kept.RefreshLease, r.leaseName(live.handle), nil)

		s := goldenWhole()
		for _, q := range []Query{
			{Issuer: s.Identity.Issuer, Subject: s.Identity.Subject},
			{Issuer: s.Identity.Issuer, SID: s.ProviderSID},
			{Ref: live.Ref},
			{},
		} {
			found := 0
			for e, err := range r.Find(ctx, q) {
				golden.Check(t, file, Entry{
					Ref: coatcheck.MakeRef(kept.Entry.Record), Tenant: "default", Provider: s.Provider,
					Issuer: s.Identity.Issuer, Subject: s.Identity.Subject, SID: s.ProviderSID,
					State: s.State, Origin: s.Origin, Deadline: s.Deadline,
				}, e, err, cmpopts.IgnoreUnexported(Entry{}), cmpopts.IgnoreFields(Entry{}, "Started", "Seen", "Expires"))
				found++
			}
			if found != 1 {
				t.Errorf("%+v finds %d sessions\n%s", q, found, golden.Advice)
			}
		}

		if err := r.End(ctx, http.Header{}, nil, live, coatcheck.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		rec, err := r.Store.Get(ctx, kept.TombstoneKey)
		golden.Check(t, file, kept.Tombstone, hex.EncodeToString(rec.Value), err)
	}

	r := goldenRig(t)
	token, err := r.Ring.OpenEscrow(r.place(kept.Entry.Record), unhex(t, kept.Escrow))
	golden.Check(t, file, goldenWhole().Tokens.Refresh.Reveal(), string(token), err)
	if err := r.Store.Create(t.Context(), kept.TombstoneKey, unhex(t, kept.Tombstone), time.Hour); err != nil {
		t.Fatal(err)
	}
	reason := r.Ended(t.Context(), http.Header{"Cookie": {kept.Cookie}})
	golden.Check(t, file, "revoked", string(reason), nil)
}

// A description says when its session began.
func TestGoldenDescription(t *testing.T) {
	const file = "description-1-created.hex"
	r, kept, s := goldenRig(t), goldenStored(t).Entry, goldenWhole()
	verifier := []byte("the verifier of a golden session")
	kept.Data = r.listing(s, kept.Record, verifier).Data
	golden.Written(t, file, kept.Data, nil)
	kept.Data = golden.Read(t, file)
	e, err := r.describe(kept)
	golden.Check(t, file, Entry{
		Ref: coatcheck.MakeRef(kept.Record), Tenant: "default", Provider: s.Provider,
		Issuer: s.Identity.Issuer, Subject: s.Identity.Subject, SID: s.ProviderSID,
		State: s.State, Origin: s.Origin, Started: s.Created, Deadline: s.Deadline,
	}, e, err, cmpopts.IgnoreUnexported(Entry{}), cmpopts.IgnoreFields(Entry{}, "Expires"))
	golden.Check(t, file, verifier, e.verifier, nil)
}

func TestGoldenLogouts(t *testing.T) {
	r, at := goldenRig(t), goldenWhole().Created
	for name, read := range map[string]func(key string) (any, error){
		"barrier-1.hex": func(key string) (any, error) { at, _, err := r.readBarrier(t.Context(), key); return at, err },
		"logout-1.hex": func(key string) (any, error) {
			l, _, err := r.readLogout(t.Context(), key)
			return time.UnixMilli(l.At), err
		},
		"logout-1-done.hex": func(key string) (any, error) {
			l, _, err := r.readLogout(t.Context(), key)
			return map[bool]any{true: time.UnixMilli(l.At)}[l.Done], err
		},
	} {
		if err := r.Store.Create(t.Context(), name, golden.Read(t, name), time.Hour); err != nil {
			t.Fatal(err)
		}
		got, err := read(name)
		golden.Check(t, name, any(at), got, err)
	}
	golden.Written(t, "barrier-1.hex", must(encMode.Marshal(barrier{barrierVersion, at.UnixMilli()})), nil)
	golden.Written(t, "logout-1.hex", encodeLogout(at, false), nil)
	golden.Written(t, "logout-1-done.hex", encodeLogout(at, true), nil)
}

// later returns a value with what a node of a later version may add to it.
func later(t *testing.T, data []byte, more map[any]any) []byte {
	t.Helper()
	fields := map[any]any{}
	if err := cbor.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	for k, v := range more {
		fields[k] = v
	}
	return must(encMode.Marshal(fields))
}

// A node keeps what one of a later version wrote, whatever it writes of its own.
func TestLaterFieldsAreKept(t *testing.T) {
	more := map[any]any{uint64(recordFields): "x", uint64(1000): []any{"y", uint64(1)}, int64(-1): map[any]any{"z": true}}
	s, err := decode(with(t, more))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenSession(), s, cmpopts.IgnoreFields(coatcheck.Session{}, "Unknown")); diff != "" {
		t.Errorf("what this version knows (-want +got):\n%s", diff)
	}
	refreshed := *s
	refreshed.Tokens.Access, refreshed.Renewal.Attempt = "another access token", "attempt"
	data, err := encode(&refreshed)
	if err != nil {
		t.Fatal(err)
	}
	more[uint64(13)], more[uint64(23)] = "another access token", "attempt"
	if diff := cmp.Diff(with(t, more), data); diff != "" {
		t.Errorf("what was written (-want +got):\n%s", diff)
	}
}

// A session that a node of a later version began is served, touched, listed again, written
// anew and ended by this one, and in none of that what the other wrote is lost.
func TestLaterNodeBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Tombstones = time.Hour })
		value := r.signIn("alice")
		tick, err := parseTicket(name, value)
		if err != nil {
			t.Fatal(err)
		}
		more := map[any]any{uint64(500): "what the later node needs", uint64(501): uint64(7)}
		plain := func() []byte {
			t.Helper()
			rec, ok := r.record(value)
			if !ok {
				t.Fatal("the record is gone")
			}
			plain, err := r.Ring.OpenRecord(r.place(tick.handle), tick.secret[:], rec.Value)
			if err != nil {
				t.Fatal(err)
			}
			return plain
		}
		wantMore := func(what string, data []byte) {
			t.Helper()
			var fields map[any]any
			if err := cbor.Unmarshal(data, &fields); err != nil {
				t.Fatal(err)
			}
			for k, v := range more {
				if diff := cmp.Diff(v, fields[k]); diff != "" {
					t.Errorf("%s: field %v (-want +got):\n%s", what, k, diff)
				}
			}
		}
		listed := func() store.Entry {
			t.Helper()
			for e, err := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			t.Fatal("the session is not listed")
			return store.Entry{}
		}
		r.put(value, later(t, plain(), more))
		entry := listed()
		if err := r.memory.Remove(t.Context(), entry); err != nil {
			t.Fatal(err)
		}
		entry.Data = later(t, entry.Data, more)
		if _, err := r.memory.Admit(t.Context(), entry, idle, store.Limits{}, ""); err != nil {
			t.Fatal(err)
		}

		// Served, and touched: that renews the entry too.
		time.Sleep(idle / 2)
		r.wantUser("alice", value)
		if rec, _ := r.record(value); rec.TTL != idle {
			t.Errorf("the record lives %v after a touch", rec.TTL)
		}
		if e := listed(); !e.Seen.Equal(time.Now()) {
			t.Errorf("the entry was renewed %v ago", time.Since(e.Seen))
		}
		wantMore("the record after a touch", plain())
		wantMore("the entry after a touch", listed().Data)

		// Written anew, as a refresh does.
		live, err := r.rewrite(t.Context(), tick, func(s *coatcheck.Session) bool {
			s.Tokens.Access, s.Renewal.NotBefore = "new", time.Now().Add(time.Minute)
			return true
		})
		if err != nil || live.Tokens.Access != "new" {
			t.Fatalf("%+v, %v", live, err)
		}
		wantMore("the record after a refresh", plain())
		wantMore("the entry after a refresh", listed().Data)
		if got := r.wantUser("alice", value); got.Tokens.Access != "new" {
			t.Errorf("the access token is %q", got.Tokens.Access.Reveal())
		}

		// Found, and ended with all that is told of it.
		for e, err := range r.Find(t.Context(), Query{Issuer: "https://idp.example", Subject: "alice"}) {
			if err != nil || e.Subject != "alice" {
				t.Fatalf("%+v, %v", e, err)
			}
			if err := r.Revoke(t.Context(), e, coatcheck.ReasonRevoked); err != nil {
				t.Fatal(err)
			}
		}
		r.wantInvalid(value)
		stone, err := r.memory.Get(t.Context(), r.tombstoneKey(tick.handle))
		if err != nil {
			t.Fatal(err)
		}
		// Why is told, too, where the later node has left the tombstone.
		if err := r.memory.Delete(t.Context(), r.tombstoneKey(tick.handle)); err != nil {
			t.Fatal(err)
		}
		if err := r.memory.Create(t.Context(), r.tombstoneKey(tick.handle), later(t, stone.Value, more), time.Hour); err != nil {
			t.Fatal(err)
		}
		if reason := r.Ended(t.Context(), carrying(value)); reason != coatcheck.ReasonRevoked {
			t.Errorf("it ended for %q", reason)
		}
	})
}

// An entry of another version is not described, but it is found, and what it names can be
// ended: nobody stays signed in because of an update.
func TestLaterDescription(t *testing.T) {
	for what, more := range map[string]map[any]any{
		"another version":    {uint64(0): uint64(descriptionVersion + 1), uint64(2): uint64(5)},
		"a state of its own": {uint64(5): uint64(9)},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			value := r.signIn("alice")
			for e := range r.memory.Find(t.Context(), store.Query{Tenant: r.tenantName()}) {
				if err := r.memory.Remove(t.Context(), e); err != nil {
					t.Fatal(err)
				}
				e.Data = later(t, e.Data, more)
				if _, err := r.memory.Admit(t.Context(), e, idle, store.Limits{}, ""); err != nil {
					t.Fatal(err)
				}
			}
			live := r.wantUser("alice", value)
			if a, err := r.Audit(t.Context(), r.memory, time.Millisecond); err != nil || a.Listed != 1 || len(a.Findings) > 0 {
				t.Errorf("an audit finds %+v, %v", a, err)
			}
			found := 0
			for e, err := range r.Find(t.Context(), Query{Issuer: "https://idp.example", Subject: "alice"}) {
				found++
				if err != ErrUndescribed || e.Ref != live.Ref {
					t.Fatalf("%+v, %v", e, err)
				}
				if err := r.Revoke(t.Context(), e, coatcheck.ReasonRevoked); err != nil {
					t.Fatal(err)
				}
			}
			if found != 1 {
				t.Errorf("found %d sessions", found)
			}
			r.wantInvalid(value)
			r.wantKept()
		})
	}
}

// A tombstone of another version says nothing, and stays.
func TestLaterTombstone(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Tombstones = time.Hour })
	value := r.signIn("alice")
	live := r.wantUser("alice", value)
	if err := r.End(t.Context(), http.Header{}, nil, live, coatcheck.ReasonRevoked); err != nil {
		t.Fatal(err)
	}
	key := r.tombstoneKey(live.handle)
	rec, err := r.memory.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	next := later(t, rec.Value, map[any]any{uint64(0): uint64(tombstoneVersion + 1)})
	if err := r.memory.Replace(t.Context(), key, rec.Revision, next, time.Hour); err != nil {
		t.Fatal(err)
	}
	if reason := r.Ended(t.Context(), carrying(value)); reason != "" {
		t.Errorf("it says %q", reason)
	}
	if rec, err := r.memory.Get(t.Context(), key); err != nil || !cmp.Equal(rec.Value, next) {
		t.Errorf("the tombstone is %x, %v", rec.Value, err)
	}
}
