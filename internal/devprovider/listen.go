package devprovider

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrNotLoopback: the address can be reached from another machine, where a provider
// whose passwords everybody can read has no business.
var ErrNotLoopback = errors.New("not a loopback address")

// Listen announces on a TCP address of this machine that no other machine can reach:
// a loopback IP address or "localhost", which is 127.0.0.1 here, and a port
// ("127.0.0.1:0" picks a free one). Everything else, an empty host included, is
// ErrNotLoopback.
func Listen(addr string) (net.Listener, error) {
	const op = "devprovider: listen on"
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", op, addr, errors.Join(ErrNotLoopback, err))
	}
	if !isLoopback(host) {
		return nil, fmt.Errorf("%s %q: %w", op, addr, ErrNotLoopback)
	}
	if host == localhost {
		host = "127.0.0.1" // whatever a resolver may say (RFC 6761 §6.3)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", op, addr, err)
	}
	return l, nil
}

const localhost = "localhost"

// isLoopback reports whether a host is a loopback IP address or "localhost". No name
// is looked up.
func isLoopback(host string) bool {
	if host == localhost {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
