package upstream_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/upstream"
)

type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte  { return *p.Pool.Get().(*[]byte) }
func (p *bufferPool) Put(b []byte) { p.Pool.Put(&b) }

// BenchmarkForward compares Forward with a bare reverse proxy on the same transport;
// both without the cost of a network.
func BenchmarkForward(b *testing.B) {
	app, _ := url.Parse("http://app.test")
	transport := roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: 200, ContentLength: 0, Body: http.NoBody,
			Header: http.Header{"Content-Type": {"text/html"}, "Date": {"today"}, "Cache-Control": {"private"}},
		}, nil
	})
	benchmark(b, app, transport)
}

// BenchmarkForwardWire does the same with a real app behind.
func BenchmarkForwardWire(b *testing.B) {
	page := make([]byte, 4<<10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) }))
	defer server.Close()
	app, _ := url.Parse(server.URL)
	transport := upstream.NewTransport(time.Minute)
	defer transport.CloseIdleConnections()
	benchmark(b, app, transport)
}

func benchmark(b *testing.B, app *url.URL, transport http.RoundTripper) {
	r := httptest.NewRequest("GET", "/shop/cart?page=2", nil)
	r.Header = http.Header{
		"Accept": {"text/html"}, "Accept-Language": {"de"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"Mozilla/5.0"}, "Cookie": {"theme=dark; __Host-coatcheck=x"},
		"Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Dest": {"document"}, "Referer": {"https://app.example.com/"},
	}
	bare := &httputil.ReverseProxy{
		Rewrite:    func(pr *httputil.ProxyRequest) { pr.SetURL(app); pr.SetXForwarded() },
		Transport:  transport,
		BufferPool: &bufferPool{sync.Pool{New: func() any { s := make([]byte, 32<<10); return &s }}},
	}
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			bare.ServeHTTP(newSink(), r)
		}
	})
	u := upstream.New(upstream.Options{
		URL: app, Headers: upstream.DefaultIdentityHeaders, Jar: cookie.New("coatcheck", "", false), Transport: transport, Streams: new(upstream.Streams),
	})
	b.Run("forward", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c := upstream.Call{
				RawPath: "/shop/cart", RawQuery: "page=2", Identity: &alice, State: coatcheck.Authenticated,
				ClientIP: "192.0.2.7", Scheme: "https", Host: "app.example.com", RequestID: "r-1",
			}
			if err := u.Forward(newSink(), r, &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A sink is a ResponseWriter that keeps nothing.
type sink struct {
	io.Writer
	header http.Header
}

func newSink() sink { return sink{io.Discard, make(http.Header)} }

func (s sink) Header() http.Header { return s.header }
func (sink) WriteHeader(int)       {}
