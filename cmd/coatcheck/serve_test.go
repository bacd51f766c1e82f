package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A node that is told to stop while it begins has not failed.
func TestStopWhileStarting(t *testing.T) {
	file := filepath.Join(t.TempDir(), "coatcheck.yaml")
	if err := os.WriteFile(file, []byte(`
listen: 127.0.0.1:0
public_url: https://app.example.com
providers: [{name: corp, issuer: "http://127.0.0.1:9", client_id: web}]
routes: [{path: /}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	var log bytes.Buffer
	if code := run(ctx, []string{"serve", "--config", file}, console{io.Discard, &log}); code != exitOK || strings.Contains(log.String(), "ERROR") {
		t.Errorf("exit status %d, says\n%s", code, &log)
	}
	log.Reset()
	if code := run(ctx, []string{"dev", "--listen", "127.0.0.1:0"}, console{io.Discard, &log}); code != exitOK || log.Len() > 0 {
		t.Errorf("dev: exit status %d, says\n%s", code, &log)
	}
}
