package devprovider

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrNotLoopback: the address can be reached from another machine, where a provider
// whose passwords everybody can read has no business.
var ErrNotLoopback = errors.New("not a loopback address")

// Listen announces on a TCP address of this machine that no other machine can reach:
// a loopback IP address or "localhost", and a port ("127.0.0.1:0" picks a free one).
// Everything else, an empty host included, is ErrNotLoopback.
func Listen(addr string) (net.Listener, error) {
	const op = "devprovider: listen on"
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", op, addr, errors.Join(ErrNotLoopback, err))
	}
	if !isLoopback(host) {
		return nil, fmt.Errorf("%s %q: %w", op, addr, ErrNotLoopback)
	}
	// "localhost" is whatever the resolver says, so what it said is judged once more,
	// and that very address is bound.
	ips, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", host)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", op, addr, err)
	}
	for _, ip := range ips {
		if !ip.IsLoopback() {
			return nil, fmt.Errorf("%s %q, which is %s: %w", op, addr, ip, ErrNotLoopback)
		}
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(preferIPv4(ips).String(), port))
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", op, addr, err)
	}
	return ln, nil
}

// isLoopback reports whether a host is a loopback IP address or "localhost". No other
// name is looked up.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func preferIPv4(ips []netip.Addr) netip.Addr {
	for _, ip := range ips {
		if ip.Unmap().Is4() {
			return ip.Unmap()
		}
	}
	return ips[0]
}
