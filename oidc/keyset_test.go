package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coatcheck/coatcheck"
)

// A-J7
func TestUnknownKeyIDs(t *testing.T) {
	i, p, clock := newPair(t, nil)
	good := sign(goodHeader, i.honest("n"), rsaKey(0))
	if _, err := verifyRaw(t, p, good); err != nil {
		t.Fatal(err)
	}
	for n := range 1000 {
		header := map[string]any{"alg": "RS256", "kid": random()}
		_, err := verifyRaw(t, p, sign(header, `{}`, rsaKey(1)))
		wantCode(t, err, coatcheck.CodeBadToken)
		if n%100 == 0 {
			clock.add(time.Second - time.Millisecond)
		}
	}
	if n := i.fetchedKeys(); n != 2 {
		t.Errorf("%d fetches of the keys in 10 s, want 2", n)
	}
	clock.add(refetchEvery)
	_, err := verifyRaw(t, p, sign(map[string]any{"alg": "RS256", "kid": "x"}, `{}`, rsaKey(1)))
	wantCode(t, err, coatcheck.CodeBadToken)
	if n := i.fetchedKeys(); n != 3 {
		t.Errorf("%d fetches of the keys, want 3", n)
	}
}

// A-J8
func TestRotation(t *testing.T) {
	for _, kid := range []string{"k2", "k1"} { // some providers use a kid again
		i, p, _ := newPair(t, nil)
		if _, err := newBrowser(t).signIn(i, p, "/"); err != nil {
			t.Fatal(err)
		}
		b := newBrowser(t)
		asked := b.start(p, "/")
		i.publish(kid, rsaKey(1))
		i.set(func() { i.nonce = asked.Get("nonce") })
		if _, err := b.callback(p, i.response(asked)); err != nil {
			t.Error(err)
		}
		if n := i.fetchedKeys(); n != 2 {
			t.Errorf("%d fetches of the keys, want 2", n)
		}
		if _, err := verifyRaw(t, p, sign(goodHeader, i.honest("n"), rsaKey(0))); err == nil {
			t.Error("the old key still verifies")
		}
	}
}

// Where the keys were fetched a moment ago, for a stranger's token say, a signature that does
// not fit may be of a key that has come since, under the same kid. That ends nothing.
func TestRotationInPlace(t *testing.T) {
	i, p, s := signedIn(t, nil)
	_, _ = p.LogoutToken(t.Context(), sign(map[string]any{"alg": "RS256", "kid": "a stranger's"}, `{}`, rsaKey(1)))
	i.publish("k1", rsaKey(1))
	i.grant(nil, nil)
	if _, err := p.Refresh(t.Context(), s); err != nil || len(i.revocations) != 0 {
		t.Errorf("refresh: %v; %d tokens revoked", err, len(i.revocations))
	}
	_, err := p.LogoutToken(t.Context(), sign(logoutHeader, loggedOut(i.URL), rsaKey(1)))
	wantCode(t, err, coatcheck.CodeProviderFailed) // which has the provider send it again
}

// A clock that is set back, as it is once the store has told the time, keeps nobody from the
// keys.
func TestKeysAfterTheClockWasSetBack(t *testing.T) {
	for _, failed := range []bool{true, false} {
		i, p, clock := newPair(t, nil)
		clock.add(5 * time.Minute)
		keys := p.current.keys
		get := keys.get
		if failed {
			keys.get = func(context.Context) ([]byte, error) { return nil, errors.New("down") }
		}
		for range 2 { // the keys are fetched for the first token, and again for the second
			if _, err := verifyRaw(t, p, sign(map[string]any{"alg": "RS256", "kid": "a stranger's"}, `{}`, rsaKey(1))); err == nil {
				t.Fatal("a stranger's token is believed")
			}
		}
		keys.get = get
		clock.add(-5 * time.Minute)
		i.publish("k2", rsaKey(1))
		if _, err := verifyRaw(t, p, sign(map[string]any{"alg": "RS256", "kid": "k2"}, i.honest("n"), rsaKey(1))); err != nil {
			t.Errorf("the first fetch failed: %t; %v", failed, err)
		}
	}
}

// A-J11 and its kin: keys that must not verify.
func TestUnusableKeys(t *testing.T) {
	// No key of 1024 bits can be made here any more, nor is one needed.
	weak := &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Set(new(big.Int).Rsh(rsaKey(0).N, 1024)), 0, 1), E: 65537}
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Lsh(rsaKey(0).N, 7000), 0, 1), E: 65537}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for name, c := range map[string]struct {
		key    jose.JSONWebKey
		usable bool
	}{
		"rsa":              {jose.JSONWebKey{Key: rsaKey(0).Public()}, true},
		"rsa for sig":      {jose.JSONWebKey{Key: rsaKey(0).Public(), Use: "sig"}, true},
		"ec":               {jose.JSONWebKey{Key: ec.Public()}, true},
		"A-J11 rsa 1024":   {jose.JSONWebKey{Key: weak}, false},
		"rsa 9048":         {jose.JSONWebKey{Key: huge}, false},
		"for encryption":   {jose.JSONWebKey{Key: rsaKey(0).Public(), Use: "enc"}, false},
		"private rsa":      {jose.JSONWebKey{Key: rsaKey(0)}, false},
		"private ec":       {jose.JSONWebKey{Key: ec}, false},
		"symmetric":        {jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef")}, false},
		"other algorithm":  {jose.JSONWebKey{Key: rsaKey(0).Public(), Algorithm: "RS512"}, true},
		"A-J2 HMAC as key": {jose.JSONWebKey{Key: []byte("k"), KeyID: "k1", Algorithm: "HS256"}, false},
	} {
		data, err := c.key.MarshalJSON()
		if err != nil {
			t.Fatal(name, err)
		}
		keys, err := parseKeys([]byte(`{"keys":[{"kty":"x"},{"kty":"RSA"},7,` + string(data) + `]}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := len(keys) == 1; got != c.usable {
			t.Errorf("%s: usable is %v", name, got)
		}
	}
	for _, data := range []string{``, `[]`, `{"keys":7}`, `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`} {
		if _, err := parseKeys([]byte(data)); err == nil {
			t.Errorf("%.20s is taken for a key set", data)
		}
	}
}

// A key serves the one algorithm it was published for, its curve's, and its own kid.
func TestKeyFits(t *testing.T) {
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for _, c := range []struct {
		key  jose.JSONWebKey
		alg  jose.SignatureAlgorithm
		want bool
	}{
		{jose.JSONWebKey{Key: rsaKey(0).Public()}, jose.RS256, true},
		{jose.JSONWebKey{Key: rsaKey(0).Public()}, jose.PS512, true},
		{jose.JSONWebKey{Key: rsaKey(0).Public()}, jose.ES256, false},
		{jose.JSONWebKey{Key: rsaKey(0).Public()}, jose.EdDSA, false},
		{jose.JSONWebKey{Key: rsaKey(0).Public(), Algorithm: "RS512"}, jose.RS256, false},
		{jose.JSONWebKey{Key: p384.Public()}, jose.ES384, true},
		{jose.JSONWebKey{Key: p384.Public()}, jose.ES256, false},
		{jose.JSONWebKey{Key: p384.Public()}, jose.ES512, false},
		{jose.JSONWebKey{Key: p384.Public()}, jose.RS256, false},
	} {
		if got := fits(&c.key, c.alg); got != c.want {
			t.Errorf("%T %s for %s: %v", c.key.Key, c.key.Algorithm, c.alg, got)
		}
	}
}

// Without a kid, the key must be clear.
func TestNoKeyID(t *testing.T) {
	i, p, clock := newPair(t, nil)
	token := sign(map[string]any{"alg": "RS256"}, i.honest("n"), rsaKey(0))
	if _, err := verifyRaw(t, p, token); err != nil {
		t.Errorf("one key that fits: %v", err)
	}
	i.set(func() { i.keys = append(i.keys, jose.JSONWebKey{Key: rsaKey(1).Public(), KeyID: "k2"}) })
	clock.add(time.Minute)
	_, err := verifyRaw(t, p, sign(map[string]any{"alg": "RS256", "kid": "x"}, i.honest("n"), rsaKey(1)))
	wantCode(t, err, coatcheck.CodeBadToken) // and brings the second key
	_, err = verifyRaw(t, p, token)
	wantCode(t, err, coatcheck.CodeBadToken)
}

// Without keys nothing is known of a token; with old ones, those still serve.
func TestKeysUnreachable(t *testing.T) {
	i, p, clock := newPair(t, nil)
	current, err := p.provider("test")
	if err != nil {
		t.Fatal(err)
	}
	works := current.keys.get
	down := func(context.Context) ([]byte, error) { return nil, errors.New("down") }
	good := sign(goodHeader, i.honest("n"), rsaKey(0))

	fetches := 0
	current.keys.get = func(ctx context.Context) ([]byte, error) { fetches++; return down(ctx) }
	for range 100 { // a flood of tokens is no flood at the provider
		_, err = verifyRaw(t, p, good)
		wantCode(t, err, coatcheck.CodeProviderFailed)
	}
	if fetches != 1 {
		t.Errorf("%d fetches at one instant", fetches)
	}
	clock.add(retryEvery)
	current.keys.get = works
	if _, err := verifyRaw(t, p, good); err != nil {
		t.Errorf("it does not recover: %v", err)
	}
	current.keys.get = down
	clock.add(time.Minute)
	_, err = verifyRaw(t, p, sign(map[string]any{"alg": "RS256", "kid": "k2"}, i.honest("n"), rsaKey(1)))
	wantCode(t, err, coatcheck.CodeProviderFailed)
	if _, err := verifyRaw(t, p, good); err != nil {
		t.Errorf("the old keys: %v", err)
	}
}

// Any number of callers wait for one fetch, each no longer than its own context lets
// it, and nobody's context ends the fetch for the others.
func TestSingleFlight(t *testing.T) {
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: rsaKey(0).Public(), KeyID: "k1"}}})
	if err != nil {
		t.Fatal(err)
	}
	token := sign(goodHeader, `{}`, rsaKey(0))
	synctest.Test(t, func(t *testing.T) {
		fetches, release := 0, make(chan struct{})
		keys := &keySet{now: time.Now, get: func(ctx context.Context) ([]byte, error) {
			fetches++
			<-release
			return set, ctx.Err()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := keys.VerifySignature(ctx, token); !errors.Is(err, context.Canceled) {
				t.Errorf("the first caller: %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				if _, err := keys.VerifySignature(t.Context(), token); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(release)
		wg.Wait()
		if fetches != 1 {
			t.Errorf("%d fetches, want 1", fetches)
		}
	})
}
