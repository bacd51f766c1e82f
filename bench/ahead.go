package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// What coatcheck's source says of when tokens are replaced: this share of their life before
// they end, and up to half as much again sooner.
const aheadShare = 5

// controlPath is where the role roleGrants is told what to do.
const controlPath = "/bench/"

// grants stands before the provider as its issuer. It says how long access tokens live, and
// holds refreshes back when it is told to.
type grants struct {
	forward *httputil.ReverseProxy
	life    time.Duration

	mu    sync.Mutex
	held  chan struct{} // closed when refreshes may pass; nil: they may
	state grantsState
}

// grantsState is what the role has seen.
type grantsState struct {
	Refreshed int `json:"refreshed"` // refreshes that were answered
	Waiting   int `json:"waiting"`   // that are held back now
}

// newGrants stands before the provider at target. life is that of access tokens.
func newGrants(target *url.URL, life time.Duration) http.Handler {
	g := &grants{life: life}
	g.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: g.shorten,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+controlPath+"hold", func(http.ResponseWriter, *http.Request) { g.hold() })
	mux.HandleFunc("POST "+controlPath+"release", func(http.ResponseWriter, *http.Request) { g.release() })
	mux.HandleFunc("GET "+controlPath+"state", func(w http.ResponseWriter, _ *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		_ = json.NewEncoder(w).Encode(g.state)
	})
	mux.HandleFunc("POST /token", g.token)
	mux.Handle("/", g.forward)
	return mux
}

func (g *grants) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		g.held = make(chan struct{})
	}
}

func (g *grants) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held != nil {
		close(g.held)
		g.held = nil
	}
}

func (g *grants) token(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, _ := url.ParseQuery(string(body))
	if form.Get("grant_type") != "refresh_token" {
		g.forward.ServeHTTP(w, r)
		return
	}
	g.mu.Lock()
	held := g.held
	g.state.Waiting++
	g.mu.Unlock()
	if held != nil {
		<-held
	}
	g.forward.ServeHTTP(w, r)
	g.mu.Lock()
	g.state.Waiting--
	g.state.Refreshed++
	g.mu.Unlock()
}

// shorten gives access tokens the life that was asked for.
func (g *grants) shorten(resp *http.Response) error {
	if resp.Request.URL.Path != "/token" || resp.StatusCode != http.StatusOK {
		return nil
	}
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	_ = resp.Body.Close()
	answer["expires_in"] = int(g.life.Seconds())
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// ahead brings the sessions of a node to where new tokens are due for all of them, and keeps
// them there.
type ahead struct {
	issuer      string // where the role is
	life        time.Duration
	load        *load // asks once for each session
	address     string
	first, last time.Time // when the oldest and the youngest of the tokens were granted
	refreshed   int       // how often the provider had answered a refresh before
	progress    func(format string, args ...any)
}

// begin returns once new tokens are due for every session, none has ended, and the provider
// answers no refresh.
func (a *ahead) begin(ctx context.Context) error {
	due := a.last.Add(a.life - a.life/aheadShare)
	if now := time.Now(); now.After(due) {
		due = now
	}
	if a.first.Add(a.life).Sub(due) < a.life/8 {
		// Some end too soon after that: new ones for everybody, when all of these have ended.
		if err := a.pause(ctx, a.last.Add(a.life+time.Second)); err != nil {
			return err
		}
		if err := a.load.open(ctx, a.address, 16); err != nil {
			return err
		}
		defer a.load.close()
		a.first = time.Now()
		if err := a.load.send(ctx, len(a.load.requests)); err != nil {
			return err
		}
		a.last = time.Now()
		due = a.last.Add(a.life - a.life/aheadShare)
	}
	if err := a.pause(ctx, due); err != nil {
		return err
	}
	seen, err := a.state(ctx)
	if err != nil {
		return err
	}
	a.refreshed = seen.Refreshed
	return a.control(ctx, http.MethodPost, "hold", nil)
}

// settle returns once the node has asked for as many new tokens as it asks for at a time. What
// that costs it, it would pay for a refresh at any other moment too.
func (a *ahead) settle(ctx context.Context) error {
	last, since := 0, time.Now()
	for {
		seen, err := a.state(ctx)
		if err != nil {
			return err
		}
		switch {
		case seen.Waiting != last:
			last, since = seen.Waiting, time.Now()
		case last > 0 && time.Since(since) > time.Second/2:
			return nil
		case time.Since(since) > 10*time.Second:
			return errors.New("nothing asks for new tokens")
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// end lets the provider answer, and waits until all sessions have new tokens. It returns an
// error if they were not where begin has brought them.
func (a *ahead) end(ctx context.Context) error {
	ended := time.Now()
	seen, err := a.state(ctx)
	switch {
	case err != nil:
		return err
	case seen.Waiting == 0 || seen.Refreshed != a.refreshed:
		return fmt.Errorf("not all were waiting for new tokens: %+v", seen)
	case ended.After(a.first.Add(a.life)):
		return errors.New("access tokens have ended meanwhile: the machine is too slow")
	}
	if err := a.control(ctx, http.MethodPost, "release", nil); err != nil {
		return err
	}
	a.first = time.Now()
	for seen.Refreshed < a.refreshed+len(a.load.requests) {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		if seen, err = a.state(ctx); err != nil {
			return err
		}
		if time.Since(a.first) > a.life {
			return fmt.Errorf("only %d of %d sessions have new tokens", seen.Refreshed-a.refreshed, len(a.load.requests))
		}
	}
	a.last = time.Now()
	return nil
}

func (a *ahead) pause(ctx context.Context, until time.Time) error {
	d := time.Until(until)
	if d <= 0 {
		return nil
	}
	a.progress("waiting %v for access tokens", d.Round(time.Second))
	return pause(ctx, d)
}

func (a *ahead) state(ctx context.Context) (s grantsState, err error) {
	err = a.control(ctx, http.MethodGet, "state", &s)
	return s, err
}

func (a *ahead) control(ctx context.Context, method, what string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.issuer+controlPath+what, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", what, resp.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
