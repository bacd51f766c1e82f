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

// maxAccessLife is the longest lifetime of an access token that is believed.
const maxAccessLife = 24 * time.Hour

// exchange redeems a code at the token endpoint (RFC 6749 §4.1.3, RFC 7636 §4.5).
//
// It is not done by x/oauth2: that one fails on an expires_in that is no int64, puts
// whole answers into its errors, and finds out by trying how to authenticate.
func (p *RelyingParty) exchange(ctx context.Context, m *metadata, code, verifier string) (*coatcheck.Tokens, error) {
	const op = "oidc.token"
	form := url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {p.RedirectURL},
		"code_verifier": {verifier},
	}
	method := p.authMethod(m)
	if method != authBasic {
		form.Set("client_id", p.ClientID)
	}
	if method == authPost {
		form.Set("client_secret", p.ClientSecret.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.TokenEndpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if method == authBasic {
		// RFC 6749 §2.3.1: form-encoded before they are put together.
		req.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(p.ClientSecret.Reveal()))
	}
	status, body, err := p.fetch(req)
	if err != nil {
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	}
	tokens, err := p.parseTokens(status, body)
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		refused.without(code, verifier, p.ClientSecret.Reveal(), url.QueryEscape(p.ClientSecret.Reveal()))
		return nil, coatcheck.E(coatcheck.CodeProviderRefused, op, err)
	case err != nil:
		return nil, coatcheck.E(coatcheck.CodeProviderFailed, op, err)
	}
	return tokens, nil
}

// A refusal is an OAuth error of the token endpoint (RFC 6749 §5.2).
type refusal struct{ code, description string }

func (e *refusal) Error() string {
	return fmt.Sprintf("the token endpoint answered %s: %s", quote(e.code), quote(e.description))
}

// without takes out what was sent, should the provider repeat it: errors are logged.
func (e *refusal) without(secrets ...string) {
	for _, s := range secrets {
		if s != "" {
			e.code = strings.ReplaceAll(e.code, s, "…")
			e.description = strings.ReplaceAll(e.description, s, "…")
		}
	}
}

// parseTokens reads the token endpoint's answer. No error shows a part of it but the
// OAuth error and its description.
func (p *RelyingParty) parseTokens(status int, body []byte) (*coatcheck.Tokens, error) {
	var answer struct {
		IDToken      string          `json:"id_token"`
		AccessToken  string          `json:"access_token"`
		RefreshToken string          `json:"refresh_token"`
		TokenType    string          `json:"token_type"`
		ExpiresIn    json.RawMessage `json:"expires_in"`
		Error        string          `json:"error"`
		Description  string          `json:"error_description"`
	}
	unreadable := json.Unmarshal(body, &answer)
	switch {
	case unreadable == nil && answer.Error != "" && status < http.StatusInternalServerError:
		return nil, &refusal{answer.Error, answer.Description}
	case status != http.StatusOK:
		return nil, fmt.Errorf("the token endpoint answered with status %d", status)
	case unreadable != nil:
		return nil, errors.New("the token endpoint's answer is not what RFC 6749 §5.1 asks for")
	case answer.IDToken == "":
		return nil, errors.New("the token endpoint's answer has no id_token")
	case answer.AccessToken == "":
		return nil, errors.New("the token endpoint's answer has no access_token")
	case !strings.EqualFold(answer.TokenType, "Bearer"): // OpenID Connect Core 1.0 §3.1.3.3
		return nil, fmt.Errorf("the access token's type is %s, not Bearer", quote(answer.TokenType))
	}
	tokens := &coatcheck.Tokens{
		ID:      coatcheck.Secret(answer.IDToken),
		Access:  coatcheck.Secret(answer.AccessToken),
		Refresh: coatcheck.Secret(answer.RefreshToken),
	}
	if life := accessLife(answer.ExpiresIn); life != 0 {
		tokens.AccessExpiry = p.Now().Add(life)
	}
	return tokens, nil
}

// accessLife reads expires_in, a number of seconds that some providers send as a
// string. What can't be used is zero: nothing is known.
func accessLife(raw json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil || !(seconds > 0) { // NaN is not greater
		return 0
	}
	return time.Duration(min(seconds, maxAccessLife.Seconds()) * float64(time.Second))
}
