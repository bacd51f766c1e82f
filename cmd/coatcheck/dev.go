package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/internal/devprovider"
	"github.com/coatcheck/coatcheck/internal/sampleapp"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/sqlite"
)

type devCmd struct {
	Listen string `default:"127.0.0.1:4180" placeholder:"ADDR" help:"Where the proxy listens, on loopback (${default})."`
	Data   string `placeholder:"DIR" help:"Keep sessions and keys in this folder. Without it they are in a temporary folder that is removed at the end."`
	Log    bool   `help:"Write the proxy's log to standard error."`
}

// Run starts the proxy, a provider and an app, all on loopback, until the context
// ends. The proxy is an ordinary node with an ordinary configuration file, which
// stays to be looked at in the data folder.
func (c devCmd) Run(ctx context.Context, con console) (err error) {
	// It ends with the terminal that it was begun in.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	defer func() {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) { // told to stop while it began
			err = nil
		}
	}()
	if err := loopbackOnly(c.Listen); err != nil {
		return err
	}
	dir := c.Data
	if dir == "" {
		if dir, err = os.MkdirTemp("", "coatcheck-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}

	log := io.Discard
	if c.Log {
		lines := newLineWriter(con.err)
		defer lines.Close()
		log = lines
	}
	level := new(slog.LevelVar)
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: level}))

	// The folder is this node's from here on, and nothing in it is written before that.
	kept, err := sqlite.Open(ctx, sqlite.Options{File: filepath.Join(dir, "coatcheck.db"), Logger: logger})
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		owner, _, _ := strings.Cut(err.Error(), ": "+sqlite.ErrInUse.Error())
		return fmt.Errorf("%s: choose another --data", owner)
	case err != nil:
		return err
	}
	defer kept.Close() // again, if all goes well

	var servers sync.WaitGroup
	defer servers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// The proxy's address is needed first: the provider must know where it may send
	// browsers back to.
	front, err := net.Listen("tcp", c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("--listen: %w\nIs another one running? Choose another address: coatcheck dev --listen 127.0.0.1:4280", err)
	case err != nil:
		return fmt.Errorf("--listen: %w", err)
	}
	defer front.Close() // again, if all goes well
	listen := front.Addr().String()
	public := "http://" + listen

	providerListener, err := devprovider.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	secret := coatcheck.Secret(rand.Text())
	issuer := "http://" + providerListener.Addr().String()
	provider, err := devprovider.New(devprovider.Options{
		Issuer: issuer,
		Users:  devprovider.DefaultUsers(),
		Clients: []devprovider.Client{{
			ID:                     "dev",
			Secret:                 secret,
			RedirectURIs:           []string{public + "/oauth2/callback"},
			PostLogoutRedirectURIs: []string{public + "/oauth2/sign_out/done"},
		}},
		Logger: logger,
	})
	if err != nil {
		return errors.Join(err, providerListener.Close())
	}
	servers.Go(func() { serveUntil(ctx, providerListener, provider) })

	appListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	servers.Go(func() { serveUntil(ctx, appListener, sampleapp.New(sampleapp.Options{Name: "app"})) })

	file, err := writeDevConfig(dir, devConfig{
		listen: listen, public: public, issuer: issuer, secret: secret,
		app: "http://" + appListener.Addr().String(),
	})
	if err != nil {
		return err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	opened := driver{dial: func(context.Context) (store.Backend, error) { return kept, nil }}
	n, err := wireNode(ctx, file, cfg, opened, output{logger, level, log})
	if err != nil {
		return err
	}
	greet(con.out, public, issuer, dir)
	return n.run(ctx, front)
}

func loopbackOnly(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("--listen %s: the port must be a number from 0 to 65535", address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--listen %s: dev serves this machine only, as its passwords are public: use 127.0.0.1:PORT", address)
	}
	return nil
}

// devConfig is what changes in the configuration from start to start.
type devConfig struct {
	listen, public, issuer, app string
	secret                      coatcheck.Secret
}

// writeDevConfig writes coatcheck.yaml and the client secret into dir.
func writeDevConfig(dir string, d devConfig) (string, error) {
	if err := os.WriteFile(filepath.Join(dir, "client-secret"), []byte(d.secret.Reveal()), 0o600); err != nil {
		return "", err
	}
	yaml := strings.NewReplacer(
		"LISTEN", strconv.Quote(d.listen), "PUBLIC", strconv.Quote(d.public), "ISSUER", strconv.Quote(d.issuer), "APP", strconv.Quote(d.app),
	).Replace(`# Written by coatcheck dev at every start.
listen: LISTEN
public_url: PUBLIC
insecure_http: true
providers:
  - {name: dev, issuer: ISSUER, client_id: dev, client_secret_file: client-secret}
store:
  sqlite: {file: coatcheck.db}
routes:
  - {path: /, upstream: APP}
shutdown: {delay: 0s, grace: 5s}
`)
	file := filepath.Join(dir, "coatcheck.yaml")
	return file, os.WriteFile(file, []byte(yaml), 0o600)
}

// greet says where everything is and what to do with it.
func greet(out io.Writer, public, issuer, dir string) {
	fmt.Fprintf(out, `coatcheck is running on this machine:

  %-26s the sample app, behind coatcheck
  %-26s the development provider

Users (password = name): alice (in admins), bob, carol

Try:
  open %s in a browser and sign in as alice
  curl -i %s/whoami -H 'Accept: application/json'     a script gets 401, not a redirect
  look at %s/oauth2/userinfo, %s/oauth2/sessions and %s/oauth2/sign_out

The configuration of this node is %s.
Stop with Ctrl-C.
`, public, issuer, public, public, public, public, public, filepath.Join(dir, "coatcheck.yaml"))
}

// serveUntil serves h on l until the context ends, and open streams with it.
func serveUntil(ctx context.Context, l net.Listener, h http.Handler) {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	_ = s.Serve(l) // http.ErrServerClosed
}

type devProviderCmd struct {
	Listen                string   `default:"127.0.0.1:5556" placeholder:"ADDR" help:"Where to listen, on loopback (${default})."`
	Issuer                string   `placeholder:"URL" help:"The issuer, where it is not http://ADDR."`
	ClientID              string   `name:"client-id" default:"dev" help:"The client (${default})."`
	ClientSecretFile      string   `required:"" placeholder:"FILE" help:"A file with the client's secret."`
	RedirectURI           []string `name:"redirect-uri" required:"" placeholder:"URL" help:"Where browsers may be sent back to. May be repeated."`
	PostLogoutRedirectURI []string `name:"post-logout-redirect-uri" placeholder:"URL" help:"Where browsers may be sent after sign-out. May be repeated."`
}

// Run serves the development provider until the context ends.
func (c devProviderCmd) Run(ctx context.Context, con console) error {
	secret, err := os.ReadFile(c.ClientSecretFile)
	if err != nil {
		return fmt.Errorf("--client-secret-file: %w", err)
	}
	l, err := devprovider.Listen(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	issuer := c.Issuer
	if issuer == "" {
		issuer = "http://" + l.Addr().String()
	}
	provider, err := devprovider.New(devprovider.Options{
		Issuer: issuer,
		Users:  devprovider.DefaultUsers(),
		Clients: []devprovider.Client{{
			ID:                     c.ClientID,
			Secret:                 coatcheck.Secret(strings.TrimSpace(string(secret))),
			RedirectURIs:           c.RedirectURI,
			PostLogoutRedirectURIs: c.PostLogoutRedirectURI,
		}},
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Fprintf(con.out, "development provider at %s, listening on %s\n", issuer, l.Addr())
	serveUntil(ctx, l, provider)
	return nil
}

type devAppCmd struct {
	Listen string `default:"127.0.0.1:9001" placeholder:"ADDR" help:"Where to listen (${default})."`
	Name   string `default:"app" help:"What this instance calls itself (${default})."`
}

// Run serves the sample app until the context ends.
func (c devAppCmd) Run(ctx context.Context, con console) error {
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	fmt.Fprintf(con.out, "sample app %s listening on %s\n", c.Name, l.Addr())
	serveUntil(ctx, l, sampleapp.New(sampleapp.Options{Name: c.Name}))
	return nil
}
