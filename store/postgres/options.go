package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coatcheck/coatcheck"
)

// What zero stands for in Options.
const (
	defaultTimeout  = 2 * time.Second
	defaultMaxConns = 16
)

// DefaultSchema is the schema that coatcheck's tables are in, unless the URL's
// search_path names another one.
const DefaultSchema = "coatcheck"

// Options say which PostgreSQL, and how to use it.
type Options struct {
	// URL is postgres://USER@HOST[:PORT][,HOST[:PORT]…]/DATABASE[?PARAMETER=VALUE…]. A
	// password in it is refused: URLs end up in places where passwords must not. Of
	// several hosts, the first one that takes writes is used: that is how a failover is
	// followed.
	//
	// The parameters are those of libpq: sslmode, sslrootcert, sslcert, sslkey,
	// sslnegotiation, target_session_attrs, application_name, and search_path, which
	// names the one schema that is used. Without sslmode it is verify-full, or prefer
	// where all hosts are this machine's loopback.
	//
	// The files of sslrootcert, sslcert and sslkey are read again for each connection that
	// is made, so what is renewed needs no restart. While one of them is missing or wrong,
	// or the key is not the certificate's, all of them count as they were read last. What
	// is connected stays so.
	URL      string
	Password coatcheck.Secret
	// Timeout bounds every call but Migrate, Watch and Follow, on top of the caller's own
	// deadline, and each attempt to connect to a host. Zero means 2 s.
	Timeout time.Duration
	// MaxConns bounds the connections of calls. Each Watch and Follow has one more. Zero
	// means 16.
	MaxConns int
	// Logger is told when the reaper fails, when a feed breaks, and of TLS files that can't
	// be used any more. Nil: nobody is.
	Logger *slog.Logger
}

// parameters are those that a URL may have. Others would read files, hold secrets, or
// change what our statements mean.
var parameters = []string{
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation",
	"target_session_attrs", "application_name", "search_path",
}

// schemaName is what needs no quotes and leaves room for what stands behind it in the
// name of a channel.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,29}$`)

// config returns the pool, without the number of its connections, and the schema. No error
// repeats the URL.
func (o Options) config(timeout time.Duration) (*pgxpool.Config, string, error) {
	settings, err := parseURL(o.URL)
	if err != nil {
		return nil, "", err
	}
	schema := settings["search_path"]
	if !schemaName.MatchString(schema) {
		return nil, "", errors.New("the url's search_path must be the name of one schema: up to 30 lower-case letters, digits and underscores")
	}
	application := settings["application_name"]
	delete(settings, "search_path")
	delete(settings, "application_name")
	pool, err := pgxpool.ParseConfig(keywords(settings))
	if err != nil {
		return nil, "", explain(err)
	}
	for _, file := range []string{settings["sslrootcert"], settings["sslcert"]} {
		if err := complete(file); err != nil {
			return nil, "", err
		}
	}
	pool.MaxConnLifetimeJitter = pool.MaxConnLifetime / 10
	c := pool.ConnConfig
	c.Password = o.Password.Reveal()
	// Only what stands here and in arrive, whatever the environment says.
	c.RuntimeParams = map[string]string{"application_name": application}
	c.ConnectTimeout = timeout
	c.DialFunc = dial(timeout)
	c.AfterConnect = arrive(schema, timeout)
	fatal := c.OnPgError
	c.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		// A primary that has become a standby says so to every write. Its connections are
		// given up, so that the next ones lead to the new primary.
		return err.Code != codeReadOnly && fatal(conn, err)
	}
	return pool, schema, nil
}

// arrive returns what makes a new connection ours before anything is asked on it: names are
// those of the schema, and what the server goes on with after its caller has left ends, as
// does a transaction whose node was stopped in the midst of it, with its locks. Zero: neither
// ends. A pooler would refuse all of this as parameters of the connection's start.
func arrive(schema string, timeout time.Duration) pgconn.AfterConnectFunc {
	millis := int64(0)
	if timeout > 0 {
		millis = max(timeout.Milliseconds(), 1)
	}
	settings := fmt.Sprintf(`SET search_path = %s;
		SET default_transaction_isolation = 'read committed';
		SET statement_timeout = %d;
		SET idle_in_transaction_session_timeout = %[2]d`, pgx.Identifier{schema}.Sanitize(), millis)
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if _, err := conn.Exec(ctx, settings).ReadAll(); err != nil {
			return err
		}
		return conn.Conn().SetDeadline(time.Time{})
	}
}

// explain keeps what pgx says of a wrong parameter and leaves out what it repeats.
func explain(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) && parse.Unwrap() != nil {
		return parse.Unwrap()
	}
	return errors.New("the url has a parameter with a value that means nothing")
}

// parseURL returns the URL's parts as libpq's keywords. It reads the URL itself, since
// net/url takes no list of hosts, and hands nothing on that it has not understood.
func parseURL(text string) (map[string]string, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return nil, errors.New("the url's scheme is none of postgres, postgresql")
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority, rest = rest[:end], rest[end:]
	} else {
		rest = ""
	}
	user := ""
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, authority = authority[:at+1], authority[at+1:]
	}
	u, err := url.Parse(scheme + "://" + user + "host" + rest)
	if err != nil || strings.Contains(rest, "#") {
		return nil, errors.New("the url can't be parsed")
	}
	if _, set := u.User.Password(); set {
		return nil, errors.New("the url contains a password; it has an option of its own")
	}
	hosts, ports, local, err := parseHosts(authority)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{
		"host": strings.Join(hosts, ","), "port": strings.Join(ports, ","),
		"user": u.User.Username(), "dbname": strings.TrimPrefix(u.Path, "/"),
		"sslmode": "verify-full", "target_session_attrs": "any",
		// Those in ~/.postgresql don't count: one that goes from there would lower what is
		// verified.
		"sslrootcert": "", "sslcert": "", "sslkey": "",
		"application_name": "coatcheck", "search_path": DefaultSchema,
	}
	if settings["user"] == "" || settings["dbname"] == "" || strings.Contains(settings["dbname"], "/") {
		return nil, errors.New("the url must name a user and a database")
	}
	if local {
		settings["sslmode"] = "prefer"
	}
	if len(hosts) > 1 {
		settings["target_session_attrs"] = "read-write"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("the url can't be parsed")
	}
	for name, values := range query {
		if !slices.Contains(parameters, name) || len(values) > 1 || values[0] == "" {
			// pgx takes an empty sslmode for prefer.
			return nil, errors.New("the url has a parameter that means nothing here, or is empty, or stands there twice; those that may stand there are " + strings.Join(parameters, ", "))
		}
		settings[name] = values[0]
	}
	if how := settings["sslnegotiation"]; how != "" && how != "postgres" && how != "direct" {
		return nil, errors.New("the url's sslnegotiation must be postgres or direct")
	}
	if session := settings["target_session_attrs"]; session != "read-write" && session != "primary" && (session != "any" || len(hosts) > 1) {
		return nil, errors.New("the url's target_session_attrs must be read-write or primary, for a server that takes no writes is no store")
	}
	return settings, nil
}

// parseHosts splits a URL's list of hosts. local: all of them are loopback addresses.
func parseHosts(list string) (hosts, ports []string, local bool, err error) {
	local = true
	for place := range strings.SplitSeq(list, ",") {
		u, err := url.Parse("postgres://" + place)
		if err != nil || u.Hostname() == "" || u.Host != place || strings.HasSuffix(place, ":") {
			return nil, nil, false, errors.New("the url must name its hosts with commas between them")
		}
		port := u.Port()
		if port == "" {
			port = "5432"
		}
		hosts, ports = append(hosts, u.Hostname()), append(ports, port)
		address, err := netip.ParseAddr(u.Hostname())
		local = local && (u.Hostname() == "localhost" || err == nil && address.IsLoopback())
	}
	return hosts, ports, local, nil
}

// keywords writes settings as a connection string, with each value quoted.
func keywords(settings map[string]string) string {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		b.WriteString(name + "='" + quote.Replace(settings[name]) + "' ")
	}
	return b.String()
}

// dial returns what connects, with a deadline for all that comes before AfterConnect. A
// request to cancel a statement never gets that far, so it is bounded as well.
func dial(timeout time.Duration) pgconn.DialFunc {
	d := net.Dialer{Timeout: timeout, KeepAlive: 10 * time.Second}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return impatient{c, timeout}, c.SetDeadline(time.Now().Add(timeout))
	}
}

// An impatient connection waits for nothing longer than its patience. pgx gives a
// connection that it has given up 15 s to end in good order, and keeps its place in the
// pool that long: with a server that has left the network, all of them.
type impatient struct {
	net.Conn
	patience time.Duration
}

func (c impatient) SetDeadline(t time.Time) error {
	if latest := time.Now().Add(c.patience); t.After(latest) {
		t = latest
	}
	return c.Conn.SetDeadline(t)
}
