package oidc

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
)

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func sealPreLogin(t *testing.T, p *RelyingParty, name string, pre preLogin) string {
	t.Helper()
	pre.Version = cmp.Or(pre.Version, preLoginVersion)
	plain, err := cbor.Marshal(pre)
	if err != nil {
		t.Fatal(err)
	}
	value, err := p.Ring.SealValue(p.preLoginPlace(name), plain)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func headerSize(r *http.Request) (n int) {
	for name, value := range cookie.Each(r.Header) {
		n += len(name) + len(value)
	}
	return n
}

// A-O16: a hundred sign-ins begun in one browser leave five cookies, and fewer if they
// are large; the latest is never the one that goes.
func TestPreLoginsBounded(t *testing.T) {
	long := "/" + strings.Repeat("x", MaxReturnURL-1)
	for _, c := range []struct {
		name, returnTo string
		want           int
	}{
		{"short", "/", maxPreLogins},
		{"long", long, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, p, clock := newPair(t, nil)
			b := newBrowser(t)
			for range 100 {
				asked := b.start(p, c.returnTo)
				clock.add(time.Second)
				if n := len(b.cookies()); n > c.want {
					t.Fatalf("%d cookies", n)
				}
				if n := headerSize(b.request("/")); n > maxPreLoginBytes {
					t.Fatalf("%d bytes of cookies", n)
				}
				if _, _, err := p.findPreLogin(b.request("/").Header, asked.Get("state")); err != nil {
					t.Fatalf("the latest sign-in: %v", err)
				}
			}
			if n := len(b.cookies()); n != c.want {
				t.Errorf("%d cookies, want %d", n, c.want)
			}
			asked := b.start(p, c.returnTo)
			i.set(func() { i.nonce = asked.Get("nonce") })
			if login, err := b.callback(p, i.response(asked)); err != nil || login.ReturnTo != c.returnTo {
				t.Errorf("the last sign-in: %v", err)
			}
		})
	}
}

// No cookie is over what a browser keeps (A-R14).
func TestPreLoginSize(t *testing.T) {
	_, p, _ := newPair(t, func(c *Config) { c.Name = strings.Repeat("n", 60) })
	h := http.Header{}
	_, err := p.Start(h, newBrowser(t).request("/"), "/"+strings.Repeat("é", (MaxReturnURL-1)/6))
	if err != nil {
		t.Fatal(err)
	}
	pair, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
	if len(pair)-1 > cookie.MaxSize {
		t.Errorf("%d bytes", len(pair)-1)
	}
	_, p, _ = newPair(t, func(c *Config) { c.Name = strings.Repeat("n", 3000) })
	h = http.Header{}
	if _, err := p.Start(h, newBrowser(t).request("/"), "/"); err == nil || len(h) != 0 {
		t.Errorf("an oversized cookie was set: %v", h)
	}
}

// Which cookies of a request go when a sign-in begins.
func TestMakeRoom(t *testing.T) {
	_, p, clock := newPair(t, nil)
	other, _ := newParty(t, p.Issuer, nil)
	name := func(s string) string { return p.preLoginName(s) }
	cookies := []string{
		name("good") + "=" + sealPreLogin(t, p, name("good"), preLogin{Issued: now.Unix()}),
		name("old") + "=" + sealPreLogin(t, p, name("old"), preLogin{Issued: now.Add(-preLoginLife).Unix()}),
		name("broken") + "=x",
		name("foreign") + "=" + sealPreLogin(t, other, name("foreign"), preLogin{Issued: now.Unix()}),
		"__Host-coatcheck-login-0123=x",
		"__Host-coatcheck-login-0123456789ABCDEF=x",
		"app=x",
	}
	expired := func(cookies []string) map[string]bool {
		h := http.Header{}
		p.makeRoom(h, http.Header{"Cookie": {strings.Join(cookies, "; ")}}, 100)
		m := map[string]bool{}
		for _, c := range (&http.Response{Header: h}).Cookies() {
			m[c.Name] = true
		}
		return m
	}
	got := expired(cookies)
	if len(got) != 2 || !got[name("old")] || !got[name("broken")] {
		t.Errorf("expired %v", got)
	}
	// What other keys have sealed goes first when there are too many.
	for _, s := range []string{"a", "b", "c"} {
		clock.add(time.Second)
		cookies = append(cookies, name(s)+"="+sealPreLogin(t, p, name(s), preLogin{Issued: clock.now().Unix()}))
	}
	if got := expired(cookies); len(got) != 3 || !got[name("foreign")] {
		t.Errorf("expired %v", got)
	}
	// The work for a request full of them is bounded.
	var many []string
	for range 200 {
		many = append(many, name(random())+"=x")
	}
	if got := expired(many); len(got) != maxPreLoginsSeen {
		t.Errorf("%d expired, want %d", len(got), maxPreLoginsSeen)
	}
}

// Decoding is strict: only what the encoder writes.
func TestPreLoginStrict(t *testing.T) {
	_, p, _ := newPair(t, nil)
	name := p.preLoginName("s")
	good, err := cbor.Marshal(preLogin{Version: preLoginVersion, Provider: "corp", State: "s"})
	if err != nil {
		t.Fatal(err)
	}
	for what, plain := range map[string][]byte{
		"trailing": append(append([]byte{}, good...), 0),
		"short":    good[:len(good)-1],
		"list":     {0x80},
		"empty":    {},
		"twice":    append(append([]byte{good[0] + 1}, good[1:]...), 0, preLoginVersion),
		"tagged":   append([]byte{0xd9, 0xd9, 0xf7}, good...),
	} {
		value, err := p.Ring.SealValue(p.preLoginPlace(name), plain)
		if err != nil {
			t.Fatal(err)
		}
		if pre, err := p.openPreLogin(name, value); err != seal.ErrBroken {
			t.Errorf("%s: %+v, %v", what, pre, err)
		}
	}
}
