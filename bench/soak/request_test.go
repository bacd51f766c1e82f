package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/session"
)

// appUser is the header in which the app says whom it has served.
const appUser = "Soak-User"

// give bounds how long a person tries something before the soak has failed.
const give = 2 * time.Minute

// An answer is a response, with the beginning of its body.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// cookie returns the value that an answer sets, "" if it sets none.
func (a answer) cookie(name string) string {
	for _, line := range a.header["Set-Cookie"] {
		if c, err := http.ParseSetCookie(line); err == nil && (c.Name == name || strings.HasPrefix(c.Name, name) && strings.HasSuffix(name, "-")) {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

// errRefused: nobody has seen the request.
var errRefused = errors.New("no node takes connections")

// send sends a request to a node, as a load balancer would: to another one if the first
// takes no connection. After an error but errRefused, the node may have done what it was
// asked.
func (s *site) send(ctx context.Context, p *person, method, path string, header http.Header) (answer, error) {
	for _, i := range p.random.Perm(len(s.nodes)) {
		n := s.nodes[i]
		req, err := http.NewRequestWithContext(ctx, method, n.url+path, nil)
		if err != nil {
			return answer{}, err
		}
		req.Host, req.Header = s.host, header
		// The transport repeats a GET whose connection broke, so its last error does not tell
		// whether a node has seen the request.
		var seen atomic.Bool
		trace := &httptrace.ClientTrace{WroteHeaders: func() { seen.Store(true) }}
		a, err := roundTrip(n.transport, req.WithContext(httptrace.WithClientTrace(ctx, trace)))
		if err == nil || seen.Load() {
			return a, err
		}
	}
	return answer{}, errRefused
}

func roundTrip(t *http.Transport, req *http.Request) (answer, error) {
	ctx, cancel := context.WithTimeout(req.Context(), 30*time.Second)
	defer cancel()
	resp, err := t.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 512))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return answer{resp.StatusCode, resp.Header, body}, err
}

// insist sends a request that may be repeated until some node can answer it.
func (s *site) insist(ctx context.Context, p *person, method, path string, header http.Header) (answer, error) {
	for deadline := time.Now().Add(give); ; {
		a, err := s.send(ctx, p, method, path, header)
		if err == nil && a.status < http.StatusInternalServerError {
			p.Requests.Add(1)
			return a, nil
		}
		p.Retried.Add(1)
		if time.Now().After(deadline) {
			return answer{}, fmt.Errorf("%s %s: not answered in %s: last %d, %w", method, path, give, a.status, err)
		}
		if err := pause(ctx, 50*time.Millisecond+time.Duration(p.random.Int64N(int64(100*time.Millisecond)))); err != nil {
			return answer{}, err
		}
	}
}

// signIn signs somebody in and returns the Cookie header of the session. If it fails, sent
// says whether a node may have begun a session all the same.
func (s *site) signIn(ctx context.Context, p *person, carried *held) (cookie string, sent bool, err error) {
	header := http.Header{}
	if carried != nil {
		header.Set("Cookie", carried.cookie)
	}
	start, err := s.insist(ctx, p, http.MethodGet, "/oauth2/start", header)
	if err != nil {
		return "", false, err
	}
	there, err := url.Parse(start.header.Get("Location"))
	if err != nil || there.Host != s.provider.Host {
		return "", false, fmt.Errorf("start: %d, Location %q", start.status, start.header.Get("Location"))
	}
	back, err := s.authorize(ctx, p, there)
	if err != nil {
		return "", false, err
	}
	login := start.cookie("coatcheck-")
	if carried != nil {
		login += "; " + carried.cookie
	}
	done, err := s.send(ctx, p, http.MethodGet, back.RequestURI(), http.Header{"Cookie": {login}})
	if err != nil {
		return "", !errors.Is(err, errRefused), err
	}
	p.Requests.Add(1)
	cookie = done.cookie("coatcheck")
	if done.status != http.StatusSeeOther || cookie == "" {
		return "", true, fmt.Errorf("callback: %d", done.status)
	}
	return cookie, false, nil
}

// authorize has the provider send somebody back to the site: with the form at first, then
// because it knows them.
func (s *site) authorize(ctx context.Context, p *person, there *url.URL) (back *url.URL, err error) {
	method, body := http.MethodGet, io.Reader(nil)
	if p.known == "" {
		form := url.Values{"username": {p.name}, "password": {p.name}}
		method, body = http.MethodPost, strings.NewReader(form.Encode())
		there.Path = strings.TrimSuffix(there.Path, "authorize") + "sign_in"
	}
	req, err := http.NewRequestWithContext(ctx, method, there.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Cookie", p.known)
	a, err := roundTrip(s.outside, req)
	if err != nil {
		return nil, err
	}
	if known := a.cookie("dev_provider_" + s.provider.Port()); known != "" {
		p.known = known
	}
	back, err = url.Parse(a.header.Get("Location"))
	if err != nil || back.Host != s.host {
		p.known = "" // the provider has forgotten
		return nil, fmt.Errorf("authorize: %d, Location %q", a.status, a.header.Get("Location"))
	}
	return back, nil
}

// whoami returns whom the app serves with a session; or "" if it serves nobody, and what the
// node said instead.
func (s *site) whoami(ctx context.Context, p *person, h *held) (user, said string, err error) {
	a, err := s.insist(ctx, p, http.MethodGet, "/", http.Header{"Cookie": {h.cookie}, "Accept": {"application/json"}})
	if user = a.header.Get(appUser); user == "" {
		said = fmt.Sprintf("%d %s", a.status, a.body)
	}
	return user, said, err
}

// signOut ends a session, as a link on the site's own page does.
func (s *site) signOut(ctx context.Context, p *person, h *held) error {
	a, err := s.insist(ctx, p, http.MethodPost, "/oauth2/sign_out", http.Header{
		"Cookie": {h.cookie}, "Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"navigate"},
	})
	if err == nil && a.status != http.StatusSeeOther {
		err = fmt.Errorf("sign out: %d", a.status)
	}
	return err
}

// revoke ends a session from beside the nodes, as somebody who looks through the list.
func (s *site) revoke(ctx context.Context, cookie string) error {
	_, value, _ := strings.Cut(cookie, "=")
	handle, _, _ := strings.Cut(value, ".")
	for e, err := range s.list.Find(ctx, session.Query{Ref: coatcheck.MakeRef(handle)}) {
		if err != nil {
			return err
		}
		if err := s.list.Revoke(ctx, e, coatcheck.ReasonRevoked); err != nil {
			return err
		}
	}
	return nil
}
