package oidc

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A site is a relying party of a provider that is not our own.
type site struct {
	*RelyingParty
	provider *testenv.Provider
	browser  *testenv.Browser
	url      string
	logins   chan *Login
	logouts  chan *Logout
}

func newSite(t *testing.T, o testenv.ProviderOptions) *site {
	s := &site{logins: make(chan *Login, 1), logouts: make(chan *Logout, 1), browser: testenv.NewBrowser(t)}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL
	mux.HandleFunc("GET /start", func(w http.ResponseWriter, r *http.Request) {
		location, err := s.Start(w.Header(), r, "/")
		if err != nil {
			t.Error(err)
		}
		http.Redirect(w, r, location, http.StatusSeeOther)
	})
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		login, err := s.Callback(r.Context(), w.Header(), r)
		if err != nil {
			t.Error(err)
		}
		s.logins <- login
	})
	mux.HandleFunc("POST /logout", func(_ http.ResponseWriter, r *http.Request) {
		logout, err := s.LogoutToken(r.Context(), r.PostFormValue("logout_token"))
		if err != nil {
			t.Error(err)
		}
		s.logouts <- logout
	})
	mux.HandleFunc("GET /done", func(http.ResponseWriter, *http.Request) {})

	o.RedirectURIs = []string{s.url + "/callback"}
	o.PostLogoutRedirectURIs = []string{s.url + "/done"}
	o.BackchannelLogoutURI = s.url + "/logout"
	s.provider = testenv.StartProvider(t, o)
	public, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	s.RelyingParty = New(Config{
		Tenant: "t1", Name: "corp", Issuer: s.provider.Issuer, ClientID: s.provider.ClientID,
		ClientSecret: coatcheck.Secret(s.provider.ClientSecret),
		Scopes:       []string{"openid", "profile", "email"}, GroupsClaim: "groups",
		RedirectURL: s.url + "/callback", PostLogoutURL: s.url + "/done",
		Returns: NewReturns(public), Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", true),
		Once: memory.New(), Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(s.client.CloseIdleConnections)
	if err := s.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) signIn(t *testing.T, username string) *coatcheck.Session {
	t.Helper()
	page, err := s.browser.SignIn(t.Context(), s.url+"/start", username)
	if err != nil || page.Status != http.StatusOK {
		t.Fatalf("%+v, %v", page, err)
	}
	login := <-s.logins
	if login == nil {
		t.FailNow()
	}
	return login.Session
}

// A certified provider that rotates refresh tokens, in both places for claims: what it
// grants is taken, what changes there takes effect, and what it refuses is understood.
func TestCertifiedRefresh(t *testing.T) {
	for name, conform := range map[string]bool{"claims in the ID token": false, "claims from userinfo": true} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, testenv.ProviderOptions{ConformIDTokenClaims: conform, AccessTokenLifetime: 5 * time.Minute})
			first := s.signIn(t, "alice")

			// A-S9: a group that is removed is gone with the next refresh, or check.
			s.provider.SetGroups("alice", "staff")
			second, err := s.Refresh(t.Context(), first)
			if err != nil {
				t.Fatal(err)
			}
			if second.Tokens.Refresh == first.Tokens.Refresh || second.Tokens.Access == first.Tokens.Access {
				t.Error("the tokens are the old ones")
			}
			if life := time.Until(second.Tokens.AccessExpiry); life <= 4*time.Minute || life > 5*time.Minute {
				t.Errorf("the access token lives for %v", life)
			}
			want := first.Identity
			want.Groups = []string{"staff"}
			if diff := cmp.Diff(want, second.Identity); diff != "" {
				t.Error(diff)
			}
			s.provider.SetGroups("alice", "staff", "night shift")
			checked, err := s.Check(t.Context(), second)
			if err != nil {
				t.Fatal(err)
			}
			want.Groups = []string{"staff", "night shift"}
			if diff := cmp.Diff(want, checked.Identity); diff != "" {
				t.Error(diff)
			}

			// A refresh token that was used up is refused, and with it all that came of it.
			_, err = s.Refresh(t.Context(), first)
			wantOutcome(t, err, coatcheck.OutcomeRefused)
			_, err = s.Refresh(t.Context(), second)
			wantOutcome(t, err, coatcheck.OutcomeRefused)
			_, err = s.Check(t.Context(), second)
			wantOutcome(t, err, coatcheck.OutcomeRefused)

			third := s.signIn(t, "alice")
			if err := s.Revoke(t.Context(), third.Tokens.Refresh, coatcheck.RefreshToken); err != nil {
				t.Fatal(err)
			}
			_, err = s.Refresh(t.Context(), third)
			wantOutcome(t, err, coatcheck.OutcomeRefused)
			// It is no error to revoke a token again, or one that never was.
			for _, token := range []coatcheck.Secret{third.Tokens.Refresh, "never was"} {
				if err := s.Revoke(t.Context(), token, coatcheck.RefreshToken); err != nil {
					t.Error(err)
				}
			}

			fourth := s.signIn(t, "alice")
			s.provider.Disable("alice")
			_, err = s.Refresh(t.Context(), fourth)
			wantOutcome(t, err, coatcheck.OutcomeRefused)
			_, err = s.Check(t.Context(), fourth)
			wantOutcome(t, err, coatcheck.OutcomeRefused)
		})
	}
}

// The operator's fault is nobody's end, and neither is a provider that is away.
func TestCertifiedFailures(t *testing.T) {
	s := newSite(t, testenv.ProviderOptions{})
	session := s.signIn(t, "bob")

	right := s.ClientSecret
	s.ClientSecret = "wrong"
	_, err := s.Refresh(t.Context(), session)
	wantOutcome(t, err, coatcheck.OutcomeMisconfigured)
	wantOutcome(t, s.Revoke(t.Context(), session.Tokens.Refresh, coatcheck.RefreshToken), coatcheck.OutcomeMisconfigured)
	s.ClientSecret = right
	if session, err = s.Refresh(t.Context(), session); err != nil {
		t.Fatal(err)
	}

	s.provider.Stop()
	_, err = s.Refresh(t.Context(), session)
	wantOutcome(t, err, coatcheck.OutcomeNone)
	_, err = s.Check(t.Context(), session)
	wantOutcome(t, err, coatcheck.OutcomeNone)
	wantOutcome(t, s.Revoke(t.Context(), session.Tokens.Refresh, coatcheck.RefreshToken), coatcheck.OutcomeNone)
}

// A-L4, as a certified provider sends it.
func TestCertifiedLogoutToken(t *testing.T) {
	s := newSite(t, testenv.ProviderOptions{})
	session := s.signIn(t, "carol")
	location, ok := s.EndSession(session, "/")
	if !ok {
		t.Fatal("no end of session")
	}
	page, err := s.browser.Open(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.browser.Submit(t.Context(), page, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case l := <-s.logouts:
		if l == nil {
			t.FailNow()
		}
		if l.Issuer != s.provider.Issuer || l.Subject != "carol" || l.SID == "" || l.SID != session.ProviderSID || l.ID == "" {
			t.Errorf("%+v of a session with sid %q", l, session.ProviderSID)
		}
		if left := time.Until(l.Expires); left <= 0 || left > maxLogoutAge+skew {
			t.Errorf("expires in %v", left)
		}
	case <-time.After(time.Minute):
		t.Error("no logout token arrived")
	}
}
