package upstream_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/upstream"
)

func withBulkhead(b *upstream.Bulkhead) func(*upstream.Options) {
	return func(o *upstream.Options) { o.Bulkhead = b }
}

// hanging is an app that answers when it is told to, and counts how many wait at most.
type hanging struct {
	*httptest.Server
	answer  chan struct{}
	waiting atomic.Int32
	most    atomic.Int32
}

func newHanging(t *testing.T) *hanging {
	t.Helper()
	h := &hanging{answer: make(chan struct{})}
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		n := h.waiting.Add(1)
		defer h.waiting.Add(-1)
		for most := h.most.Load(); n > most && !h.most.CompareAndSwap(most, n); most = h.most.Load() {
		}
		select {
		case <-h.answer:
		case <-req.Context().Done():
		}
	}))
	t.Cleanup(h.Close)
	return h
}

// wait waits until a count is what it should be.
func wait(t *testing.T, what string, want int, count func() int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for count() != want {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d, want %d", what, count(), want)
		}
		time.Sleep(time.Millisecond)
	}
}

// A-Z13: all that lead to an app that hangs share its places; who comes on top is refused at
// once, and other apps serve as before.
func TestBulkhead(t *testing.T) {
	const places = 3
	app := newHanging(t)
	b := upstream.NewBulkhead(places)
	routes := []*rig{newRig(t, app.URL, withBulkhead(b), nil), newRig(t, app.URL, withBulkhead(b), nil)}
	other := newRig(t, testenv.Record(t, testenv.OK).URL, withBulkhead(upstream.NewBulkhead(places)), nil)

	for round := range 2 {
		var waiting errgroup.Group
		for i := range places {
			waiting.Go(func() error {
				if answer := testenv.Send(t, routes[i%2].addr, get("/")); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
					return fmt.Errorf("one who waited got %q", answer)
				}
				return nil
			})
		}
		wait(t, "requests at the app", places, func() int { return int(app.waiting.Load()) })
		for _, r := range routes {
			if answer := testenv.Send(t, r.addr, get("/")); !strings.HasSuffix(answer, string(coatcheck.CodeUpstreamBusy)) {
				t.Errorf("answer = %q, want %s", answer, coatcheck.CodeUpstreamBusy)
			}
		}
		if answer := testenv.Send(t, other.addr, get("/")); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("another app: %q", answer)
		}
		if got, want := b.Refused(), uint64(2*(round+1)); got != want {
			t.Errorf("%d were refused, want %d", got, want)
		}
		for range places {
			app.answer <- struct{}{}
		}
		if err := waiting.Wait(); err != nil {
			t.Error(err)
		}
		wait(t, "requests under way", 0, b.UnderWay)
	}
}

// However many come at once, no more than may be reach the app.
func TestBulkheadIsExact(t *testing.T) {
	const places, visitors = 5, 100
	app := newHanging(t)
	b := upstream.NewBulkhead(places)
	r := newRig(t, app.URL, withBulkhead(b), nil)
	var all errgroup.Group
	for range visitors {
		all.Go(func() error {
			_ = testenv.Send(t, r.addr, get("/"))
			return nil
		})
	}
	wait(t, "refused", visitors-places, func() int { return int(b.Refused()) })
	wait(t, "requests at the app", places, func() int { return int(app.waiting.Load()) })
	close(app.answer)
	_ = all.Wait()
	if most := app.most.Load(); most != places {
		t.Errorf("the app had %d requests at once, want %d", most, places)
	}
	wait(t, "requests under way", 0, b.UnderWay)
}

// A place is given back whatever becomes of the request.
func TestBulkheadPlacesComeBack(t *testing.T) {
	hang := newHanging(t)
	gone := httptest.NewServer(nil)
	gone.Close()
	breaksOff := testenv.Record(t, func(conn net.Conn, _ string) bool {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
		return false
	})
	for name, tt := range map[string]struct {
		app  string
		send func(*rig)
	}{
		"the app is down":        {gone.URL, func(r *rig) { testenv.Send(t, r.addr, get("/")) }},
		"the answer breaks off":  {breaksOff.URL, func(r *rig) { testenv.Send(t, r.addr, get("/")) }},
		"a handshake is refused": {hang.URL, func(r *rig) { testenv.Send(t, r.addr, get("/", "Connection: Upgrade", "Upgrade: websocket")) }},
		"the client leaves": {hang.URL, func(r *rig) {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
			go func() {
				wait(t, "requests at the app", 1, func() int { return int(hang.waiting.Load()) })
				cancel()
			}()
			if res, err := http.DefaultClient.Do(req); err == nil {
				res.Body.Close()
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := upstream.NewBulkhead(1)
			r := newRig(t, tt.app, withBulkhead(b), nil)
			for range 2 {
				tt.send(r)
				wait(t, "requests under way", 0, b.UnderWay)
			}
			if n := b.Refused(); n != 0 {
				t.Errorf("%d were refused", n)
			}
		})
	}
}

// Streams that are open take no place, and there may be any number of requests where there
// is no bound.
func TestBulkheadDoesNotCountStreams(t *testing.T) {
	b := upstream.NewBulkhead(1)
	sse, ws := newRig(t, events(t), withBulkhead(b), nil), newRig(t, echo(t), withBulkhead(b), nil)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, sse.URL, nil)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.ReadFull(res.Body, make([]byte, 1)); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("an event stream: %d, %v", res.StatusCode, err)
		}
		defer dial(t, ws).CloseNow()
	}
	if n := sse.streams.Count() + ws.streams.Count(); n != 6 || b.UnderWay() != 0 {
		t.Errorf("%d streams are open and take %d places", n, b.UnderWay())
	}

	none := upstream.NewBulkhead(0)
	app := newHanging(t)
	r := newRig(t, app.URL, withBulkhead(none), nil)
	var all errgroup.Group
	for range 20 {
		all.Go(func() error {
			_ = testenv.Send(t, r.addr, get("/"))
			return nil
		})
	}
	wait(t, "requests under way without a bound", 20, none.UnderWay)
	close(app.answer)
	_ = all.Wait()
}
