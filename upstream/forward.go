package upstream

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// forward sends the request to the app and its answer to the client. It is for everything
// but WebSocket handshakes, which upgrade forwards.
func (ex *exchange) forward() {
	out := ex.request()
	out.Header = ex.header(ex.in.Header)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = noUserAgent // or net/http would name itself
	}
	if out.ContentLength == 0 {
		out.Body = nil // with none a request can be sent again where the connection was closed
	} else {
		ex.upload = newRequestBody(ex)
		out.Body = ex.upload
		// The transport may read it even when it has returned, and no handler may do that.
		defer ex.upload.Close()
	}
	res, err := ex.up.options.Transport.RoundTrip(out)
	if err != nil {
		ex.fail(err)
		return
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		_ = res.Body.Close()
		ex.fail(errors.New("101 and nobody has asked for it"))
		return
	}
	cutHopByHop(res.Header)
	if err := ex.modify(res); err != nil {
		_ = res.Body.Close()
		ex.fail(err)
		return
	}
	ex.answer(res)
}

var noUserAgent = []string{""}

// cutHopByHop removes what an app says to us alone (RFC 9110 §7.6.1).
func cutHopByHop(h http.Header) {
	if connection := h["Connection"]; connection != nil {
		cutNamed(connection, h)
	}
	for name := range h {
		if hopByHop(name) {
			delete(h, name)
		}
	}
}

// answer writes the app's answer. It panics with http.ErrAbortHandler where the app or the
// client breaks off.
func (ex *exchange) answer(res *http.Response) {
	w := ex.ResponseWriter
	h := w.Header()
	addAll(h, res.Header)
	announced := len(res.Trailer)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range res.Trailer {
			names = append(names, name)
		}
		slices.Sort(names)
		h.Add("Trailer", strings.Join(names, ", "))
	}
	w.WriteHeader(res.StatusCode)
	// What has no length known beforehand may be made bit by bit, and is passed on so.
	if err := pass(w, res.Body, res.ContentLength < 0 || isEventStream(res.Header)); err != nil {
		_ = res.Body.Close()
		panic(http.ErrAbortHandler)
	}
	_ = res.Body.Close() // and with that the trailers are known
	if len(res.Trailer) == 0 {
		return
	}
	// Trailers need chunks, whatever the length of the body (RFC 9112 §7.1.2).
	_ = http.NewResponseController(w).Flush()
	if len(res.Trailer) == announced {
		addAll(h, res.Trailer)
		return
	}
	for name, values := range res.Trailer {
		h[http.TrailerPrefix+name] = values
	}
}

// addAll adds the fields of from to those of h.
func addAll(h, from http.Header) {
	for name, values := range from {
		if before, ok := h[name]; ok {
			values = append(slices.Clip(before), values...)
		}
		h[name] = values
	}
}

// pass copies a body; at once, what has come of it, if flush.
func pass(w http.ResponseWriter, body io.Reader, flush bool) error {
	var controller *http.ResponseController
	if flush {
		controller = http.NewResponseController(w)
		if err := controller.Flush(); err != nil { // the header must not wait for the body
			return err
		}
	}
	buf := pool.Get().(*[32 << 10]byte)
	defer pool.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if flush {
				if err := controller.Flush(); err != nil {
					return err
				}
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// pool has the buffers of bodies. Without one a new buffer for every answer costs half of
// all that a proxy does, once more.
var pool = sync.Pool{New: func() any { return new([32 << 10]byte) }}
