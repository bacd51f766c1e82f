package devprovider

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestShelfIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf[int](3, time.Minute)
		for i := range 10 {
			s.put(fmt.Sprint(i), i)
		}
		if _, ok := s.get("6"); ok || len(s.slots) != 3 || s.byStart.Len() != 3 {
			t.Errorf("%d values kept, the oldest among them: %v", len(s.slots), ok)
		}
		s.drop("8")
		s.put("10", 10)
		for _, key := range []string{"7", "9", "10"} {
			if _, ok := s.get(key); !ok {
				t.Errorf("%s is gone", key)
			}
		}
		time.Sleep(time.Minute)
		if _, ok := s.get("10"); ok || len(s.slots) != 0 || s.byStart.Len() != 0 {
			t.Errorf("%d values outlived their time", len(s.slots))
		}
	})
}

// instant is the smallest step of the clock.
const instant = time.Nanosecond

const testVerifier = "0123456789012345678901234567890123456789012"

func testGrant() grant {
	sum := sha256.Sum256([]byte(testVerifier))
	return grant{clientID: "web", redirectURI: "u", challenge: base64.RawURLEncoding.EncodeToString(sum[:])}
}

func TestLifetimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(time.Minute, time.Hour)
		cookie, _ := l.signIn(User{Username: "alice"}, "")
		late, _ := l.authorize(cookie, testGrant())
		inTime, _ := l.authorize(cookie, testGrant())
		time.Sleep(time.Minute - instant)
		g, refresh, err := l.redeem("web", inTime, "u", testVerifier)
		if err != nil {
			t.Fatalf("a code in its last instant: %v", err)
		}
		time.Sleep(instant)
		if _, _, err := l.redeem("web", late, "u", testVerifier); !errors.Is(err, errUnknownGrant) {
			t.Errorf("an expired code: %v", err)
		}
		time.Sleep(time.Hour - time.Minute - instant)
		young, _ := l.authorize(cookie, testGrant()) // its session ends before it does
		if _, refresh, err = l.refresh("web", refresh); err != nil {
			t.Fatalf("a refresh token in its session's last instant: %v", err)
		}
		time.Sleep(instant)
		if _, _, err := l.refresh("web", refresh); !errors.Is(err, errUnknownGrant) {
			t.Errorf("a refresh token after its session: %v", err)
		}
		if _, _, err := l.redeem("web", young, "u", testVerifier); !errors.Is(err, errUnknownGrant) {
			t.Errorf("a code after its session: %v", err)
		}
		if _, ok := l.granted(g.id); ok {
			t.Error("an access token works after its session")
		}
		if _, ok := l.session(cookie); ok {
			t.Error("the session outlived its time")
		}
		if _, ok := l.authorize(cookie, testGrant()); ok {
			t.Error("an ended session was granted something")
		}
	})
}

// Signing in again extends the session, and with it what was granted in it.
func TestSignInAgainExtends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(time.Minute, time.Hour)
		first, before := l.signIn(User{Username: "alice"}, "")
		time.Sleep(30 * time.Minute)
		second, after := l.signIn(User{Username: "alice"}, first)
		if _, ok := l.session(first); ok {
			t.Error("the old cookie still works")
		}
		if after.id != before.id || !after.authTime.After(before.authTime) {
			t.Errorf("session %v became %v", before, after)
		}
		time.Sleep(45 * time.Minute)
		if _, ok := l.session(second); !ok {
			t.Error("the session ended with its first sign-in's time")
		}
	})
}

func TestFitsChallenge(t *testing.T) {
	challengeOf := func(verifier string) string {
		sum := sha256.Sum256([]byte(verifier))
		return base64.RawURLEncoding.EncodeToString(sum[:])
	}
	// The example of RFC 7636, appendix B.
	if !fitsChallenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM") {
		t.Error("the RFC's own example does not fit")
	}
	for _, n := range []int{0, 42, 129} {
		if v := strings.Repeat("x", n); fitsChallenge(v, challengeOf(v)) {
			t.Errorf("a verifier of %d characters was accepted", n)
		}
	}
	for _, n := range []int{43, 128} {
		if v := strings.Repeat("x", n); !fitsChallenge(v, challengeOf(v)) {
			t.Errorf("a verifier of %d characters was refused", n)
		}
	}
}

func TestAccessTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Options{
			Issuer:        "http://127.0.0.1:5556",
			Clients:       []Client{{ID: "web", Secret: "s", RedirectURIs: []string{"http://127.0.0.1/"}}},
			TokenLifetime: time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		cookie, _ := p.ledger.signIn(p.users[0], "")
		code, _ := p.ledger.authorize(cookie, testGrant())
		g, _, err := p.ledger.redeem("web", code, "u", testVerifier)
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := p.tokens(g, true)
		if err != nil {
			t.Fatal(err)
		}
		userinfo := func() int {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "http://127.0.0.1:5556/userinfo", nil)
			r.Header.Set("Authorization", "Bearer "+tokens.AccessToken)
			p.ServeHTTP(w, r)
			return w.Code
		}
		time.Sleep(time.Minute - time.Second)
		if got := userinfo(); got != http.StatusOK {
			t.Errorf("in its last second: %d", got)
		}
		time.Sleep(time.Second)
		if got := userinfo(); got != http.StatusUnauthorized {
			t.Errorf("afterwards: %d", got)
		}
	})
}

// An ID token is no access token and the other way round, whatever their claims.
func TestTokenKindsAreApart(t *testing.T) {
	k, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	for _, signed := range []string{typIDToken, typAccessToken} {
		token, err := k.sign(signed, accessClaims{Subject: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		for _, wanted := range []string{typIDToken, typAccessToken} {
			var claims accessClaims
			if err := k.verify(wanted, token, &claims); (err == nil) != (signed == wanted) {
				t.Errorf("%s read as %s: %v", signed, wanted, err)
			}
		}
	}
	other, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	token, err := other.sign(typIDToken, idClaims{})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.verify(typIDToken, token, &idClaims{}); err == nil {
		t.Error("another key's token was believed")
	}
}
