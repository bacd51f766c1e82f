package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A witness stands in front of the provider and remembers every secret that passes.
type witness struct {
	provider http.Handler

	mu      sync.Mutex
	secrets map[string]map[string]bool // by what they are
	spoil   func(tokens map[string]any) (status int, body string)
}

func (w *witness) note(kind, secret string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if secret == "" {
		return
	}
	if w.secrets[kind] == nil {
		w.secrets[kind] = map[string]bool{}
	}
	w.secrets[kind][secret] = true
}

// spoilNext replaces the token endpoint's next answer.
func (w *witness) spoilNext(spoil func(tokens map[string]any) (int, string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoil = spoil
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.noteQuery(r.URL)
	if r.URL.Path != "/token" {
		w.provider.ServeHTTP(&locationWitness{rw, w}, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(rw, "the body broke off", http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, _ := url.ParseQuery(string(body))
	w.note("code", form.Get("code"))
	w.note("verifier", form.Get("code_verifier"))
	if _, secret, ok := r.BasicAuth(); ok {
		w.note("client secret", secret) // as it is spelled on the wire
	}

	answer := httptest.NewRecorder()
	w.provider.ServeHTTP(answer, r)
	var tokens map[string]any
	if err := json.Unmarshal(answer.Body.Bytes(), &tokens); err == nil {
		w.noteTokens(tokens)
	}
	w.mu.Lock()
	spoil := w.spoil
	w.spoil = nil
	w.mu.Unlock()
	if spoil != nil {
		status, body := spoil(tokens)
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
		return
	}
	maps.Copy(rw.Header(), answer.Header())
	rw.WriteHeader(answer.Code)
	_, _ = rw.Write(answer.Body.Bytes())
}

func (w *witness) noteTokens(tokens map[string]any) {
	for _, name := range []string{"access_token", "refresh_token", "id_token"} {
		token, _ := tokens[name].(string)
		w.note(name, token)
		// No part of a JWT may show, either; its header is no secret.
		if parts := strings.Split(token, "."); len(parts) == 3 {
			w.note(name+" payload", parts[1])
			w.note(name+" signature", parts[2])
		}
	}
}

// noteQuery keeps what passes in the URLs that browsers are sent to.
func (w *witness) noteQuery(u *url.URL) {
	for _, name := range []string{"code", "state", "nonce"} {
		w.note(name, u.Query().Get(name))
	}
}

// noteCookies keeps the value of a cookie, and the halves of a ticket.
func (w *witness) noteCookies(cookies []*http.Cookie) {
	for _, c := range cookies {
		if !strings.HasPrefix(c.Name, "coatcheck") || c.Value == "" {
			continue
		}
		if c.Name != sessionCookie {
			w.note("other cookie", c.Value)
			continue
		}
		handle, secret, _ := strings.Cut(c.Value, ".")
		w.note("session cookie", c.Value)
		w.note("ticket id", strings.TrimPrefix(handle, sessionCookie+"-"))
		w.note("ticket secret", secret)
	}
}

// locationWitness looks at the redirects of the provider.
type locationWitness struct {
	http.ResponseWriter
	w *witness
}

func (l *locationWitness) WriteHeader(status int) {
	if u, err := url.Parse(l.Header().Get("Location")); err == nil {
		l.w.noteQuery(u)
	}
	l.ResponseWriter.WriteHeader(status)
}

// spellings are the ways in which a secret might be written down.
func spellings(secret string) []string {
	quoted, _ := json.Marshal(secret)
	list := []string{
		secret,
		strings.Trim(string(quoted), `"`),
		url.QueryEscape(secret),
		url.PathEscape(secret),
		base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.RawURLEncoding.EncodeToString([]byte(secret)),
		hex.EncodeToString([]byte(secret)),
	}
	slices.Sort(list)
	return slices.Compact(list)
}

var tokenField = regexp.MustCompile(`name="token" value="([^"]+)"`)

// A suspect is a node that may give away a secret, with all that it answered.
type suspect struct {
	*node
	witness *witness
	sender  *sender
	browser *testenv.Browser
	pages   []*testenv.Page
}

// send sends a request to the node, and keeps what comes of it.
func (x *suspect) send(r request) *testenv.Page {
	x.t.Helper()
	r.url = x.url + r.url
	page := x.sender.mustSend(x.t, r)
	for _, line := range page.Header.Values("Set-Cookie") {
		if set, err := http.ParseSetCookie(line); err == nil {
			x.witness.noteCookies([]*http.Cookie{set})
		}
	}
	x.pages = append(x.pages, page)
	return page
}

// callback returns the way back from another sign-in, with all that the browser holds.
func (x *suspect) callback() request {
	x.t.Helper()
	u, err := url.Parse(pendingCallback(x.t, x.browser, x.url))
	if err != nil {
		x.t.Fatal(err)
	}
	x.witness.noteQuery(u)
	x.witness.noteCookies(cookiesOf(x.browser, x.url))
	return request{url: u.RequestURI(), cookie: asHeader(cookiesOf(x.browser, x.url)), header: asNavigation}
}

// A-D1, A-G12: whatever happens, no secret is in a log, a metric or an answer, at the level
// at which most is written. What is in the store says nothing without the tickets.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel() // it waits, mostly
	const password = "canary of Redis"
	port := testenv.FreePort(t)
	w := &witness{secrets: map[string]map[string]bool{}}
	c := startDevProviderBehind(t, func(p http.Handler) http.Handler {
		w.provider = p
		return w
	}, "http://"+testenv.Loopback(port))
	w.note("client secret", c.secret)
	w.note("Redis password", password)
	redis := testenv.StartRedis(t, testenv.RedisOptions{Persist: true, Password: `"` + password + `"`})
	app := testenv.Record(t, testenv.OK)
	n := startNode(t, nodeOptions{
		port:     port,
		client:   c,
		store:    redisStore(t, redis, 2*time.Second, password),
		keys:     newKeys(t),
		logLevel: "debug",
		routes: "- {path: /, upstream: " + app.URL + "}\n" +
			"- {path: /down/, upstream: http://" + testenv.Loopback(testenv.FreePort(t)) + "}\n" +
			"- {path: /admin/, upstream: " + app.URL + ", allow: {groups: [nobody]}}\n",
	})
	n.awaitSignIn()
	x := &suspect{node: n, witness: w, sender: newSender(t), browser: testenv.NewBrowser(t)}

	if page := signIn(t, x.browser, n.url+"/", "alice"); page.Status != http.StatusOK {
		t.Fatalf("sign-in: %d", page.Status)
	}
	w.noteCookies(cookiesOf(x.browser, n.url))
	ticket := ""
	again := x.callback()
	for _, line := range x.send(again).Header.Values("Set-Cookie") {
		if set, err := http.ParseSetCookie(line); err == nil && set.Name == sessionCookie {
			ticket = set.Value
		}
	}
	x.send(again)
	x.failSignIns()
	x.sendCookies(ticket)
	x.breakStore(redis, password, guest{"alice", ticket})
	content := contentOf(t, redis, password)
	places := map[string]string{}
	for key, value := range content {
		places["the store"] += key + "\n" + value + "\n"
	}
	x.signOut(guest{"alice", ticket})

	metrics, err := get(n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	n.Stop()
	// The registry and the journal are read by those who run the site; names are secrets
	// nowhere, but a record is sealed, and no key says whose it is.
	for key, value := range content {
		if strings.Contains(key, "alice") || strings.HasPrefix(key, "r:") && strings.Contains(value, "alice") {
			t.Errorf("%s says whose it is", key)
		}
	}
	places["the log"], places["the metrics"] = n.Output(), metrics
	// What an answer's cookies and its way to the provider are for.
	const fieldsOf = "the header of the answer of "
	carried := map[string]bool{
		"state": true, "nonce": true, "session cookie": true, "ticket id": true, "ticket secret": true, "other cookie": true,
	}
	for _, page := range x.pages {
		places["the answer of "+page.URL.Path] += page.Body
		places[fieldsOf+page.URL.Path] += fmt.Sprintln(page.Header)
	}

	// All of it happened, and was written down.
	for _, want := range []string{
		`"user":"alice"`, string(coatcheck.MakeRef(strings.Split(ticket, ".")[0])), `"code":"provider_failed"`, `"code":"bad_token"`,
		`"code":"provider_refused"`, `"code":"bad_callback"`, `"code":"session_unknown"`, `"code":"upstream_failed"`,
		`"code":"forbidden"`, `"code":"malformed_request"`, `"msg":"signed out"`, "WRONGPASS",
	} {
		if !strings.Contains(places["the log"], want) {
			t.Errorf("the log has no %s", want)
		}
	}
	for _, kind := range []string{
		"code", "state", "nonce", "verifier", "client secret", "access_token", "refresh_token", "id_token", "id_token signature",
		"session cookie", "ticket id", "ticket secret", "other cookie", "sign-out token", "Redis password",
	} {
		if len(w.secrets[kind]) == 0 {
			t.Errorf("no %s was seen", kind)
		}
	}
	for kind, secrets := range w.secrets {
		t.Logf("%d × %s", len(secrets), kind)
		for secret := range secrets {
			for _, spelling := range spellings(secret) {
				for place, text := range places {
					if kind == "ticket id" && place == "the store" {
						continue // is the record's key
					}
					if carried[kind] && strings.HasPrefix(place, fieldsOf) {
						continue
					}
					if at := strings.Index(text, spelling); at >= 0 {
						t.Errorf("%s has the %s %q: …%q…", place, kind, spelling, text[max(0, at-200):min(len(text), at+len(spelling)+50)])
					}
				}
			}
		}
	}
	t.Logf("not found in %d bytes of log, %d of metrics, %d of the store and %d answers",
		len(places["the log"]), len(metrics), len(places["the store"]), len(x.pages))
}

// contentOf returns all keys and what they hold.
func contentOf(t *testing.T, r *testenv.Redis, password string) map[string]string {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{r.Addr()}, Password: password, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	keys, err := client.Do(t.Context(), client.B().Keys().Pattern("*").Build()).AsStrSlice()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, "r:{"+sessionCookie+"-") }) {
		t.Errorf("no session is in the store: %q", keys)
	}
	content := map[string]string{}
	for _, key := range keys {
		kind, err := client.Do(t.Context(), client.B().Type().Key(key).Build()).ToString()
		if err != nil {
			t.Fatal(err)
		}
		read, ok := map[string]rueidis.Completed{
			"string": client.B().Get().Key(key).Build(),
			"hash":   client.B().Hgetall().Key(key).Build(),
			"set":    client.B().Smembers().Key(key).Build(),
			"zset":   client.B().Zrange().Key(key).Min("0").Max("-1").Withscores().Build(),
			"stream": client.B().Xrange().Key(key).Start("-").End("+").Build(),
		}[kind]
		if !ok {
			t.Fatalf("%s is a %s", key, kind)
		}
		answer := client.Do(t.Context(), read)
		value, err := answer.ToAny()
		if err != nil {
			t.Fatalf("%s, a %s: %v", key, kind, err)
		}
		content[key] = fmt.Sprint(value)
	}
	return content
}

// failSignIns has sign-ins fail in every way, at the token endpoint and before.
func (x *suspect) failSignIns() {
	for _, spoil := range []func(map[string]any) (int, string){
		func(tokens map[string]any) (int, string) { return http.StatusInternalServerError, encode(tokens) },
		func(tokens map[string]any) (int, string) { return http.StatusOK, "<p>" + encode(tokens) },
		func(tokens map[string]any) (int, string) {
			tokens["token_type"] = "mac"
			return http.StatusOK, encode(tokens)
		},
		func(tokens map[string]any) (int, string) {
			idToken := tokens["id_token"].(string)
			tokens["id_token"] = idToken[:len(idToken)-8] + "AAAAAAAA"
			x.witness.noteTokens(tokens)
			return http.StatusOK, encode(tokens)
		},
		func(tokens map[string]any) (int, string) {
			tokens["id_token"] = tokens["access_token"]
			return http.StatusOK, encode(tokens)
		},
		func(map[string]any) (int, string) { return http.StatusBadRequest, `{"error":"invalid_grant"}` },
	} {
		x.witness.spoilNext(spoil)
		x.send(x.callback())
	}

	r := x.callback()
	foreign := r
	foreign.cookie = ""
	x.send(foreign)
	good := r.url
	for _, wrong := range []string{
		strings.Replace(good, "iss=", "iss=x", 1), good + "&code=another", good + "%zz",
		strings.Replace(good, "code=", "error=access_denied&was=", 1),
	} {
		r.url = wrong
		x.send(r)
	}
}

// sendCookies sends a ticket as it is, and broken, doubled and in the wrong places.
func (x *suspect) sendCookies(ticket string) {
	cookie := sessionCookie + "=" + ticket
	for _, cookies := range []string{
		cookie, cookie[:len(cookie)-1] + "!", cookie + "x", cookie + "; " + sessionCookie + "=" + ticket[:len(ticket)-4] + "AAAA",
		"=" + ticket + ";;" + ticket, sessionCookie + "-0=" + ticket, sessionCookie + "-x=" + ticket,
	} {
		for _, path := range []string{"/", "/down/", "/admin/", "/oauth2/userinfo", "/oauth2/auth", "/oauth2/sign_in", "/oauth2/nothing", "/%2e%2e/"} {
			x.send(request{url: path, cookie: cookies, header: asNavigation})
			x.send(request{url: path, cookie: cookies, header: asScript})
		}
	}
	x.send(request{url: "/?access_token=" + ticket, cookie: cookie, header: []string{"Authorization", "Bearer " + ticket}})
	for _, broken := range []string{"no colon", "X: \x00"} { // net/http refuses these
		testenv.Send(x.t, x.addr, "GET / HTTP/1.1\r\nHost: "+x.addr+"\r\nCookie: "+cookie+"\r\n"+broken+"\r\nConnection: close\r\n\r\n")
	}
}

// breakStore has Redis refuse the password, hang, and be gone.
func (x *suspect) breakStore(redis *testenv.Redis, password string, g guest) {
	use := func() { x.send(request{url: "/", cookie: g.asCookie(), header: asNavigation}) }
	tellRedis(x.t, redis, `AUTH "`+password+`"`, "CONFIG SET requirepass another", "CLIENT KILL TYPE normal")
	use()
	x.send(x.callback())
	tellRedis(x.t, redis, "AUTH another", `CONFIG SET requirepass "`+password+`"`, "CLIENT KILL TYPE normal")
	redis.Pause()
	use()
	redis.Resume()
	redis.Kill()
	use()
	redis.Restart()
	awaitReady(x.t, x.sender, x.node, true)
}

// signOut goes past the confirm page, once with a token that does not fit.
func (x *suspect) signOut(g guest) {
	x.t.Helper()
	form := append(slices.Clone(asNavigation), "Content-Type", "application/x-www-form-urlencoded")
	// confirm returns the token of the confirm page, and forgets the page: it is the one
	// place for its token.
	confirm := func(r request) string {
		page := x.send(r)
		x.pages = x.pages[:len(x.pages)-1]
		token := tokenField.FindStringSubmatch(page.Body)
		if token == nil {
			x.t.Fatalf("no confirm page but %d: %s", page.Status, page.Body)
		}
		x.witness.note("sign-out token", token[1])
		return token[1]
	}
	token := confirm(request{url: "/oauth2/sign_out?rd=/bye", cookie: g.asCookie(), header: asNavigation})
	confirm(request{method: http.MethodPost, url: "/oauth2/sign_out", cookie: g.asCookie(), body: "token=" + token + "x&rd=/bye", header: form})
	page := x.send(request{method: http.MethodPost, url: "/oauth2/sign_out", cookie: g.asCookie(), body: "token=" + token + "&rd=/bye", header: form})
	location, err := url.Parse(page.Header.Get("Location"))
	if err != nil || !location.Query().Has("state") {
		x.t.Fatalf("the sign-out leads to %q", page.Header.Get("Location"))
	}
	x.witness.noteQuery(location)
	x.send(request{url: "/oauth2/sign_out/done?state=" + url.QueryEscape(location.Query().Get("state")), header: asNavigation})
	x.send(request{url: "/", cookie: g.asCookie(), header: asNavigation})
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
