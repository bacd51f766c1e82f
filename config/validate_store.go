package config

import (
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxPerUser bounds the limits of one user, whose sessions a store counts one by one.
const maxPerUser = 10_000

func (v *validator) store() {
	s := &v.cfg.Store
	switch s.Driver {
	case DriverSQLite:
		v.otherDrivers(DriverRedis, DriverPostgres)
	case DriverRedis:
		v.otherDrivers(DriverSQLite, DriverPostgres)
		v.redis(&s.Redis)
	case DriverPostgres:
		v.otherDrivers(DriverSQLite, DriverRedis)
		v.postgres(&s.Postgres)
	case "memory":
		v.refuse("store.driver", "memory is for tests: choose sqlite, redis or postgres")
	default:
		v.refuse("store.driver", "must be sqlite, redis or postgres")
	}
	v.file("store.sqlite.file", &s.SQLite.File)
	if s.SQLite.File == "" {
		v.refuse("store.sqlite.file", "must be the path of a file")
	}
	v.whole("store.max_concurrent", s.MaxConcurrent, 1, 10_000)
}

// otherDrivers refuses the settings of drivers that are not the one that was chosen.
func (v *validator) otherDrivers(drivers ...string) {
	for _, driver := range drivers {
		if path := "store." + driver; v.given(path) && !v.broken("store.driver") {
			v.refuse(path, "is for driver: %s, and the driver is %s", driver, v.cfg.Store.Driver)
		}
	}
}

func (v *validator) cache() {
	const path = "cache.size_bytes"
	if size := v.cfg.Cache.SizeBytes; size != 0 && (size < 1<<20 || size > 1<<30) {
		v.refuse(path, "must be from %d to %d, or 0 for no near cache", 1<<20, 1<<30)
	}
	v.between("cache.lease", v.cfg.Cache.Lease, 100*time.Millisecond, 10*time.Second)
}

// keyPrefix is printable and without braces, because those make a hash tag.
var keyPrefix = regexp.MustCompile(`^[!-z|~]{0,64}$`)

func (v *validator) redis(r *Redis) {
	const path = "store.redis"
	sentinel, cluster := v.given(path+".sentinel"), v.given(path+".cluster")
	if sentinel && cluster {
		v.refuse(path+".cluster", "Sentinel and Cluster exclude each other, because a Cluster fails over by itself: remove one")
	}
	switch {
	case !sentinel && !cluster:
		v.redisURL(path+".url", r)
	case v.given(path + ".url"):
		v.refuse(path+".url", "sentinel or cluster says where Redis is: remove one")
	default:
		r.URL = ""
	}
	if sentinel {
		v.sentinel(path+".sentinel", &r.Sentinel)
	}
	if cluster {
		v.addresses(path+".cluster.addresses", r.Cluster.Addresses, "redis-1.internal:6379")
	}
	v.tls(path+".tls", r, !sentinel && !cluster)
	v.sources(path+".password", &r.PasswordFile, r.PasswordEnv)
	if !keyPrefix.MatchString(r.KeyPrefix) {
		v.refuse(path+".key_prefix", "must be at most 64 printable characters, without spaces and braces")
	}
	v.between(path+".timeout", r.Timeout, 10*time.Millisecond, 30*time.Second)
}

func (v *validator) redisURL(path string, r *Redis) {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "redis" && u.Scheme != "rediss" || u.Hostname() == "":
		v.refuse(path, "must be a redis or rediss URL, as in redis://127.0.0.1:6379/0")
		return
	case checkHost(strings.ToLower(u.Hostname())) != nil || u.Port() != "" && !validPort(u.Port(), 1):
		v.refuse(path, "must hold a host name or an address, and a port from 1 to 65535")
	case strings.ContainsAny(r.URL, "?#"):
		v.refuse(path, "must not hold a query or a fragment")
	case !database(strings.TrimPrefix(u.Path, "/")):
		v.refuse(path, "the path must be the number of a database, as in redis://127.0.0.1:6379/0")
	case u.User != nil:
		if _, has := u.User.Password(); has {
			v.refuse(path, passwordInFile)
		} else if r.Username != "" {
			v.refuse("store.redis.username", "the URL names a user too: remove one")
		}
		r.Username = u.User.Username()
		u.User = nil
	}
	r.URL = u.String()
	r.TLS.Enabled = u.Scheme == "rediss"
}

const passwordInFile = "a password must not stand in this file: use password_file or password_env"

// maxDatabase is more than any Redis has.
const maxDatabase = 1<<16 - 1

func database(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return text == "" || err == nil && strconv.FormatUint(n, 10) == text
}

var masterName = regexp.MustCompile(`^[!-~]{1,64}$`)

func (v *validator) sentinel(path string, s *Sentinel) {
	v.addresses(path+".addresses", s.Addresses, "sentinel-1.internal:26379")
	if v.require(path+".master", s.Master != "", "the name of the master in the Sentinels' configuration, as in mymaster") &&
		!masterName.MatchString(s.Master) {
		v.refuse(path+".master", "must be at most 64 printable ASCII characters, without spaces")
	}
	v.whole(path+".database", s.Database, 0, maxDatabase)
	v.sources(path+".password", &s.PasswordFile, s.PasswordEnv)
}

// addresses checks a list of HOST:PORT.
func (v *validator) addresses(path string, list []string, example string) {
	v.require(path, len(list) > 0, "a list of HOST:PORT, as in [\""+example+"\"]")
	for i, address := range list {
		at := element(path, i)
		host, port, ok := v.address(at, address, example)
		switch {
		case !ok:
		case everywhere(host) || port == "0":
			v.refuse(at, "must be HOST:PORT, as in %s", example)
		case slices.Contains(list[:i], address):
			v.refuse(at, "stands in the list twice")
		}
	}
}

func (v *validator) tls(path string, r *Redis, byURL bool) {
	t := &r.TLS
	files := t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != ""
	switch {
	case byURL && v.given(path+".enabled"):
		v.refuse(path+".enabled", "is for sentinel and cluster: a URL says it by rediss://")
	case byURL && files && !t.Enabled && !v.refused("store.redis.url"):
		v.refuse(path, "needs a rediss URL: connections to a redis URL are not encrypted")
	case !byURL && files && !t.Enabled:
		v.refuse(path, "needs enabled: true: without it connections are not encrypted")
	}
	v.file(path+".ca_file", &t.CAFile)
	v.file(path+".cert_file", &t.CertFile)
	v.file(path+".key_file", &t.KeyFile)
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		v.refuse(path+".cert_file", "needs key_file, which holds the key to this certificate")
	case t.CertFile == "" && t.KeyFile != "":
		v.refuse(path+".key_file", "needs cert_file, which holds the certificate of this key")
	}
	t.ServerName = strings.ToLower(t.ServerName)
	if t.ServerName != "" && checkHost(t.ServerName) != nil {
		v.refuse(path+".server_name", "must be a host name or an address, as in redis.example.com")
	}
}

// postgresParameters are the parameters that a PostgreSQL URL may have, with the values
// where these are few. What is not here can read files or holds secrets, or changes what
// the statements of coatcheck mean.
var postgresParameters = map[string][]string{
	"sslmode":              {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
	"sslrootcert":          nil,
	"sslcert":              nil,
	"sslkey":               nil,
	"sslnegotiation":       {"postgres", "direct"},
	"target_session_attrs": {"any", "read-write", "primary"},
	"application_name":     nil,
	"search_path":          nil,
}

func (v *validator) postgres(p *Postgres) {
	const path = "store.postgres"
	if v.require(path+".url", p.URL != "", "where PostgreSQL is, as in "+postgresExample) {
		v.postgresURL(path+".url", p.URL)
	}
	v.sources(path+".password", &p.PasswordFile, p.PasswordEnv)
	v.whole(path+".max_connections", p.MaxConnections, 2, 500)
	v.between(path+".timeout", p.Timeout, 10*time.Millisecond, 30*time.Second)
}

const postgresExample = "postgres://coatcheck@db.internal:5432/coatcheck"

func (v *validator) postgresURL(path, text string) {
	u, hosts, ok := parsePostgres(text)
	if !ok {
		v.refuse(path, "must be a postgres URL, as in %s", postgresExample)
		return
	}
	if _, has := u.User.Password(); has {
		v.refuse(path, passwordInFile)
		return
	}
	for _, h := range hosts {
		if checkHost(strings.ToLower(h.Hostname())) != nil || h.Port() != "" && !validPort(h.Port(), 1) || strings.HasSuffix(h.Host, ":") {
			v.refuse(path, "must hold host names or addresses with commas between them, and ports from 1 to 65535")
			return
		}
	}
	switch database := strings.TrimPrefix(u.Path, "/"); {
	case u.User.Username() == "" || database == "":
		v.refuse(path, "must name a user and a database, as in %s", postgresExample)
	case strings.Contains(database, "/"):
		v.refuse(path, "the path must be the name of a database")
	case u.Fragment != "" || strings.Contains(text, "#"):
		v.refuse(path, "must not hold a fragment")
	default:
		v.postgresQuery(path, u.RawQuery, len(hosts))
	}
}

// postgresSchema needs no quotes, and leaves room for what the driver puts behind it.
var postgresSchema = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,29}$`)

func (v *validator) postgresQuery(path, text string, hosts int) {
	query, err := url.ParseQuery(text)
	if err != nil {
		v.refuse(path, "the part behind the question mark must be parameters, as in sslmode=verify-full")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		values, known := postgresParameters[name]
		switch value := query.Get(name); {
		case name == "password" || name == "sslpassword":
			v.refuse(path, passwordInFile)
		case !known:
			v.refuse(path, "the parameter %s can't be set here; those that can are %s", printable(name), strings.Join(slices.Sorted(maps.Keys(postgresParameters)), ", "))
		case len(query[name]) > 1:
			v.refuse(path, "the parameter %s stands there twice", name)
		case values != nil && !slices.Contains(values, value):
			v.refuse(path, "the parameter %s must be one of %s", name, strings.Join(values, ", "))
		case (name == "sslrootcert" && value != "system" || name == "sslcert" || name == "sslkey") && !filepath.IsAbs(value):
			v.refuse(path, "the parameter %s must be the absolute path of a file", name)
		case value == "":
			v.refuse(path, "the parameter %s is empty", name)
		case name == "search_path" && !postgresSchema.MatchString(value):
			v.refuse(path, "the parameter search_path must be the name of one schema: up to 30 lower-case letters, digits and underscores")
		case name == "target_session_attrs" && value == "any" && hosts > 1:
			v.refuse(path, "the parameter target_session_attrs must be read-write or primary, which of several hosts finds the one that takes writes")
		}
	}
	if query.Has("sslcert") != query.Has("sslkey") {
		v.refuse(path, "the parameters sslcert and sslkey need each other")
	}
}

// parsePostgres returns a PostgreSQL URL with its first host alone, and all its hosts,
// each as a URL of its own: net/url takes several of them for one.
func parsePostgres(text string) (u *url.URL, hosts []*url.URL, ok bool) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return nil, nil, false
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	user, authority := "", rest[:end]
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, authority = authority[:at+1], authority[at+1:]
	}
	for host := range strings.SplitSeq(authority, ",") {
		h, err := url.Parse(scheme + "://" + host)
		if err != nil || h.Hostname() == "" {
			return nil, nil, false
		}
		hosts = append(hosts, h)
	}
	u, err := url.Parse(scheme + "://" + user + hosts[0].Host + rest[end:])
	return u, hosts, err == nil
}
