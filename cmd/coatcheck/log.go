package main

import (
	"io"
	"sync"
	"time"
)

const (
	// gather is how long a line of the log waits for others, so that those of many
	// requests are one write.
	gather = 10 * time.Millisecond
	// maxPending bounds what waits, in bytes. Beyond it whoever logs waits too: a log that
	// can't be written slows a node down, and loses nothing.
	maxPending = 1 << 20
)

// A lineWriter writes lines to another writer, many at a time. It is safe for concurrent
// use. A failed write is dropped: there is nowhere to say so.
type lineWriter struct {
	to io.Writer

	mu      sync.Mutex
	changed sync.Cond // pending or closed
	pending []byte
	closed  bool
	done    chan struct{}
}

// newLineWriter returns a writer to w, which Close ends.
func newLineWriter(w io.Writer) *lineWriter {
	l := &lineWriter{to: w, done: make(chan struct{})}
	l.changed.L = &l.mu
	go l.run()
	return l
}

// Write implements io.Writer. After Close it writes at once.
func (l *lineWriter) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.pending) > maxPending && !l.closed {
		l.changed.Wait()
	}
	if l.closed {
		return l.to.Write(line)
	}
	l.pending = append(l.pending, line...)
	if len(l.pending) == len(line) {
		l.changed.Broadcast()
	}
	return len(line), nil
}

// Close writes what is left.
func (l *lineWriter) Close() error {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
	<-l.done
	return nil
}

func (l *lineWriter) run() {
	defer close(l.done)
	var lines []byte
	for {
		l.mu.Lock()
		for len(l.pending) == 0 && !l.closed {
			l.changed.Wait()
		}
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			time.Sleep(gather)
		}
		l.mu.Lock()
		lines, l.pending = l.pending, lines[:0]
		l.changed.Broadcast()
		l.mu.Unlock()
		_, _ = l.to.Write(lines)
		if closed {
			return
		}
	}
}
