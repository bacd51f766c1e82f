package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// endedTitles are the headings of the pages that say why a session has ended.
var endedTitles = map[coatcheck.Reason]string{
	coatcheck.ReasonIdle:      "You were signed out",
	coatcheck.ReasonAbsolute:  "You were signed out",
	coatcheck.ReasonSignedOut: "You are signed out",
	coatcheck.ReasonReplaced:  "You were signed out",
	coatcheck.ReasonEvicted:   "You were signed out",
	coatcheck.ReasonRevoked:   "You were signed out",
	coatcheck.ReasonLost:      "Your session is lost",

	coatcheck.ReasonSignedOutElsewhere: "You were signed out",
	coatcheck.ReasonBackChannel:        "You were signed out",
	coatcheck.ReasonFrontChannel:       "You were signed out",

	coatcheck.ReasonRefreshRefused: "You were signed out",
	coatcheck.ReasonRefreshLost:    "Please sign in again",
}

// checkEnded asks with the cookie of a session that has ended, once as a script and once
// as a navigation. Both are told why (invariant 15).
func checkEnded(t *testing.T, s *sender, r request, g guest, reason coatcheck.Reason) {
	t.Helper()
	r.cookie = g.asCookie()
	r.header = asScript
	checkReason(t, g, s.mustSend(t, r), reason)
	r.header = asNavigation
	page := s.mustSend(t, r)
	if page.Status != http.StatusUnauthorized || page.Header.Get("Location") != "" || !strings.Contains(page.Body, "<h1>"+endedTitles[reason]+"</h1>") {
		t.Errorf("%s as a navigation, after the end of the session: %d %s", g.user, page.Status, firstLine(page.Body))
	}
	if set := page.Header.Values("Set-Cookie"); len(set) != 1 || !strings.HasPrefix(set[0], sessionCookie+"=;") {
		t.Errorf("%s keeps the dead cookie: %q", g.user, set)
	}
}

// checkReason holds a script's answer to what is said when a session has ended.
func checkReason(t *testing.T, g guest, page *testenv.Page, reason coatcheck.Reason) {
	t.Helper()
	var said struct {
		Error  coatcheck.Code
		Reason coatcheck.Reason
	}
	err := json.Unmarshal([]byte(page.Body), &said)
	if page.Status != http.StatusUnauthorized || err != nil || said.Error != coatcheck.CodeSessionEnded || said.Reason != reason {
		t.Errorf("%s as a script, after the end of the session: %d %s, want the reason %s", g.user, page.Status, firstLine(page.Body), reason)
	}
	if set := page.Header.Values("Set-Cookie"); len(set) > 0 || page.Header.Get("Location") != "" {
		t.Errorf("%s as a script: the answer has %v", g.user, page.Header)
	}
}
