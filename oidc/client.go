package oidc

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Bounds on every request to a provider.
const (
	requestTimeout = 10 * time.Second // from dialling to the last byte of the body
	connectTimeout = 5 * time.Second  // to dial, and again for the TLS handshake
	maxHeader      = 64 << 10         // bytes of an answer's header
	maxBody        = 1 << 20          // bytes of an answer
	maxConns       = 64               // a flood of callbacks must not become one at the provider
)

// newClient returns the client for one provider. It follows no redirect: a client
// secret, a code or a token must not be carried to where an answer points.
func newClient() *http.Client {
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout:    connectTimeout,
			ResponseHeaderTimeout:  requestTimeout,
			MaxResponseHeaderBytes: maxHeader,
			MaxIdleConnsPerHost:    8,
			MaxConnsPerHost:        maxConns,
			IdleConnTimeout:        90 * time.Second,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: noRedirect,
	}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// fetch sends a request and returns the status and the whole body. The status is 0 if
// there was no answer; with an error it may still be there, for an answer that broke off.
func fetch(client *http.Client, req *http.Request) (status int, body []byte, err error) {
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return resp.StatusCode, nil, fmt.Errorf("%s %s: %w", req.Method, req.URL, err)
	}
	if len(body) > maxBody {
		return resp.StatusCode, nil, fmt.Errorf("%s %s: the answer is over %d bytes", req.Method, req.URL, maxBody)
	}
	return resp.StatusCode, body, nil
}

// A statusError is an answer with a status that will not do.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }

// fetchOK is fetch where nothing but 200 will do; else it returns a *statusError.
func (p *RelyingParty) fetchOK(req *http.Request) ([]byte, error) {
	status, body, err := fetch(p.client, req)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, &statusError{status, fmt.Errorf("%s %s: status %d", req.Method, req.URL, status)}
	}
	return body, nil
}

// quote makes text of a stranger fit for a log line: cut, and nothing in it that a
// terminal or a line-based reader would act on.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}
