package oidc

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

var logoutHeader = object{"alg": "RS256", "kid": "k1", "typ": "logout+jwt"}

// loggedOut returns the claims of a good logout token.
func loggedOut(issuer string) object {
	return object{
		"iss": issuer, "aud": "client", "sub": "alice-1", "sid": "s-1", "jti": "j-1",
		"iat": now.Unix(), "exp": now.Add(2 * time.Minute).Unix(),
		"events": object{logoutEvent: object{}},
	}
}

func TestLogoutToken(t *testing.T) {
	i, p, _ := newPair(t, nil)
	got, err := p.LogoutToken(t.Context(), sign(logoutHeader, loggedOut(i.URL), rsaKey(0)))
	if err != nil {
		t.Fatal(err)
	}
	want := &Logout{
		Issuer: i.URL, Subject: "alice-1", SID: "s-1", ID: "j-1",
		Expires: now.Add(2*time.Minute + skew),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A token is no good for longer than its age allows, however late it expires.
	late := overlay(loggedOut(i.URL), object{"exp": now.Add(time.Hour).Unix()})
	if got, err = p.LogoutToken(t.Context(), sign(logoutHeader, late, rsaKey(0))); err != nil {
		t.Fatal(err)
	}
	if want := now.Add(maxLogoutAge + skew); !got.Expires.Equal(want) {
		t.Errorf("expires at %v, want %v", got.Expires, want)
	}
}

func TestLogoutTokenClaims(t *testing.T) {
	i, p, clock := newPair(t, nil)
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	event := func(v any) object { return object{"events": object{logoutEvent: v}} }
	for _, c := range []struct {
		name string
		lies object
		ok   bool
	}{
		{"honest", nil, true},
		{"A-L4 sid alone", object{"sub": nil}, true},
		{"A-L4 sub alone", object{"sid": nil}, true},
		{"A-L5 nonce", object{"nonce": "n"}, false},
		{"A-L5 nonce empty", object{"nonce": ""}, false},
		{"A-L5 nonce no text", object{"nonce": 0}, false},
		{"A-L6 no events", object{"events": nil}, false},
		{"A-L6 events empty", object{"events": object{}}, false},
		{"A-L6 events a list", object{"events": []string{logoutEvent}}, false},
		{"A-L6 events text", object{"events": logoutEvent}, false},
		{"A-L6 other event", object{"events": object{"http://schemas.openid.net/event/other": object{}}}, false},
		{"A-L6 another event beside", object{"events": object{"x": object{}, logoutEvent: object{}}}, true},
		{"A-L6 event in another case", object{"events": object{strings.ToUpper(logoutEvent): object{}}}, false},
		{"A-L6 event's value null", event(nil), false},
		{"A-L6 event's value a list", event([]any{}), false},
		{"A-L6 event's value text", event("{}"), false},
		{"A-L6 event's value true", event(true), false},
		{"A-L6 event with members", event(object{"x": 1}), true},
		{"A-L7 neither sub nor sid", object{"sub": nil, "sid": nil}, false},
		{"sub empty", object{"sub": ""}, false},
		{"sub no text", object{"sub": 1}, false},
		{"sub too long", object{"sub": strings.Repeat("s", maxSubject+1)}, false},
		{"sub line end", object{"sub": "a\nb"}, false},
		{"sid empty", object{"sid": ""}, false},
		{"sid no text", object{"sid": 1}, false},
		{"sid at the limit", object{"sid": strings.Repeat("s", maxText)}, true},
		{"sid too long", object{"sid": strings.Repeat("s", maxText+1)}, false},
		{"sid line end", object{"sid": "a\nb"}, false},
		{"no jti", object{"jti": nil}, false},
		{"jti empty", object{"jti": ""}, false},
		{"jti no text", object{"jti": 1}, false},
		{"jti at the limit", object{"jti": strings.Repeat("j", maxText)}, true},
		{"jti too long", object{"jti": strings.Repeat("j", maxText+1)}, false},
		{"A-L10 exp at the limit", object{"exp": at(-skew), "iat": at(-2 * time.Minute)}, true},
		{"A-L10 exp past", object{"exp": at(-skew - time.Second), "iat": at(-2 * time.Minute)}, false},
		{"A-L10 iat at the limit", object{"iat": at(-maxLogoutAge - skew)}, true},
		{"A-L10 iat too old", object{"iat": at(-maxLogoutAge - skew - time.Second)}, false},
		{"A-J5 iat ahead at the limit", object{"iat": at(skew)}, true},
		{"A-J5 iat yet to come", object{"iat": at(skew + time.Second)}, false},
		{"A-J5 nbf yet to come", object{"nbf": at(skew + time.Second)}, false},
		{"A-J6 no iat", object{"iat": nil}, false},
		{"A-J6 no exp", object{"exp": nil}, false},
		{"A-J6 no iss", object{"iss": nil}, false},
		{"A-J6 no aud", object{"aud": nil}, false},
		{"iat no number", object{"iat": "0"}, false},
		{"exp absurd", object{"exp": 1e300}, false},
		{"A-L8 iss of another", object{"iss": "https://other.test"}, false},
		{"A-J4 iss slash", object{"iss": i.URL + "/"}, false},
		{"A-J3 aud wrong", object{"aud": "other"}, false},
		{"A-J3 aud another beside", object{"aud": []string{"client", "other"}}, false},
		{"A-J3 aud list of one", object{"aud": []string{"client"}}, true},
		{"A-J3 azp wrong", object{"azp": "other"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.LogoutToken(t.Context(), sign(logoutHeader, overlay(loggedOut(i.URL), c.lies), rsaKey(0)))
			if c.ok && err != nil {
				t.Error(err)
			}
			if !c.ok {
				wantCode(t, err, coatcheck.CodeBadLogoutToken)
			}
		})
	}
	// Expires is the last moment at which the token is taken.
	token := sign(logoutHeader, loggedOut(i.URL), rsaKey(0))
	l, err := p.LogoutToken(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	clock.add(l.Expires.Sub(now))
	if _, err := p.LogoutToken(t.Context(), token); err != nil {
		t.Error(err)
	}
	clock.add(time.Second)
	_, err = p.LogoutToken(t.Context(), token)
	wantCode(t, err, coatcheck.CodeBadLogoutToken)
}

func TestLogoutTokenForm(t *testing.T) {
	i, p, _ := newPair(t, nil)
	good := sign(logoutHeader, loggedOut(i.URL), rsaKey(0))
	parts := strings.Split(good, ".")
	honest, err := json.Marshal(loggedOut(i.URL))
	if err != nil {
		t.Fatal(err)
	}
	with := func(more string) string { return strings.TrimSuffix(string(honest), "}") + more + "}" }
	header := func(h string) string { return sign(h, string(honest), rsaKey(0)) }
	typed := func(typ string) string { return header(`{"alg":"RS256","kid":"k1","typ":"` + typ + `"}`) }
	der, err := x509.MarshalPKIXPublicKey(rsaKey(0).Public())
	if err != nil {
		t.Fatal(err)
	}
	hmac := func(key []byte) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k1"))
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(honest)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := jws.CompactSerialize()
		return s
	}
	full, err := jose.ParseSignedCompact(good, signingAlgorithms)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, token string }{
		{"A-J1 none", part(object{"alg": "none", "typ": "logout+jwt"}) + "." + parts[1] + "."},
		{"A-J1 None", part(object{"alg": "None"}) + "." + parts[1] + "."},
		{"A-J1 NONE", part(object{"alg": "NONE"}) + "." + parts[1] + "." + parts[2]},
		{"A-J2 HS256 with the PEM of the key", hmac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
		{"A-J2 HS256 with the DER of the key", hmac(der)},
		{"A-J7 unknown kid", sign(object{"alg": "RS256", "kid": "k2"}, string(honest), rsaKey(0))},
		{"A-J10 empty", ""},
		{"A-J10 dots", ".."},
		{"A-J10 two parts", parts[0] + "." + parts[1]},
		{"A-J10 five parts", good + ".x.y"},
		{"A-J10 empty signature", parts[0] + "." + parts[1] + "."},
		{"A-J10 truncated signature", good[:len(good)-8]},
		{"A-J10 foreign signature", sign(logoutHeader, string(honest), rsaKey(1))},
		{"A-J10 other claims", parts[0] + "." + part(overlay(loggedOut(i.URL), object{"sub": "bob"})) + "." + parts[2]},
		{"A-J10 JSON form", full.FullSerialize()},
		{"A-J10 payload null", sign(logoutHeader, "null", rsaKey(0))},
		{"A-J10 too long", sign(logoutHeader, with(`,"x":"`+strings.Repeat("x", maxToken)+`"`), rsaKey(0))},
		{"A-J12 access token", typed("at+jwt")},
		{"A-J12 security event token", typed("secevent+jwt")},
		{"typ empty", typed("")},
		{"A-J12 typ no text", header(`{"alg":"RS256","kid":"k1","typ":null}`)},
		{"A-J13 sub twice", sign(logoutHeader, with(`,"sub":"admin"`), rsaKey(0))},
		{"A-J13 nonce null", sign(logoutHeader, with(`,"nonce":null`), rsaKey(0))},
		{"sid null", sign(logoutHeader, with(`,"sid":null`), rsaKey(0))},
		{"A-J13 event twice", sign(logoutHeader, strings.Replace(string(honest), `{"`+logoutEvent+`":{}}`, `{"`+logoutEvent+`":{},"`+logoutEvent+`":{}}`, 1), rsaKey(0))},
		{"A-L11 ID token", sign(goodHeader, i.honest("n"), rsaKey(0))},
		{"A-L11 ID token without nonce", sign(goodHeader, overlay(i.honest(""), object{"nonce": nil, "jti": "j"}), rsaKey(0))},
		{"A-L11 ID token under the type", sign(logoutHeader, overlay(i.honest("n"), object{"jti": "j"}), rsaKey(0))},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The keys may be fetched again, so that what does not fit them is none of theirs.
			p.current.keys.refetched = time.Time{}
			_, err := p.LogoutToken(t.Context(), c.token)
			wantCode(t, err, coatcheck.CodeBadLogoutToken)
			if strings.Contains(err.Error(), parts[2]) {
				t.Errorf("the error shows a signature: %v", err)
			}
		})
	}
	for name, token := range map[string]string{
		"no typ":       header(`{"alg":"RS256","kid":"k1"}`),
		"JWT":          typed("JWT"),
		"media type":   typed("application/logout+jwt"),
		"another case": typed("LOGOUT+JWT"),
	} {
		if _, err := p.LogoutToken(t.Context(), token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A-J12, the other way round.
	_, err = verifyRaw(t, p, good)
	wantCode(t, err, coatcheck.CodeBadToken)
	_, err = verifyRaw(t, p, typed("JWT"))
	wantCode(t, err, coatcheck.CodeBadToken)
}

// A-L8, A-J14: a token of one provider ends nothing at another, though their keys have one
// name.
func TestLogoutTokenOfAnother(t *testing.T) {
	i1, p1, _ := newPair(t, nil)
	i2, p2, _ := newPair(t, nil)
	i2.publish("k1", rsaKey(1))
	token := sign(logoutHeader, loggedOut(i1.URL), rsaKey(1))
	_, err := p1.LogoutToken(t.Context(), token)
	wantCode(t, err, coatcheck.CodeBadLogoutToken)
	_, err = p2.LogoutToken(t.Context(), token)
	wantCode(t, err, coatcheck.CodeBadLogoutToken)
	if _, err := p2.LogoutToken(t.Context(), sign(logoutHeader, loggedOut(i2.URL), rsaKey(1))); err != nil {
		t.Error(err)
	}
}

// What can't be verified now must be sent again, so it is not called bad.
func TestLogoutTokenLater(t *testing.T) {
	i := newHostile(t)
	token := sign(logoutHeader, loggedOut(i.URL), rsaKey(0))
	p, clock := newParty(t, i.URL, nil)
	var away atomic.Bool
	honest := p.client.Transport
	silent := rewrite(honest, "/jwks", "no keys")
	keysOnly := roundTripFunc(func(r *http.Request) (*http.Response, error) {
		if away.Load() {
			return silent.RoundTrip(r)
		}
		return honest.RoundTrip(r)
	})
	p.client.Transport = rewrite(honest, wellKnownPath, "no metadata")
	_, err := p.LogoutToken(t.Context(), token)
	wantCode(t, err, coatcheck.CodeNotReady)
	p.client.Transport = keysOnly
	if err := p.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	away.Store(true)
	_, err = p.LogoutToken(t.Context(), token)
	wantCode(t, err, coatcheck.CodeProviderFailed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = p.LogoutToken(ctx, token)
	wantCode(t, err, coatcheck.CodeProviderFailed)
	away.Store(false)
	clock.add(retryEvery)
	// A-J8: keys that were rotated since are fetched.
	if _, err = p.LogoutToken(t.Context(), token); err != nil {
		clock.add(retryEvery)
		// It may have waited for the fetch of before.
		if _, err = p.LogoutToken(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	i.publish("k2", rsaKey(1))
	if _, err = p.LogoutToken(t.Context(), sign(object{"alg": "RS256", "kid": "k2"}, loggedOut(i.URL), rsaKey(1))); err != nil {
		t.Error(err)
	}
	// A key that is newer than the last fetch is not fetched at once: strangers could make us
	// ask and ask. The provider has to send the token again.
	i.publish("k3", rsaKey(0))
	latest := sign(object{"alg": "RS256", "kid": "k3"}, loggedOut(i.URL), rsaKey(0))
	_, err = p.LogoutToken(t.Context(), latest)
	wantCode(t, err, coatcheck.CodeProviderFailed)
	clock.add(refetchEvery)
	if _, err = p.LogoutToken(t.Context(), latest); err != nil {
		t.Error(err)
	}
}

// FuzzLogoutToken: nothing that the provider has not signed is taken, and of what it has
// signed only what is a logout token. Nothing makes it panic.
func FuzzLogoutToken(f *testing.F) {
	const issuer = "https://idp.test"
	honest := part(loggedOut(issuer))
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // which is quicker than RSA
	sign := func(header, claims any) string {
		input := part(header) + "." + part(claims)
		return input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input)))
	}
	valid := sign(object{"alg": "EdDSA", "kid": "k1", "typ": "logout+jwt"}, loggedOut(issuer))
	for _, header := range []string{
		`{"alg":"EdDSA","kid":"k1","typ":"logout+jwt"}`, `{"alg":"EdDSA","kid":"k1"}`, `{"alg":"none"}`,
		`{"alg":"HS256","kid":"k1"}`, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`, `{"alg":"EdDSA","kid":"k1","crit":["x"],"x":1}`,
	} {
		plain, _ := json.Marshal(loggedOut(issuer))
		f.Add(header, string(plain), true)
		f.Add(part(header), honest+"."+valid[strings.LastIndexByte(valid, '.')+1:], false)
		f.Add(part(header), honest+".", false)
	}
	for _, lies := range []object{
		{"nonce": "n"},
		{"events": nil},
		{"events": object{logoutEvent: nil}},
		{"sub": nil, "sid": nil},
		{"sub": nil},
		{"aud": []string{"client", "other"}},
		{"exp": 1},
		{"jti": ""},
	} {
		plain, _ := json.Marshal(overlay(loggedOut(issuer), lies))
		f.Add(`{"alg":"EdDSA","kid":"k1"}`, string(plain), true)
	}
	f.Add("", "", false)
	f.Add(`{}`, `null`, true)

	p, _ := newParty(f, issuer, nil)
	key := jose.JSONWebKey{Key: private.Public(), KeyID: "k1"}
	keys := &keySet{
		get: func(context.Context) ([]byte, error) { return nil, errors.New("not now") },
		now: p.Now, keys: []jose.JSONWebKey{key}, loaded: true, refetched: now,
	}
	p.current = &provider{metadata{Issuer: issuer, SigningAlgorithms: []string{"EdDSA"}}, keys}

	f.Fuzz(func(t *testing.T, header, payload string, signed bool) {
		token := header + "." + payload
		if signed {
			token = sign(header, payload)
		}
		l, err := p.LogoutToken(t.Context(), token)
		switch {
		case err != nil:
			if code := coatcheck.CodeOf(err); code != coatcheck.CodeBadLogoutToken && !errors.Is(err, errNoKeyYet) {
				t.Fatalf("code %s: %v", code, err)
			}
			return
		case !signed && !strings.HasPrefix(token, valid[:strings.LastIndexByte(valid, '.')+1]):
			t.Fatalf("%q was not signed, and was taken", token)
		case !signed:
			return
		}
		var c, events map[string]json.RawMessage
		if err := errors.Join(json.Unmarshal([]byte(payload), &c), json.Unmarshal(c["events"], &events)); err != nil {
			t.Fatalf("%q was taken: %v", payload, err)
		}
		if !strings.HasPrefix(string(events[logoutEvent]), "{") || c["nonce"] != nil || l.ID == "" || l.Subject == "" && l.SID == "" || l.Issuer != issuer {
			t.Fatalf("%q was taken as %+v", payload, l)
		}
		if l.Expires.Before(now) || l.Expires.After(now.Add(maxLogoutAge+2*skew)) {
			t.Fatalf("%q expires at %v", payload, l.Expires)
		}
	})
}
