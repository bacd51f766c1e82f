package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
)

// A Login is a completed sign-in.
type Login struct {
	// Session has everything that the provider said. Created and Deadline are left to
	// whoever keeps it.
	Session  *coatcheck.Session
	ReturnTo string // passes Returns
}

// ExpiredError is the cause in an error with CodeSignInExpired: the browser came back too
// late. A new sign-in may be started at once.
type ExpiredError struct {
	ReturnTo string // where the sign-in was to lead
}

// Error implements error.
func (e *ExpiredError) Error() string { return fmt.Sprintf("the sign-in took over %v", preLoginLife) }

// Callback completes a sign-in: the provider has sent the browser back. The request's
// query is the provider's answer. The codes it returns:
//
//   - CodeNotReady: discovery has not succeeded. Nothing was used up.
//   - CodeBadCallback: the answer belongs to no sign-in of this browser, or to one that
//     was completed already, or comes from another issuer. No request was sent.
//   - CodeOtherKeys: the pre-login cookie was sealed by a key this node lacks.
//   - CodeSignInExpired, with *ExpiredError.
//   - CodeUnknown: the store could not say whether the sign-in was completed already, or
//     a node of another version began it. The cookie and the code stay good.
//   - CodeProviderRefused, CodeProviderFailed, CodeBadToken: the provider said no,
//     could not be reached, or said what must not be believed.
func (p *RelyingParty) Callback(ctx context.Context, h http.Header, r *http.Request) (*Login, error) {
	const op = "oidc.callback"
	current, err := p.awaited(ctx, op)
	if err != nil {
		return nil, err
	}
	answer, err := parseAnswer(r.URL.RawQuery)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeBadCallback, op, err)
	}
	name, pre, err := p.findPreLogin(r.Header, answer.state)
	switch {
	case errors.Is(err, seal.ErrUnknownKey):
		return nil, coatcheck.E(coatcheck.CodeOtherKeys, op, fmt.Errorf(
			"the pre-login cookie was sealed by a key that is not in this node's ring (%s); give all nodes the same keys file: %w",
			p.Ring.KeyIDs(), err))
	case errors.Is(err, errOtherVersion):
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, fmt.Errorf("the pre-login cookie: %w", err))
	case err != nil:
		return nil, coatcheck.E(coatcheck.CodeBadCallback, op, err)
	case subtle.ConstantTimeCompare([]byte(pre.State), []byte(answer.state)) != 1, pre.Provider != p.Name,
		pre.Issuer != "" && pre.Issuer != p.Issuer: // RFC 9700 §4.4: a code goes to its issuer alone
		return nil, coatcheck.E(coatcheck.CodeBadCallback, op, errors.New("the pre-login cookie belongs to another sign-in"))
	case p.left(pre) <= 0:
		return nil, coatcheck.E(coatcheck.CodeSignInExpired, op, &ExpiredError{p.safe(pre.ReturnTo)})
	}
	// RFC 9207 §2.4: before the code is sent, or the error believed, it must be clear
	// who answers.
	if answer.issuer != p.Issuer && (answer.issuer != "" || current.IssuerInAnswer) {
		p.Jar.Expire(h, name)
		return nil, coatcheck.E(coatcheck.CodeBadCallback, op, fmt.Errorf("the answer's iss is %s, the sign-in was started at %q", quote(answer.issuer), p.Issuer))
	}
	// Each sign-in is used once in the whole cluster, whatever cookies a browser saved.
	switch err := p.Once.Create(ctx, name, []byte{1}, claimLife); {
	case errors.Is(err, store.ErrExists):
		return nil, coatcheck.E(coatcheck.CodeBadCallback, op, errors.New("this sign-in was completed already"))
	case err != nil:
		return nil, coatcheck.E(coatcheck.CodeUnknown, op, err)
	}
	p.Jar.Expire(h, name)
	if answer.code == "" {
		return nil, coatcheck.E(coatcheck.CodeProviderRefused, op,
			fmt.Errorf("the provider answered %s: %s", quote(answer.failure), quote(answer.description)))
	}
	session, err := p.redeem(ctx, current, answer.code, pre)
	if err != nil {
		return nil, err
	}
	return &Login{Session: session, ReturnTo: p.safe(pre.ReturnTo)}, nil
}

// redeem turns the code into a session.
func (p *RelyingParty) redeem(ctx context.Context, current *provider, code string, pre preLogin) (*coatcheck.Session, error) {
	tokens, err := p.exchange(ctx, &current.metadata, code, pre.Verifier)
	if err != nil {
		return nil, err
	}
	claims, err := p.verifyIDToken(ctx, current, tokens, pre.Nonce)
	if err != nil {
		return nil, err
	}
	identity, err := p.identify(ctx, &current.metadata, claims, tokens.Access)
	if err != nil {
		return nil, err
	}
	return &coatcheck.Session{
		Tenant:      p.Tenant,
		Provider:    p.Name,
		State:       coatcheck.Authenticated,
		Identity:    *identity,
		ProviderSID: claims.text("sid"),
		Tokens:      *tokens,
		AuthTime:    claims.authTime(p.Now()),
	}, nil
}

// safe returns a return URL of ours if it still passes: the configuration may have
// changed since it was sealed.
func (p *RelyingParty) safe(returnTo string) string {
	checked, err := p.Returns.Check(returnTo)
	if err != nil {
		return "/"
	}
	return checked
}

// An answer is an authorization response (RFC 6749 §4.1.2, RFC 9207 §2). Exactly one
// of code and failure is set. Tokens have no business in it and are not looked at.
type answer struct {
	state, code, issuer  string
	failure, description string
}

func parseAnswer(rawQuery string) (*answer, error) {
	q, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, errors.New("the query is malformed")
	}
	// RFC 6749 §3.1: parameters must not be included more than once.
	for _, name := range [...]string{"state", "code", "error", "iss"} {
		if len(q[name]) > 1 {
			return nil, fmt.Errorf("more than one %s", name)
		}
	}
	a := &answer{
		state: q.Get("state"), code: q.Get("code"), issuer: q.Get("iss"),
		failure: q.Get("error"), description: q.Get("error_description"),
	}
	if (a.code == "") == (a.failure == "") {
		return nil, errors.New("neither or both of code and error")
	}
	return a, nil
}
