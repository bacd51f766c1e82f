// Package report keeps what the long measurements below bench find: in a JSON file with an
// entry for each store, and as Markdown.
package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"
)

// An Environment says where and of what something was measured.
type Environment struct {
	Date     time.Time `json:"date"`
	Commit   string    `json:"commit"` // "" outside of a checkout
	Modified bool      `json:"modified"`
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
	CPUs     int       `json:"cpus"`
}

// Here returns the environment of this process.
func Here(ctx context.Context) Environment {
	e := Environment{
		Date:     time.Now().UTC().Truncate(time.Second),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		CPUs:     runtime.NumCPU(),
	}
	if out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		e.Commit = strings.TrimSpace(string(out))
		out, err = exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output()
		e.Modified = err != nil || len(out) > 0
	}
	return e
}

// String is a sentence for a document.
func (e Environment) String() string {
	commit := e.Commit
	if commit == "" {
		commit = "unknown"
	}
	if e.Modified {
		commit += " with changes"
	}
	return fmt.Sprintf("Measured %s, commit %s, %s on %s with %d CPUs.", e.Date.Format(time.DateOnly), commit, e.Go, e.Platform, e.CPUs)
}

// Keep puts value under name into the JSON object of a file, and returns all that the
// object then holds. What was there under other names stays.
func Keep[T any](file, name string, value T) (map[string]T, error) {
	all := map[string]T{}
	old, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(old, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("report: %s: %w", file, err)
	}
	all[name] = value
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("report: %s: %w", file, err)
	}
	return all, os.WriteFile(file, append(text, '\n'), 0o644)
}

// Table writes rows as a Markdown table whose columns line up. The first row is the
// header; all columns but the first one are numbers.
func Table(b *strings.Builder, rows ...[]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 2)
		}
	}
	for r, row := range rows {
		for i, cell := range row {
			fill := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(b, "| %s%s |", cell, fill)
			} else {
				fmt.Fprintf(b, " %s%s |", fill, cell)
			}
		}
		b.WriteByte('\n')
		if r > 0 {
			continue
		}
		for i, w := range widths {
			if i == 0 {
				fmt.Fprintf(b, "|%s|", strings.Repeat("-", w+2))
			} else {
				fmt.Fprintf(b, "%s:|", strings.Repeat("-", w+1))
			}
		}
		b.WriteByte('\n')
	}
}
