package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// The example's HAProxy asks a second node where the first broke off without an answer,
// but only if that can't do anything twice. A callback's code can be used once.
func TestHAProxyRepeatsOnlyWhatIsSafe(t *testing.T) {
	config, err := os.ReadFile("../examples/haproxy-redis/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	program(t) // the configuration counts as part of what is tested

	var mu sync.Mutex
	asked := map[string]int{}
	node := func() string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/ready" {
				return
			}
			mu.Lock()
			asked[r.Method+" "+r.URL.Path]++
			mu.Unlock()
			panic(http.ErrAbortHandler) // the connection ends without an answer
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	addr := testenv.Loopback(testenv.FreePort(t))
	testenv.StartHAProxy(t, addr, string(config), "LISTEN="+addr, "NODE_A="+node(), "NODE_B="+node())

	for _, request := range []struct{ method, path string }{
		{http.MethodGet, "/page"},
		{http.MethodPost, "/page"},
		{http.MethodGet, "/oauth2/callback"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), request.method, "http://"+addr+request.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		page, err := testenv.NewBrowser(t).Fetch(req)
		if err != nil || page.Status != http.StatusBadGateway {
			t.Errorf("%s %s: %+v, %v", request.method, request.path, page, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := map[string]int{"GET /page": 3, "POST /page": 1, "GET /oauth2/callback": 1}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("how often the nodes were asked (-want +got):\n%s", diff)
	}
}

func TestRacesAreReported(t *testing.T) {
	prefix := t.TempDir() + "/race"
	if err := reportRaces(prefix); err != nil {
		t.Errorf("without one: %v", err)
	}
	writeFile(t, fmt.Sprintf("%s.%d", prefix, 1), "WARNING: DATA RACE")
	if err := reportRaces(prefix); err == nil {
		t.Error("one was not reported")
	}
}
