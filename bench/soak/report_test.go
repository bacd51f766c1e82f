package soak

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coatcheck/coatcheck/bench/report"
)

// A result is what came out with one store.
type result struct {
	report.Environment
	Server      string    `json:"server"`
	Seed        uint64    `json:"seed"`
	Sessions    int       `json:"sessions"`
	Nodes       int       `json:"nodes"`
	Idle        string    `json:"idle_timeout"`
	ToTheEnd    bool      `json:"to_the_end"`
	Kills       int       `json:"kills"`
	LoadSeconds float64   `json:"load_seconds"`
	WaitSeconds float64   `json:"wait_seconds"`
	Left        left      `json:"left"`
	Processes   []process `json:"processes"`
	Counts      counts    `json:"counts"`
	Examples    []string  `json:"examples,omitempty"` // of what must not happen
}

// counts are what people told.
type counts struct {
	Begun        int64 `json:"begun"`
	Requests     int64 `json:"requests"`
	Retried      int64 `json:"retried"`
	Uncertain    int64 `json:"uncertain"`
	SignedOut    int64 `json:"signed_out"`
	Revoked      int64 `json:"revoked"`
	Replaced     int64 `json:"replaced"`
	Evicted      int64 `json:"evicted"`
	LeftToExpire int64 `json:"left_to_expire"`
	Certain      int64 `json:"certain"`
	Lost         int64 `json:"lost"`
	Foreign      int64 `json:"foreign"`
	Undead       int64 `json:"undead"`
}

func (t *told) counts() counts {
	return counts{
		Begun: t.Begun.Load(), Requests: t.Requests.Load(), Retried: t.Retried.Load(), Uncertain: t.Uncertain.Load(),
		SignedOut: t.SignedOut.Load(), Revoked: t.Revoked.Load(), Replaced: t.Replaced.Load(), Evicted: t.Evicted.Load(),
		LeftToExpire: t.LeftToExpire.Load(), Certain: t.Certain.Load(), Lost: t.Lost.Load(), Foreign: t.Foreign.Load(), Undead: t.Undead.Load(),
	}
}

// A process is the last one of a node.
type process struct {
	Node  string `json:"node"`
	Kills int    `json:"kills"`
	Start usage  `json:"start"`
	End   usage  `json:"end"`
}

// problems says what is wrong with a process that should be at rest.
func (p *process) problems() (list []string) {
	exceeds := func(what string, start, end, more int64) {
		if end > start+more {
			list = append(list, fmt.Sprintf("%s has %d %s, and had %d at its start", p.Node, end, what, start))
		}
	}
	exceeds("goroutines", int64(p.Start.Goroutines), int64(p.End.Goroutines), moreGoroutines)
	exceeds("descriptors", int64(p.Start.Descriptors), int64(p.End.Descriptors), moreDescriptors)
	exceeds("bytes of heap", p.Start.Heap, p.End.Heap, moreHeap)
	if !underRaceDetector() {
		exceeds("bytes of memory", p.Start.Resident, p.End.Resident, moreResident)
	}
	return list
}

// problems says what should not have happened.
func (r *result) problems() (list []string) {
	c := r.Counts
	if n := c.Begun; n != int64(r.Sessions) {
		list = append(list, fmt.Sprintf("%d sessions were begun, want %d", n, r.Sessions))
	}
	if r.Kills == 0 {
		list = append(list, "no node was killed")
	}
	if c.Lost+c.Foreign+c.Undead > 0 {
		list = append(list, fmt.Sprintf("%d sessions were lost, %d requests served as somebody else, %d ended sessions served", c.Lost, c.Foreign, c.Undead))
	}
	list = append(list, r.Examples...)
	if n := r.Left.ours(); n > 0 || r.ToTheEnd && r.Left.all() > 0 {
		list = append(list, fmt.Sprintf("the store is not empty: %v", r.Left))
	}
	for _, p := range r.Processes {
		list = append(list, p.problems()...)
	}
	return list
}

// keep writes the result for programs and for people, beside those of other stores.
func (r *result) keep(folder, name string) error {
	all, err := report.Keep(filepath.Join(folder, "soak.json"), name, r)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# What is left when everybody has gone

People sign in at real nodes through a real provider, use their sessions, sign out, sign in
again, have more sessions than they may, and are signed out by somebody else, while nodes
are killed with SIGKILL and started again at random; the first of several is spared, and
lives through it all. Each person knows what must have become of each session. Then everything
expires, and what the store and the nodes still hold is counted. Written by `+"`make soak`"+`; the
same code runs in `+"`go test ./bench/soak`"+` with a hundredth of the sessions.

The seed decides what people do and when nodes die; what the machine makes of it differs
from run to run.
`)
	for _, name := range []string{"redis", "postgres", "sqlite"} {
		if all[name] == nil {
			continue
		}
		all[name].write(&b)
	}
	return os.WriteFile(filepath.Join(folder, "SOAK.md"), []byte(b.String()), 0o644)
}

func (r *result) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\n%s\nSeed %d, idle timeout %s, %d nodes.\n\n", r.Server, r.Environment, r.Seed, r.Idle, r.Nodes)
	c := r.Counts
	number := func(n int64) string { return fmt.Sprint(n) }
	report.Table(b,
		[]string{"", "count"},
		[]string{"sessions begun", number(c.Begun)},
		[]string{"— signed out", number(c.SignedOut)},
		[]string{"— revoked", number(c.Revoked)},
		[]string{"— replaced by the next sign-in", number(c.Replaced)},
		[]string{"— evicted at the limit", number(c.Evicted)},
		[]string{"— left to expire", number(c.LeftToExpire)},
		[]string{"nodes killed", number(int64(r.Kills))},
		[]string{"requests answered", number(c.Requests)},
		[]string{"requests sent again: no answer, or 5xx", number(c.Retried)},
		[]string{"sign-ins whose answer never came", number(c.Uncertain)},
		[]string{"requests whose outcome was certain", number(c.Certain)},
		[]string{"**sessions lost that must have lived**", number(c.Lost)},
		[]string{"**requests served as somebody else**", number(c.Foreign)},
		[]string{"**ended sessions that were served**", number(c.Undead)},
	)
	when := "but for what has a time of its own to expire in"
	if r.ToTheEnd {
		when = "with nothing excepted"
	}
	found := "nothing"
	if len(r.Left) > 0 {
		found = r.Left.String()
	}
	fmt.Fprintf(b, "\nThat took %.0f s. %.0f s after the last request the store was empty, %s. Left: **%s**.\n\n", r.LoadSeconds, r.WaitSeconds, when, found)
	rows := [][]string{{"process", "killed before", "goroutines", "descriptors", "heap in use, MiB", "resident, MiB"}}
	for _, p := range r.Processes {
		mib := func(a, b int64) string { return fmt.Sprintf("%.1f → %.1f", float64(a)/(1<<20), float64(b)/(1<<20)) }
		rows = append(rows, []string{
			p.Node, fmt.Sprint(p.Kills),
			fmt.Sprintf("%d → %d", p.Start.Goroutines, p.End.Goroutines),
			fmt.Sprintf("%d → %d", p.Start.Descriptors, p.End.Descriptors),
			mib(p.Start.Heap, p.End.Heap), mib(p.Start.Resident, p.End.Resident),
		})
	}
	report.Table(b, rows...)
	fmt.Fprintf(b, "\nA process may have %d goroutines, %d descriptors, %d MiB of heap and %d MiB of resident memory\nmore than the node's first process had before anybody came.\n",
		moreGoroutines, moreDescriptors, moreHeap>>20, moreResident>>20)
	if problems := r.problems(); len(problems) == 0 {
		b.WriteString("\n**Pass.**\n")
	} else {
		fmt.Fprintf(b, "\n**Fail**: %s.\n", strings.Join(problems, "; "))
	}
}
