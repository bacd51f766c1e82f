package route

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

var errHost = errors.New("no valid host")

// readHost reads an authority without userinfo (RFC 9110 §7.2): a host name, an IPv4
// address or an IPv6 address in brackets, and perhaps a port. It narrows reg-name of
// RFC 3986 §3.2.2 to what DNS names are made of, plus "_".
func readHost(s, scheme string) (string, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && strings.IndexByte(s[i:], ']') < 0 {
		host, port = s[:i], s[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' {
			return "", errHost
		}
	}
	name := host
	if strings.HasPrefix(host, "[") {
		addr, err := netip.ParseAddr(strings.TrimSuffix(host[1:], "]"))
		if err != nil || !addr.Is6() || addr.Zone() != "" || host[len(host)-1] != ']' {
			return "", errHost
		}
	} else {
		// "app.example.com." is the same name, written to the root of the DNS.
		name = strings.TrimSuffix(host, ".")
		if !isName(name) {
			return "", errHost
		}
	}
	if scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		port = ""
	}
	if port != "" {
		if len(name) == len(host) {
			return strings.ToLower(s), nil
		}
		name += ":" + port
	}
	return strings.ToLower(name), nil // no copy where nothing changes
}

// isName tells whether s is made of non-empty labels.
func isName(s string) bool {
	if len(s) > 253 { // RFC 1035 §2.3.4, less the length bytes
		return false
	}
	last := byte('.')
	for i := range len(s) {
		c := s[i]
		if !isAlnum(c) && c != '-' && c != '_' && (c != '.' || last == '.') {
			return false
		}
		last = c
	}
	return last != '.'
}
