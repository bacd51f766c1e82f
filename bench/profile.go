package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// profile takes profiles of a node with each store while it serves signed-in requests,
// keeps them in a folder, and writes the functions that took most time, and most
// memory since the node began.
func (l *lab) profile(ctx context.Context, folder string, stdout io.Writer) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := l.startApp(ctx); err != nil {
		return err
	}
	if _, err := l.startRedis(ctx); err != nil {
		return err
	}
	address, err := freePort()
	if err != nil {
		return err
	}
	if l.issuer, err = l.startProvider(ctx, 0, address); err != nil {
		return err
	}
	for _, store := range []string{sqlite, redis} {
		o := nodeOptions{name: "profile-" + store, store: store, address: address}
		n, cookies, err := l.startSignedIn(ctx, o, l.Sessions)
		if err != nil {
			return err
		}
		cpu, heap := filepath.Join(folder, "cpu-"+store+".pprof"), filepath.Join(folder, "heap-"+store+".pprof")
		if err := l.profileNode(ctx, n, pageLoad(address, cookies), cpu, heap); err != nil {
			return err
		}
		n.stop() // the next one takes its address
		fmt.Fprintf(stdout, "\n%s, processor time: %s\n", store, cpu)
		if err := l.top(ctx, stdout, "-cum", cpu); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "\n%s, memory allocated: %s\n", store, heap)
		if err := l.top(ctx, stdout, "-sample_index=alloc_space", heap); err != nil {
			return err
		}
	}
	return nil
}

// top writes the first 40 functions of a profile.
func (l *lab) top(ctx context.Context, stdout io.Writer, order, file string) error {
	pprof := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=40", order, l.binary, file)
	pprof.Stdout, pprof.Stderr = stdout, l.progress
	if err := pprof.Run(); err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	return nil
}

// profileNode puts load on a node for as long as its profiles take.
func (l *lab) profileNode(ctx context.Context, n *node, load *load, cpu, heap string) error {
	defer load.close()
	if err := load.open(ctx, n.address, l.Connections); err != nil {
		return err
	}
	loaded, end := context.WithCancel(ctx)
	defer end()
	sent := make(chan error, 1)
	go func() {
		for loaded.Err() == nil {
			if err := load.send(loaded, l.Requests); err != nil && loaded.Err() == nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	err := errors.Join(
		fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=10", n.admin), cpu),
		fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/heap", n.admin), heap))
	end()
	return errors.Join(err, <-sent)
}

// fetch writes what a URL answers into a file.
func fetch(ctx context.Context, url, file string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}
