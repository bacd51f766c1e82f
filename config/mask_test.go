package config

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// shown returns a text as messages would show it.
func shown(text string) string {
	lines := strings.Split(text, "\n")
	for i, hidden := range newMask().hide(lines) {
		line, _ := cut(lines[i], hidden, 0)
		lines[i] = string(line)
	}
	return strings.Join(lines, "\n")
}

func TestMask(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"plain", "client_secret: s3", "client_secret: [hidden]"},
		{"known keys", "client_secret_file: a\nkey_prefix: b\ninsecure_id_token_hint: true", "client_secret_file: a\nkey_prefix: b\ninsecure_id_token_hint: true"},
		{"other files", "token_file: a # x", "token_file: [hidden]"},
		{"quoted key", `"password":s3`, `"password":[hidden]`},
		{"spaced colon", "password : s3", "password : [hidden]"},
		{"no space", "api_key:s3", "api_key:[hidden]"},
		{"equals sign", "api_key=s3", "api_key=[hidden]"},
		{"no colon", "client_secret s3", "client_secret [hidden]"},
		{"explicit key", "? client_secret\n: s3", "? client_secret\n[hidden]"},
		{"misspelt", "client_sekret: s3", "client_sekret: [hidden]"},
		{"in a comment", "listen: a # client_secret: s3", "listen: a # client_secret: [hidden]"},
		{"flow", "- {name: corp, client_secret: s3, client_id: web}", "- {name: corp, client_secret: [hidden]"},
		{"capitals", "Client_SECRET: s3", "Client_SECRET: [hidden]"},
		{"literal", "- name: a\n  token: |\n    s3\n\n    s3\n  issuer: b", "- name: a\n  token: [hidden]\n[hidden]\n\n[hidden]\n  issuer: b"},
		{"next line", "token:\n  s3\nlisten: a", "token:\n[hidden]\nlisten: a"},
		{"badly indented", "  token: |\n  s3\n s3\n  listen: a", "  token: [hidden]\n[hidden]\n[hidden]\n  listen: a"},
		{"list", "token:\n- s3\n- a: s3\nlisten: a", "token:\n[hidden]\n[hidden]\nlisten: a"},
		{"quotes over lines", "token: \"s3\nlisten: s3\nurl: s3\\\"\ns3\" \nlisten: a", "token: [hidden]\n[hidden]\n[hidden]\n[hidden]\nlisten: a"},
		{"quotes on the next line", "token:\n  's3\nlisten: s3''\n  ' \nlisten: a", "token:\n[hidden]\n[hidden]\n[hidden]\nlisten: a"},
		{"deeper mapping", "vault:\n  listen: s3\n  more:\n    listen: s3\nlisten: a", "vault:\n[hidden]\n[hidden]\n[hidden]\nlisten: a"},
		{"key ring", "keys:\n  file: a\n  env: b\n  k1: s3\nlisten: c", "keys:\n  file: a\n  env: b\n[hidden]\nlisten: c"},
		{"key ring in place", "keys: s3\nlisten: c", "keys: [hidden]\nlisten: c"},
		{"keys elsewhere", "token:\n  file: s3\nlisten: c", "token:\n[hidden]\nlisten: c"},
		{"URL", "url: redis://user:s3@host:1/0 # b", "url: redis://[hidden]@host:1/0 # b"},
		{"password in a query", "url: postgres://db/web?a=b&password=s3&c=d # e", "url: postgres://db/web?a=b&password=[hidden]"},
		{"URL of several hosts", "url: postgres://a:s3@db-1,db-2:5432/web?sslmode=disable", "url: postgres://[hidden]@db-1,db-2:5432/web?sslmode=disable"},
		{"URL without user", "url: redis://:s3@host", "url: redis://[hidden]@host"},
		{"odd password in a URL", "url: redis://u:s3@s/3 s3@host", "url: redis://[hidden]@host"},
		{"URL in a list", "{url: redis://host, emails: [a@b.c]}", "{url: redis://host, emails: [a@b.c]}"},
		{"two URLs", "[http://a:s3@b, http://c:s3@d]", "[http://[hidden]@b, http://[hidden]@d]"},
		{"URL and key", "{url: redis://a:s3@b, password: s3}", "{url: redis://[hidden]@b, password: [hidden]"},
		{"key in a URL", "url: redis://token:s3@host", "url: redis://[hidden]"},
		{"URL under a key", "token: redis://a:s3@b", "token: [hidden]"},
		{"key in a password", "url: redis://a:token=s3@b", "url: redis://[hidden]"},
		{"path", "secrets/client", "secrets/client"},
		{"slashes before a key", "//client_secret: s3", "//client_secret: [hidden]"},
		{"no host", "x://client_secret: s3", "x://client_secret: [hidden]"},
		{"no port", "x://client_secret:5s3", "x://client_secret:[hidden]"},
		{"telling host", "issuer: https://keycloak.example.com:8443/realms/a", "issuer: https://keycloak.example.com:8443/realms/a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := shown(tt.text)
			if strings.Contains(got, "s3") {
				t.Errorf("a secret shows:\n%s", got)
			}
			if got != tt.want {
				t.Errorf("shown:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

// TestExcerpt follows the caret through cut, hidden and long lines.
func TestExcerpt(t *testing.T) {
	long := strings.Repeat("é", 300)
	for _, tt := range []struct {
		line   string
		hidden []span
		column int
		want   string
	}{
		{"abc", nil, 2, "    7 | abc\n      |  ^"},
		{"abc", nil, 99, "    7 | abc\n      |    ^"},
		{"äbc", nil, 2, "    7 | äbc\n      |  ^"},
		{"a\tb\x1b\u202ec", nil, 1, "    7 | a→b��c\n      | ^"},
		{"ab12cd", []span{{2, 4}}, 2, "    7 | ab[hidden]cd\n      |  ^"},
		{"ab12cd", []span{{2, 4}}, 4, "    7 | ab[hidden]cd\n      |   ^"},
		{"ab12cd", []span{{2, 4}}, 6, "    7 | ab[hidden]cd\n      |            ^"},
		{"ab12cd34", []span{{2, 4}, {6, 8}}, 8, "    7 | ab[hidden]cd[hidden]\n      |             ^"},
		{long, nil, 1, "    7 | " + long[:2*width] + "\n      | ^"},
		{long, nil, 150, "    7 | " + long[:2*width] + "\n      | " + strings.Repeat(" ", width/2) + "^"},
		{long, nil, 300, "    7 | " + long[:2*width] + "\n      | " + strings.Repeat(" ", width-1) + "^"},
	} {
		got := excerpt(7, tt.line, tt.hidden, tt.column)
		if got != tt.want {
			t.Errorf("excerpt(%.20q, %v, %d) =\n%s\nwant\n%s", tt.line, tt.hidden, tt.column, got, tt.want)
		}
	}
}

// FuzzParse puts a canary where secrets stand, with anything around it: reading must
// not panic, and no message may hold the canary.
func FuzzParse(f *testing.F) {
	const canary = "c4n4ry"
	styles := []string{
		"client_secret: " + canary,
		"client_secret: \"" + canary + "\"",
		"client_secret: '" + canary + "'",
		"client_secret: |\n      " + canary,
		"client_secret:\n      " + canary,
		"client_secret: \"first\n      " + canary + "\"",
		"client_secret: [" + canary + "]",
		"client_secret: {a: " + canary + "}",
		"\"client_secret\":" + canary,
		"url: redis://user:" + canary + "@127.0.0.1:6379/0",
		"url: postgres://user:" + canary + "@127.0.0.1,127.0.0.2/db",
		"url: postgres://user@127.0.0.1/db?password=" + canary,
	}
	f.Add("", "")
	f.Add("public_url: https://app.example.com\nproviders:\n  - name: corp\n    ", "\n    issuer: x\nroutes:\n  - {path: /}\n")
	f.Add("providers: [{name: corp, ", "}]")
	f.Add("listen: \"", "\"")
	f.Add("? ", "\n: x")
	f.Add("a: &b\n", "\nc: *b")
	f.Add("- - - ", "\n- {")
	f.Add("providers: [{#", "}]")
	f.Add("store: {redis: {", "}}\n\tx")
	f.Add("%YAML 1.2\n---\n", "\n---\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.Contains(before+after, canary[:3]) {
			t.Skip() // the canary may stand only where a secret does
		}
		for _, style := range styles {
			// What follows is another line: characters behind a value are the value's.
			text := before + style + "\n" + after
			cfg, err := parsed("coatcheck.yaml", []byte(text))
			if (cfg == nil) == (err == nil) {
				t.Fatalf("parsed(%q) = %v, %v", text, cfg, err)
			}
			if err == nil {
				continue
			}
			if strings.Contains(err.Error(), canary) {
				t.Fatalf("the message holds the secret\n%s\n\n%v", text, err)
			}
			if !utf8.ValidString(err.Error()) {
				t.Fatalf("the message is no text: %q", err.Error())
			}
		}
	})
}
