package session

import (
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
)

// What a session wants, and that nobody is late for it: renewalDue is never after the first
// time at which it wants something.
func TestNeedOf(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	m := &Manager{Options: Options{Provider: new(revoker), Recheck: time.Minute}}
	for _, tc := range []struct {
		name    string
		tokens  coatcheck.Tokens
		renewal coatcheck.Renewal
		want    need
	}{
		{"nothing yet", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: at(time.Hour)}, coatcheck.Renewal{Checked: now, NotBefore: at(time.Minute)}, needNothing},
		{"a refresh", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: at(time.Hour)}, coatcheck.Renewal{Checked: now, NotBefore: now}, needRefresh},
		{"one that nobody has planned", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: at(time.Minute)}, coatcheck.Renewal{Checked: now}, needRefresh},
		{"the same, earlier", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: at(time.Minute + 1)}, coatcheck.Renewal{Checked: now}, needNothing},
		{"a refresh at once", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: now}, coatcheck.Renewal{Checked: now, NotBefore: now}, needFresh},
		{"to wait", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: now}, coatcheck.Renewal{Checked: now, NotBefore: at(1)}, needNothing},
		{"a check", coatcheck.Tokens{Access: "a", Refresh: "r", AccessExpiry: at(time.Hour)}, coatcheck.Renewal{Checked: at(-time.Minute), NotBefore: at(1)}, needCheck},
		{"no check by a token that has ended", coatcheck.Tokens{Access: "a", AccessExpiry: now}, coatcheck.Renewal{Checked: at(-time.Hour)}, needNothing},
		{"no check without a token", coatcheck.Tokens{AccessExpiry: at(time.Hour)}, coatcheck.Renewal{Checked: at(-time.Hour)}, needNothing},
		{"to end", coatcheck.Tokens{Access: "a", AccessExpiry: now}, coatcheck.Renewal{Checked: now, Attempt: "x", NotBefore: now}, needEnd},
		{"to end, in a while", coatcheck.Tokens{Access: "a", AccessExpiry: now}, coatcheck.Renewal{Checked: now, Attempt: "x", NotBefore: at(1)}, needNothing},
		{"to end with its token", coatcheck.Tokens{Access: "a", AccessExpiry: at(1)}, coatcheck.Renewal{Checked: now, Attempt: "x", NotBefore: now}, needNothing},
	} {
		s := user("alice")
		s.Tokens, s.Renewal = tc.tokens, tc.renewal
		if got := m.needOf(s, now); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
		if due := m.renewalDue(s); tc.want != needNothing && (due.IsZero() || due.After(now)) {
			t.Errorf("%s: due only in %v", tc.name, due.Sub(now))
		}
	}
}

// New tokens are due ahead of the end by a fifth of the token's life, at most a minute, and
// by up to half as much again.
func TestPlanRenewal(t *testing.T) {
	m := &Manager{Options: Options{Now: time.Now}}
	for life, ahead := range map[time.Duration]time.Duration{
		24 * time.Hour: time.Minute, time.Minute: 12 * time.Second, 0: 0, -time.Hour: 0,
	} {
		times := map[time.Duration]bool{}
		for range 50 {
			s := user("alice")
			s.Tokens.AccessExpiry = time.Now().Add(life)
			m.planRenewal(s)
			d := s.Tokens.AccessExpiry.Sub(s.Renewal.NotBefore)
			if d < ahead-time.Second || d > ahead+ahead/2 {
				t.Fatalf("a token that lives for %v is replaced %v before its end", life, d)
			}
			times[d.Round(100*time.Millisecond)] = true
		}
		if ahead > 0 && len(times) < 10 {
			t.Errorf("fifty sessions are refreshed at %d times", len(times))
		}
	}
}

// After a failure nothing is tried for a while, ever longer; where only an operator can help
// that is about a minute from the beginning.
func TestPauseAfterFailure(t *testing.T) {
	m := &Manager{Options: Options{Now: time.Now}}
	s, broken := user("alice"), user("bob")
	for _, most := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		most *= time.Second
		m.failed(coatcheck.OutcomeNone, false)(s)
		if d := time.Until(s.Renewal.NotBefore); d < most/2-time.Second || d > most {
			t.Errorf("after %d failures nothing is tried for %v", s.Renewal.Failures, d)
		}
		m.failed(coatcheck.OutcomeMisconfigured, false)(broken)
		if d := time.Until(broken.Renewal.NotBefore); d < 29*time.Second || d > time.Minute {
			t.Errorf("where only an operator can help nothing is tried for %v", d)
		}
	}
}
