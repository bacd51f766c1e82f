// Package scale measures whether what a store does for one session costs more where there
// are more of them. `make scale` fills a server of each kind for each size, lets the
// servers take turns, and writes bench/SCALE.md; `go test` does the same with sizes that
// show only that everything works.
package scale

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/bench/report"
)

var (
	stores = flag.String("stores", "redis,postgres", "`list` of stores")
	sizes  = flag.String("sizes", "100,1000", "`list` of numbers of sessions, the smallest first")
	rounds = flag.Int("rounds", 2, "how often the servers take turns")
	calls  = flag.Int("calls", 20, "`number` of calls of an operation, per round and server")
	out    = flag.String("out", "", "`folder` for scale.json and SCALE.md")
)

// tolerance is how many times the processor time at the smallest size an operation may
// take at the largest. From 10³ to 10⁶ a tree gets twice as deep and no longer fits into the
// processor's caches, and neighbours on the machine make noise; what grows with the number
// of sessions would take a thousand times as long.
const tolerance = 3.0

// A result is what was measured of one store.
type result struct {
	report.Environment
	Server     string      `json:"server"`
	Rounds     int         `json:"rounds"`
	Calls      int         `json:"calls"` // per round and size
	ValueBytes int         `json:"value_bytes"`
	EntryBytes int         `json:"entry_bytes"`
	Sizes      []filled    `json:"sizes"`
	Operations []operation `json:"operations"`
	Tolerance  float64     `json:"tolerance"`
	Grown      []string    `json:"grown"` // operations beyond it
}

// filled is a server with its sessions.
type filled struct {
	Sessions int                `json:"sessions"`
	Bytes    float64            `json:"bytes_per_session"`
	Parts    map[string]float64 `json:"parts"` // of Bytes
	PerSec   float64            `json:"loaded_per_second"`
}

// An operation has a number for each size: medians over the rounds.
type operation struct {
	Name  string    `json:"name"`
	CPU   []float64 `json:"server_cpu_us"` // per call, of the server's processes
	Wall  []float64 `json:"wall_us"`       // per call, as the caller sees it
	Ratio float64   `json:"ratio"`         // of CPU, largest to smallest size
}

func TestScale(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("processor times of other processes are read from Linux's /proc")
	}
	var counts []int
	for text := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < smallest {
			t.Fatalf("-sizes: %q is not a number of at least %d", text, smallest)
		}
		counts = append(counts, n)
	}
	for name := range strings.SplitSeq(*stores, ",") {
		t.Run(name, func(t *testing.T) {
			start := starters[name]
			if start == nil {
				t.Fatalf("-stores: there is no %q", name)
			}
			r := measure(t, start, counts)
			if *out == "" {
				return
			}
			if err := r.keep(*out, name); err != nil {
				t.Fatal(err)
			}
			for _, op := range r.Grown {
				t.Errorf("%s costs more than %.1f times as much with %d sessions as with %d", op, tolerance, counts[len(counts)-1], counts[0])
			}
		})
	}
}

// measure fills a server for each size and lets them take turns.
func measure(t *testing.T, start func(testing.TB) *server, counts []int) *result {
	t.Helper()
	r := &result{
		Environment: report.Here(t.Context()),
		Rounds:      *rounds, Calls: *calls, ValueBytes: valueBytes, EntryBytes: dataBytes, Tolerance: tolerance,
	}
	servers := make([]*server, len(counts))
	for i, n := range counts {
		s := start(t)
		servers[i] = s
		r.Server = s.version
		began := time.Now()
		f, err := s.fill(t.Context(), n)
		if err != nil {
			t.Fatalf("%d sessions: %v", n, err)
		}
		t.Logf("%d sessions in %s: %.0f bytes each", n, time.Since(began).Round(time.Second), f.Bytes)
		r.Sizes = append(r.Sizes, f)
	}
	all := operations()
	taken := make([][]samples, len(all)) // by operation and size
	for i := range taken {
		taken[i] = make([]samples, len(servers))
	}
	for round := range *rounds {
		for i, op := range all {
			for j := range servers {
				// Each round begins with another one, so that nobody always follows the same.
				at := (round + j) % len(servers)
				if err := servers[at].sample(t.Context(), op, *calls, &taken[i][at]); err != nil {
					t.Fatalf("%s with %d sessions: %v", op.name, counts[at], err)
				}
			}
		}
		t.Logf("round %d of %d", round+1, *rounds)
	}
	for i, op := range all {
		o := operation{Name: op.name}
		for j := range servers {
			o.CPU = append(o.CPU, median(taken[i][j].cpu))
			o.Wall = append(o.Wall, median(taken[i][j].wall))
		}
		o.Ratio = o.CPU[len(o.CPU)-1] / o.CPU[0]
		if o.Ratio > tolerance {
			r.Grown = append(r.Grown, op.name)
		}
		r.Operations = append(r.Operations, o)
	}
	return r
}

// samples are the times of one operation at one size, in microseconds.
type samples struct {
	cpu  []float64 // a mean for each round
	wall []float64 // one for each call
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// parallel calls do for 0 to n-1, several at a time.
func parallel(n, workers int, do func(i int) error) error {
	var g errgroup.Group
	for w := range workers {
		g.Go(func() error {
			for i := w; i < n; i += workers {
				if err := do(i); err != nil {
					return fmt.Errorf("%d: %w", i, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// any of the sessions that a server was filled with.
func (s *server) random() session { return s.session(rand.IntN(s.filled)) }
