package oidc

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

// verifyRaw verifies an ID token as if the token endpoint had sent it for nonce "n".
func verifyRaw(t *testing.T, p *RelyingParty, raw string) (claims, error) {
	t.Helper()
	current, err := p.provider("test")
	if err != nil {
		t.Fatal(err)
	}
	return p.verifyIDToken(t.Context(), current, &coatcheck.Tokens{ID: coatcheck.Secret(raw), Access: "access-1"}, "n")
}

var goodHeader = map[string]any{"alg": "RS256", "kid": "k1", "typ": "JWT"}

func atHash(h crypto.Hash) string {
	d := h.New()
	d.Write([]byte("access-1"))
	return base64.RawURLEncoding.EncodeToString(d.Sum(nil)[:h.Size()/2])
}

func TestIDTokenClaims(t *testing.T) {
	i, p, _ := newPair(t, nil)
	type lies = map[string]any
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for _, c := range []struct {
		name string
		lies lies
		ok   bool
	}{
		{"honest", nil, true},
		{"A-J3 aud wrong", lies{"aud": "other"}, false},
		{"A-J3 aud another beside", lies{"aud": []string{"client", "other"}}, false},
		{"A-J3 aud list of one", lies{"aud": []string{"client"}}, true},
		{"A-J3 aud empty list", lies{"aud": []string{}}, false},
		{"A-J3 aud no text", lies{"aud": []any{"client", 1}}, false},
		{"A-J3 azp", lies{"azp": "client"}, true},
		{"A-J3 azp wrong", lies{"azp": "other"}, false},
		{"A-J3 azp no text", lies{"azp": 1}, false},
		{"A-J4 iss slash", lies{"iss": i.URL + "/"}, false},
		{"A-J4 iss case", lies{"iss": strings.Replace(i.URL, "http", "HTTP", 1)}, false},
		{"A-J4 iss scheme", lies{"iss": strings.Replace(i.URL, "http:", "https:", 1)}, false},
		{"A-J5 exp at the limit", lies{"exp": at(-skew)}, true},
		{"A-J5 exp beyond", lies{"exp": at(-skew - time.Second)}, false},
		{"A-J5 nbf at the limit", lies{"nbf": at(skew)}, true},
		{"A-J5 nbf beyond", lies{"nbf": at(skew + time.Second)}, false},
		{"A-J5 iat at the limit", lies{"iat": at(skew)}, true},
		{"A-J5 iat beyond", lies{"iat": at(skew + time.Second)}, false},
		{"A-J6 no iss", lies{"iss": nil}, false},
		{"A-J6 no sub", lies{"sub": nil}, false},
		{"A-J6 no aud", lies{"aud": nil}, false},
		{"A-J6 no exp", lies{"exp": nil}, false},
		{"A-J6 no iat", lies{"iat": nil}, false},
		{"exp no number", lies{"exp": strconv.FormatInt(at(time.Hour), 10)}, false},
		{"exp negative", lies{"exp": -1}, false},
		{"exp absurd", lies{"exp": 1e300}, false},
		{"iat negative", lies{"iat": -1}, false},
		{"iat absurd", lies{"iat": 1e300}, false},
		{"nbf absurd", lies{"nbf": 1e300}, false},
		{"iat no number", lies{"iat": true}, false},
		{"nbf no number", lies{"nbf": "x"}, false},
		{"A-O6 no nonce", lies{"nonce": nil}, false},
		{"A-O6 nonce wrong", lies{"nonce": "m"}, false},
		{"A-O6 nonce empty", lies{"nonce": ""}, false},
		{"sub empty", lies{"sub": ""}, false},
		{"sub no text", lies{"sub": 5}, false},
		{"sub at the limit", lies{"sub": strings.Repeat("s", 255)}, true},
		{"sub too long", lies{"sub": strings.Repeat("s", 256)}, false},
		{"sub line end", lies{"sub": "a\nb"}, false},
		{"sub not ASCII", lies{"sub": "ä"}, false},
		{"at_hash", lies{"at_hash": atHash(crypto.SHA256)}, true},
		{"at_hash wrong", lies{"at_hash": "x"}, false},
		{"at_hash empty", lies{"at_hash": ""}, false},
		{"token too long", lies{"x": strings.Repeat("x", maxToken)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := verifyRaw(t, p, sign(goodHeader, overlay(i.honest("n"), c.lies), rsaKey(0)))
			if c.ok && err != nil {
				t.Error(err)
			}
			if !c.ok {
				wantCode(t, err, coatcheck.CodeBadToken)
			}
		})
	}
}

// go-oidc lets one issuer leave out its scheme. We don't (A-J4).
func TestIssuerExactForAll(t *testing.T) {
	i := newHostile(t)
	p, _ := newParty(t, "https://accounts.google.com", nil)
	keys := p.newKeySet(i.URL + "/jwks")
	p.current = &provider{metadata{SigningAlgorithms: []string{"RS256"}}, keys}
	for iss, ok := range map[string]bool{"https://accounts.google.com": true, "accounts.google.com": false} {
		_, err := verifyRaw(t, p, sign(goodHeader, overlay(i.honest("n"), map[string]any{"iss": iss}), rsaKey(0)))
		if (err == nil) != ok {
			t.Errorf("%s: %v", iss, err)
		}
	}
}

func TestIDTokenForm(t *testing.T) {
	i, p, _ := newPair(t, nil)
	good := sign(goodHeader, i.honest("n"), rsaKey(0))
	parts := strings.Split(good, ".")
	honest, err := json.Marshal(i.honest("n"))
	if err != nil {
		t.Fatal(err)
	}
	with := func(more string) string { return strings.TrimSuffix(string(honest), "}") + more + "}" }
	der, err := x509.MarshalPKIXPublicKey(rsaKey(0).Public())
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	unsigned := func(alg string) string {
		return part(map[string]any{"alg": alg, "typ": "JWT"}) + "." + part(string(honest)) + "."
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
	header := func(h string) string { return sign(h, string(honest), rsaKey(0)) }

	for _, c := range []struct{ name, token string }{
		{"A-J1 none", unsigned("none")},
		{"A-J1 None", unsigned("None")},
		{"A-J1 NONE", unsigned("NONE")},
		{"A-J1 none with a signature", part(map[string]any{"alg": "none"}) + "." + parts[1] + "." + parts[2]},
		{"A-J2 HS256 with the PEM of the key", hmac(pemKey)},
		{"A-J2 HS256 with the DER of the key", hmac(der)},
		{"A-J10 empty", ""},
		{"A-J10 dots", ".."},
		{"A-J10 two parts", parts[0] + "." + parts[1]},
		{"A-J10 five parts", good + ".x.y"},
		{"A-J10 empty signature", parts[0] + "." + parts[1] + "."},
		{"A-J10 truncated signature", good[:len(good)-8]},
		{"A-J10 foreign signature", sign(goodHeader, i.honest("n"), rsaKey(1))},
		{"A-J10 header no base64", "%%%." + parts[1] + "." + parts[2]},
		{"A-J10 JSON form", full.FullSerialize()},
		{"A-J10 JSON form with two dots", `{"payload":"..","protected":"x"}`},
		{"A-J10 payload no JSON", sign(goodHeader, "x", rsaKey(0))},
		{"A-J10 payload null", sign(goodHeader, "null", rsaKey(0))},
		{"A-J10 payload list", sign(goodHeader, "[]", rsaKey(0))},
		{"A-J10 payload deep", sign(goodHeader, with(`,"x":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)), rsaKey(0))},
		{"A-J10 payload not UTF-8", sign(goodHeader, with(`,"x":"`+"\xff"+`"`), rsaKey(0))},
		{"A-J12 access token", header(`{"alg":"RS256","kid":"k1","typ":"at+jwt"}`)},
		{"A-J12 logout token", header(`{"alg":"RS256","kid":"k1","typ":"logout+jwt"}`)},
		{"A-J12 typ no text", header(`{"alg":"RS256","kid":"k1","typ":1}`)},
		{"A-J13 member twice in the header", header(`{"alg":"RS256","kid":"k1","kid":"k1"}`)},
		{"A-J13 typ twice in the header", header(`{"alg":"RS256","kid":"k1","typ":"at+jwt","typ":"JWT"}`)},
		{"A-J13 sub twice", sign(goodHeader, with(`,"sub":"admin"`), rsaKey(0))},
		{"A-J13 sub twice, escaped", sign(goodHeader, with(`,"s\u0075b":"admin"`), rsaKey(0))},
		{"A-J13 twice within", sign(goodHeader, with(`,"x":[{"a":1,"a":2}]`), rsaKey(0))},
		{"unknown critical header", header(`{"alg":"RS256","kid":"k1","crit":["x"],"x":1}`)},
		{"algorithm not advertised", rs512(t, string(honest))},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := verifyRaw(t, p, c.token)
			wantCode(t, err, coatcheck.CodeBadToken)
			if strings.Contains(err.Error(), parts[2]) {
				t.Errorf("the error shows a signature: %v", err)
			}
		})
	}
	for name, token := range map[string]string{
		"no typ":            header(`{"alg":"RS256","kid":"k1"}`),
		"typ in lower case": header(`{"alg":"RS256","kid":"k1","typ":"jwt"}`),
	} {
		if _, err := verifyRaw(t, p, token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Names are told apart by case.
	c, err := verifyRaw(t, p, sign(goodHeader, with(`,"SUB":"admin"`), rsaKey(0)))
	if err != nil || c["sub"] != "alice-1" {
		t.Errorf("sub is %v, %v", c["sub"], err)
	}
}

func rs512(t *testing.T, payload string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS512, Key: rsaKey(0)}, (&jose.SignerOptions{}).WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := jws.CompactSerialize()
	return s
}

// Every algorithm that we accept works, with at_hash, and only with a key of its kind.
func TestSigningAlgorithms(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	_, _ = sha256.New(), sha512.New() // registers the hashes
	for _, c := range []struct {
		alg  jose.SignatureAlgorithm
		key  crypto.Signer
		hash crypto.Hash
	}{
		{jose.RS256, rsaKey(0), crypto.SHA256},
		{jose.RS384, rsaKey(0), crypto.SHA384},
		{jose.RS512, rsaKey(0), crypto.SHA512},
		{jose.PS256, rsaKey(0), crypto.SHA256},
		{jose.PS384, rsaKey(0), crypto.SHA384},
		{jose.PS512, rsaKey(0), crypto.SHA512},
		{jose.ES256, p256, crypto.SHA256},
		{jose.ES384, p384, crypto.SHA384},
		{jose.ES512, p521, crypto.SHA512},
		{jose.EdDSA, ed, crypto.SHA512},
	} {
		t.Run(string(c.alg), func(t *testing.T) {
			i := newHostile(t)
			i.metadata = map[string]any{"id_token_signing_alg_values_supported": []string{string(c.alg)}}
			i.keys = []jose.JSONWebKey{
				{Key: p256.Public()},
				{Key: p384.Public()},
				{Key: p521.Public()},
				{Key: rsaKey(0).Public()},
				{Key: ed.Public()},
			}
			p, _ := newParty(t, i.URL, nil)
			if err := p.Discover(t.Context()); err != nil {
				t.Fatal(err)
			}
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: c.alg, Key: c.key}, nil)
			if err != nil {
				t.Fatal(err)
			}
			payload, _ := json.Marshal(overlay(i.honest("n"), map[string]any{"at_hash": atHash(c.hash)}))
			jws, err := signer.Sign(payload)
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := jws.CompactSerialize()
			// No kid: of five keys one fits by its kind.
			if _, err := verifyRaw(t, p, raw); err != nil {
				t.Error(err)
			}
		})
	}
}

// A-J9: what a header says about keys is ignored, and asked for nowhere.
func TestKeysInHeader(t *testing.T) {
	i, p, _ := newPair(t, nil)
	evil := newHostile(t)
	evil.publish("k1", rsaKey(1))
	jwk, err := jose.JSONWebKey{Key: rsaKey(1).Public(), KeyID: "k1"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, kid := range []string{"k1", "k2"} {
		for name, v := range map[string]any{
			"jwk": json.RawMessage(jwk),
			"jku": evil.URL + "/jwks",
			"x5u": evil.URL + "/cert",
			"x5c": []string{base64.StdEncoding.EncodeToString([]byte("cert"))},
		} {
			header := map[string]any{"alg": "RS256", "kid": kid, name: v}
			_, err := verifyRaw(t, p, sign(header, i.honest("n"), rsaKey(1)))
			wantCode(t, err, coatcheck.CodeBadToken)
		}
	}
	if evil.fetchedKeys() != 0 || len(evil.otherRequests) != 0 {
		t.Error("the attacker's address was asked")
	}
}

// A-J14: the same kid at two issuers.
func TestKeysNotShared(t *testing.T) {
	i1, p1, _ := newPair(t, nil)
	i2, p2, _ := newPair(t, nil)
	i2.publish("k1", rsaKey(1))
	if _, err := verifyRaw(t, p1, sign(goodHeader, i1.honest("n"), rsaKey(0))); err != nil {
		t.Fatal(err)
	}
	if _, err := verifyRaw(t, p2, sign(goodHeader, i2.honest("n"), rsaKey(1))); err != nil {
		t.Fatal(err)
	}
	_, err := verifyRaw(t, p1, sign(goodHeader, i1.honest("n"), rsaKey(1)))
	wantCode(t, err, coatcheck.CodeBadToken)
	_, err = verifyRaw(t, p2, sign(goodHeader, i2.honest("n"), rsaKey(0)))
	wantCode(t, err, coatcheck.CodeBadToken)
}

func TestIdentity(t *testing.T) {
	type object = map[string]any
	many := make([]string, maxGroups+1)
	for i := range many {
		many[i] = "g"
	}
	for _, c := range []struct {
		name     string
		claims   object // of the ID token
		userinfo object // nil: must not be asked
		change   func(*Config)
		want     coatcheck.Identity // Email, EmailVerified, Groups, Name only
		code     coatcheck.Code
	}{
		{
			name: "all in the ID token", want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "verified as text", claims: object{"email_verified": "true"},
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "A-O17 not verified", claims: object{"email_verified": false},
			want: coatcheck.Identity{Email: "alice@corp.example", Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "verified absent", claims: object{"email_verified": nil},
			want: coatcheck.Identity{Email: "alice@corp.example", Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "verified nonsense", claims: object{"email_verified": 1},
			want: coatcheck.Identity{Email: "alice@corp.example", Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "insecure", claims: object{"email_verified": false}, change: func(c *Config) { c.UnverifiedEmail = true },
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "from userinfo", claims: object{"email": nil, "groups": nil, "name": nil},
			userinfo: object{"sub": "alice-1", "email": "a@b", "email_verified": false, "groups": "one", "name": "A"},
			want:     coatcheck.Identity{Email: "a@b", Groups: []string{"one"}, Name: "A"}, // not verified: the ID token's word was for another address
		},
		{
			name: "only the address is lacking", claims: object{"email": nil},
			userinfo: object{"sub": "alice-1", "email": "a@b", "email_verified": true, "groups": []string{"x"}},
			want:     coatcheck.Identity{Email: "a@b", EmailVerified: true, Groups: []string{"admins", "staff"}, Name: "Alice"},
		},
		{
			name: "the ID token comes first", claims: object{"groups": nil},
			userinfo: object{"sub": "alice-1", "email": "evil@b", "email_verified": true, "groups": []string{"x"}, "name": "Evil"},
			want:     coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"x"}, Name: "Alice"},
		},
		{
			name: "no groups is an answer", claims: object{"groups": []string{}, "email": nil},
			userinfo: object{"sub": "alice-1", "groups": []string{"x"}},
			want:     coatcheck.Identity{Groups: []string{}, Name: "Alice"},
		},
		{name: "A-O14 other sub", claims: object{"groups": nil}, userinfo: object{"sub": "bob", "groups": []string{"x"}}, code: coatcheck.CodeBadToken},
		{name: "A-O14 no sub", claims: object{"groups": nil}, userinfo: object{"groups": []string{"x"}}, code: coatcheck.CodeBadToken},
		{name: "userinfo fails", claims: object{"groups": nil}, code: coatcheck.CodeProviderFailed},
		{
			name: "nested groups", claims: object{"realm_access": object{"roles": []string{"r"}}}, change: func(c *Config) { c.GroupsClaim = "realm_access.roles" },
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"r"}, Name: "Alice"},
		},
		{
			name: "dots in a name", claims: object{"https://corp.example/groups": []string{"r", ""}}, change: func(c *Config) { c.GroupsClaim = "https://corp.example/groups" },
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"r"}, Name: "Alice"},
		},
		{
			name: "no groups asked for", change: func(c *Config) { c.GroupsClaim = "" },
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Name: "Alice"},
		},
		{name: "too many groups", claims: object{"groups": many}, code: coatcheck.CodeBadToken},
		{name: "long group", claims: object{"groups": strings.Repeat("g", maxGroup+1)}, code: coatcheck.CodeBadToken},
		{name: "group with a line end", claims: object{"groups": []string{"a\r\nb"}}, code: coatcheck.CodeBadToken},
		{name: "group no text", claims: object{"groups": []any{1}}, code: coatcheck.CodeBadToken},
		{name: "groups an object", claims: object{"groups": object{"a": 1}}, code: coatcheck.CodeBadToken},
		{
			name: "name unfit for a header", claims: object{"name": "a\nb"},
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"admins", "staff"}},
		},
		{
			name: "name too long", claims: object{"name": strings.Repeat("x", maxText+1)},
			want: coatcheck.Identity{Email: "alice@corp.example", EmailVerified: true, Groups: []string{"admins", "staff"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, _ := newPair(t, c.change)
			i.set(func() { i.claims, i.userinfo = c.claims, c.userinfo })
			login, err := newBrowser(t).signIn(i, p, "/")
			if c.code != "" {
				wantCode(t, err, c.code)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			id := login.Session.Identity
			got := coatcheck.Identity{Email: id.Email, EmailVerified: id.EmailVerified, Groups: id.Groups, Name: id.Name}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, body := range map[string]string{
		"twice":     `{"sub":"alice-1","groups":"a","groups":"b"}`,
		"deep":      `{"sub":"alice-1","x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
		"not UTF-8": `{"sub":"alice-1","x":"` + "\xff" + `"}`,
		"a token":   "a.b.c",
		"null":      "null",
	} {
		t.Run("userinfo "+name, func(t *testing.T) {
			i, p, _ := newPair(t, nil)
			i.set(func() { i.claims = object{"groups": nil} })
			p.client.Transport = rewrite(p.client.Transport, "/userinfo", body)
			_, err := newBrowser(t).signIn(i, p, "/")
			wantCode(t, err, coatcheck.CodeBadToken)
		})
	}
}

// rewrite answers requests for one path with a body of its own.
func rewrite(next http.RoundTripper, path, body string) http.RoundTripper {
	return roundTripFunc(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != path {
			return next.RoundTrip(r)
		}
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: nopCloser{bytes.NewBufferString(body)}, Request: r}, nil
	})
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestAuthTime(t *testing.T) {
	for _, c := range []struct {
		claim any
		want  time.Time
	}{
		{now.Add(-time.Hour).Unix(), now.Add(-time.Hour)},
		{now.Add(time.Hour).Unix(), now},
		{nil, now},
		{"x", now},
	} {
		i, p, _ := newPair(t, nil)
		i.set(func() { i.claims = map[string]any{"auth_time": c.claim} })
		login, err := newBrowser(t).signIn(i, p, "/")
		if err != nil {
			t.Fatal(err)
		}
		if !login.Session.AuthTime.Equal(c.want) {
			t.Errorf("auth_time %v: %v, want %v", c.claim, login.Session.AuthTime, c.want)
		}
	}
}
