package e2e

import (
	"encoding/json"
	"strings"
)

// entries returns the lines that a node has logged since it was started. Each must be
// one JSON object.
func (n *node) entries() []map[string]any {
	n.t.Helper()
	var entries []map[string]any
	for line := range strings.Lines(n.Output()) {
		var e map[string]any
		if !strings.HasSuffix(line, "\n") {
			continue // is being written
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			n.t.Errorf("this line of the log is not one JSON object: %q", line)
			continue
		}
		entries = append(entries, e)
	}
	return entries
}
