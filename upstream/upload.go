package upstream

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// minUpload is how many bytes a second a client must send of a body, on the whole, while the
// app waits for them.
const minUpload = 240

var errLate = errors.New("the client does not send the request's body in time")

// A requestBody keeps the error of reading it, so that a client's fault is not taken
// for the app's. A client that sends next to nothing would keep places of the app: it is given
// up. The time that the app takes is not counted against the client.
//
// Close ends the reading and does not close the body: net/http does that behind the answer.
// It waits for what is still to come of the body, and a client may send that only when it has
// the answer (RFC 9110 §10.1.1).
type requestBody struct {
	body     io.Reader
	patience time.Duration // 0: no bound
	left     time.Duration // of the patience; only one reads at a time

	mu       sync.Mutex // held to set the deadline, which is another request's after Close
	closed   bool
	deadline func(time.Time) error
	due      time.Time // when the read under way ends; zero: there is none, or no bound
	err      error
}

func newRequestBody(ex *exchange) *requestBody {
	patience := ex.up.options.UploadPatience
	return &requestBody{
		body: ex.in.Body, patience: patience, left: patience,
		deadline: http.NewResponseController(ex.ResponseWriter).SetReadDeadline,
	}
}

func (b *requestBody) Read(p []byte) (int, error) {
	began := time.Now()
	if !b.begin(began) {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.body.Read(p)
	b.end(err)
	earned := time.Duration(n) * (time.Second / minUpload)
	b.left = min(b.left-time.Since(began)+earned, b.patience)
	return n, err
}

// begin sets when the read that follows ends, and tells whether there may be one.
func (b *requestBody) begin(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && b.patience > 0 {
		b.due = now.Add(b.left)
		_ = b.deadline(b.due) // an error means that the connection is gone
	}
	return !b.closed
}

func (b *requestBody) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && err != io.EOF {
		b.err = err
		return // due tells whether it came of that
	}
	b.due = time.Time{}
	if err == io.EOF && !b.closed && b.patience > 0 {
		// net/http reads on, to hear the client leave: that must not time out.
		_ = b.deadline(time.Time{})
	}
}

// failure returns why the body could not be read: errLate where it did not come in time; nil if
// that did not happen. It may be called while a read is under way: net/http tells of a read
// that has timed out as of a client that has left, before the read returns.
func (b *requestBody) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.due.IsZero() && !time.Now().Before(b.due) {
		return errLate
	}
	return b.err
}

func (b *requestBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}
