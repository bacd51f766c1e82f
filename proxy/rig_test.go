package proxy

import (
	"bytes"
	"context"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/metrics"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/policy"
	"github.com/coatcheck/coatcheck/route"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
	"github.com/coatcheck/coatcheck/upstream"
)

// A rig is a Proxy of real parts in front of one app, at https://app.example.com.
type rig struct {
	*Proxy
	issuer string
	store  *faultyStore
	app    *faultyApp
	log    *bytes.Buffer // filled by ServeHTTP alone
}

// newRig returns a proxy that knows its provider.
func newRig(t testing.TB) *rig {
	t.Helper()
	public := &url.URL{Scheme: "https", Host: "app.example.com"}
	jar := cookie.New("coatcheck", "", false)
	ring := seal.NewRing()
	r := &rig{store: &faultyStore{Store: memory.New()}, app: new(faultyApp), log: new(bytes.Buffer)}
	t.Cleanup(func() { _ = r.store.Close() })

	l, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.issuer = "http://" + l.Addr().String()
	provider, err := devprovider.New(devprovider.Options{
		Issuer: r.issuer,
		Clients: []devprovider.Client{{
			ID: "test", Secret: "a secret of the tests",
			RedirectURIs:           []string{public.String() + "/oauth2/callback"},
			PostLogoutRedirectURIs: []string{public.String() + "/oauth2/sign_out/done"},
		}},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: provider, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })

	app := upstream.New(upstream.Options{
		URL: &url.URL{Scheme: "http", Host: "app.internal"}, Jar: jar, Headers: upstream.DefaultIdentityHeaders,
		Transport: r.app, Streams: new(upstream.Streams),
	})
	everybody := policy.NewRule("allow", nil, nil, nil)
	routes, err := route.NewTable([]route.Entry[Route]{
		{Pattern: route.Pattern{Host: public.Host, Path: "/"}, Value: Route{
			Name: "/", Require: coatcheck.Authenticated, Allow: everybody, Upstream: app,
		}},
		{Pattern: route.Pattern{Host: public.Host, Path: "/public"}, Value: Route{
			Name: "/public", Require: coatcheck.Anonymous, Allow: everybody, Upstream: app,
		}},
		{Pattern: route.Pattern{Host: public.Host, Path: "/elsewhere"}, Value: Route{
			Name: "/elsewhere", Require: coatcheck.Anonymous, Allow: everybody,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	returns := oidc.NewReturns(public)
	signIn := oidc.New(oidc.Config{
		Tenant: "default", Name: "test", Issuer: r.issuer, ClientID: "test", ClientSecret: "a secret of the tests",
		Scopes: []string{"openid", "email"}, RedirectURL: public.String() + "/oauth2/callback",
		PostLogoutURL: public.String() + "/oauth2/sign_out/done", Returns: returns, Ring: ring, Jar: jar,
		Once: r.store, Logger: slog.New(slog.DiscardHandler),
	})
	discoverProvider(t, signIn)

	r.Proxy = New(Options{
		PublicURL: public, Prefix: "/oauth2", Limits: route.DefaultLimits, Routes: routes, Allow: everybody, Tenant: "default",
		Sessions: session.New(session.Options{
			Store: r.store, Registry: r.store, Ring: ring, Jar: jar, Tenant: "default", Idle: time.Hour, Absolute: 12 * time.Hour,
			Tombstones: time.Hour, CacheSize: 1 << 20,
		}),
		SignIn: signIn, Returns: returns, Ring: ring, Readiness: NewReadiness(r.store),
		Metrics: metrics.New("test", func() int { return 0 }), Logger: logger, AccessLog: r.log,
	})
	return r
}

// discoverProvider runs a relying party until the test ends, and waits until it is ready.
func discoverProvider(t testing.TB, p *oidc.RelyingParty) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	for deadline := time.Now().Add(2 * time.Minute); p.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(p.Ready())
		}
	}
}

// authorize signs a person in at the provider and returns the target that the browser
// comes back to.
func (r *rig) authorize(t *testing.T, location, user string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	form := strings.NewReader(url.Values{"username": {user}, "password": {user}}.Encode())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.issuer+"/connect/sign_in?"+u.RawQuery, form)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultTransport.RoundTrip(req) // which follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	return back.RequestURI()
}

// signedIn keeps a new session for a person and returns it with its Cookie header.
func (r *rig) signedIn(t *testing.T, user string) (*session.Live, http.Header) {
	t.Helper()
	h := http.Header{}
	live, err := r.Sessions.Begin(t.Context(), h, http.Header{}, &coatcheck.Session{
		Provider: "test", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{Issuer: r.issuer, Subject: user, Email: user + "@example.com", EmailVerified: true},
		Tokens:   coatcheck.Tokens{ID: "canary-id-token", Access: "canary-access-token", Refresh: "canary-refresh-token"},
	}, r.Sessions.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
	return live, http.Header{"Cookie": {pair}}
}

// alive tells whether the session of a Cookie header can be used.
func (r *rig) alive(t *testing.T, header http.Header) bool {
	t.Helper()
	live, err := r.Sessions.Load(t.Context(), header)
	return err == nil && live != nil
}

// serveHTTP answers one request with the merged headers.
func (r *rig) serveHTTP(method, target, body string, headers ...http.Header) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Host = r.PublicURL.Host
	for _, h := range headers {
		for name, values := range h {
			req.Header[name] = append(req.Header[name], values...)
		}
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w
}

// A faultyStore is a store whose next calls can be made to fail.
type faultyStore struct {
	*memory.Store
	fault func() // called before each call; it may panic
	err   error  // returned by each call
	// listed, unless nil, is what Find has of each entry's data instead.
	listed func(e store.Entry) []byte
	pings  int
	gets   atomic.Int32
}

func (s *faultyStore) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e, err := range s.Store.Find(ctx, q) {
			if s.listed != nil {
				e.Data = s.listed(e)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (s *faultyStore) failure() error {
	if s.fault != nil {
		s.fault()
	}
	return s.err
}

func (s *faultyStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *faultyStore) Get(ctx context.Context, key string) (store.Record, error) {
	s.gets.Add(1)
	if err := s.failure(); err != nil {
		return store.Record{}, err
	}
	return s.Store.Get(ctx, key)
}

func (s *faultyStore) Delete(ctx context.Context, key string) error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.Store.Delete(ctx, key)
}

func (s *faultyStore) Ping(ctx context.Context) error {
	s.pings++
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.failure()
}

// A faultyApp is an app's end of the transport. It answers 200 unless it is made to do
// otherwise.
type faultyApp struct {
	answer func(*http.Request) (*http.Response, error)
}

func (a *faultyApp) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.answer != nil {
		return a.answer(r)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"text/plain"}}, Body: http.NoBody, Request: r,
	}, nil
}
