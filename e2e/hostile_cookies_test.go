package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostileCookies is class C. C7, the attributes, is held by every answer (site.lint).
func hostileCookies(t *testing.T, s *site) {
	alice := s.signIn(t, "alice")
	valid := alice.value(s.cookie)
	with := func(value string) string { return "Cookie: " + s.cookie + "=" + value }
	garbage := s.cookie + "-" + strings.Repeat("0", 32) + "." + strings.Repeat("A", 22)

	t.Run("A-C1", func(t *testing.T) {
		uniform := ""
		flip := func(value string) {
			a := s.get(t, "/admin", with(value))
			s.denied(t, a, true)
			got := fmt.Sprint(a.StatusCode, len(a.Header), len(a.Header["Set-Cookie"]), len(a.location()), a.body)
			if uniform == "" {
				uniform = got
			}
			if got != uniform {
				t.Errorf("the answer to %q differs: %s, want %s", value, got, uniform)
			}
		}
		for i := range len(valid) {
			if i > len(s.cookie) && i%3 != 0 && i < len(valid)-2 {
				continue
			}
			b := []byte(valid)
			b[i] ^= 1
			if b[i] == ';' || b[i] == ' ' {
				b[i] = 'x'
			}
			flip(string(b))
		}
		for _, value := range []string{
			"", ".", garbage, valid + "x", valid + ".", "x" + valid, valid[:len(valid)-1], strings.ToUpper(valid), `"` + valid + `"`,
			strings.Replace(valid, ".", "..", 1), strings.Repeat("A", 8000), valid + "=", strings.ReplaceAll(valid, ".", "%2e"),
		} {
			flip(value)
		}
	})
	t.Run("A-C2", func(t *testing.T) {
		// A session that is stored has one cookie, and nothing is ever read from parts.
		bob := s.signIn(t, "bob").value(s.cookie)
		part := func(n int, value string) string { return fmt.Sprintf("%s.%d=%s", s.cookie, n, value) }
		half := len(valid) / 2
		for _, parts := range [][]string{
			{part(0, valid)},
			{part(1, valid)},
			{part(0, valid[:half])},
			{part(0, valid[:half]), part(1, valid[half:])},
			{part(1, valid[half:]), part(0, valid[:half])},
			{part(0, valid[half:]), part(1, valid[:half])},
			{part(0, bob[:half]), part(1, valid[half:])},
			{s.cookie + "=" + valid[:half], part(0, valid[half:])},
			{s.cookie + "=" + valid[:half], part(1, valid[half:])},
		} {
			for _, target := range []string{"/admin", "/oauth2/auth"} {
				s.denied(t, s.get(t, target, "Cookie: "+strings.Join(parts, "; ")), target == "/admin")
			}
		}
		// Nor do they take anything from a cookie that is whole.
		a := s.get(t, "/admin", with(valid)+"; "+part(0, bob[:half])+"; "+part(1, bob[half:]))
		s.served(t, a, "alice")
		if got := a.field("Cookie"); got != nil {
			t.Errorf("the app got Cookie: %q", got)
		}
	})
	t.Run("A-C3, A-C4", func(t *testing.T) {
		bob := s.signIn(t, "bob").value(s.cookie)
		for _, order := range []string{valid + "|" + garbage, garbage + "|" + valid, "|" + valid, valid + "|" + valid, valid + "|x|y|" + garbage} {
			var pairs []string
			for value := range strings.SplitSeq(order, "|") {
				pairs = append(pairs, s.cookie+"="+value)
			}
			s.served(t, s.get(t, "/admin", "Cookie: "+strings.Join(pairs, "; ")), "alice")
			s.served(t, s.get(t, "/admin", "Cookie: "+strings.Join(pairs, "\r\nCookie: ")), "alice")
		}
		for _, pair := range [][2]string{{valid, bob}, {bob, valid}} {
			a := s.get(t, "/admin", with(pair[0])+"; "+s.cookie+"="+pair[1], browserPage)
			s.denied(t, a, false)
			if a.StatusCode != http.StatusBadRequest || strings.Contains(a.body, "alice") || strings.Contains(a.body, "bob") || a.Header["Set-Cookie"] != nil {
				t.Errorf("two sessions: %s, %q", a.Status, a.Header["Set-Cookie"])
			}
			s.denied(t, s.get(t, "/oauth2/auth", with(pair[0])+"; "+s.cookie+"="+pair[1]), false)
		}
		// Anybody who may set cookies for the host can add some; never more than a
		// few are looked up.
		s.denied(t, s.get(t, "/admin", with(valid)+strings.Repeat("; "+s.cookie+"=", 3)+"1; "+
			s.cookie+"=2; "+s.cookie+"=3; "+s.cookie+"=4; "+s.cookie+"=5"), false)
		s.served(t, s.get(t, "/admin", with(bob)), "bob")
	})
	t.Run("A-C5", func(t *testing.T) {
		c := new(cookies)
		location := s.start(t, c, "")
		name := c.names(s.cookie + "-login-")[0]
		s.denied(t, s.get(t, "/admin", with(c.value(name))), true)
		tokens := s.provider.tokens.Load()
		for _, value := range []string{valid, garbage, "", "x"} {
			a := s.get(t, s.provider.authorize(t, location, "alice"), "Cookie: "+name+"="+value)
			s.denied(t, a, false)
			if a.StatusCode != http.StatusBadRequest {
				t.Errorf("%q as a pre-login cookie: %s", value, a.Status)
			}
		}
		// One sign-in's cookie under the name of another's.
		other := new(cookies)
		s.start(t, other, "")
		a := s.get(t, s.provider.authorize(t, location, "alice"), "Cookie: "+name+"="+other.pairs[0][1])
		s.denied(t, a, false)
		if n := s.provider.tokens.Load() - tokens; n != 0 {
			t.Errorf("%d token requests", n)
		}
	})
	t.Run("A-C10", func(t *testing.T) {
		for _, n := range []int{1000, 50_000} {
			a := s.get(t, "/admin", "Cookie: "+strings.Repeat("a=;", n)+strings.TrimPrefix(alice.line(), "Cookie: "))
			if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge && a.StatusCode != http.StatusBadRequest || len(a.reached) > 0 {
				t.Errorf("%d cookies: %s, %d requests reached the app", n, a.Status, len(a.reached))
			}
		}
		lines := make([]string, 1000)
		for i := range lines {
			lines[i] = "Cookie: a="
		}
		if a := s.get(t, "/admin", lines...); a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("1000 lines of cookies: %s", a.Status)
		}
		s.served(t, s.get(t, "/admin", "Cookie: "+strings.Repeat("a=;", 150)+strings.TrimPrefix(alice.line(), "Cookie: ")), "alice")
	})
	t.Run("A-C11", func(t *testing.T) {
		for _, index := range []string{"99999999", "-1", "1e9", "16", "00", "01", "+1", "", "0x1", "18446744073709551616", " 1", "1.0"} {
			start := time.Now()
			a := s.get(t, "/admin", alice.line()+"; "+s.cookie+"."+index+"=x")
			if a.StatusCode != http.StatusBadRequest || len(a.reached) > 0 {
				t.Errorf("part %q: %s", index, a.Status)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("part %q took %s", index, took)
			}
		}
		var parts []string
		for i := range 1000 {
			parts = append(parts, fmt.Sprintf("%s.%d=%s", s.cookie, i, "x"))
		}
		a := s.get(t, "/admin", "Cookie: "+strings.Join(parts, "; "))
		if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge || len(a.reached) > 0 {
			t.Errorf("a cookie of 1000 parts: %s", a.Status)
		}
		s.denied(t, s.get(t, "/admin", "Cookie: "+strings.Join(parts[:200], "; ")), false)
		s.denied(t, s.get(t, "/admin", "Cookie: "+strings.Join(parts[:16], "; ")), true)
	})
	t.Run("A-C12", func(t *testing.T) {
		for _, known := range []string{garbage, "known", valid} {
			c := &cookies{pairs: [][2]string{{s.cookie, known}}}
			s.signInTo(t, c, "alice", "")
			if got := c.value(s.cookie); got == known || got == "" {
				t.Errorf("the ticket after the sign-in is %q, and was %q before it", got, known)
			}
			s.served(t, s.get(t, "/admin", c.line()), "alice")
			s.denied(t, s.get(t, "/admin", with(known)), true)
		}
	})
	t.Run("A-C13", func(t *testing.T) {
		c := s.signIn(t, "bob")
		before := c.value(s.cookie)
		s.signInTo(t, c, "bob", "")
		s.served(t, s.get(t, "/admin", c.line()), "bob")
		s.denied(t, s.get(t, "/admin", with(before)), true)
	})
	t.Run("A-C16", func(t *testing.T) {
		seen := map[string]bool{}
		for range 5 {
			value := s.signIn(t, "alice").value(s.cookie)
			id, secret, _ := strings.Cut(strings.TrimPrefix(value, s.cookie+"-"), ".")
			raw, err := base64.RawURLEncoding.Strict().DecodeString(secret)
			if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || err != nil || len(raw) != 16 {
				t.Errorf("%q is not a ticket of 128 and 128 bits", value)
			}
			if seen[id] || seen[secret] {
				t.Errorf("%q has come twice", value)
			}
			seen[id], seen[secret] = true, true
		}
	})
	t.Run("A-D5", func(t *testing.T) { s.hidesSessions(t) })
	t.Run("A-X6: an app can't set our cookies", func(t *testing.T) {
		a := s.get(t, "/public/sets-cookies")
		got := a.Header["Set-Cookie"]
		if want := []string{"theme=dark; Path=/", "__Host-coatchecker=1"}; !slices.Equal(got, want) {
			t.Errorf("the browser gets %q, want %q", got, want)
		}
	})
}

// hidesSessions checks that who guesses a ticket's secret learns nothing of its session:
// not that it lives, not that it has ended, and not that there ever was one.
func (s *site) hidesSessions(t *testing.T) {
	t.Helper()
	live, over := s.signIn(t, "alice").value(s.cookie), s.signIn(t, "bob").value(s.cookie)
	with := func(value string) string { return "Cookie: " + s.cookie + "=" + value }
	if a := s.get(t, "/oauth2/sign_out", with(over), "Sec-Fetch-Site: same-origin"); a.StatusCode != http.StatusSeeOther {
		t.Fatalf("the sign-out answers %s", a.Status)
	}
	const asScript = "Accept: application/json"
	if a := s.get(t, "/admin", with(over), asScript); !strings.Contains(a.body, `"reason":"signed_out"`) {
		t.Errorf("who holds the ticket is told %s", a.body)
	}

	// What is made anew for every answer: request ids, states, names of pre-login cookies.
	made := regexp.MustCompile(`[0-9A-Za-z_-]{16,}`)
	told := func(request string) string {
		a := s.send(t, request)
		if len(a.reached) > 0 {
			t.Errorf("a secret that was guessed leads to the app: %q", a.reached)
		}
		a.Header.Del("Date")
		return made.ReplaceAllString(fmt.Sprintf("%s\n%v\n%s", a.Status, a.Header, a.body), "*")
	}
	const secret = "AAAAAAAAAAAAAAAAAAAAAA" // of nobody's ticket
	nobodys := s.cookie + "-" + strings.Repeat("0", 32) + "." + secret
	for _, lines := range [][]string{{browserPage}, {browserPage, "Sec-Fetch-Mode: navigate"}, {asScript}, {asScript, "Sec-Fetch-Mode: cors"}} {
		for _, target := range []string{
			"GET /admin", "POST /admin", "GET /oauth2/auth", "GET /oauth2/userinfo", "GET /oauth2/sessions", "GET /oauth2/sign_in", "GET /oauth2/callback?state=x",
		} {
			method, path, _ := strings.Cut(target, " ")
			ask := func(ticket string) string { return told(s.request(method, path, append(lines, with(ticket))...)) }
			want := ask(nobodys)
			for name, ticket := range map[string]string{"lives": live, "has ended": over} {
				if got := ask(handle(ticket) + "." + secret); got != want {
					t.Errorf("%s %q for a session that %s: %s\nwant, as for one that never was: %s", target, lines, name, got, want)
				}
			}
		}
	}
	s.served(t, s.get(t, "/admin", with(live)), "alice")
}
