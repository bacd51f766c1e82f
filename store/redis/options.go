package redis

import (
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck"
)

// defaultTimeout is the Options.Timeout that zero stands for.
const defaultTimeout = time.Second

// Options say which Redis, and how to use it. Exactly one of URL, Sentinel and Cluster
// says where it is.
type Options struct {
	// URL names a standalone server: redis://[USER@]HOST[:PORT][/DB], the same with
	// rediss:// for TLS, or unix://[USER@]/PATH[?db=DB]. A password in it is refused:
	// URLs end up in places where passwords must not.
	URL      string
	Sentinel *Sentinel
	Cluster  *Cluster

	// TLS says how servers and sentinels prove who they are, and how we do. Nil means
	// the system's authorities for rediss://, and no TLS for Sentinel and Cluster.
	TLS *TLS
	// Username is that of Redis's ACL, and overrides the URL's. Empty means the
	// default user.
	Username string
	Password coatcheck.Secret
	// PasswordFrom says where Password was taken from, for errors.
	PasswordFrom string
	// KeyPrefix stands before every key, so that several installations can share a
	// database. It has no braces: they would decide where keys live in a cluster.
	KeyPrefix string
	// Timeout bounds every call, connecting included, on top of the caller's own
	// deadline. Zero means a second. Two cases stretch it: a call that waits
	// for another one's attempt to connect waits for all of it, whatever its own
	// deadline, and of over a thousand calls that hang at once some take twice as
	// long.
	Timeout time.Duration
	// Logger is told what the server can't do and coatcheck goes on without, and of TLS
	// files that can't be used any more. Nil means nobody.
	Logger *slog.Logger
}

// A Sentinel says where sentinels watch over a primary and its replicas.
type Sentinel struct {
	Addresses []string // HOST:PORT of sentinels; one that answers is enough
	Master    string   // the name under which they watch over the primary
	// Username and Password are for the sentinels; those of Options are for the servers.
	Username     string
	Password     coatcheck.Secret
	PasswordFrom string
	Database     int // of the servers
}

// A Cluster says where a Redis Cluster is. It has no databases but the first.
type Cluster struct {
	Addresses []string // HOST:PORT of nodes; one that answers is enough
}

// client turns what says where the server is into rueidis's words.
func (o Options) client() (rueidis.ClientOption, error) {
	var c rueidis.ClientOption
	ways := 0
	for _, given := range []bool{o.URL != "", o.Sentinel != nil, o.Cluster != nil} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return c, errors.New("exactly one of url, sentinel and cluster says where Redis is")
	}
	if strings.ContainsAny(o.KeyPrefix, "{}") {
		return c, errors.New("the key prefix contains a brace")
	}

	var err error
	switch {
	case o.Sentinel != nil:
		c, err = o.Sentinel.client()
	case o.Cluster != nil:
		c.InitAddress, err = addresses(o.Cluster.Addresses)
	default:
		c, err = parseURL(o.URL)
		if err == nil && o.TLS != nil && !strings.HasPrefix(o.URL, "rediss:") {
			err = errors.New("there are settings of TLS, but the url's scheme is not rediss")
		}
	}
	if err != nil {
		return c, err
	}
	if o.TLS != nil || strings.HasPrefix(o.URL, "rediss:") {
		if c.TLSConfig, err = o.TLS.config(); err != nil {
			return c, err
		}
	}
	c.Sentinel.TLSConfig = c.TLSConfig
	if o.Username != "" {
		c.Username = o.Username
	}
	c.Password = o.Password.Reveal()
	return c, nil
}

func (s *Sentinel) client() (rueidis.ClientOption, error) {
	var c rueidis.ClientOption
	if s.Master == "" {
		return c, errors.New("the sentinels are not told which master")
	}
	if s.Database < 0 {
		return c, errors.New("the database is not a number")
	}
	c.SelectDB = s.Database
	c.Sentinel.MasterSet = s.Master
	c.Sentinel.Username = s.Username
	c.Sentinel.Password = s.Password.Reveal()
	var err error
	c.InitAddress, err = addresses(s.Addresses)
	return c, err
}

func addresses(list []string) ([]string, error) {
	if len(list) == 0 {
		return nil, errors.New("there are no addresses")
	}
	for _, a := range list {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return nil, errors.New("an address is not of the form host:port")
		}
	}
	return list, nil
}

// parseURL does without rueidis.ParseURL because that one's query can switch off the
// verification of certificates. No error repeats the URL.
func parseURL(text string) (rueidis.ClientOption, error) {
	c := rueidis.ClientOption{ForceSingleClient: true}
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
	case "unix":
		if u.Host != "" || u.Path == "" {
			return c, errors.New("the url of a unix socket has three slashes: unix:///path/to/redis.sock")
		}
		c.InitAddress = []string{u.Path}
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
