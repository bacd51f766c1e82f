package redis

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck"
)

// DefaultTimeout is the Options.Timeout that zero stands for.
const DefaultTimeout = time.Second

// Options say which Redis, and how to use it.
type Options struct {
	// URL names a standalone server: redis://[USER@]HOST[:PORT][/DB], the same with
	// rediss:// for TLS (1.2 and up, the system's certificate authorities), or
	// unix://[USER@]/PATH[?db=DB]. A password in it is refused: URLs end up in
	// places where passwords must not.
	URL string
	// Username is that of Redis's ACL, and overrides the URL's. Empty means the
	// default user.
	Username string
	Password coatcheck.Secret
	// KeyPrefix stands before every key, so that several installations can share a
	// database.
	KeyPrefix string
	// Timeout bounds every call, connecting included, on top of the caller's own
	// deadline. Zero means DefaultTimeout. Two cases stretch it: a call that waits
	// for another one's attempt to connect waits for all of it, whatever its own
	// deadline, and of over a thousand calls that hang at once some take twice as
	// long.
	Timeout time.Duration
}

// client turns what says where the server is into rueidis's words.
func (o Options) client() (rueidis.ClientOption, error) {
	c, err := parseURL(o.URL)
	if err != nil {
		return c, err
	}
	if o.Username != "" {
		c.Username = o.Username
	}
	c.Password = o.Password.Reveal()
	return c, nil
}

// parseURL does without rueidis.ParseURL because that one's query can switch off the
// verification of certificates. No error repeats the URL.
func parseURL(text string) (rueidis.ClientOption, error) {
	var c rueidis.ClientOption
	u, err := url.Parse(text)
	if err != nil {
		return c, errors.New("the url can't be parsed")
	}
	if _, set := u.User.Password(); set {
		return c, errors.New("the url contains a password; it has an option of its own")
	}
	c.Username = u.User.Username()

	query := u.Query()
	db := strings.TrimPrefix(u.Path, "/")
	switch u.Scheme {
	case "redis", "rediss":
		host, port := u.Hostname(), u.Port()
		if host == "" {
			return c, errors.New("the url names no host")
		}
		if port == "" {
			port = "6379"
		}
		c.InitAddress = []string{net.JoinHostPort(host, port)}
		if u.Scheme == "rediss" {
			c.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
		}
	case "unix":
		if u.Host != "" || u.Path == "" {
			return c, errors.New("the url of a unix socket has three slashes: unix:///path/to/redis.sock")
		}
		c.InitAddress = []string{u.Path}
		c.DialCtxFn = dialSocket
		db = query.Get("db")
		query.Del("db")
	default:
		return c, errors.New("the url's scheme is none of redis, rediss, unix")
	}
	if len(query) > 0 || u.Fragment != "" {
		return c, errors.New("the url has a query or a fragment that means nothing here")
	}
	if db != "" {
		if c.SelectDB, err = strconv.Atoi(db); err != nil || c.SelectDB < 0 {
			return c, errors.New("the url's database is not a number")
		}
	}
	return c, nil
}
