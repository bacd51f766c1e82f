package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// sessionCookie is the name of the session cookie on plain http.
const sessionCookie = "coatcheck"

// workers is how many people do something at the same time.
const workers = 8

// A guest is somebody who is signed in, and the cookie they got for it.
type guest struct{ user, cookie string }

// signInGuest signs a person in with a browser of their own.
func signInGuest(t *testing.T, site, user string) guest {
	t.Helper()
	g, err := newGuest(t, testenv.NewBrowser(t), site, user)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newGuest(t *testing.T, b *testenv.Browser, site, user string) (guest, error) {
	page, err := b.SignIn(t.Context(), site+"/whoami", user)
	if err != nil {
		return guest{}, err
	}
	g := guest{user, cookieOf(b, site, sessionCookie)}
	if err := g.isServed(page); err != nil {
		return guest{}, err
	}
	return g, nil
}

// signInGuests signs u0, u1 … in.
func signInGuests(t *testing.T, site string, count int) []guest {
	t.Helper()
	guests := make([]guest, count)
	var g errgroup.Group
	g.SetLimit(workers)
	for i := range guests {
		b := testenv.NewBrowser(t)
		g.Go(func() (err error) {
			guests[i], err = newGuest(t, b, site, fmt.Sprintf("u%d", i))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return guests
}

// cookieOf returns the value of a cookie in a browser's jar, "" without one.
func cookieOf(b *testenv.Browser, site, name string) string {
	for _, c := range cookiesOf(b, site) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

func cookiesOf(b *testenv.Browser, site string) []*http.Cookie {
	u, err := url.Parse(site)
	if err != nil {
		panic(err)
	}
	return b.Jar.Cookies(u)
}

// isServed returns nil if a page is the sample app's /whoami and shows this person.
func (g guest) isServed(page *testenv.Page) error {
	var w who
	if page.Status != http.StatusOK {
		return fmt.Errorf("%s: %d at %s: %s", g.user, page.Status, page.URL, firstLine(page.Body))
	}
	if err := json.Unmarshal([]byte(page.Body), &w); err != nil {
		return fmt.Errorf("%s: %w", g.user, err)
	}
	if w.User != g.user || w.Email != g.user+"@example.com" {
		return fmt.Errorf("%s was served as %s (%s)", g.user, w.User, w.Email)
	}
	return nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 300)]
}

// A request is one that is sent as it stands: no cookie is added, none is kept, no
// redirect followed.
type request struct {
	method string // "": GET
	url    string
	host   string // "": the URL's
	cookie string // the Cookie header
	body   string
	header []string // name, value, name, value …
}

// asNavigation are the headers by which a browser says that a person goes to a page.
var asNavigation = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none", "Accept", "text/html,*/*;q=0.8"}

// asScript are the headers of fetch().
var asScript = []string{"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin", "Accept", "*/*"}

// asCookie returns the Cookie header that carries the guest's session.
func (g guest) asCookie() string { return sessionCookie + "=" + g.cookie }

// A sender sends requests.
type sender struct{ client http.Client }

func newSender(t *testing.T) *sender {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: workers}
	t.Cleanup(transport.CloseIdleConnections)
	return &sender{http.Client{
		Transport:     transport,
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// send returns an answer, whatever its status.
func (s *sender) send(r request) (*testenv.Page, error) {
	req, err := http.NewRequestWithContext(context.Background(), r.method, r.url, strings.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Host = r.host
	if r.cookie != "" {
		req.Header.Set("Cookie", r.cookie)
	}
	for i := 0; i < len(r.header); i += 2 {
		req.Header.Set(r.header[i], r.header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := io.Copy(&body, resp.Body); err != nil {
		return nil, fmt.Errorf("read %s: %w", r.url, err)
	}
	if resp.Close { // the client has taken it out
		resp.Header.Set("Connection", "close")
	}
	return &testenv.Page{Status: resp.StatusCode, URL: req.URL, Header: resp.Header, Body: body.String()}, nil
}

// mustSend fails the test where there is no answer at all.
func (s *sender) mustSend(t *testing.T, r request) *testenv.Page {
	t.Helper()
	page, err := s.send(r)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// A load asks in the names of guests for /whoami, one after the other and over again,
// in turn as a navigation and as a script. It stops with the test, or before.
type load struct {
	sender *sender
	site   string
	faults map[int]bool // statuses that may occur, beside 200
	ending atomic.Bool
	done   sync.WaitGroup

	mu       sync.Mutex
	guests   []guest // what a worker has taken is not written to any more
	statuses map[int]int
	slowest  time.Duration
	refused  time.Time // when the last answer came that was not 200
	marked   int       // how many said Coatcheck-Unverified
	wrong    []string
	wrongs   int
}

// startLoad starts a load. An answer must be the guest's own or have one of the given
// statuses, and must not set or clear a cookie. With 503 it says when to try again.
func startLoad(t *testing.T, site string, guests []guest, faults ...int) *load {
	t.Helper()
	l := &load{sender: newSender(t), site: site, guests: guests, faults: map[int]bool{}, statuses: map[int]int{}}
	for _, status := range faults {
		l.faults[status] = true
	}
	for first := range workers {
		l.done.Go(func() {
			for i := first; !l.ending.Load(); i += workers {
				guests := l.people()
				l.visit(guests[i%len(guests)], i/len(guests)+i)
				time.Sleep(5 * time.Millisecond) // leaves the machine some air
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// join adds guests, in whose names it asks from now on, too.
func (l *load) join(more []guest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guests = append(l.guests[:len(l.guests):len(l.guests)], more...)
}

// people returns the guests so far.
func (l *load) people() []guest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guests
}

func (l *load) end() {
	l.ending.Store(true)
	l.done.Wait()
}

func (l *load) visit(g guest, i int) {
	r := request{url: l.site + "/whoami", cookie: g.asCookie(), header: asScript}
	if i%2 == 0 {
		r.header = asNavigation
	}
	sent := time.Now()
	page, err := l.sender.send(r)
	answered := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
	case len(page.Header.Values("Set-Cookie")) > 0:
		err = fmt.Errorf("%s: %d sets cookies: %q", g.user, page.Status, page.Header.Values("Set-Cookie"))
	case !l.faults[page.Status]:
		err = g.isServed(page)
	case page.Status == http.StatusServiceUnavailable && page.Header.Get("Retry-After") == "":
		err = fmt.Errorf("%s: 503 without Retry-After: %s", g.user, firstLine(page.Body))
	}
	l.slowest = max(l.slowest, answered.Sub(sent))
	if page != nil {
		l.statuses[page.Status]++
		if page.Header.Get("Coatcheck-Unverified") != "" {
			l.marked++
		}
		if page.Status != http.StatusOK && answered.After(l.refused) {
			l.refused = answered
		}
	}
	if err != nil {
		if l.wrongs++; len(l.wrong) < 10 {
			l.wrong = append(l.wrong, err.Error())
		}
	}
}

// count returns how many answers with a status came so far.
func (l *load) count(status int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.statuses[status]
}

// unverified returns how many answers so far said that nobody could check the session.
func (l *load) unverified() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.marked
}

// awaitMore waits for so many more answers of a status.
func (l *load) awaitMore(t *testing.T, status, more int) {
	t.Helper()
	want := l.count(status) + more
	await(t, fmt.Sprintf("%d more answers with %d", more, status), func() bool { return l.count(status) >= want })
}

// stop ends the load, reports what went wrong, and counts.
func (l *load) stop(t *testing.T, during string) {
	t.Helper()
	l.end()
	var counts []string
	for _, status := range slices.Sorted(maps.Keys(l.statuses)) {
		counts = append(counts, fmt.Sprintf("%d × %d", l.statuses[status], status))
	}
	t.Logf("%s: %d people, answers: %s; the slowest took %v", during, len(l.guests), strings.Join(counts, ", "), l.slowest.Round(time.Millisecond))
	if l.wrongs > 0 {
		t.Errorf("%s: %d answers were wrong, such as:\n%s", during, l.wrongs, strings.Join(l.wrong, "\n"))
	}
}

// recovered waits until everybody is served again, and prints how long after the fault the
// last answer came that was not 200.
func (l *load) recovered(t *testing.T, fault time.Time) {
	t.Helper()
	var before time.Time
	await(t, "everybody to be served again", func() bool {
		served := l.count(http.StatusOK)
		before = l.lastRefused()
		for l.count(http.StatusOK) < served+len(l.guests)+workers {
			if l.lastRefused().After(before) || l.ending.Load() {
				return false
			}
			time.Sleep(20 * time.Millisecond)
		}
		return true
	})
	t.Logf("time to recover: %v", max(before.Sub(fault), 0).Round(10*time.Millisecond))
}

func (l *load) lastRefused() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

// checkServed asks once for each guest, who must be served as they are, with the cookie
// they have had all the time.
func checkServed(t *testing.T, site string, guests []guest) {
	t.Helper()
	s := newSender(t)
	var g errgroup.Group
	g.SetLimit(workers)
	var served atomic.Int32
	for _, guest := range guests {
		g.Go(func() error {
			page, err := s.send(request{url: site + "/whoami", cookie: guest.asCookie(), header: asNavigation})
			if err != nil {
				return err
			}
			if set := page.Header.Values("Set-Cookie"); len(set) > 0 {
				return fmt.Errorf("%s: the answer sets %q", guest.user, set)
			}
			if err := guest.isServed(page); err != nil {
				return err
			}
			served.Add(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d of %d are served with the cookie they had", served.Load(), len(guests))
}
