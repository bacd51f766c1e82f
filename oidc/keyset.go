package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// refetchEvery bounds what strangers' key ids cost the provider: beyond the first
	// fetch there is one in this time, whatever comes in.
	refetchEvery = 10 * time.Second
	// retryEvery bounds it as long as no fetch has succeeded.
	retryEvery = time.Second
	maxKeys    = 100
	minRSABits = 2048 // NIST SP 800-131A; go-jose reads none that is absurdly large
)

var (
	errNoKey     = errors.New("no key of the provider fits the token")
	errSignature = errors.New("the signature does not fit")
	// errNoKeyYet: none of the keys has made the signature, and the provider was not asked
	// again, since it was a moment ago. It may have the key by now, perhaps under a kid that
	// another key had.
	errNoKeyYet = fmt.Errorf("%w, and its keys were fetched a moment ago", errNoKey)
)

// A fetchError: the keys could not be fetched, so nothing is known of the token.
type fetchError struct{ err error }

func (e *fetchError) Error() string { return "fetch the provider's keys: " + e.err.Error() }
func (e *fetchError) Unwrap() error { return e.err }

// A keySet is the public keys of one provider, fetched when first needed and again
// when a token does not fit them. It belongs to one relying party: a key id says
// nothing between issuers. It implements KeySet of go-oidc.
type keySet struct {
	get func(ctx context.Context) ([]byte, error)
	now func() time.Time

	mu        sync.Mutex
	keys      []jose.JSONWebKey
	loaded    bool      // keys were fetched at least once
	refetched time.Time // when a fetch beyond the first was last begun
	failed    time.Time // when the last fetch failed
	failure   error     // of it
	flight    *flight   // the fetch under way
}

// A flight is one fetch that any number of callers wait for.
type flight struct {
	done chan struct{} // closed when err is set
	err  error
}

func (p *RelyingParty) newKeySet(uri string) *keySet {
	return &keySet{
		now: p.Now,
		get: func(ctx context.Context) ([]byte, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
			if err != nil {
				return nil, err
			}
			return p.fetchOK(req)
		},
	}
}

// VerifySignature returns the payload of a JWS that one of the keys has signed. The
// key is found by the header's kid and alg alone: jwk, jku, x5u and x5c in a header
// are the word of whoever made the token, and are ignored. The error wraps a
// *fetchError if the keys could not be had, or the context's error.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, signingAlgorithms)
	if err != nil || len(jws.Signatures[0].Signature) == 0 {
		return nil, errors.New("not a signed token in compact form")
	}
	keys, loaded := s.known()
	if loaded {
		if payload, err := verifyJWS(jws, keys); err == nil {
			return payload, nil
		}
	}
	// The provider may have rotated its keys since (OpenID Connect Core 1.0 §10.1.1).
	fetched, fetchErr := s.fetch(ctx)
	// Even without a fetch of ours: another caller's may have just brought new keys.
	keys, loaded = s.known()
	if !loaded {
		return nil, fetchErr
	}
	payload, err := verifyJWS(jws, keys)
	switch {
	case err != nil && fetchErr != nil:
		return nil, fetchErr
	case (err == errNoKey || err == errSignature) && !fetched:
		return nil, errNoKeyYet
	}
	return payload, err
}

func (s *keySet) known() (keys []jose.JSONWebKey, loaded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, s.loaded
}

// fetch fetches the keys, or waits for the fetch that is under way. It does nothing, and
// says so, if that was done a moment ago; the error is of the last fetch then, if there are
// no keys yet.
func (s *keySet) fetch(ctx context.Context) (fetched bool, err error) {
	s.mu.Lock()
	f := s.flight
	if f == nil {
		now := s.now()
		switch {
		case s.loaded && within(now.Sub(s.refetched), refetchEvery):
			s.mu.Unlock()
			return false, nil
		case !s.loaded && s.failure != nil && within(now.Sub(s.failed), retryEvery):
			defer s.mu.Unlock()
			return false, s.failure
		case s.loaded:
			s.refetched = now
		}
		f = &flight{done: make(chan struct{})}
		s.flight = f
		// The fetch serves everybody who waits, so it must not end with the request
		// that began it. The client's timeout ends it.
		go s.fly(context.WithoutCancel(ctx), f)
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return true, f.err
	case <-ctx.Done():
		return true, &fetchError{ctx.Err()}
	}
}

// within tells whether something was done less than d ago. After the clock was set back
// nobody knows, so it was not.
func within(age, d time.Duration) bool { return age >= 0 && age < d }

func (s *keySet) fly(ctx context.Context, f *flight) {
	body, err := s.get(ctx)
	var keys []jose.JSONWebKey
	if err == nil {
		keys, err = parseKeys(body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		f.err = &fetchError{err}
		s.failed, s.failure = s.now(), f.err
	} else {
		s.keys, s.loaded = keys, true
	}
	s.flight = nil
	close(f.done)
}

// parseKeys reads a JWK Set and keeps the keys that may verify ID tokens. A key that
// can't be read is left out, as RFC 7517 §5 asks; the others still serve.
func parseKeys(data []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, at most %d are read", len(set.Keys), maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) == nil && usable(&key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// usable tells whether a key may verify signatures: public, meant for it and strong.
// A private key in a public place is no longer anybody's.
func usable(key *jose.JSONWebKey) bool {
	if key.Use != "" && key.Use != "sig" {
		return false
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSABits
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	default:
		return false
	}
}

// fits tells whether a key can have made a signature of this algorithm.
func fits(key *jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if key.Algorithm != "" && key.Algorithm != string(alg) {
		return false // RFC 8725 §3.1: one key, one algorithm
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return alg[0] == 'R' || alg[0] == 'P' // RS256 … PS512
	case *ecdsa.PublicKey:
		switch alg { // RFC 7518 §3.4 ties the curve to the algorithm
		case jose.ES256:
			return k.Curve == elliptic.P256()
		case jose.ES384:
			return k.Curve == elliptic.P384()
		case jose.ES512:
			return k.Curve == elliptic.P521()
		}
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// verifyJWS checks the one signature of a compact JWS. Without a kid in its header there
// must be exactly one key that fits: keys are not tried in turn.
func verifyJWS(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, error) {
	header := jws.Signatures[0].Protected
	var candidates []*jose.JSONWebKey
	for i := range keys {
		key := &keys[i]
		if fits(key, jose.SignatureAlgorithm(header.Algorithm)) && (header.KeyID == "" || header.KeyID == key.KeyID) {
			candidates = append(candidates, key)
		}
	}
	if len(candidates) == 0 || header.KeyID == "" && len(candidates) > 1 {
		return nil, errNoKey
	}
	for _, key := range candidates {
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, nil
		}
	}
	return nil, errSignature
}
