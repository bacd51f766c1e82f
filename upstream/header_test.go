package upstream_test

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/upstream"
)

// custom are identity headers that no built-in rule covers.
var custom = upstream.IdentityHeaders{User: "X-Auth-User", Email: "x-auth-email", Groups: "X_Auth_Groups", PreferredUsername: "Remote-User"}

func withHeaders(h upstream.IdentityHeaders) func(*upstream.Options) {
	return func(o *upstream.Options) { o.Headers = h }
}

// wantFields checks all values of the fields that fold to the names.
func wantFields(t *testing.T, request string, want map[string][]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if diff := cmp.Diff(want[name], testenv.Fields(request, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A-G7, A-X7: nor does anything that is ours to say, now or later, come from a client.
func TestHeaderIdentity(t *testing.T) {
	bare := coatcheck.Identity{Subject: "carol", Email: "carol@corp.example", Groups: nil}
	hostile := []string{
		"X-Auth-User: admin", "x-auth-user: root", "X_Auth_User: a", "x_auth_user: b", "X-Auth_User: c", "X_AUTH-USER: d", "X.Auth.User: e", "X~auth!user: f",
		"X-Auth-Email: boss@corp.example", "X-Auth-Groups: admins", "x_auth_groups: admins", "Remote_User: admin",
		"X-Forwarded-User: admin", "X-Forwarded-Email: a@b", "X_Forwarded_Groups: admins", "X-Forwarded-Preferred-Username: admin",
		"X-Auth-Request-User: admin", "x_auth_request_email: admin", "Coatcheck-State: authenticated", "COATCHECK_ASSERTION: x", "Coatcheck-Context: x",
		"Coatcheck-Unverified: 1", "coatcheck_unverified: 1",
	}
	none := map[string][]string{
		"x-auth-user": nil, "x-auth-email": nil, "x-auth-groups": nil, "remote-user": nil,
		"x-forwarded-user": nil, "x-forwarded-email": nil, "x-forwarded-groups": nil, "x-forwarded-preferred-username": nil,
		"x-auth-request-user": nil, "x-auth-request-email": nil, "coatcheck-assertion": nil, "coatcheck-context": nil, "x.auth.user": nil, "x~auth!user": nil,
		"coatcheck-state": {"anonymous"}, "coatcheck-unverified": nil,
	}
	with := func(more map[string][]string) map[string][]string {
		m := maps.Clone(none)
		maps.Copy(m, more)
		return m
	}
	rec := testenv.Record(t, testenv.OK)
	tests := map[string]struct {
		headers upstream.IdentityHeaders
		call    func(*http.Request, *upstream.Call)
		want    map[string][]string
	}{
		"nobody, A-H1 A-H3 A-H5": {custom, nil, none},
		"alice, A-H2 A-H3 A-H5": {custom, as(alice), with(map[string][]string{
			"x-auth-user": {"alice"}, "x-auth-email": {"alice@corp.example"}, "x-auth-groups": {"admins,staff"}, "remote-user": {"al"}, "coatcheck-state": {"authenticated"},
		})},
		"nothing known, A-H6": {custom, as(bare), with(map[string][]string{"x-auth-user": {"carol"}, "coatcheck-state": {"authenticated"}})},
		"unverified": {custom, func(r *http.Request, c *upstream.Call) {
			as(alice)(r, c)
			c.Unverified = 7
		}, with(map[string][]string{
			"x-auth-user": {"alice"}, "x-auth-email": {"alice@corp.example"}, "x-auth-groups": {"admins,staff"}, "remote-user": {"al"}, "coatcheck-state": {"authenticated"},
			"coatcheck-unverified": {"7"},
		})},
		"the default names": {upstream.DefaultIdentityHeaders, as(alice), map[string][]string{
			"x-forwarded-user": {"alice"}, "x-forwarded-email": {"alice@corp.example"}, "x-forwarded-groups": {"admins,staff"}, "x-forwarded-preferred-username": {"al"},
		}},
		"no names": {upstream.IdentityHeaders{}, as(alice), map[string][]string{
			"x-forwarded-user": nil, "x-forwarded-email": nil, "coatcheck-state": {"authenticated"},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rec.URL, withHeaders(tt.headers), tt.call)
			got, _ := exchange(t, r, rec, get("/public/x", hostile...))
			wantFields(t, got, tt.want)
		})
	}
}

// A-H4: Connection can't take away what we send or what matters end to end.
func TestHeaderConnection(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, func(o *upstream.Options) {
		o.Headers = custom
		o.ForwardAuthorization = true
	}, as(alice))
	for _, connection := range []string{
		"close, X-Auth-User, x-auth-groups, Cookie, Authorization, X-Forwarded-For, Coatcheck-State, Content-Type, X-Hop",
		"close,x-auth-user,x_auth_user,cookie,authorization,x-forwarded-for,coatcheck-state,content-type,x-hop",
	} {
		got, _ := exchange(t, r, rec, "GET / HTTP/1.1\r\nHost: a\r\nConnection: "+connection+"\r\n"+
			"X-Auth-User: admin\r\nCookie: theme=dark\r\nAuthorization: Basic eA==\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Type: text/plain\r\nX-Hop: 1\r\nX-End: 1\r\n\r\n")
		wantFields(t, got, map[string][]string{
			"x-auth-user": {"alice"}, "x-auth-groups": {"admins,staff"}, "cookie": {"theme=dark"}, "authorization": {"Basic eA=="},
			"x-forwarded-for": {"192.0.2.7"}, "coatcheck-state": {"authenticated"}, "content-type": {"text/plain"}, "x-hop": nil, "x-end": {"1"},
		})
	}
}

// A-H7, A-P9, A-P10
func TestHeaderForwarding(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	got, _ := exchange(t, r, rec, get("/admin",
		"X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: gopher", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /x", "X_Forwarded_For: 6.6.6.6",
		"X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6", "X-Request-ID: forged",
		"X-Original-URL: /public/x", "X-Original-Uri: /public/x", "X-Original-Method: GET", "X_Original_URL: /public", "X-Rewrite-Url: /public/x",
		"X-Envoy-Original-Path: /public/x", "Proxy: http://evil.example", "Accept-Language: de", "X-Custom: kept", "X_Custom: kept too"))
	wantFields(t, got, map[string][]string{
		"x-forwarded-for": {"192.0.2.7"}, "x-forwarded-host": {"app.example.com"}, "x-forwarded-proto": {"https"}, "x-real-ip": {"192.0.2.7"}, "x-request-id": {"r-1"},
		"x-forwarded-port": nil, "x-forwarded-prefix": nil, "x-forwarded-uri": nil, "x-forwarded-method": nil, "forwarded": nil,
		"x-original-url": nil, "x-original-uri": nil, "x-original-method": nil, "x-rewrite-url": nil, "x-envoy-original-path": nil, "proxy": nil,
		"accept-language": {"de"}, "user-agent": nil, "accept-encoding": nil,
	})
	if n := len(testenv.Fields(got, "x-custom")); n != 2 {
		t.Errorf("%d of 2 fields of no concern to us passed", n)
	}
}

// A-P11
func TestHeaderMethodOverride(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	for _, guarded := range []bool{false, true} {
		r := newRig(t, rec.URL, nil, func(_ *http.Request, c *upstream.Call) { c.MethodGuarded = guarded })
		got, _ := exchange(t, r, rec, get("/health", "X-HTTP-Method-Override: DELETE", "X_Http_Method: DELETE", "x-method-override: DELETE"))
		for _, name := range []string{"x-http-method-override", "x-http-method", "x-method-override"} {
			if n := len(testenv.Fields(got, name)); (n == 0) != guarded {
				t.Errorf("guarded %v: %d × %s", guarded, n, name)
			}
		}
	}
}

// A-H9: net/http refuses it; the test is here to notice if that changes.
func TestHeaderSpaceBeforeColon(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, withHeaders(custom), nil)
	if answer := testenv.Send(t, r.addr, get("/", "X-Auth-User : admin")); !strings.HasPrefix(answer, "HTTP/1.1 400 ") || rec.Opened() != 0 {
		t.Errorf("answer = %q, %d connections", answer, rec.Opened())
	}
}

// A-H10
func TestHeaderAuthorization(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	got, _ := exchange(t, r, rec, get("/", "Authorization: Bearer junk", "Proxy-Authorization: Basic x"))
	wantFields(t, got, map[string][]string{"authorization": nil, "proxy-authorization": nil})
}

// A-H11
func TestHeaderTrailers(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, withHeaders(custom), as(alice))
	got, _ := exchange(t, r, rec, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\nTrailer: X-Auth-User, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"5\r\nhello\r\n0\r\nX-Auth-User: admin\r\nX-Sum: 1\r\n\r\n")
	if strings.Contains(got, "admin\r\n") || strings.Contains(got, "X-Sum") || !strings.HasSuffix(got, "5\r\nhello\r\n0\r\n\r\n") {
		t.Errorf("the app got %q", got)
	}
	wantFields(t, got, map[string][]string{"x-auth-user": {"alice"}, "trailer": nil})
}

// A-H12
func TestHeaderCookies(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	got, _ := exchange(t, r, rec, get("/", `Cookie: a="x y"; __Host-coatcheck=T; b==;  c; __Host-coatcheck-login-1=P; __host-COATCHECK.0=C; d=%zz`, "Cookie: coatcheck=T", "Cookie: e=1"))
	if diff := cmp.Diff([]string{`a="x y"; b==;  c; d=%zz`, "e=1"}, testenv.Fields(got, "cookie")); diff != "" {
		t.Errorf("Cookie (-want +got):\n%s", diff)
	}
}

// A-X2, A-X6, and what else an app may not say in our name.
func TestHeaderOfAnswer(t *testing.T) {
	rec := testenv.Record(t, testenv.Answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie, X-Sum\r\n"+
		"Set-Cookie: theme=dark; Path=/\r\nSet-Cookie: __Host-coatcheck=evil; Path=/; Secure\r\nset-cookie: coatcheck=evil; Domain=example.com\r\nSet-Cookie: b=2\r\n"+
		"Coatcheck-Session: logout\r\ncoatcheck_context: x\r\nX-Request-Id: theirs\r\nVary: Accept\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-App: 1\r\n\r\n"+
		"2\r\nok\r\n0\r\nSet-Cookie: __Host-coatcheck=evil\r\nCoatcheck-Session: logout\r\nX-Sum: 7\r\n\r\n"))
	r := newRig(t, rec.URL, nil, nil)
	next := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Request-Id", "ours")
		w.Header().Set("Vary", "Cookie")
		w.Header().Set("Set-Cookie", "__Host-coatcheck=ours")
		next.ServeHTTP(w, req)
	})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", r.URL, nil)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "ok" {
		t.Errorf("body = %q, %v", body, err)
	}
	for _, name := range []string{"Date", "Content-Type"} { // net/http's own
		res.Header.Del(name)
	}
	want := http.Header{
		"Set-Cookie":   {"__Host-coatcheck=ours", "theme=dark; Path=/", "b=2"},
		"X-Request-Id": {"ours"},
		"Vary":         {"Cookie", "Accept"},
		"X-App":        {"1"},
	}
	if diff := cmp.Diff(want, res.Header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(http.Header{"X-Sum": {"7"}}, res.Trailer); diff != "" {
		t.Errorf("trailer (-want +got):\n%s", diff)
	}
}

// A-W8, and other protocols to switch to.
func TestHeaderUpgrade(t *testing.T) {
	rec := testenv.Record(t, testenv.OK)
	r := newRig(t, rec.URL, nil, nil)
	for _, lines := range [][]string{
		{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		{"Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		{"Connection: Upgrade", "Upgrade: TLS/1.0, HTTP/1.1"},
		{"Connection: Upgrade", "Upgrade: websocket, h2c"},
		{"Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"},
		{"Upgrade: websocket"}, // Connection does not say so
	} {
		got, _ := exchange(t, r, rec, get("/", lines...))
		wantFields(t, got, map[string][]string{"upgrade": nil, "http2-settings": nil, "connection": nil})
	}
	refusedBefore := len(rec.Requests())
	answer := testenv.Send(t, r.addr, get("/", "Connection: Upgrade", "Upgrade: w\xe9bsocket"))
	if !strings.HasSuffix(answer, string(coatcheck.CodeMalformed)) || len(rec.Requests()) != refusedBefore {
		t.Errorf("answer = %q, want %s", answer, coatcheck.CodeMalformed)
	}
}

func TestIdentityHeadersFields(t *testing.T) {
	tests := map[string]struct {
		id   coatcheck.Identity
		want [4]string // user, e-mail, groups, preferred user name
	}{
		"all":                {alice, [4]string{"alice", "alice@corp.example", "admins,staff", "al"}},
		"nothing":            {coatcheck.Identity{}, [4]string{}},
		"unverified e-mail":  {coatcheck.Identity{Email: "boss@corp.example"}, [4]string{}},
		"two addresses":      {coatcheck.Identity{Email: "a@evil.example@corp.example", EmailVerified: true}, [4]string{}},
		"control characters": {coatcheck.Identity{Subject: "a\r\nX-Admin: 1", PreferredUsername: "a\x00", Groups: []string{"a\nb", "c\u0085"}}, [4]string{"", "", "a%0Ab,c%C2%85", ""}},
		"white space":        {coatcheck.Identity{Subject: " alice", PreferredUsername: "al\u00a0", Groups: []string{" admins", "x y", "staff\u3000"}}, [4]string{"", "", "%20admins,x y,staff%E3%80%80", ""}},
		"invalid UTF-8":      {coatcheck.Identity{Subject: "\xff", Groups: []string{"a\xffb", "\ufffd"}}, [4]string{"", "", "a%FFb,\ufffd", ""}},
		"forged groups":      {coatcheck.Identity{Groups: []string{"a,admins", "100%", "%2C"}}, [4]string{"", "", "a%2Cadmins,100%25,%252C", ""}},
		"one forged group":   {coatcheck.Identity{Groups: []string{"a,admins"}}, [4]string{"", "", "a%2Cadmins", ""}},
		"empty groups":       {coatcheck.Identity{Groups: []string{"", "a", "", "b", ""}}, [4]string{"", "", "a,b", ""}},
		"only space":         {coatcheck.Identity{Groups: []string{"  "}}, [4]string{"", "", "%20%20", ""}},
		"not ASCII":          {coatcheck.Identity{Subject: "jürgen", Groups: []string{"größe"}}, [4]string{"jürgen", "", "größe", ""}},
	}
	h := upstream.IdentityHeaders{User: "U", Email: "E", Groups: "G", PreferredUsername: "P"}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got [4]string
			for k, v := range h.Fields(&tt.id) {
				got[strings.Index("UEGP", k)] = v
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Fields (-want +got):\n%s", diff)
			}
		})
	}
	for k, v := range h.Fields(nil) {
		if v != "" {
			t.Errorf("nobody's %s is %q", k, v)
		}
		break
	}
}

// Different lists of groups never look the same.
func TestGroupsAreUnambiguous(t *testing.T) {
	h := upstream.IdentityHeaders{Groups: "G"}
	rapid.Check(t, func(t *rapid.T) {
		groups := rapid.SliceOf(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", ",", "%", "2C", " ", "\n", "\xff", "é", "\u3000", "\ufffd"}), 1, 5).Draw(t, "pieces"), "")
		})).Draw(t, "groups")
		for _, value := range h.Fields(&coatcheck.Identity{Groups: groups}) {
			var got []string
			for g := range strings.SplitSeq(value, ",") {
				if strings.TrimSpace(g) != g {
					t.Fatalf("%q has white space to trim", value)
				}
				if g, err := url.PathUnescape(g); err != nil {
					t.Fatal(err)
				} else if g != "" {
					got = append(got, g)
				}
			}
			if !slices.Equal(got, groups) {
				t.Fatalf("%q reads as %q, want %q", value, got, groups)
			}
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Fields for the hop to us end here, also those that net/http's server keeps to itself.
func TestHeaderHopByHop(t *testing.T) {
	app, _ := url.Parse("http://app.test")
	var sent http.Header
	u := upstream.New(upstream.Options{
		URL: app, Jar: cookie.New("coatcheck", "", false), Streams: new(upstream.Streams),
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent = r.Header
			return &http.Response{StatusCode: 204, Header: http.Header{}, Body: http.NoBody}, nil
		}),
	})
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = http.Header{"X-End": {"1"}, "User-Agent": {"x"}, "Te": {"trailers, gzip"}}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
	} {
		r.Header.Set(name, "x")
	}
	if err := u.Forward(httptest.NewRecorder(), r, &upstream.Call{RawPath: "/"}); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"X-End": {"1"}, "User-Agent": {"x"}, "Te": {"trailers"}, "Coatcheck-State": {"anonymous"}}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

// Whatever folds to a field of ours reaches the app once, from us, or not at all.
func FuzzFold(f *testing.F) {
	for _, name := range []string{
		"X-Auth-User", "x_auth_user", "X.AUTH-user", "Remote_User", "COATCHECK_state", "Coatcheck-", "X-Forwarded-Anything", "x_forwarded_for", "Forwarded",
		"X-Real_IP", "X-Request-ID", "X_Original_Url", "X-Rewrite-URL", "Proxy", "X-Auth-Request-User", "Accept", "X-Auth-Users", "X-Auth-Use", "X\u4329Real IP",
	} {
		f.Add(name, "evil")
	}
	var sent http.Header
	app, _ := url.Parse("http://app.test")
	u := upstream.New(upstream.Options{
		URL: app, Headers: custom, Jar: cookie.New("coatcheck", "", false), Streams: new(upstream.Streams),
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent = r.Header
			return &http.Response{StatusCode: 204, Header: http.Header{}, Body: http.NoBody}, nil
		}),
	})
	// Written apart from the code under test: what CGI makes of a name, byte by byte.
	variable := func(name string) string {
		b := []byte(name)
		for i, c := range b {
			switch {
			case 'a' <= c && c <= 'z':
				b[i] = c - 'a' + 'A'
			case 'A' <= c && c <= 'Z' || '0' <= c && c <= '9':
			default:
				b[i] = '_'
			}
		}
		return string(b)
	}
	ours := map[string]string{
		"X_AUTH_USER": "alice", "X_AUTH_EMAIL": "alice@corp.example", "X_AUTH_GROUPS": "admins,staff", "REMOTE_USER": "al",
		"X_FORWARDED_FOR": "192.0.2.7", "X_FORWARDED_HOST": "app.example.com", "X_FORWARDED_PROTO": "https", "X_REAL_IP": "192.0.2.7",
		"X_REQUEST_ID": "r-1", "COATCHECK_STATE": "authenticated", "FORWARDED": "", "PROXY": "", "X_REWRITE_URL": "", "X_ENVOY_ORIGINAL_PATH": "",
	}
	f.Fuzz(func(t *testing.T, name, connection string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = http.Header{name: {"evil"}, "Connection": {connection}, http.CanonicalHeaderKey(name): {"evil"}}
		c := &upstream.Call{
			RawPath: "/", Identity: &alice, State: coatcheck.Authenticated,
			ClientIP: "192.0.2.7", Scheme: "https", Host: "app.example.com", RequestID: "r-1",
		}
		sent = nil
		if err := u.Forward(httptest.NewRecorder(), r, c); err != nil {
			if coatcheck.CodeOf(err) != coatcheck.CodeMalformed {
				t.Fatal(err)
			}
			return
		}
		seen := map[string]bool{}
		for k, values := range sent {
			v := variable(k)
			want, isOurs := ours[v]
			for _, p := range []string{"COATCHECK_", "X_FORWARDED_", "X_AUTH_REQUEST_", "X_ORIGINAL_"} {
				isOurs = isOurs || strings.HasPrefix(v, p)
			}
			if !isOurs {
				continue
			}
			if seen[v] || want == "" || len(values) != 1 || values[0] != want {
				t.Fatalf("the app gets %q: %q, want one %q", k, values, want)
			}
			seen[v] = true
		}
		for v, want := range ours {
			if want != "" && !seen[v] {
				t.Fatalf("the app does not get %s", v)
			}
		}
	})
}
