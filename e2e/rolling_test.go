package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A change makes a file of the tree into that of a later version.
type change struct{ file, old, new string }

// laterVersion are what a later version might change: each format has a field more. What it
// writes into a record says so, and it refuses a record of its own that says so no more: then
// a node of this version has lost what it did not know.
var laterVersion = []change{
	{"cmd/coatcheck/main.go", "\treturn \"devel\"\n", "\treturn \"later\"\n"},
	{"session/record.go", "`cbor:\"27,keyasint,omitempty\"`\n", "`cbor:\"27,keyasint,omitempty\"`\nLater string `cbor:\"28,keyasint\"`\n"},
	{"session/record.go", "recordFields = 28", "recordFields = 29"},
	{"session/record.go", "record{\n\t\tVersion: ", "record{\n\t\tLater: \"kept\",\n\t\tVersion: "},
	{
		"session/record.go", "\tif r.State > uint8(coatcheck.Authenticated) {",
		"\tif r.Later == \"\" && len(r.Node) > 6 && r.Node[:6] == \"later \" {\nreturn nil, errors.New(\"session: what a later version wrote is lost\")\n}\n" +
			"\tif r.State > uint8(coatcheck.Authenticated) {",
	},
	{"session/begin.go", "\ts.Origin.Node = m.Node\n", "\ts.Origin.Node = \"later \" + m.Node\n"},
	{"session/entry.go", "`cbor:\"11,keyasint\"`\n", "`cbor:\"11,keyasint\"`\nLater string `cbor:\"12,keyasint\"`\n"},
	{"session/tombstone.go", "`cbor:\"2,keyasint\"`\n", "`cbor:\"2,keyasint\"`\nLater string `cbor:\"3,keyasint\"`\n"},
	{"session/tombstone.go", "tombstone{tombstoneVersion, string(reason), e.verifier}", "tombstone{tombstoneVersion, string(reason), e.verifier, \"later\"}"},
	{"oidc/prelogin.go", "`cbor:\"7,keyasint,omitempty\"`\n", "`cbor:\"7,keyasint,omitempty\"`\nLater string `cbor:\"8,keyasint\"`\n"},
	{"event.go", "`json:\"limit,omitempty\"`", "`json:\"limit,omitempty\"`\nLater string `json:\"later\"`\n"},
}

// buildLater builds that version, and returns the path of its program.
func buildLater(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	texts := map[string]string{}
	for _, c := range laterVersion {
		if texts[c.file] == "" {
			data, err := os.ReadFile(filepath.Join(root, c.file))
			if err != nil {
				t.Fatal(err)
			}
			texts[c.file] = string(data)
		}
		if n := strings.Count(texts[c.file], c.old); n != 1 {
			t.Fatalf("%s has %q %d times: make laterVersion fit it again", c.file, c.old, n)
		}
		texts[c.file] = strings.Replace(texts[c.file], c.old, c.new, 1)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, text := range texts {
		replaced := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		writeFile(t, replaced, text)
		overlay.Replace[filepath.Join(root, file)] = replaced
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list, later := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "coatcheck-later")
	writeFile(t, list, string(data))
	args := []string{"build", "-overlay", list, "-buildvcs=false", "-o", later}
	if underRaceDetector() {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "../cmd/coatcheck")...).CombinedOutput(); err != nil {
		t.Fatalf("build the later version: %v\n%s", err, out)
	}
	return later
}

// Three nodes are replaced one by one by those of another version, and one of them goes
// back, while two hundred people are busy whose tokens are refreshed all the time. Nobody
// loses the session, and no answer is a failure, whichever version began what the other goes
// on with.
func TestRollingUpdate(t *testing.T) {
	const life = 8 * time.Second // of access tokens
	program(t)                   // it depends on the tree
	later := buildLater(t)
	port := testenv.FreePort(t)
	site := "http://" + testenv.Loopback(port)
	provider := testenv.StartProvider(t, testenv.ProviderOptions{
		RedirectURIs:        []string{site + "/oauth2/callback"},
		AccessTokenLifetime: life,
	})
	c := startCluster(t, clusterOptions{
		port:   port,
		client: client{issuer: provider.Issuer, id: provider.ClientID, secret: provider.ClientSecret},
		third:  true,
		more:   "shutdown: {delay: 2s, grace: 20s}\n",
	})
	names := []string{"node-a", "node-b", "node-c"}
	guests := signInGuests(t, c.url, 200)
	l := startLoad(t, c.url, guests)

	versions := map[any]bool{}
	look := func(name string) {
		t.Helper()
		for _, e := range c.nodes[name].entries() {
			switch {
			case e["msg"] == "serving":
				versions[e["version"]] = true
			case e["event"] == "session.ended":
				t.Errorf("%s: a session has ended: %v", name, e)
			}
		}
	}
	replace := func(name, program string) {
		t.Helper()
		n := c.nodes[name]
		n.Signal(syscall.SIGTERM)
		select {
		case <-n.Done():
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s does not leave", name)
		}
		if code := n.ExitCode(); code != 0 {
			t.Errorf("%s: exit code %d", name, code)
		}
		look(name)
		n.options.program = program
		n.start()
		n.awaitSignIn()
		c.awaitNodes(names...)
	}
	// People sign in, with a node of either version at each of the two ends, and stay.
	moreGuests := func(first int) {
		t.Helper()
		var more []guest
		for i := range 12 {
			more = append(more, signInGuest(t, c.url, fmt.Sprintf("u%d", first+i)))
		}
		l.join(more)
	}
	refreshed := func() {
		t.Helper()
		before := provider.Refreshes().Total
		start := time.Now()
		for provider.Refreshes().Total < before+len(guests) {
			if time.Since(start) > 15*life {
				t.Fatalf("%d refreshes in %v", provider.Refreshes().Total-before, 15*life)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}

	replace("node-a", later)
	moreGuests(300)
	refreshed()
	replace("node-b", later)
	moreGuests(400)
	replace("node-c", later)
	moreGuests(500)
	replace("node-a", "")
	moreGuests(600)
	refreshed()
	everybody := l.people()
	l.awaitMore(t, http.StatusOK, len(everybody))
	l.stop(t, "a rolling update")
	checkServed(t, c.url, everybody)

	seen := provider.Refreshes()
	t.Logf("refresh tokens redeemed: %d", seen.Total)
	if seen.Most > 1 {
		t.Errorf("a refresh token was sent %d times", seen.Most)
	}
	for _, name := range names {
		look(name)
	}
	if !versions["later"] || len(versions) != 2 {
		t.Errorf("the versions that served are %v", versions)
	}
	// Who signs out is signed out for both versions, and told so by both.
	gone, s := everybody[len(everybody)-1], newSender(t)
	c.signOut(t, s, c.nodes["node-b"], gone)
	for _, name := range names {
		page := s.mustSend(t, c.at(c.nodes[name], request{url: "/whoami", cookie: gone.asCookie(), header: asNavigation}))
		if page.Status != http.StatusUnauthorized || !strings.Contains(page.Body, "You signed out") {
			t.Errorf("%s answers %d after the sign-out: %s", name, page.Status, firstLine(page.Body))
		}
	}
}
