package proxy

import (
	"context"
	"errors"
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
