package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// StartHAProxy starts HAProxy with the given configuration text and waits until it
// listens on addr, which the text must bind. Each env entry is "KEY=value"; the
// text may use it as "${KEY}".
func StartHAProxy(t testing.TB, addr, config string, env ...string) *Process {
	t.Helper()
	path := RequireTool(t, "haproxy")
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return Start(t, Command{
		Path:  path,
		Args:  []string{"-db", "-f", file}, // -db: stay in the foreground
		Env:   env,
		Ready: Listening(addr),
	})
}
