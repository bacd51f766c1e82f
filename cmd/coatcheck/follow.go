package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long a file must be left alone before it is read: not every program
	// replaces a file in one step.
	settle = 100 * time.Millisecond
	// lookEvery is how often a file is read though nobody tells of a change, as on a
	// network's file system, or where it is a link into another folder.
	lookEvery = 30 * time.Second
)

// catchHangups keeps SIGHUP from ending the process until stop is called. It asks a node to
// read its files again; one that only begins will do so anyway, and one that leaves has no use
// for them.
func catchHangups() (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	return func() { signal.Stop(hangup) }
}

// followFile calls read when it begins, which may be after a change, and then whenever the
// file has changed, on SIGHUP, and every now and then, until ctx ends. asked says that
// somebody waits for an answer: on SIGHUP, or because the file has changed.
func followFile(ctx context.Context, file string, logger *slog.Logger, read func(asked bool)) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	changed, again, stop := watchFile(file, logger)
	defer stop()
	read(false)

	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			read(true)
		case event := <-changed:
			if concerns(event, file) && awaitQuiet(ctx, changed, file) {
				read(true)
			}
		case <-look.C:
			again() // the folder itself may have been replaced
			read(false)
		}
	}
}

// watchFile tells of changes in the file's folder, for a file can be replaced. The channel
// is nil where nobody tells. again watches the folder that has the name now.
func watchFile(file string, logger *slog.Logger) (changed <-chan fsnotify.Event, again, stop func()) {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(filepath.Dir(file)); err != nil {
			_ = w.Close()
		}
	}
	if err != nil {
		logger.Warn("changes of a file are seen late, or on SIGHUP", "file", file, "error", err)
		return nil, func() {}, func() {}
	}
	var drained sync.WaitGroup
	drained.Go(func() {
		for range w.Errors { // events that were dropped: whoever looks regularly sees the change
		}
	})
	again = func() { _ = w.Add(filepath.Dir(file)) } // where that fails, it is read every now and then
	return w.Events, again, func() { _ = w.Close(); drained.Wait() }
}

// concerns tells whether the file may have changed. Kubernetes changes what it has mounted
// by renaming a link beside it, ..data.
func concerns(e fsnotify.Event, file string) bool {
	name := filepath.Base(e.Name)
	return e.Op != fsnotify.Chmod && (name == filepath.Base(file) || strings.HasPrefix(name, "..data"))
}

// awaitQuiet waits until the file has not changed for a while, or for ten times as long. It
// is false if ctx has ended.
func awaitQuiet(ctx context.Context, changed <-chan fsnotify.Event, file string) bool {
	limit, quiet := time.NewTimer(10*settle), time.NewTimer(settle)
	defer limit.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-limit.C:
			return true
		case <-quiet.C:
			return true
		case event := <-changed:
			if concerns(event, file) {
				quiet.Reset(settle)
			}
		}
	}
}
