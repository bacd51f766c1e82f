package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
	"github.com/coatcheck/coatcheck/store/redis"
)

// An audited site has sessions in a store that is to lose some of what it has.
type auditedSite struct {
	store.Backend
	t        *testing.T
	sessions *session.Manager
	cookies  map[string]string      // by subject
	entries  map[string]store.Entry // likewise, as they were given to the registry
	given    store.Entry            // the last one
}

func newAuditedSite(t *testing.T, kept store.Backend, subjects ...string) *auditedSite {
	cfg := &config.Config{
		Node:      "a",
		Session:   config.Session{Cookie: config.Cookie{Name: "coatcheck"}, IdleTimeout: time.Hour, AbsoluteTimeout: time.Hour},
		Providers: []config.Provider{{}},
	}
	a := &auditedSite{Backend: kept, t: t, cookies: map[string]string{}, entries: map[string]store.Entry{}}
	a.sessions = newSessions(cfg, a, session.Options{Ring: seal.NewRing(), Jar: newJar(cfg)})
	for _, subject := range subjects {
		h := http.Header{}
		if _, err := a.sessions.Begin(t.Context(), h, http.Header{}, &coatcheck.Session{
			Provider: "corp", State: coatcheck.Authenticated, Identity: coatcheck.Identity{Issuer: "https://idp.example.com", Subject: subject},
		}, a.sessions.Now()); err != nil {
			t.Fatal(err)
		}
		a.cookies[subject], _, _ = strings.Cut(h.Get("Set-Cookie"), ";")
		a.entries[subject] = a.given
	}
	return a
}

func (a *auditedSite) Admit(ctx context.Context, e store.Entry, ttl time.Duration, l store.Limits, replaces string) ([]store.Entry, error) {
	a.given = e
	return a.Backend.Admit(ctx, e, ttl, l, replaces)
}

func (a *auditedSite) loseRecord(subject string) {
	a.t.Helper()
	if err := a.Delete(a.t.Context(), a.entries[subject].Record); err != nil {
		a.t.Fatal(err)
	}
}

func (a *auditedSite) loseEntry(subject string) {
	a.t.Helper()
	if err := a.Remove(a.t.Context(), a.entries[subject]); err != nil {
		a.t.Fatal(err)
	}
}

// audit runs the command, and returns what it says, with subjects for the names of sessions.
func (a *auditedSite) audit(repair bool) (string, error) {
	var out bytes.Buffer
	err := storeAuditCmd{Repair: repair}.compare(a.t.Context(), a.sessions, a, &out)
	text := out.String()
	for subject, e := range a.entries {
		text = strings.ReplaceAll(text, e.ID, subject+"'s")
	}
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, ""), err
}

func (a *auditedSite) wantSignedIn(subjects ...string) {
	a.t.Helper()
	for subject, cookie := range a.cookies {
		_, err := a.sessions.Load(a.t.Context(), http.Header{"Cookie": {cookie}})
		if want := slices.Contains(subjects, subject); (err == nil) != want || err != nil && !errors.Is(err, session.ErrInvalid) {
			a.t.Errorf("%s is signed in: %v, want %t", subject, err, want)
		}
	}
}

func wantSaid(t *testing.T, got, want string) {
	t.Helper()
	got = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`).ReplaceAllString(got, "TIME")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("it says (-want +got):\n%s", diff)
	}
}

// An audit says what differs, and fails; with --repair it puts that right, and says how.
func TestAuditCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuditedSite(t, memory.New(), "alice", "bob", "carol", "dave")
		defer a.Close()
		said, err := a.audit(false)
		if wantSaid(t, said, "sessions listed: 4, kept: 4, differences: 0\n"); err != nil {
			t.Error(err)
		}
		a.loseRecord("bob")
		a.loseEntry("carol")
		a.loseEntry("dave")
		// Dave's session is in use, and lists itself when it may: that takes 30 seconds.
		defer time.AfterFunc(30*time.Second, func() {
			if err := a.Renew(context.WithoutCancel(t.Context()), a.entries["dave"], time.Hour); err != nil {
				t.Error(err)
			}
		}).Stop()
		began := time.Now()
		said, err = a.audit(true)
		wantSaid(t, said, `session bob's of "bob" (https://idp.example.com), last seen TIME: listed, but its record is gone; taken off the list
session carol's: can be used, but is not listed; ended
sessions listed: 2, kept: 3, differences: 2
`)
		if took := time.Since(began); err != nil || took != session.RepairPause {
			t.Errorf("it took %s; %v", took, err)
		}
		a.wantSignedIn("alice", "dave")

		a.loseRecord("alice")
		began = time.Now()
		said, err = a.audit(false)
		wantSaid(t, said, `session alice's of "alice" (https://idp.example.com), last seen TIME: listed, but its record is gone
sessions listed: 2, kept: 1, differences: 1
`)
		if took := time.Since(began); !errors.Is(err, errDifferences) || took != session.AuditPause {
			t.Errorf("it took %s; %v", took, err)
		}
	})
}

// A repair that would end most sessions repairs nothing at all.
func TestRepairIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuditedSite(t, memory.New(), "alice", "bob", "carol", "dave")
		defer a.Close()
		a.loseRecord("dave")
		a.loseEntry("alice")
		a.loseEntry("bob")
		said, err := a.audit(true)
		if wantSaid(t, said, ""); !errors.Is(err, errAccident) || !strings.HasPrefix(err.Error(), "2 of 3 sessions are not listed, and --repair ends nothing then") {
			t.Error(err)
		}
		a.wantSignedIn("alice", "bob", "carol")
		if said, _ := a.audit(false); !strings.Contains(said, "sessions listed: 2, kept: 3, differences: 3\n") {
			t.Errorf("after the repair that was refused: %s", said)
		}
	})
}

// What Redis loses of an index signs nobody out: they are listed, and counted.
func TestRepairOnRedis(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	kept, err := redis.Open(t.Context(), redis.Options{URL: server.URL(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	a := newAuditedSite(t, kept, "alice", "bob", "carol", "dave")
	a.loseEntry("carol")
	a.loseRecord("dave")
	for _, pattern := range []string{"i:*:" + a.entries["alice"].ID, "a:*"} {
		keys, err := server.Do("KEYS", pattern).AsStrSlice()
		if err != nil || len(keys) == 0 {
			t.Fatalf("%s: %q, %v", pattern, keys, err)
		}
		server.Must(append([]string{"DEL"}, keys...)...)
	}
	found, err := a.sessions.Audit(t.Context(), a, 0)
	if err != nil || found.Listed != 3 || found.Records != 3 || len(found.Findings) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, f := range found.Findings {
		if err := a.sessions.Repair(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
	a.wantSignedIn("alice", "bob")
	if found, err := a.sessions.Audit(t.Context(), a, 0); err != nil || found.Listed != 2 || len(found.Findings) != 0 {
		t.Errorf("after the repair: %+v, %v", found, err)
	}
}

// What --repair would refuse is not recommended.
func TestDifferences(t *testing.T) {
	gone, unlisted := session.Finding{Entry: new(session.Entry)}, session.Finding{}
	for name, tc := range map[string]struct {
		found session.Audit
		want  error
	}{
		"none":               {session.Audit{Listed: 2, Records: 2}, nil},
		"no sessions":        {session.Audit{}, nil},
		"a few":              {session.Audit{Listed: 2, Records: 2, Findings: []session.Finding{gone, unlisted}}, errDifferences},
		"records are gone":   {session.Audit{Listed: 2, Findings: []session.Finding{gone, gone}}, errDifferences},
		"most are unlisted":  {session.Audit{Listed: 1, Records: 3, Findings: []session.Finding{unlisted, unlisted}}, errAccident},
		"of another keyring": {session.Audit{Records: 1, Findings: []session.Finding{unlisted}}, errAccident},
	} {
		if got := differences(tc.found); !errors.Is(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
