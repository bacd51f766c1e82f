package scale

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coatcheck/coatcheck/bench/report"
)

// keep writes the result for programs and for people, beside those of other stores.
func (r *result) keep(folder, name string) error {
	all, err := report.Keep(filepath.Join(folder, "scale.json"), name, *r)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(`# What a session costs where there are many

For each size there is a server of its own, filled through the driver that ships, and the
servers take turns: a call at one size, then at the next, so that what else the machine
does hits all of them. Calls come one after the other. A number is the processor time of
the server's processes for one call, the median of the rounds; times are those of one
shared machine, so only their ratio is claimed. Written by ` + "`make scale`" + `;
[docs/scale.md](../docs/scale.md) says what follows.
`)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(all))) {
		r := all[name]
		r.write(&b)
	}
	return os.WriteFile(filepath.Join(folder, "SCALE.md"), []byte(b.String()), 0o644)
}

func (r *result) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\n%s\nA session is a record of %d bytes and an entry with %d bytes of description, two sessions to\na user; %d rounds of %d calls.\n\n",
		r.Server, r.Environment, r.ValueBytes, r.EntryBytes, r.Rounds, r.Calls)
	head := []string{"sessions"}
	bytes := []string{"bytes per session"}
	parts := map[string][]string{}
	for _, f := range r.Sizes {
		head = append(head, grouped(f.Sessions))
		bytes = append(bytes, grouped(int(f.Bytes)))
		for part, n := range f.Parts {
			parts[part] = append(parts[part], grouped(int(n)))
		}
	}
	rows := [][]string{head, bytes}
	if len(parts) > 1 {
		for _, part := range slices.Sorted(maps.Keys(parts)) {
			rows = append(rows, append([]string{"— " + part}, parts[part]...))
		}
	}
	report.Table(b, rows...)

	b.WriteString("\n")
	head = append([]string{"server's µs per call"}, head[1:]...)
	rows = [][]string{append(head, "ratio")}
	for _, o := range r.Operations {
		row := []string{o.Name}
		for _, us := range o.CPU {
			row = append(row, fmt.Sprintf("%.1f", us))
		}
		rows = append(rows, append(row, fmt.Sprintf("%.2f", o.Ratio)))
	}
	report.Table(b, rows...)
	verdict := "**Pass**: none"
	if len(r.Grown) > 0 {
		verdict = "**Fail**: " + strings.Join(r.Grown, ", ")
	}
	fmt.Fprintf(b, "\n%s takes more than %.1f times as long with the most sessions as with the fewest.\n", verdict, r.Tolerance)
}

// grouped writes a number with its digits in groups of three.
func grouped(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}
