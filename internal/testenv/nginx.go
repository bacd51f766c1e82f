package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// StartNginx starts nginx with the given configuration text and waits until it
// listens on addr, which the text must name. Relative paths in the text lie in a
// folder of the test.
func StartNginx(t testing.TB, addr, config string) *Process {
	t.Helper()
	path := RequireTool(t, "nginx")
	prefix := t.TempDir()
	if err := os.WriteFile(filepath.Join(prefix, "nginx.conf"), []byte(config), 0o600); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	directives := "daemon off; pid nginx.pid;"
	if os.Geteuid() == 0 {
		// The workers of a root-owned master would else be nobody, who may not
		// write in the test's folder.
		directives += " user root;"
	}
	return Start(t, Command{
		Path:  path,
		Args:  []string{"-p", prefix, "-c", "nginx.conf", "-e", "stderr", "-g", directives},
		Ready: Listening(addr),
	})
}
