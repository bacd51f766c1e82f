package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
)

// scalarOf returns how a type is read from one value of the file, or nil if the
// type is not one of these. The parsers' errors say what the value must be and
// never repeat it: it stands in the excerpt, masked where it must be.
func scalarOf(t reflect.Type) func(string) (any, error) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return parseDuration
	case reflect.TypeFor[*url.URL]():
		return parseOrigin
	case reflect.TypeFor[netip.Prefix]():
		return parsePrefix
	case reflect.TypeFor[slog.Level]():
		return parseLevel
	case reflect.TypeFor[coatcheck.State]():
		return parseState
	default:
		return nil
	}
}

var days = regexp.MustCompile(`^([0-9]{1,4})d$`)

func parseDuration(text string) (any, error) {
	if m := days.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1]) // four digits always fit
		return nil, fmt.Errorf("days are not a unit of duration, because they differ in length: write %dh", 24*n)
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil && strings.Trim(text, "0123456789.") == "":
		return nil, errors.New("needs a unit, as in 30s, 10m or 12h")
	case err != nil:
		return nil, errors.New("must be a duration, as in 30s, 10m or 1h30m")
	case d < 0:
		return nil, errors.New("must not be negative")
	}
	return d, nil
}

var errOrigin = errors.New("must be an http or https URL, as in https://app.example.com or http://127.0.0.1:8080")

// parseOrigin reads scheme and host, which is all that a URL of the configuration
// holds. Host and scheme come out in lower case and without the scheme's own port,
// as browsers write them (RFC 6454 §6.2). Empty text is no origin.
func parseOrigin(text string) (any, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errOrigin
	}
	switch {
	case u.User != nil:
		return nil, errors.New("must not hold a user name or password")
	case u.Path != "" || strings.ContainsAny(text, "?#"):
		return nil, errors.New("must be scheme and host alone: no path, not even a final slash, and no query or fragment")
	}
	host := strings.ToLower(u.Hostname())
	if err := checkHost(host); err != nil {
		return nil, err
	}
	authority := host
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
		authority = "[" + addr.String() + "]" // the shortest form (RFC 5952)
	}
	port := u.Port()
	if strings.HasSuffix(u.Host, ":") || port != "" && !validPort(port, 1) {
		return nil, errors.New("the port must be a number from 1 to 65535")
	}
	if port != "" && port != map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		authority += ":" + port
	}
	return &url.URL{Scheme: u.Scheme, Host: authority}, nil
}

func validPort(text string, least uint64) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n >= least && strconv.FormatUint(n, 10) == text
}

var label = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

// checkHost takes a host name or an address without brackets, in lower case. Names
// that browsers take for an IPv4 address in disguise, such as 127.1 and 0x7f.1, are
// refused (WHATWG URL, "ends in a number").
func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return errors.New("an address here has no zone")
		}
		return nil
	}
	for _, c := range host {
		if c > 0x7f {
			return errors.New("a host name with other letters than a to z is written in its xn-- form")
		}
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if !label.MatchString(l) {
			return errors.New("this is no host name: letters, digits and hyphens between dots")
		}
	}
	last := labels[len(labels)-1]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" {
		return errors.New("this is no host name: the last part must not be a number")
	}
	if len(host) > 253 {
		return errors.New("a host name has at most 253 characters")
	}
	return nil
}

// isAddress reports whether a host is an IP address rather than a name.
func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// isLoopback reports whether a host leads to this machine alone; names below
// localhost do (RFC 6761 §6.3).
func isLoopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func parsePrefix(text string) (any, error) {
	var prefix netip.Prefix
	if addr, err := netip.ParseAddr(text); err == nil {
		prefix = netip.PrefixFrom(addr.WithZone(""), addr.BitLen())
	} else if prefix, err = netip.ParsePrefix(text); err != nil {
		return nil, errors.New("must be an address or a network, as in 10.0.0.7 or 10.0.0.0/8")
	}
	switch {
	case prefix.Addr().Is4In6():
		return nil, errors.New("an IPv4 address is written as such, as in 10.0.0.7")
	case strings.Contains(text, "%"):
		return nil, errors.New("an address here has no zone")
	case prefix.Bits() == 0:
		return nil, errors.New("this is everybody: name the proxies that stand in front, anybody else could claim any address")
	case prefix != prefix.Masked():
		return nil, fmt.Errorf("the address lies inside the network %v: write that, or the address alone", prefix.Masked())
	}
	return prefix, nil
}

func parseLevel(text string) (any, error) {
	switch text {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	default:
		return nil, errors.New("must be debug, info, warn or error")
	}
}

func parseState(text string) (any, error) {
	switch text {
	case coatcheck.Anonymous.String():
		return coatcheck.Anonymous, nil
	case coatcheck.Authenticated.String():
		return coatcheck.Authenticated, nil
	case coatcheck.Returning.String():
		return nil, errors.New("returning is not supported by this version")
	default:
		return nil, errors.New("must be anonymous or authenticated")
	}
}
