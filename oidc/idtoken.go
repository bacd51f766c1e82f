package oidc

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/coatcheck/coatcheck"
)

const (
	// skew is how far the provider's clock and ours may be apart, inclusive.
	skew       = 60 * time.Second
	maxToken   = 64 << 10 // bytes of a token; a session with the largest has room in a store
	maxSubject = 255      // OpenID Connect Core 1.0 §2
)

// errNotNow: a token is not good at this time. It may be the clock that is wrong.
var errNotNow = errors.New("the token is not good now")

// verifyIDToken checks the ID token of a sign-in as OpenID Connect Core 1.0 §3.1.3.7 asks,
// and more strictly where that leaves a choice.
//
// It returns CodeBadToken for a token that must not be believed, and
// CodeProviderFailed if the provider's keys could not be had.
func (p *RelyingParty) verifyIDToken(ctx context.Context, current *provider, tokens *coatcheck.Tokens, nonce string) (claims, error) {
	c, err := p.readIDToken(ctx, current, tokens)
	if err != nil {
		return nil, err
	}
	got, _ := c["nonce"].(string)
	if subtle.ConstantTimeCompare([]byte(got), []byte(nonce)) != 1 {
		return nil, coatcheck.E(coatcheck.CodeBadToken, "oidc.id_token", errors.New("the nonce is not the one of this sign-in"))
	}
	return c, nil
}

// readIDToken is verifyIDToken without the nonce. With errNotNow it returns the claims, of
// which all else is right.
func (p *RelyingParty) readIDToken(ctx context.Context, current *provider, tokens *coatcheck.Tokens) (claims, error) {
	const op = "oidc.id_token"
	token, c, err := p.verify(ctx, current, tokens.ID.Reveal(), "JWT")
	var unfetched *fetchError
	switch {
	case errors.As(err, &unfetched):
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	case err != nil && !errors.Is(err, errNotNow):
		return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
	}
	notNow := err
	if err := checkSubject(c["sub"]); err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
	}
	if _, ok := c["at_hash"]; ok {
		if err := token.VerifyAccessToken(tokens.Access.Reveal()); err != nil {
			return nil, coatcheck.E(coatcheck.CodeBadToken, op, err)
		}
	}
	if notNow != nil {
		return c, coatcheck.E(coatcheck.CodeBadToken, op, notNow)
	}
	return c, nil
}

// verify checks what is the same for every token that the provider signs for us: form,
// signature, issuer, audience and time. types are what the header's typ may say. It
// returns a *fetchError if the provider's keys could not be had, errNoKey if none of them
// fits, and errNotNow, with the claims, if nothing but the time is wrong.
//
// go-oidc verifies algorithm, signature and audience; what it does not check, or checks
// loosely, is checked here.
func (p *RelyingParty) verify(ctx context.Context, current *provider, raw string, types ...string) (*gooidc.IDToken, claims, error) {
	if err := checkForm(raw, types); err != nil {
		return nil, nil, err
	}
	var keyErr error // go-oidc does not wrap it
	keys := keySetFunc(func(ctx context.Context, token string) (payload []byte, err error) {
		payload, keyErr = current.keys.VerifySignature(ctx, token)
		return payload, keyErr
	})
	verifier := gooidc.NewVerifier(p.Issuer, keys, &gooidc.Config{
		ClientID:             p.ClientID,
		SupportedSigningAlgs: current.SigningAlgorithms,
		SkipIssuerCheck:      true, // it makes an exception for one issuer; checkClaims does not
		SkipExpiryCheck:      true, // it allows no skew on exp and five minutes on nbf
	})
	token, err := verifier.Verify(ctx, raw)
	switch {
	case keyErr != nil:
		return nil, nil, keyErr
	case err != nil:
		return nil, nil, errors.New(quote(err.Error()))
	}
	var payload json.RawMessage
	if err := token.Claims(&payload); err != nil {
		return nil, nil, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return nil, nil, err
	}
	return token, c, p.checkClaims(c)
}

// keySetFunc makes a function a KeySet.
type keySetFunc func(ctx context.Context, token string) ([]byte, error)

func (f keySetFunc) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	return f(ctx, token)
}

// checkForm refuses, by its header, everything that is not a token of these types: other
// things that the same provider signs must not be taken for one (RFC 8725 §3.11). A header
// may lack typ.
func checkForm(raw string, types []string) error {
	if len(raw) > maxToken {
		return fmt.Errorf("the token is over %d bytes", maxToken)
	}
	encoded, _, _ := strings.Cut(raw, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return errors.New("the token's header is not base64url")
	}
	header, err := parseClaims(decoded)
	if err != nil {
		return fmt.Errorf("the token's header: %w", err)
	}
	if typ, ok := header["typ"]; ok {
		s, _ := typ.(string)
		if !slices.ContainsFunc(types, func(t string) bool { return strings.EqualFold(s, t) }) {
			return fmt.Errorf("the token's typ is %s", quote(fmt.Sprint(typ)))
		}
	}
	return nil
}

// checkClaims checks the claims that say who made a token for whom, and when it is good.
func (p *RelyingParty) checkClaims(c claims) error {
	if iss, ok := c["iss"].(string); !ok || iss != p.Issuer {
		return fmt.Errorf("iss is %s, not %q", quote(fmt.Sprint(c["iss"])), p.Issuer)
	}
	for _, aud := range list(c["aud"]) {
		// Others in it could use the token here that was made for them, too.
		if aud != p.ClientID {
			return fmt.Errorf("aud names %s beside or instead of this client", quote(fmt.Sprint(aud)))
		}
	}
	if azp, ok := c["azp"]; ok && azp != p.ClientID {
		return fmt.Errorf("azp is %s", quote(fmt.Sprint(azp)))
	}
	now := p.Now()
	switch exp, ok := c.instant("exp"); {
	case !ok:
		return errors.New("exp is missing or not a time")
	case now.After(exp.Add(skew)):
		return fmt.Errorf("%w: it expired at %v", errNotNow, exp.UTC())
	}
	switch iat, ok := c.instant("iat"); {
	case !ok:
		return errors.New("iat is missing or not a time")
	case iat.After(now.Add(skew)):
		return fmt.Errorf("%w: it was issued at %v, which is yet to come", errNotNow, iat.UTC())
	}
	if _, ok := c["nbf"]; ok {
		switch nbf, ok := c.instant("nbf"); {
		case !ok:
			return errors.New("nbf is not a time")
		case nbf.After(now.Add(skew)):
			return fmt.Errorf("%w, and not before %v", errNotNow, nbf.UTC())
		}
	}
	return nil
}

// checkSubject holds sub to what OpenID Connect Core 1.0 §2 says: ASCII, not over 255.
func checkSubject(v any) error {
	sub, _ := v.(string)
	if sub == "" || len(sub) > maxSubject {
		return fmt.Errorf("sub is missing or over %d bytes", maxSubject)
	}
	for i := range len(sub) {
		if sub[i] < ' ' || sub[i] >= 0x7f {
			return errors.New("sub has characters that are not printable ASCII")
		}
	}
	return nil
}
