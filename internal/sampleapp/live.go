package sampleapp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// maxMessage bounds a WebSocket message, in bytes.
const maxMessage = 1 << 20

// echo sends every WebSocket message back. A foreign Origin is refused by comparing it
// with Host, which holds behind a proxy that passes Host on.
func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(maxMessage)
	// A context that ends in the middle of a read would cut the connection. Close
	// says why, and makes the read end.
	goingAway := context.AfterFunc(r.Context(), func() {
		_ = conn.Close(websocket.StatusGoingAway, a.name+" is stopping")
	})
	defer goingAway()
	ctx := context.WithoutCancel(r.Context())
	for {
		kind, message, err := conn.Read(ctx)
		if err != nil {
			return
		}
		if err := conn.Write(ctx, kind, message); err != nil {
			return
		}
	}
}

// events sends a server-sent event at once and then one a second, until the client
// goes.
func (a *app) events(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would collect events otherwise
	if r.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	user := visitorOf(r).User
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for count := 1; ; count++ {
		data, err := json.Marshal(struct {
			Count int    `json:"count"`
			User  string `json:"user"`
			Node  string `json:"node"`
		}{count, user, a.name})
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", count, data); err != nil {
			return
		}
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
