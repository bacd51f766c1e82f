package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
)

// Bounds on the lifetime of an access token, and what is assumed where the provider gives
// none that can be used (RFC 6749 §5.1 only recommends expires_in).
const (
	minAccessLife     = time.Second
	maxAccessLife     = 24 * time.Hour
	defaultAccessLife = time.Hour
)

// exchange redeems a code at the token endpoint (RFC 6749 §4.1.3, RFC 7636 §4.5).
func (p *RelyingParty) exchange(ctx context.Context, m *metadata, code, verifier string) (*coatcheck.Tokens, error) {
	const op = "oidc.token"
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tokens, failed := p.requestTokens(ctx, m, url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {p.RedirectURL},
		"code_verifier": {verifier},
	})
	switch {
	case failed != nil && failed.outcome() == coatcheck.OutcomeMisconfigured: // no matter of the person's
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, failed)
	case failed != nil && failed.code != "" && failed.status < http.StatusInternalServerError:
		return nil, coatcheck.E(coatcheck.CodeProviderRefused, op, failed)
	case failed != nil:
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, failed)
	case tokens.ID == "":
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, errors.New("the token endpoint's answer has no id_token"))
	}
	return tokens, nil
}

// A failure says why a request to the token or the revocation endpoint has failed. It
// shows nothing of the answer but the OAuth error and its description.
type failure struct {
	sent   bool   // the provider may have got it
	status int    // of the answer; 0 if there was none
	code   string // the OAuth error (RFC 6749 §5.2), as it came; "" if none could be read
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// requestTokens sends a token request, at most once, and reads the answer. An ID token and
// a refresh token need not be in it.
//
// It is not done by x/oauth2: that one fails on an expires_in that is no int64, puts
// whole answers into its errors, and finds out by trying how to authenticate.
func (p *RelyingParty) requestTokens(ctx context.Context, m *metadata, form url.Values) (*coatcheck.Tokens, *failure) {
	status, body, failed := p.post(ctx, m.TokenEndpoint, p.authMethod(m.TokenAuthMethods), form)
	if failed != nil {
		return nil, failed
	}
	var answer struct {
		IDToken      string          `json:"id_token"`
		AccessToken  string          `json:"access_token"`
		RefreshToken string          `json:"refresh_token"`
		TokenType    string          `json:"token_type"`
		ExpiresIn    json.RawMessage `json:"expires_in"`
	}
	unreadable := json.Unmarshal(body, &answer)
	var err error
	switch {
	case status != http.StatusOK:
		err = fmt.Errorf("the token endpoint answered with status %d", status)
	case unreadable != nil:
		err = errors.New("the token endpoint's answer is not what RFC 6749 §5.1 asks for")
	case answer.AccessToken == "":
		err = errors.New("the token endpoint's answer has no access_token")
	case max(len(answer.AccessToken), len(answer.RefreshToken)) > maxToken:
		err = fmt.Errorf("the access token or the refresh token is over %d bytes", maxToken)
	case !strings.EqualFold(answer.TokenType, "Bearer"): // OpenID Connect Core 1.0 §3.1.3.3
		err = fmt.Errorf("the access token's type is %s, not Bearer", quote(answer.TokenType))
	}
	if err != nil {
		return nil, &failure{sent: true, status: status, err: err}
	}
	return &coatcheck.Tokens{
		ID:           coatcheck.Secret(answer.IDToken),
		Access:       coatcheck.Secret(answer.AccessToken),
		Refresh:      coatcheck.Secret(answer.RefreshToken),
		AccessExpiry: p.Now().Add(accessLife(answer.ExpiresIn)),
	}, nil
}

// post sends a form, at most once, with the client's authentication by the given method
// (RFC 6749 §2.3.1). An answer with an OAuth error is a failure, whatever its status.
func (p *RelyingParty) post(ctx context.Context, endpoint, method string, form url.Values) (status int, body []byte, failed *failure) {
	if method != authBasic {
		form.Set("client_id", p.ClientID)
	}
	if method == authPost {
		form.Set("client_secret", p.ClientSecret.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, nil, &failure{err: err}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if method == authBasic {
		// Form-encoded before they are put together.
		req.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(p.ClientSecret.Reveal()))
	}
	status, body, sent, err := p.fetchOnce(req)
	if err != nil {
		return 0, nil, &failure{sent: sent, status: status, err: err}
	}
	if code, err := p.oauthError(body, form); err != nil {
		return 0, nil, &failure{sent: true, status: status, code: code, err: err}
	}
	return status, body, nil
}

// oauthError reads the OAuth error in the answer to a form (RFC 6749 §5.2); err is nil if
// there is none. It goes to the log, so what was sent is taken out of it, should the
// provider repeat it.
func (p *RelyingParty) oauthError(body []byte, form url.Values) (code string, err error) {
	var answer struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Error == "" {
		return "", nil
	}
	secrets := []string{p.ClientSecret.Reveal(), url.QueryEscape(p.ClientSecret.Reveal())}
	for _, name := range [...]string{"code", "code_verifier", "refresh_token", "token"} {
		secrets = append(secrets, form.Get(name))
	}
	shown := func(text string) string {
		for _, s := range secrets {
			if s != "" {
				text = strings.ReplaceAll(text, s, "…")
			}
		}
		return quote(text)
	}
	return answer.Error, fmt.Errorf("the provider answered %s: %s", shown(answer.Error), shown(answer.Description))
}

// accessLife reads expires_in, a number of seconds that some providers send as a string.
func accessLife(raw json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil || !(seconds > 0) { // NaN is not greater
		return defaultAccessLife
	}
	seconds = max(minAccessLife.Seconds(), min(seconds, maxAccessLife.Seconds()))
	return time.Duration(seconds * float64(time.Second))
}
