package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pinger answers with err, after a while, and counts.
type pinger struct {
	takes time.Duration
	err   error
	asked int
}

func (p *pinger) Ping(ctx context.Context) error {
	p.asked++
	select {
	case <-time.After(p.takes):
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestReadiness: one answer of the store serves all health checks for a moment.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &pinger{takes: 10 * time.Millisecond}
		ready := NewReadiness(store)
		for range 100 {
			if _, err := ready.check(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if store.asked != 1 {
			t.Errorf("100 checks asked the store %d times", store.asked)
		}
		time.Sleep(readyFor)
		store.err = errors.New("down")
		for range 2 {
			if _, err := ready.check(t.Context()); err == nil {
				t.Error("a store that is down is taken for up")
			}
		}
		if store.asked != 2 {
			t.Errorf("asked %d times, want 2: a refusal serves all for a moment, too", store.asked)
		}

		time.Sleep(readyFor)
		store.err = nil
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ready.check(gone); err != nil {
			t.Errorf("a checker that hung up makes the node unready: %v", err)
		}

		time.Sleep(readyFor)
		store.takes = time.Hour
		start := time.Now()
		if _, err := ready.check(t.Context()); err == nil || time.Since(start) != pingTimeout {
			t.Errorf("a store that hangs was waited for %v", time.Since(start))
		}
	})
}

// TestReadinessTogether is for the race detector.
func TestReadinessTogether(t *testing.T) {
	store := new(pinger)
	ready := NewReadiness(store)
	var checks sync.WaitGroup
	for range 20 {
		checks.Go(func() {
			if _, err := ready.check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	checks.Wait()
}

func TestReady(t *testing.T) {
	r := newRig(t)
	for range 3 {
		if w := r.serveHTTP("GET", "/ready", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"sign_in":"ok"`) {
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	}
	r.Drain()
	w := r.serveHTTP("GET", "/ready", "")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), `"draining":true`) {
		t.Errorf("draining: %d: %s", w.Code, w.Body)
	}
	if w := r.serveHTTP("GET", "/ping", ""); w.Code != http.StatusOK {
		t.Errorf("/ping while draining: %d", w.Code)
	}
	if w := r.serveHTTP("GET", "/public", ""); w.Code != http.StatusOK {
		t.Errorf("a request while draining: %d", w.Code)
	}
}

// A health check is no news, and what it finds is told when it changes.
func TestHealthChecksAreQuiet(t *testing.T) {
	r := newRig(t)
	store := new(pinger)
	r.Readiness = NewReadiness(store)
	r.Logger = slog.New(slog.NewJSONHandler(r.log, nil))
	for _, step := range []struct {
		err  error
		logs []string
	}{
		{nil, []string{`"msg":"ready"`}},
		{errors.New("down"), []string{`"msg":"not ready"`, `"error":"down"`, `"path":"/ready"`}},
		{errors.New("down"), []string{`"path":"/ready"`}},
		{nil, []string{`"msg":"ready"`}},
	} {
		store.err, r.Readiness.until = step.err, time.Time{}
		r.log.Reset()
		r.serveHTTP("GET", "/ready", "")
		r.Readiness.until = time.Now().Add(time.Hour)
		if step.err == nil {
			r.serveHTTP("GET", "/ready", "")
			r.serveHTTP("GET", "/ping", "")
		}
		text := r.log.String()
		for _, want := range step.logs {
			if !strings.Contains(text, want) {
				t.Errorf("the log lacks %s:\n%s", want, text)
			}
		}
		if n := strings.Count(text, "\n"); step.err == nil && n != 1 || len(step.logs) == 1 && n != 1 {
			t.Errorf("%d lines:\n%s", n, text)
		}
	}
	r.Logger = slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.log.Reset()
	if r.serveHTTP("GET", "/ping", ""); !strings.Contains(r.log.String(), `"level":"DEBUG","msg":"request"`) {
		t.Errorf("at debug: %s", r.log)
	}
}

// TestReadyInOutageGrace: a node that goes on without the store goes on getting requests,
// for as long as that. One that has never reached its store is not ready.
func TestReadyInOutageGrace(t *testing.T) {
	r := newRig(t)
	r.Sessions.OutageGrace = time.Hour
	store := &pinger{err: errors.New("down")}
	r.Readiness = NewReadiness(store)
	want := func(step string, status int, body string) {
		t.Helper()
		r.Readiness.until = time.Time{} // as if a moment had passed
		if w := r.serveHTTP("GET", "/ready", ""); w.Code != status || !strings.Contains(w.Body.String(), body) {
			t.Errorf("%s: %d: %s", step, w.Code, w.Body)
		}
	}
	want("never reached", http.StatusServiceUnavailable, `"store":"unavailable"`)
	store.err = nil
	want("reached", http.StatusOK, `"store":"ok"`)
	store.err = errors.New("down")
	want("in the grace", http.StatusOK, `"store":"unavailable, in outage grace"`)
	r.Readiness.answered = time.Now().Add(-time.Hour)
	want("past the grace", http.StatusServiceUnavailable, `"store":"unavailable"`)
	store.err = nil
	want("back", http.StatusOK, `"store":"ok"`)
}
