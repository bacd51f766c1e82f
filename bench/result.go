package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A result is everything that was measured, as result.json has it.
type result struct {
	Date     time.Time `json:"date"`
	Commit   string    `json:"commit"` // "" outside of a checkout
	Modified bool      `json:"modified"`
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
	CPUs     int       `json:"cpus"`
	Settings settings  `json:"settings"`
	Commands []string  `json:"commands"`
	Series   []series  `json:"series"`
	Starts   []startUp `json:"start_up"`
	Memory   []memory  `json:"memory"`
}

// A series is what was measured of one target, one number for each run.
type series struct {
	Name     string    `json:"name"`
	Against  string    `json:"against,omitempty"`
	CPU      []float64 `json:"cpu_us_per_request"`
	StoreCPU []float64 `json:"store_cpu_us_per_request,omitempty"` // of redis-server
	// StoreCommands are the commands that redis-server processed, for each request.
	StoreCommands []float64 `json:"store_commands_per_request,omitempty"`
	Rate          []float64 `json:"requests_per_second"`
	RefreshCPU    []float64 `json:"cpu_us_per_refresh,omitempty"`
	// Ratio, StoreRatio and RefreshRatio are CPU, StoreCPU and RefreshCPU divided by the CPU
	// of Against in the same run.
	Ratio        *spread `json:"ratio,omitempty"`
	StoreRatio   *spread `json:"store_ratio,omitempty"`
	RefreshRatio *spread `json:"refresh_ratio,omitempty"`
}

type startUp struct {
	Name   string    `json:"name"`
	Millis []float64 `json:"ms"`
	Spread spread    `json:"spread"`
}

type memory struct {
	Name  string `json:"name"`
	Open  int    `json:"open_connections"`
	Bytes int64  `json:"resident_bytes"`
}

// A spread sums up several runs.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// ratios divides run by run: the runs of a comparison follow each other closely, and
// a machine that is slow in one of them is slow for both.
func ratios(values, against []float64) *spread {
	r := make([]float64, len(values))
	for i := range values {
		r[i] = values[i] / against[i]
	}
	s := spreadOf(r)
	return &s
}

// newResult says what is measured, and where.
func (l *lab) newResult(ctx context.Context) *result {
	r := &result{
		Date:     time.Now().UTC().Truncate(time.Second),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		CPUs:     runtime.NumCPU(),
		Settings: l.settings,
	}
	// The toolchain that runs this has built what is measured, from the same checkout.
	if head, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output(); err == nil {
		r.Commit = strings.TrimSpace(string(head))
		changes, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output()
		r.Modified = err != nil || len(changes) > 0
	}
	return r
}

// add takes over a target's runs. What it is compared with has been added before.
func (r *result) add(t *target) {
	s := t.result
	s.Name = t.name
	if t.against != nil {
		s.Against = t.against.name
		s.Ratio = ratios(s.CPU, t.against.result.CPU)
		if s.StoreCPU != nil {
			s.StoreRatio = ratios(s.StoreCPU, t.against.result.CPU)
		}
		if s.RefreshCPU != nil {
			s.RefreshRatio = ratios(s.RefreshCPU, t.against.result.CPU)
		}
	}
	r.Series = append(r.Series, s)
}

// write writes the result for programs and for people.
func (r *result) write(jsonFile, tableFile string) error {
	if err := os.MkdirAll(filepath.Dir(jsonFile), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(jsonFile, append(data, '\n'), 0o644); err != nil {
		return err
	}
	var table bytes.Buffer
	if err := r.table(&table); err != nil {
		return err
	}
	return os.WriteFile(tableFile, table.Bytes(), 0o644)
}

// table writes the result as Markdown that also reads well as text.
func (r *result) table(w io.Writer) error {
	var b strings.Builder
	commit := r.Commit[:min(12, len(r.Commit))]
	if r.Modified {
		commit += ", modified"
	}
	fmt.Fprintf(&b, `# What coatcheck costs

Measured %s, commit %s, %s on %s with %d CPUs:
%d interleaved runs of %d requests over %d connections.

A ratio is the processor time, user and system, that a process took for a request,
divided by what the process it is compared with took for the same request in the same
run. Only ratios are claimed: the times and rates in result.json are those of one
shared machine at one moment. Written by `+"`make bench`"+`.

## A signed-in request for a page

Compared with a bare `+"`httputil.ReverseProxy`"+` with a buffer pool and 512 idle
connections, in front of the same app, which answers 2 KiB. The access log is on and
goes to a file, as shipped, unless the row says otherwise. redis-server's own time is
not in the ratio; it stands beside it, and so do the commands it processed for each
request, beyond those of a node that nobody uses. A session in use costs two scripts
every half minute, to move its end; all sessions were used shortly before a run, so
those are not in it. "Tokens under way": the access tokens of all sessions are about to
end, and the node has asked the provider for as many new ones as it asks for at a time,
and has no answer before the run is over.

`, r.Date.Format(time.DateOnly), commit, r.Go, r.Platform, r.CPUs, r.Settings.Runs, r.Settings.Requests, r.Settings.Connections)
	var groups [][]series
	for _, s := range r.Series {
		if s.Against == "" {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], s)
	}
	for i, g := range groups {
		if i == 1 {
			b.WriteString("\n## Forward-auth\n\nCompared with an `http.Handler` that answers 202 and does nothing else.\n\n")
		}
		ratioTable(&b, g)
		for _, s := range g {
			if s.RefreshRatio != nil {
				fmt.Fprintf(&b, "\nThe refresh itself is no request's: it takes the node as much processor time as %.0f\n"+
					"requests take the bare proxy (%.0f–%.0f), once in the life of an access token.\n",
					s.RefreshRatio.Median, s.RefreshRatio.Min, s.RefreshRatio.Max)
			}
		}
	}

	b.WriteString("\n## Start-up\n\nFrom exec to the first 200 of /ready, in milliseconds.\n\n")
	rows := [][]string{{"store", "median", "min–max"}}
	for _, s := range r.Starts {
		rows = append(rows, []string{
			s.Name, fmt.Sprintf("%.0f", s.Spread.Median),
			fmt.Sprintf("%.0f–%.0f", s.Spread.Min, s.Spread.Max),
		})
	}
	align(&b, rows)

	fmt.Fprintf(&b, "\n## Memory\n\nResident, in MiB: after the start, and the most while answering over open\nconnections, after everything above.\n\n")
	rows = [][]string{{"process", "open connections", "MiB"}}
	for _, m := range r.Memory {
		rows = append(rows, []string{m.Name, fmt.Sprint(m.Open), fmt.Sprintf("%.0f", float64(m.Bytes)/(1<<20))})
	}
	align(&b, rows)
	_, err := io.WriteString(w, b.String())
	return err
}

func ratioTable(b *strings.Builder, group []series) {
	rows := [][]string{{"", "ratio", "min–max", "redis-server", "commands"}}
	for _, s := range group {
		row := []string{s.Name, "1", "", "", ""}
		if s.Ratio != nil {
			row[1] = fmt.Sprintf("%.2f", s.Ratio.Median)
			row[2] = fmt.Sprintf("%.2f–%.2f", s.Ratio.Min, s.Ratio.Max)
		}
		if s.StoreRatio != nil {
			row[3] = fmt.Sprintf("%.2f", s.StoreRatio.Median)
		}
		if s.StoreCommands != nil {
			row[4] = fmt.Sprintf("%.4f", spreadOf(s.StoreCommands).Median)
		}
		rows = append(rows, row)
	}
	align(b, rows)
}

// align writes a Markdown table whose columns line up; the first row is its head.
func align(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			gap := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i > 0 { // numbers
				fmt.Fprintf(b, "| %s%s ", gap, cell)
			} else {
				fmt.Fprintf(b, "| %s%s ", cell, gap)
			}
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i := range row {
			rule := strings.Repeat("-", width[i]+1)
			if i > 0 {
				b.WriteString("|" + rule + ":")
			} else {
				b.WriteString("|" + rule + "-")
			}
		}
		b.WriteString("|\n")
	}
}
