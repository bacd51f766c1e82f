package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A slowLog counts writes, each of which takes a while.
type slowLog struct {
	bytes.Buffer
	writes int
	takes  time.Duration
}

func (s *slowLog) Write(p []byte) (int, error) {
	time.Sleep(s.takes)
	s.writes++
	return s.Buffer.Write(p)
}

func TestLinesAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out slowLog
		l := newLineWriter(&out)
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() { fmt.Fprintf(l, "line %d\n", i) })
		}
		all.Wait()
		time.Sleep(gather)
		synctest.Wait()
		if out.writes != 1 || strings.Count(out.String(), "\n") != 1000 {
			t.Errorf("%d writes, %d lines", out.writes, strings.Count(out.String(), "\n"))
		}
		fmt.Fprintln(l, "the last one")
		_ = l.Close()
		if !strings.HasSuffix(out.String(), "\nthe last one\n") {
			t.Error("Close loses what is pending")
		}
		fmt.Fprintln(l, "late")
		if !strings.HasSuffix(out.String(), "\nlate\n") {
			t.Error("a line after Close is lost")
		}
	})
}

// A log that is not written slows down, takes no more memory, and loses nothing.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := slowLog{takes: time.Minute}
		l := newLineWriter(&out)
		line := []byte(strings.Repeat("x", 1023) + "\n")
		var written atomic.Int64
		go func() {
			for range 10_000 {
				_, _ = l.Write(line)
				written.Add(1)
			}
		}()
		time.Sleep(time.Second)
		if n := written.Load() * 1024; n > 3*maxPending {
			t.Errorf("%d bytes are pending", n)
		}
		time.Sleep(time.Hour)
		if written.Load() != 10_000 {
			t.Fatal("whoever logs waits for ever")
		}
		_ = l.Close()
		if out.Len() != 10_000*1024 {
			t.Errorf("%d bytes of %d", out.Len(), 10_000*1024)
		}
	})
}
