package upstream

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A chunk is what a read brings, and after what time.
type chunk struct {
	after time.Duration
	bytes int
	err   error
}

type chunks struct{ left []chunk }

func (c *chunks) Read(p []byte) (int, error) {
	next := c.left[0]
	c.left = c.left[1:]
	time.Sleep(next.after)
	return next.bytes, next.err
}

// How long a read may take is what is left of the client's patience: what it has been waited
// for is gone, what it has sent is to its credit, and nothing is saved up.
func TestUploadPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := &chunks{[]chunk{
			{after: 4 * time.Second, bytes: 1},
			{after: 2 * time.Second, bytes: 3 * minUpload},
			{after: time.Second, bytes: 1 << 20},
			{after: 0, bytes: 1 << 20},
			{after: 2 * time.Second, bytes: 5, err: io.EOF},
		}}
		var got []time.Duration
		b := &requestBody{
			body: body, patience: 10 * time.Second, left: 10 * time.Second,
			deadline: func(d time.Time) error {
				if d.IsZero() {
					got = append(got, -1)
				} else {
					got = append(got, time.Until(d).Round(10*time.Millisecond))
				}
				return nil
			},
		}
		for range 5 {
			_, _ = b.Read(make([]byte, 8))
			time.Sleep(time.Hour) // the app's time
		}
		s := time.Second
		if want := []time.Duration{10 * s, 6 * s, 7 * s, 10 * s, 10 * s, -1}; !slices.Equal(got, want) {
			t.Errorf("deadlines in %v, want %v", got, want)
		}
		if err := b.failure(); err != nil {
			t.Errorf("the end of the body is an error: %v", err)
		}
	})
}

// After the answer the deadline is another request's.
func TestUploadAfterTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := 0
		b := &requestBody{
			body:     &chunks{[]chunk{{after: time.Second, err: io.EOF}}},
			patience: time.Minute, left: time.Minute,
			deadline: func(time.Time) error { set++; return nil },
		}
		done := make(chan struct{})
		go func() { defer close(done); _, _ = b.Read(make([]byte, 8)) }()
		synctest.Wait()
		_ = b.Close()
		<-done
		if _, err := b.Read(make([]byte, 8)); !errors.Is(err, http.ErrBodyReadAfterClose) {
			t.Errorf("read: %v", err)
		}
		if set != 1 {
			t.Errorf("the deadline was set %d times, want once", set)
		}
	})
}

// Without a bound no deadline is set.
func TestUploadUnbounded(t *testing.T) {
	b := &requestBody{
		body:     &chunks{[]chunk{{bytes: 1}, {err: io.EOF}}},
		deadline: func(time.Time) error { t.Error("a deadline is set"); return nil },
	}
	for range 2 {
		_, _ = b.Read(make([]byte, 8))
	}
}

// A client that leaves is told apart from one that does not send, whatever comes first.
func TestUploadFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		newBody := func(after time.Duration) *requestBody {
			return &requestBody{
				body:     &chunks{[]chunk{{after: time.Second, bytes: 1}, {after: after, err: io.ErrUnexpectedEOF}}},
				patience: time.Minute, left: time.Minute, deadline: func(time.Time) error { return nil },
			}
		}
		b := newBody(2 * time.Minute)
		_, _ = b.Read(make([]byte, 8))
		time.Sleep(time.Hour)
		if err := b.failure(); err != nil {
			t.Errorf("between reads: %v", err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _, _ = b.Read(make([]byte, 8)) }()
		time.Sleep(50 * time.Second)
		if err := b.failure(); err != nil {
			t.Errorf("before it is late: %v", err)
		}
		time.Sleep(10 * time.Second)
		if err := b.failure(); !errors.Is(err, errLate) {
			t.Errorf("when it is late: %v", err)
		}
		<-done
		if err := b.failure(); !errors.Is(err, errLate) {
			t.Errorf("when it was late: %v", err)
		}

		b = newBody(time.Second)
		for range 2 {
			_, _ = b.Read(make([]byte, 8))
		}
		if err := b.failure(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a client that has left: %v", err)
		}
		if err := (*requestBody)(nil).failure(); err != nil {
			t.Errorf("without a body: %v", err)
		}
	})
}
