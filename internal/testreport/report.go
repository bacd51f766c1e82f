package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// An event is one line of go test -json; see go doc test2json.
type event struct {
	Action  string
	Package string
	Test    string // empty: the event is the package's
	Output  string
}

// A report follows the events of one run of go test.
type report struct {
	out     io.Writer
	open    map[string]*pkg // packages whose tests run
	passed  int
	failed  int
	skipped []string // names of tests
}

// A pkg is a package under test. Its output is held until it ends, as go test does
// where several packages run at once.
type pkg struct {
	tests  []*test // in the order in which they began
	output []string
}

// A test is a test, a subtest, a fuzz target or an example.
type test struct {
	name   string
	result string // "pass", "fail" or "skip"; empty while it runs
	output []string
}

func newReport(out io.Writer) *report {
	return &report{out: out, open: map[string]*pkg{}}
}

// read takes events until there are no more. Lines that are not events are printed.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				fmt.Fprintf(r.out, "%s", line)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	if e.Action == "build-output" {
		fmt.Fprint(r.out, e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	p := r.open[e.Package]
	if p == nil {
		p = &pkg{}
		r.open[e.Package] = p
	}
	switch {
	case e.Test != "":
		p.find(e.Test).take(e)
	case e.Action == "output":
		if e.Output != "PASS\n" { // the line "ok" follows
			p.output = append(p.output, e.Output)
		}
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		r.close(p, e.Action)
		delete(r.open, e.Package)
	}
}

func (p *pkg) find(name string) *test {
	for _, t := range p.tests {
		if t.name == name {
			return t
		}
	}
	t := &test{name: name}
	p.tests = append(p.tests, t)
	return t
}

func (t *test) take(e event) {
	switch e.Action {
	case "pass", "fail", "skip":
		t.result = e.Action
	case "output":
		switch {
		case strings.HasPrefix(e.Output, "=== "): // RUN, PAUSE, CONT and NAME
		case strings.HasPrefix(e.Output, "--- "): // the result, which comes last but reads first
			t.output = slices.Insert(t.output, 0, e.Output)
		default:
			t.output = append(t.output, e.Output)
		}
	}
}

// close counts and prints a package that has ended with the given result.
func (r *report) close(p *pkg, result string) {
	failedBefore := r.failed
	for _, t := range p.tests {
		switch t.result {
		case "pass":
			r.passed++
			continue
		case "skip":
			r.skipped = append(r.skipped, t.name)
		default: // "fail", or the program ended in the midst of it
			r.failed++
		}
		for _, line := range t.output {
			fmt.Fprint(r.out, line)
		}
	}
	if result == "fail" && r.failed == failedBefore {
		r.failed++ // it did not build, or failed outside of any test
	}
	for _, line := range p.output {
		fmt.Fprint(r.out, line)
	}
}

// finish prints the counts. It returns an error when a test failed or none ran and,
// where strict is set, when a test skipped that allowed does not name.
func (r *report) finish(allowed map[string]string, strict bool) error {
	var errs []error
	for _, name := range r.skipped {
		if _, ok := allowed[name]; strict && !ok {
			errs = append(errs, fmt.Errorf("%s skipped, which nothing allows", name))
		}
	}
	if r.failed > 0 {
		errs = append(errs, errors.New("there are failures"))
	}
	if r.passed+r.failed == 0 {
		errs = append(errs, errors.New("no test ran"))
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skipped))
	return errors.Join(errs...)
}

// readAllowed reads the tests that may skip: a name, blanks and a reason on each
// line. Empty lines and those that begin with # say nothing.
func readAllowed(in io.Reader) (map[string]string, error) {
	allowed := map[string]string{}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); reason == "" {
			return nil, fmt.Errorf("line %d: %s may skip for no reason", n, name)
		}
		allowed[name] = reason
	}
	return allowed, lines.Err()
}
