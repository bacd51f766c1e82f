package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// packages names the Debian package of each program the tests start.
var packages = map[string]string{
	"redis-server": "redis-server",
	"haproxy":      "haproxy",
	"nginx":        "nginx",
	"node":         "nodejs",
	"npm":          "npm",
}

// RequireTool returns the path of an installed program. A missing one skips the
// test, or fails it where COATCHECK_TEST_REQUIRE=1 is set.
func RequireTool(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	// Debian keeps servers where an ordinary user's PATH does not look.
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	hint := packages[name]
	if hint == "" {
		hint = name
	}
	const format = "%s is not installed (on Debian: apt-get install %s)"
	if Required() {
		t.Fatalf(format, name, hint)
	}
	t.Skipf(format, name, hint)
	return ""
}

// Required reports whether a missing server fails a test instead of skipping it.
func Required() bool { return os.Getenv("COATCHECK_TEST_REQUIRE") == "1" }
