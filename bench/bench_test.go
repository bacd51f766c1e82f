package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// The program runs itself in its roles, and in a test that is the test's binary.
func TestMain(m *testing.M) {
	if code, ok := serveRole(os.Args[1:]); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// TestQuick measures everything once and looks whether there is a plausible number in
// every place. How large it is, no test says.
func TestQuick(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("processor times of other processes are read from Linux's /proc")
	}
	testenv.RequireTool(t, "redis-server")
	out := t.TempDir()
	var table, progress bytes.Buffer
	if err := run(t.Context(), []string{"-quick", "-out", out}, &table, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	data, err := os.ReadFile(filepath.Join(out, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if got, want := len(r.Series), 11; got != want {
		t.Errorf("%d series, want %d", got, want)
	}
	for _, s := range r.Series {
		if len(s.CPU) != quick.Runs || s.CPU[0] <= 0 {
			t.Errorf("%s: processor times %v", s.Name, s.CPU)
		}
		if (s.Against == "") != (s.Ratio == nil) {
			t.Errorf("%s: against %q, ratio %v", s.Name, s.Against, s.Ratio)
		}
		if strings.Contains(s.Name, redis) && (len(s.StoreCPU) != quick.Runs || len(s.StoreCommands) != quick.Runs) {
			t.Errorf("%s: redis-server's processor times %v, commands %v", s.Name, s.StoreCPU, s.StoreCommands)
		}
		if !strings.Contains(table.String(), "| "+s.Name) {
			t.Errorf("%s is not in the table", s.Name)
		}
	}
	for _, s := range r.Starts {
		if len(s.Millis) != quick.Starts || s.Spread.Median <= 0 {
			t.Errorf("start-up with %s: %v", s.Name, s.Millis)
		}
	}
	if len(r.Starts) != 2 || len(r.Memory) != 5 {
		t.Errorf("%d start-up times and %d sizes, want 2 and 5", len(r.Starts), len(r.Memory))
	}
	for _, m := range r.Memory {
		if m.Bytes < 1<<20 {
			t.Errorf("%s: %d bytes", m.Name, m.Bytes)
		}
	}
	for _, c := range r.Commands {
		if strings.Contains(c, os.TempDir()) {
			t.Errorf("a path of this machine is in the result: %s", c)
		}
	}
	written, err := os.ReadFile(filepath.Join(out, "RESULT.md"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(table.String(), string(written)); diff != "" {
		t.Errorf("RESULT.md is not what was printed (-printed +written):\n%s", diff)
	}
}

// A load that takes a refusal for an answer would measure how fast coatcheck refuses.
func TestLoadRefusesWrongAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // in the error; "" for none
	}{
		{"right", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "four") }, ""},
		{"status", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusUnauthorized) }, "401"},
		{"size", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "five5") }, "5 bytes, want 4"},
		{"chunked", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "fo")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "ur")
		}, "-1 bytes, want 4"},
		{"closing", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, "four")
		}, "ends the connection"},
		{"gone", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := make(chan string, 100)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				seen <- r.URL.Path
				c.answer(w, r)
			}))
			defer server.Close()
			address := server.Listener.Addr().String()
			l := &load{status: http.StatusOK, body: 4}
			for _, path := range []string{"/a", "/b", "/c"} {
				l.requests = append(l.requests, []byte("GET "+path+" HTTP/1.1\r\nHost: "+address+"\r\n\r\n"))
			}
			defer l.close()
			if err := l.open(t.Context(), address, 2); err != nil {
				t.Fatal(err)
			}
			err := l.send(t.Context(), 9)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			close(seen)
			count := map[string]int{}
			for path := range seen {
				count[path]++
			}
			if diff := cmp.Diff(map[string]int{"/a": 3, "/b": 3, "/c": 3}, count); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRatios(t *testing.T) {
	for _, c := range []struct {
		name            string
		values, against []float64
		want            spread
	}{
		{"one run", []float64{30}, []float64{20}, spread{1.5, 1.5, 1.5}},
		{"run by run", []float64{30, 10, 40}, []float64{20, 10, 20}, spread{1.5, 1, 2}},
		{"an even number", []float64{1, 2, 3, 4}, []float64{1, 1, 1, 1}, spread{2.5, 1, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(&c.want, ratios(c.values, c.against)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
