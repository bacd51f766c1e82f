package cookie_test

import (
	"context"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// A-C17: a deletion leaves the jar of a real client empty, in every mode.
func TestExpireEmptiesAJar(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			names := []string{mode.jar.Session(), mode.jar.Name("login-1")}
			handler := http.NewServeMux()
			handler.HandleFunc("/deep/down/sign_in", func(w http.ResponseWriter, _ *http.Request) {
				for _, name := range names {
					mode.jar.Set(w.Header(), name, "x", time.Hour)
				}
			})
			handler.HandleFunc("/other/sign_out", func(w http.ResponseWriter, _ *http.Request) {
				for _, name := range names {
					mode.jar.Expire(w.Header(), name)
				}
			})
			server := httptest.NewUnstartedServer(handler)
			scheme := "http"
			if mode.secure {
				scheme = "https"
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()

			// The client asks for a host below the cookie's domain and is led to the
			// server, whatever the name.
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			client := server.Client()
			client.Jar = jar
			transport := client.Transport.(*http.Transport)
			transport.DialContext = dialTo(server.Listener.Addr().String())
			if transport.TLSClientConfig != nil {
				transport.TLSClientConfig.ServerName = "example.com" // of the test certificate
			}
			site := &url.URL{Scheme: scheme, Host: "app.sso.test", Path: "/"}
			get := func(path string) {
				t.Helper()
				resp, err := client.Get(site.JoinPath(path).String())
				if err != nil {
					t.Fatal(err)
				}
				if err := resp.Body.Close(); err != nil {
					t.Fatal(err)
				}
			}

			get("/deep/down/sign_in")
			if got := len(jar.Cookies(site)); got != len(names) {
				t.Fatalf("after the sign-in the jar has %d cookies, want %d", got, len(names))
			}
			get("/other/sign_out")
			if got := jar.Cookies(site); len(got) != 0 {
				t.Errorf("after the sign-out the jar still has %v", got)
			}
		})
	}
}

// dialTo returns a dial function that leads every name to one address.
func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}
