// Command testreport runs go test and ends with a line that counts what happened:
//
//	testreport [-allow FILE] -- [go test arguments]
//
// Between, it prints what go test prints, and the reason of each skipped test. It
// exits with 1 when a test failed, when none ran, and, where
// COATCHECK_TEST_REQUIRE=1 is set, when a test skipped that FILE does not name.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	allow := flag.String("allow", "", "`file` of tests that may skip, each line a name and a reason")
	flag.Parse()
	if err := run(os.Stdout, *allow, flag.Args(), os.Getenv("COATCHECK_TEST_REQUIRE") == "1"); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, allow string, args []string, strict bool) error {
	allowed := map[string]string{}
	if allow != "" {
		f, err := os.Open(allow)
		if err != nil {
			return err
		}
		defer f.Close()
		if allowed, err = readAllowed(f); err != nil {
			return fmt.Errorf("%s: %w", allow, err)
		}
	}

	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := newReport(out)
	// go test has an opinion of its own, which counts even where its events look fine.
	err = errors.Join(r.read(events), cmd.Wait())
	return errors.Join(r.finish(allowed, strict), err)
}
