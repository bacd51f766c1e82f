package oidc

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// renewalTimeout is for requests with a refresh token. No person waits for them as for a
// sign-in, and to give one up that was sent may cost somebody the session.
const renewalTimeout = 30 * time.Second

// newOnceClient returns the client for requests that must not be sent twice, and of which
// it matters whether they were sent. Each has a connection of its own: one that was kept
// open may be dead without anybody knowing, and what is written to it is then lost. On a
// connection that is new, net/http sends nothing a second time; HTTP/2 is left out
// because it does after a GOAWAY.
func newOnceClient() *http.Client {
	dialer := &net.Dialer{Timeout: connectTimeout}
	return &http.Client{
		Timeout: renewalTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &wire{Conn: conn}, nil
			},
			TLSHandshakeTimeout:    connectTimeout,
			TLSClientConfig:        &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0)},
			MaxResponseHeaderBytes: maxHeader,
			MaxConnsPerHost:        maxConns,
			DisableKeepAlives:      true,
		},
		CheckRedirect: noRedirect,
	}
}

// A wire is a connection that counts the writes by which something may have left.
type wire struct {
	net.Conn
	writes atomic.Int64
}

func (w *wire) Write(b []byte) (int, error) {
	w.writes.Add(1)
	n, err := w.Conn.Write(b)
	if n == 0 && err != nil {
		w.writes.Add(-1)
	}
	return n, err
}

// fetchOnce is fetch by the client for requests that must not be sent twice. sent tells
// whether the provider may have got a part of the request. It has got nothing if there was
// no connection, or if every write to it failed with nothing accepted, as it does once
// the other side has reset the connection.
func (p *RelyingParty) fetchOnce(req *http.Request) (status int, body []byte, sent bool, err error) {
	var conn *wire
	var handshakes int64 // the writes they took
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		// Called before the request is written. That it was written net/http says too
		// early, when its header is still in a buffer.
		GotConn: func(info httptrace.GotConnInfo) {
			sent = true
			if conn = wireOf(info.Conn); conn != nil {
				handshakes = conn.writes.Load()
			}
		},
	}))
	status, body, err = fetch(p.once, req)
	if conn != nil {
		sent = conn.writes.Load() > handshakes
	}
	return status, body, sent, err
}

// wireOf returns the wire under a connection, nil if there is none.
func wireOf(conn net.Conn) *wire {
	for {
		switch c := conn.(type) {
		case *wire:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
