package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// TestHostile sends hostile requests over a raw socket to one node on https, and looks
// at the bytes that reach the app behind it. The classes share the node and follow one
// another, so whatever the app was sent since a request began was sent for it.
func TestHostile(t *testing.T) {
	rec := testenv.Record(t, hostileApp)
	s := startSite(t, "https://app.t1.test", "__Host-coatcheck", rec, hostileRoutes(t, rec))
	s.origins = []string{"https://app.t1.test"}
	for _, class := range []struct {
		name string
		run  func(*testing.T, *site)
	}{
		{"R", hostileReturnURLs},
		{"P", hostilePaths},
		{"H", hostileHeaders},
		{"C", hostileCookies},
		{"O", hostileSignIns},
		{"F", hostileForwardAuth},
		{"W", hostileWire},
		{"HTTP2", hostileHTTP2},
		{"M", hostileAdmin},
		{"L", hostileSignOuts},
		{"bad input", hostileBadInput},
	} {
		t.Run(class.name, func(t *testing.T) { class.run(t, s) })
	}
	for line := range strings.Lines(s.logged()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("A-D2: a line of the log is no JSON: %q", line)
		}
	}
}

// A site is a node in front of a recording app, and what the tests know about it.
type site struct {
	*node
	public   string // public_url
	host     string // of public
	cookie   string // name of the session cookie
	origins  []string
	rec      *testenv.Recorder
	provider *countingProvider
}

// markup is the name of somebody who hopes that it is shown unescaped.
const markup = `"><script>alert(1)</script>`

const configuredHeaders = "headers: {user: X-Auth-User, email: X-Auth-Email, groups: X-Auth-Groups}\n"

// startSite runs a node that is reached on loopback and believes itself to be public.
func startSite(t *testing.T, public, cookie string, rec *testenv.Recorder, o nodeOptions) *site {
	t.Helper()
	s := &site{public: public, cookie: cookie, rec: rec, provider: startCountingProvider(t, public)}
	u, err := url.Parse(public)
	if err != nil {
		t.Fatal(err)
	}
	s.host = u.Host
	o.public, o.secure, o.client = public, true, s.provider.client
	o.more += configuredHeaders
	s.node = startNode(t, o)
	s.awaitSignIn()
	return s
}

// A countingProvider is the development provider, and knows what tokens it gave. Beside
// alice and bob it knows nobody, who has neither an e-mail address nor groups, and markup.
type countingProvider struct {
	client
	tokens atomic.Int64
	access atomic.Value // the last access token, a string
}

func startCountingProvider(t *testing.T, origins ...string) *countingProvider {
	t.Helper()
	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &countingProvider{client: client{issuer: "http://" + l.Addr().String(), id: "test", secret: "a secret of the tests"}}
	registered := devprovider.Client{ID: p.id, Secret: coatcheck.Secret(p.secret)}
	for _, origin := range origins {
		registered.RedirectURIs = append(registered.RedirectURIs, origin+"/oauth2/callback")
		registered.PostLogoutRedirectURIs = append(registered.PostLogoutRedirectURIs, origin+"/oauth2/sign_out/done")
	}
	provider, err := devprovider.New(devprovider.Options{
		Logger:  slog.New(slog.DiscardHandler),
		Issuer:  p.issuer,
		Clients: []devprovider.Client{registered},
		Users:   append(devprovider.DefaultUsers(), devprovider.User{Username: "nobody", Password: "nobody"}, devprovider.User{Username: markup, Password: markup}),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			provider.ServeHTTP(w, r)
			return
		}
		p.tokens.Add(1)
		answer := httptest.NewRecorder()
		provider.ServeHTTP(answer, r)
		var tokens struct {
			Access string `json:"access_token"`
		}
		if err := json.Unmarshal(answer.Body.Bytes(), &tokens); err == nil && tokens.Access != "" {
			p.access.Store(tokens.Access)
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return p
}

// noRedirects is a client that shows redirects.
var noRedirects = &http.Client{
	Timeout:       time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// authorize signs a person in at the provider, whose name is the password, and returns
// the request target that the browser is then sent back to.
func (p *countingProvider) authorize(t *testing.T, location, user string) (callback string) {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(location, p.issuer+"/") {
		t.Fatalf("the sign-in leads to %q, not to the provider", location)
	}
	form := url.Values{"username": {user}, "password": {user}}.Encode()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost,
		p.issuer+"/connect/sign_in?"+u.RawQuery, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := noRedirects.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || !back.Query().Has("code") {
		t.Fatalf("the provider answers %s, Location %q", resp.Status, resp.Header.Get("Location"))
	}
	return back.RequestURI()
}

// An answer is what came back for one request, and what reached the app meanwhile.
type answer struct {
	*http.Response
	body    string
	reached []string // the requests as the app got them
}

// location is the Location field, "" without one.
func (a *answer) location() string { return a.Header.Get("Location") }

// target is the target of the one request that reached the app.
func (a *answer) target() string {
	if len(a.reached) != 1 {
		return fmt.Sprintf("(%d requests)", len(a.reached))
	}
	return testenv.Target(a.reached[0])
}

// field is the values of a field of the one request that reached the app, with its name
// folded.
func (a *answer) field(name string) []string {
	if len(a.reached) != 1 {
		return []string{fmt.Sprintf("(%d requests)", len(a.reached))}
	}
	return testenv.Fields(a.reached[0], name)
}

// request returns the bytes of a request that asks for the connection to be closed. The
// lines are more of its header; one that begins with "Host:" replaces the site's own.
func (s *site) request(method, target string, lines ...string) string {
	host := "Host: " + s.host
	header := ""
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "Host:"):
			host = line
		case line != "":
			header += line + "\r\n"
		}
	}
	return method + " " + target + " HTTP/1.1\r\n" + host + "\r\nConnection: close\r\n" + header + "\r\n"
}

// get sends a GET that a browser could have sent for a person.
func (s *site) get(t *testing.T, target string, lines ...string) *answer {
	t.Helper()
	return s.send(t, s.request("GET", target, lines...))
}

// send writes the bytes of one request and checks its answer.
func (s *site) send(t *testing.T, request string) *answer {
	t.Helper()
	answers := s.sendAll(t, request)
	if len(answers) != 1 {
		t.Fatalf("%d answers to\n%.400q", len(answers), request)
	}
	return answers[0]
}

// sendAll writes bytes and checks every answer that comes back. What reached the app is
// in each of them.
func (s *site) sendAll(t *testing.T, requests string) []*answer {
	t.Helper()
	before := len(s.rec.Requests())
	raw := testenv.Send(t, s.addr, requests)
	reached := s.rec.Requests()[before:]
	var answers []*answer
	for r := bufio.NewReader(strings.NewReader(raw)); ; {
		if _, err := r.Peek(1); err != nil {
			return answers
		}
		method, _, _ := strings.Cut(requests, " ")
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("no answer to\n%.400q\nbut\n%.400q: %v", requests, raw, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("half an answer to\n%.400q: %v", requests, err)
		}
		resp.Body.Close()
		a := &answer{Response: resp, body: string(body), reached: reached}
		s.lint(t, a)
		answers = append(answers, a)
	}
}

// lint holds what must be so in every answer, whatever was asked: nothing fails with a
// 500 (G2), nothing of ours is cached (G4), and our cookies have all their attributes
// (G5, C7). Pages of ours send no referrer (A-D4).
func (s *site) lint(t *testing.T, a *answer) {
	t.Helper()
	if a.StatusCode == http.StatusInternalServerError {
		t.Errorf("G2: %s", a.Status)
	}
	ours := len(a.reached) == 0 && !refusedByServer(a)
	for _, line := range a.Header["Set-Cookie"] {
		if name, _, _ := strings.Cut(line, "="); name == s.cookie || strings.HasPrefix(name, s.cookie+"-") || strings.HasPrefix(name, s.cookie+".") {
			ours = true
			s.lintCookie(t, line)
		}
	}
	if !ours {
		return
	}
	if cc := a.Header.Values("Cache-Control"); !slices.Equal(cc, []string{"no-store"}) {
		t.Errorf("G4: Cache-Control %q in an answer of ours with the status %d", cc, a.StatusCode)
	}
	if len(a.reached) == 0 && a.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("A-D4: Referrer-Policy %q", a.Header.Get("Referrer-Policy"))
	}
}

// refusedByServer tells whether net/http answered by itself, before there was a request
// that could be routed. A status that it uses is not one that caches keep
// (RFC 9110 §15.1).
func refusedByServer(a *answer) bool {
	return a.Close && a.Header.Get("Content-Type") == "text/plain; charset=utf-8" &&
		(strings.HasPrefix(a.body, strconv.Itoa(a.StatusCode)) || a.body == "Unsupported transfer encoding") &&
		slices.Contains([]int{400, 431, 501, 505}, a.StatusCode)
}

func (s *site) lintCookie(t *testing.T, line string) {
	t.Helper()
	parts := strings.Split(line, "; ")
	name, _, _ := strings.Cut(parts[0], "=")
	attrs := map[string]string{}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		if _, twice := attrs[k]; twice {
			t.Errorf("G5: %s has two %s", name, k)
		}
		attrs[k] = v
		if len(v) > 1024 {
			t.Errorf("G5: %s of %s is over 1024 bytes", k, name)
		}
	}
	_, secure := attrs["Secure"]
	_, httpOnly := attrs["HttpOnly"]
	domain, hasDomain := attrs["Domain"]
	if !secure || !httpOnly || attrs["SameSite"] != "Lax" || attrs["Path"] != "/" {
		t.Errorf("G5: the attributes of %q", line)
	}
	prefix, _, _ := strings.Cut(s.cookie, "coatcheck")
	if !strings.HasPrefix(name, prefix) || (prefix == "__Secure-") != hasDomain || hasDomain && domain != "sso.test" {
		t.Errorf("G5: the prefix and domain of %q", line)
	}
	if len(parts[0]) > 4096 {
		t.Errorf("G5: %s has %d bytes", name, len(parts[0]))
	}
	if age, err := strconv.Atoi(attrs["Max-Age"]); err != nil || age < 0 || age > 400*24*3600 {
		t.Errorf("G5: the Max-Age of %q", line)
	}
}

// denied checks that a request came nowhere: nothing reached the app, and the answer is
// a redirect to the provider, for navigations alone, or 400, 401 or 403.
func (s *site) denied(t *testing.T, a *answer, navigation bool) {
	t.Helper()
	if len(a.reached) > 0 {
		t.Errorf("reached the app:\n%.400q", a.reached)
	}
	switch a.StatusCode {
	case http.StatusSeeOther:
		if !navigation {
			t.Error("a request that is no navigation is redirected")
		}
		if !strings.HasPrefix(a.location(), s.provider.issuer+"/") {
			t.Errorf("redirected to %q", a.location())
		}
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		if a.location() != "" {
			t.Errorf("%s with the Location %q", a.Status, a.location())
		}
	default:
		t.Errorf("answered with %s", a.Status)
	}
}

// served checks that exactly one request reached the app, as this person's; "" is
// nobody.
func (s *site) served(t *testing.T, a *answer, user string) {
	t.Helper()
	if a.StatusCode != http.StatusOK || len(a.reached) != 1 {
		t.Fatalf("not served: %s, %d requests reached the app", a.Status, len(a.reached))
	}
	var want []string
	if user != "" {
		want = []string{user}
	}
	if got := a.field("X-Auth-User"); !slices.Equal(got, want) {
		t.Errorf("served as %q, want %q", got, want)
	}
}

// Cookies are what one browser holds, in order.
type cookies struct{ pairs [][2]string }

// keep does with an answer's cookies what a browser does.
func (c *cookies) keep(a *answer) {
	for _, set := range a.Cookies() {
		c.pairs = slices.DeleteFunc(c.pairs, func(p [2]string) bool { return p[0] == set.Name })
		if set.MaxAge >= 0 {
			c.pairs = append(c.pairs, [2]string{set.Name, set.Value})
		}
	}
}

// line is the Cookie field, or "" if there are none.
func (c *cookies) line() string {
	if len(c.pairs) == 0 {
		return ""
	}
	var b strings.Builder
	for i, p := range c.pairs {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(p[0] + "=" + p[1])
	}
	return "Cookie: " + b.String()
}

func (c *cookies) value(name string) string {
	for _, p := range c.pairs {
		if p[0] == name {
			return p[1]
		}
	}
	return ""
}

// names are the names of the cookies that have this prefix.
func (c *cookies) names(prefix string) []string {
	var names []string
	for _, p := range c.pairs {
		if strings.HasPrefix(p[0], prefix) {
			names = append(names, p[0])
		}
	}
	return names
}

// start begins a sign-in in a browser, with this rd as it stands in the query, and
// returns where the browser is sent.
func (s *site) start(t *testing.T, c *cookies, rd string) (location string) {
	t.Helper()
	target := "/oauth2/start"
	if rd != "" {
		target += "?rd=" + rd
	}
	a := s.get(t, target, c.line())
	if a.StatusCode != http.StatusSeeOther {
		t.Fatalf("start answers %s", a.Status)
	}
	c.keep(a)
	return a.location()
}

// signInTo signs a person in with this rd and returns the answer to the callback.
func (s *site) signInTo(t *testing.T, c *cookies, user, rd string) *answer {
	t.Helper()
	a := s.get(t, s.provider.authorize(t, s.start(t, c, rd), user), c.line())
	if a.StatusCode != http.StatusSeeOther {
		t.Fatalf("the callback answers %s: %s", a.Status, a.body)
	}
	c.keep(a)
	return a
}

// signIn signs a person in with a new browser. The first request with the session is
// made too, so that none of its own cookies are left but the session's.
func (s *site) signIn(t *testing.T, user string) *cookies {
	t.Helper()
	c := new(cookies)
	s.signInTo(t, c, user, "")
	a := s.get(t, "/", c.line())
	s.served(t, a, user)
	c.keep(a)
	if len(c.pairs) != 1 || c.pairs[0][0] != s.cookie {
		t.Fatalf("after the sign-in the browser holds %v", c.pairs)
	}
	return c
}
