package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv"
)

const password = "of-the-test"

func TestURLs(t *testing.T) {
	// What the environment says is not what the configuration says.
	t.Setenv("PGPASSWORD", "of-the-environment")
	t.Setenv("PGOPTIONS", "-c statement_timeout=0")
	t.Setenv("PGSSLMODE", "disable")
	t.Setenv("PGSSLROOTCERT", "/of-the-environment.pem")
	t.Setenv("PGSSLCERT", "/of-the-environment.pem")
	t.Setenv("PGSSLKEY", "/of-the-environment.pem")
	const (
		wrongHosts   = "error: the url must name its hosts with commas between them"
		wrongNames   = "error: the url must name a user and a database"
		wrongParam   = "error: the url has a parameter that means nothing here, or is empty, or stands there twice; those that may stand there are sslmode, sslrootcert, sslcert, sslkey, sslnegotiation, target_session_attrs, application_name, search_path"
		wrongSession = "error: the url's target_session_attrs must be read-write or primary, for a server that takes no writes is no store"
		wrongSchema  = "error: the url's search_path must be the name of one schema: up to 30 lower-case letters, digits and underscores"
	)
	for _, tc := range []struct{ url, want string }{
		{"postgres://app@db.example/web", "app@db.example:5432/web verify-full"},
		{"postgresql://app@db.example:6432/web", "app@db.example:6432/web verify-full"},
		{"postgres://app@db.example/web?sslmode=disable", "app@db.example:5432/web plain"},
		{"postgres://app@db.example/web?sslrootcert=system", "app@db.example:5432/web verify-full"},
		{"postgres://app@db.example/web?sslmode=require", "app@db.example:5432/web unverified"},
		{"postgres://app@127.0.0.1/web", "app@127.0.0.1:5432/web unverified or 127.0.0.1:5432 plain"},
		{"postgres://app@[::1]:7/web", "app@::1:7/web unverified or ::1:7 plain"},
		{"postgres://app@localhost,10.0.0.1/web", "app@localhost:5432/web verify-full or 10.0.0.1:5432 verify-full, read-write"},
		{"postgres://app@a:1,b:2/web?target_session_attrs=primary", "app@a:1/web verify-full or b:2 verify-full, read-write"},
		{"postgres://app@a/web?target_session_attrs=read-write", "app@a:5432/web verify-full, read-write"},
		{"postgres://app%40x:@a/web", "error: the url contains a password; it has an option of its own"},
		{"postgres://app%40x@a/we%27b", "app@x@a:5432/we'b verify-full"},
		{"postgres://app@a/web?search_path=other_2", "app@a:5432/web verify-full in other_2"},
		{"postgres://app@a/web?application_name=x", "app@a:5432/web verify-full as x"},

		{"", "error: the url's scheme is none of postgres, postgresql"},
		{"host=a user=b dbname=c", "error: the url's scheme is none of postgres, postgresql"},
		{"redis://app@a/web", "error: the url's scheme is none of postgres, postgresql"},
		{"postgres://app:of-the-test@a/web", "error: the url contains a password; it has an option of its own"},
		{"postgres://app:of@the-test@a/web", "error: the url contains a password; it has an option of its own"},
		{"postgres://app@a/web?password=of-the-test", wrongParam},
		{"postgres://app@a/web?service=x", wrongParam},
		{"postgres://app@a/web?host=b", wrongParam},
		{"postgres://app@a/web?options=-c%20x", wrongParam},
		{"postgres://app@a/web?sslmode=disable&sslmode=verify-full", wrongParam},
		{"postgres://app@a/web?sslmode=", wrongParam},
		{"postgres://app@a/web?sslnegotiation=of-the-test", "error: the url's sslnegotiation must be postgres or direct"},
		{"postgres://app@a/web/of-the-test", wrongNames},
		{"postgres://app@a:/web", wrongHosts},
		{"postgres://app@a/web#", "error: the url can't be parsed"},
		{"postgres://app@a/web?sslmode=of-the-test", "error: sslmode is invalid"},
		{"postgres://app@a/web?sslrootcert=/none.pem", "error: unable to read CA file: open /none.pem: no such file or directory"},
		{"postgres://app@a/web?sslcert=/none.pem", `error: both "sslcert" and "sslkey" are required`},
		{"postgres://app@a/web#of-the-test", "error: the url can't be parsed"},
		{"postgres://app@a/web?%zz", "error: the url can't be parsed"},
		{"postgres://a/web", wrongNames},
		{"postgres://app@a", wrongNames},
		{"postgres://app@a/", wrongNames},
		{"postgres://app@/web", wrongHosts},
		{"postgres://app@a,/web", wrongHosts},
		{"postgres://app@a:x/web", wrongHosts},
		{"postgres://app@a b/web", wrongHosts},
		{"postgres://app@a/web?target_session_attrs=standby", wrongSession},
		{"postgres://app@a,b/web?target_session_attrs=any", wrongSession},
		{"postgres://app@a/web?search_path=a,b", wrongSchema},
		{"postgres://app@a/web?search_path=" + strings.Repeat("a", 31), wrongSchema},
		{`postgres://app@a/web?search_path=x"y`, wrongSchema},
	} {
		got := describe(tc.url)
		if got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.url, got, tc.want)
		}
		if s, err := Open(t.Context(), Options{URL: tc.url}); err == nil {
			_ = s.Close()
		} else if !strings.HasPrefix(got, "error: ") || err.Error() != "store/postgres: open: "+strings.TrimPrefix(got, "error: ") {
			t.Errorf("Open of %s: %v", tc.url, err)
		}
	}
}

// describe says what a URL means.
func describe(url string) string {
	pool, schema, err := Options{URL: url, Password: password}.config(3 * time.Second)
	if err != nil {
		return fmt.Sprint("error: ", err)
	}
	c := pool.ConnConfig
	place := func(host string, port uint16, verified, encrypted bool) string {
		how := " unverified"
		switch {
		case !encrypted:
			how = " plain"
		case verified:
			how = " verify-full"
		}
		return fmt.Sprint(host, ":", port) + how
	}
	got := place(c.Host, c.Port, c.TLSConfig != nil && !c.TLSConfig.InsecureSkipVerify, c.TLSConfig != nil)
	got = strings.Replace(got, " ", "/"+c.Database+" ", 1)
	for _, f := range c.Fallbacks {
		got += " or " + place(f.Host, f.Port, f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify, f.TLSConfig != nil)
	}
	if c.ValidateConnect != nil {
		got += ", read-write"
	}
	if schema != DefaultSchema {
		got += " in " + schema
	}
	if name := c.RuntimeParams["application_name"]; name != "coatcheck" {
		got += " as " + name
	}
	if c.Password != password || len(c.RuntimeParams) != 1 { // which is what every pooler takes
		got += fmt.Sprint(" with ", c.RuntimeParams)
	}
	return c.User + "@" + got
}

// What connections are set to does not depend on what the role and the environment say.
func TestSettings(t *testing.T) {
	t.Setenv("PGOPTIONS", "-c statement_timeout=1h")
	server := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s, ctx := openAll(t, Options{URL: server.URL(), Timeout: 3 * time.Second}, 1)[0], t.Context()
	_, err := s.pool.Exec(ctx, `
		ALTER ROLE CURRENT_USER SET search_path = pg_catalog;
		ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'serializable';
		ALTER ROLE CURRENT_USER SET statement_timeout = '1h';
		ALTER ROLE CURRENT_USER SET idle_in_transaction_session_timeout = '1h'`, pgx.QueryExecModeSimpleProtocol)
	must(t, err)
	s.pool.Reset()
	for name, want := range map[string]string{
		"search_path":                         s.schema,
		"default_transaction_isolation":       "read committed",
		"statement_timeout":                   "3s",
		"idle_in_transaction_session_timeout": "3s",
		"application_name":                    "coatcheck",
	} {
		var got string
		must(t, s.pool.QueryRow(ctx, `SELECT current_setting($1)`, name).Scan(&got))
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Password: password})
	for _, tc := range []struct {
		password coatcheck.Secret
		works    bool
	}{{password, true}, {"another-one", false}, {"", false}} {
		s := open(t, Options{URL: server.URL(), Password: tc.password})
		err := s.Ping(t.Context())
		if err == nil {
			t.Error("Ping without a schema succeeded")
		} else if tc.works != strings.Contains(err.Error(), howTo) {
			t.Errorf("Ping with password %q: %v", tc.password.Reveal(), err)
		} else if strings.Contains(err.Error(), tc.password.Reveal()) && tc.password != "" {
			t.Errorf("Ping shows the password: %v", err)
		}
	}
}
