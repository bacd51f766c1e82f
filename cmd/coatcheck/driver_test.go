package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/config"
	"github.com/coatcheck/coatcheck/store/postgres"
)

// TestPostgresURLs: the configuration and the driver parse them each for itself, and agree on
// which of them may be used.
func TestPostgresURLs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("a secret of the tests"), 0o600); err != nil {
		t.Fatal(err)
	}
	judge := func(url string) (said, err error) {
		file := filepath.Join(dir, "coatcheck.yaml")
		text := fmt.Sprintf(`
public_url: https://app.example.com
keys: {file: keys.json}
store: {driver: postgres, postgres: {url: %q}}
providers: [{name: corp, issuer: "https://idp.example.com", client_id: web, client_secret_file: secret}]
routes: [{path: /}]
`, url)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, said = config.Load(file)
		opened, err := postgres.Open(t.Context(), postgres.Options{URL: url})
		if err == nil {
			_ = opened.Close()
		}
		return said, err
	}
	const host, several = "postgres://u@db.internal/d", "postgres://u@a.internal,b.internal:6432/d"
	for url, good := range map[string]bool{
		host: true, several: true,
		"postgresql://u@db.internal:5432/d":                         true,
		"postgres://u@[::1]:5432/d":                                 true,
		"postgres://u@127.0.0.1/d":                                  true,
		"postgres://u%20v@db.internal/d":                            true,
		host + "?sslmode=verify-full":                               true,
		host + "?sslmode=disable":                                   true,
		host + "?sslmode=prefer&application_name=app":               true,
		host + "?search_path=another_1":                             true,
		host + "?sslrootcert=system":                                true,
		host + "?sslnegotiation=direct":                             true,
		host + "?target_session_attrs=any":                          true,
		several + "?target_session_attrs=read-write":                true,
		several + "?target_session_attrs=primary&sslmode=verify-ca": true,

		"":                                               false,
		"db.internal":                                    false,
		"mysql://u@db.internal/d":                        false,
		"postgres://db.internal/d":                       false,
		"postgres://@db.internal/d":                      false,
		"postgres://u@db.internal":                       false,
		"postgres://u@db.internal/":                      false,
		"postgres://u@db.internal/d/e":                   false,
		"postgres://u:p@db.internal/d":                   false,
		"postgres://u:@db.internal/d":                    false,
		"postgres://u@/d":                                false,
		"postgres://u@,db.internal/d":                    false,
		"postgres://u@db.internal,/d":                    false,
		"postgres://u@db.internal:/d":                    false,
		"postgres://u@db.internal:0/d":                   false,
		"postgres://u@db.internal:70000/d":               false,
		"postgres://u@db.internal:x/d":                   false,
		"postgres://u@db internal/d":                     false,
		"postgres://u@%2Fvar%2Frun/d":                    false,
		"postgres://u@a@b.internal/d%zz":                 false,
		host + "#fragment":                               false,
		host + "#":                                       false,
		host + "?sslmode=verify-fool":                    false,
		host + "?sslmode=":                               false,
		host + "?sslmode=disable&sslmode=verify-full":    false,
		host + "?search_path=a,b":                        false,
		host + "?search_path=A":                          false,
		host + "?search_path=":                           false,
		host + "?search_path=" + strings.Repeat("s", 31): false,
		host + "?sslrootcert=ca.pem":                     false,
		host + "?sslrootcert=":                           false,
		host + "?sslcert=/nowhere/cert.pem":              false,
		host + "?sslkey=/nowhere/key.pem":                false,
		host + "?sslnegotiation=maybe":                   false,
		host + "?target_session_attrs=standby":           false,
		host + "?target_session_attrs=read-only":         false,
		host + "?target_session_attrs=prefer-standby":    false,
		host + "?target_session_attrs=":                  false,
		several + "?target_session_attrs=any":            false,
		host + "?password=p":                             false,
		host + "?sslpassword=p":                          false,
		host + "?host=elsewhere":                         false,
		host + "?user=somebody":                          false,
		host + "?passfile=/etc/passwd":                   false,
		host + "?service=s":                              false,
		host + "?options=-csearch_path%3Dother":          false,
		host + "?statement_timeout=0":                    false,
		host + "?application_name=":                      false,
		host + "?sslmode=require&sslnegotiation=direct":  true,
		host + "?SSLMODE=disable":                        false,
		host + "?%zz":                                    false,
		host + "?sslmode=disable;user=x":                 false,
	} {
		said, err := judge(url)
		if (said == nil) != good || (err == nil) != good {
			t.Errorf("%s: good: %t\n\tconfiguration: %v\n\tdriver: %v", url, good, said, err)
		}
	}

	// No parameter is known to one of both alone.
	known := regexp.MustCompile(`those that (?:can|may stand there) are ([a-z_, ]+)`)
	var lists [2][]string
	said, err := judge(host + "?nonsense=1")
	for i, err := range []error{said, err} {
		if match := known.FindStringSubmatch(fmt.Sprint(err)); match != nil {
			lists[i] = strings.Split(match[1], ", ")
			slices.Sort(lists[i])
		}
	}
	if len(lists[0]) < 8 || !slices.Equal(lists[0], lists[1]) {
		t.Errorf("parameters\n\tof the configuration: %v\n\tof the driver: %v", lists[0], lists[1])
	}
}
