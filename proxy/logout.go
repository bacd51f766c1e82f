package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
)

const (
	// maxLogout bounds the body of a back-channel logout, in bytes.
	maxLogout = 64 << 10
	// logoutLimit bounds the time that a logout may take. It goes on when the provider has
	// stopped to wait for the answer.
	logoutLimit = time.Minute
)

// backChannelLogout is where the provider says, server to server, that sessions have ended
// (OpenID Connect Back-Channel Logout 1.0). There is no browser and no cookie. 200 says that
// none of them can be used any more, on any node; 400 that the logout is none, and need not
// come again; 503 that it must, since nobody can tell what has ended.
func (p *Proxy) backChannelLogout(x *exchange) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), logoutLimit)
	defer cancel()
	ended, err := p.carryOut(ctx, x)
	if err == nil {
		p.Logger.InfoContext(ctx, "sessions ended by the provider", "request_id", x.id, "channel", "back", "sessions", ended)
		x.w.WriteHeader(http.StatusOK) // §2.8, with the Cache-Control of all our answers
		return nil
	}
	x.code = coatcheck.CodeOf(err)
	status, level, refusal := http.StatusBadRequest, slog.LevelWarn, "invalid_request" // §2.8
	text := "The logout token is none that is taken here, or was taken before. The log of this site says more."
	switch x.code {
	case coatcheck.CodeBadLogoutToken:
	case coatcheck.CodeMalformed:
		text = "The request must be a form with one logout_token."
	case coatcheck.CodeProviderFailed: // which anybody may cause, with a key that nobody knows
		status, refusal = http.StatusServiceUnavailable, "temporarily_unavailable"
		text = "The token can't be verified now. Send the logout again."
		x.w.Header().Set("Retry-After", retryAfter())
	default:
		status, level, refusal = http.StatusServiceUnavailable, slog.LevelError, "temporarily_unavailable"
		text = "It is not known whether all sessions have ended. Send the logout again."
		x.w.Header().Set("Retry-After", retryAfter())
	}
	p.Logger.LogAttrs(ctx, level, "back-channel logout refused", slog.String("request_id", x.id),
		slog.String("code", string(x.code)), slog.Int("status", status), slog.String("error", err.Error()))
	return writeJSON(x, status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{refusal, text})
}

// carryOut reads, verifies and carries out a back-channel logout.
func (p *Proxy) carryOut(ctx context.Context, x *exchange) (ended int, err error) {
	const op = "proxy.logout"
	raw, err := logoutToken(x)
	if err != nil {
		return 0, coatcheck.E(coatcheck.CodeMalformed, op, err)
	}
	logout, err := p.SignIn.LogoutToken(ctx, raw)
	if err != nil {
		return 0, err
	}
	ended, err = p.Sessions.BackChannelLogout(ctx, session.Logout{
		Issuer: logout.Issuer, SID: logout.SID, Subject: logout.Subject, ID: logout.ID, Expires: logout.Expires,
	})
	if errors.Is(err, session.ErrReplayed) {
		err = coatcheck.E(coatcheck.CodeBadLogoutToken, op, err)
	}
	return ended, err
}

// logoutToken returns the one logout_token in the body of a request (§2.5). What else is in
// there is left alone, as §2.5 asks.
func logoutToken(x *exchange) (string, error) {
	if kind, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return "", errors.New("the body is no form")
	}
	body, err := io.ReadAll(http.MaxBytesReader(&x.w, x.r.Body, maxLogout))
	if err != nil {
		return "", fmt.Errorf("the body: %w", err)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return "", errors.New("the form is malformed")
	}
	if tokens := form["logout_token"]; len(tokens) != 1 || tokens[0] == "" {
		return "", fmt.Errorf("the form has %d logout_tokens", len(tokens))
	}
	return form.Get("logout_token"), nil
}

// frontChannelLogout is what the provider shows in an invisible frame of its own page when
// somebody has signed out there (OpenID Connect Front-Channel Logout 1.0). Browsers send no
// cookie along in that frame, so the session is the one that the query names. Whoever knows
// its id can end it, and no more than that.
func (p *Proxy) frontChannelLogout(x *exchange) error {
	const op = "proxy.logout"
	query, err := url.ParseQuery(x.req.RawQuery)
	if err != nil {
		return coatcheck.E(coatcheck.CodeMalformed, op, errNoLogout)
	}
	issuer, sid := query["iss"], query["sid"]
	if len(issuer) != 1 || len(sid) != 1 || sid[0] == "" || issuer[0] != p.SignIn.Issuer {
		return coatcheck.E(coatcheck.CodeMalformed, op, errNoLogout)
	}
	ended, err := p.Sessions.EndAll(x.r.Context(), session.Query{Issuer: issuer[0], SID: sid[0]}, "", coatcheck.ReasonFrontChannel)
	if err != nil {
		return err
	}
	p.Logger.InfoContext(x.r.Context(), "sessions ended by the provider", "request_id", x.id, "channel", "front", "sessions", ended)
	return p.writePage(x, http.StatusOK, page{
		Title:   "You are signed out",
		Text:    []string{"Your session at this site has ended."},
		Framers: p.providerOrigins(),
	})
}

// providerOrigins are where pages of the provider may come from.
func (p *Proxy) providerOrigins() string {
	u, err := url.Parse(p.SignIn.Issuer)
	if err != nil {
		return ""
	}
	origins := u.Scheme + "://" + u.Host
	if end := p.SignIn.EndSessionOrigin(); end != "" && end != origins {
		origins += " " + end
	}
	return origins
}
