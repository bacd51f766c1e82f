package oidc

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/seal"
)

// goldenParty is who made the golden values.
func goldenParty(t *testing.T) *RelyingParty {
	t.Helper()
	p, _ := newParty(t, "https://idp.example", func(c *Config) {
		ring, err := seal.ParseRing(golden.Keys)
		if err != nil {
			t.Fatal(err)
		}
		c.Ring = ring
	})
	return p
}

func goldenPreLogin() preLogin {
	return preLogin{
		Version: 1, Provider: "corp", State: "state of the golden sign-in", Nonce: "nonce of the golden sign-in",
		Verifier: "verifier of the golden sign-in", ReturnTo: "/cart?item=1", Issued: now.Unix(),
	}
}

func TestGoldenPreLogin(t *testing.T) {
	want, p := goldenPreLogin(), goldenParty(t)
	var got preLogin
	err := unmarshal(golden.Read(t, "pre-login-1.hex"), preLoginVersion, &got)
	golden.Check(t, "pre-login-1.hex", want, got, err)
	data, err := cbor.Marshal(want)
	golden.Written(t, "pre-login-1.hex", data, err)

	// Since it names the issuer.
	named := want
	named.Issuer = "https://idp.example"
	var read preLogin
	err = unmarshal(golden.Read(t, "pre-login-1-issuer.hex"), preLoginVersion, &read)
	golden.Check(t, "pre-login-1-issuer.hex", named, read, err)
	data, err = cbor.Marshal(named)
	golden.Written(t, "pre-login-1-issuer.hex", data, err)

	// The same as it comes in a request.
	header := http.Header{"Cookie": {string(golden.Read(t, "pre-login-1-cookie.txt"))}}
	name, got, err := p.findPreLogin(header, want.State)
	golden.Check(t, "pre-login-1-cookie.txt", want, got, err)
	if !p.isPreLogin(name) {
		t.Errorf("%s is not the name of a sign-in's cookie", name)
	}
	// Nobody begins a sign-in at the cost of one that is under way.
	h := http.Header{}
	p.makeRoom(h, header, 100)
	if len(h) != 0 {
		t.Errorf("a sign-in that is under way is forgotten: %v", h)
	}
}

func TestGoldenAfterLogout(t *testing.T) {
	want := afterLogout{1, "/bye?x=1", now.Unix()}
	var got afterLogout
	err := unmarshal(golden.Read(t, "after-logout-1.hex"), afterLogoutVersion, &got)
	golden.Check(t, "after-logout-1.hex", want, got, err)
	data, err := cbor.Marshal(want)
	golden.Written(t, "after-logout-1.hex", data, err)
	state := string(golden.Read(t, "after-logout-1-state.txt"))
	golden.Check(t, "after-logout-1-state.txt", want.ReturnTo,
		goldenParty(t).SignedOut(newBrowser(t).request("/oauth2/sign_out/done?state="+state)), nil)
}

func TestGoldenSignIns(t *testing.T) {
	header := http.Header{"Cookie": {string(golden.Read(t, "signins-1-cookie.txt"))}}
	golden.Check(t, "signins-1-cookie.txt", []int64{now.UnixMilli(), now.UnixMilli() - 1000}, goldenParty(t).signIns(header), nil)
}

// laterVersion returns what a node of a later version has sealed in the browser's cookie for a
// sign-in, in its place.
func laterVersion(t *testing.T, p *RelyingParty, b *browser, state string, change map[int]any) {
	t.Helper()
	name, _, err := p.findPreLogin(b.request("/").Header, state)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[int]any{}
	for n, value := range cookie.Each(b.request("/").Header) {
		if n != name {
			continue
		}
		plain, err := p.Ring.OpenValue(p.preLoginPlace(name), value)
		if err != nil {
			t.Fatal(err)
		}
		if err := cbor.Unmarshal(plain, &fields); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range change {
		fields[k] = v
	}
	plain, err := cbor.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	value, err := p.Ring.SealValue(p.preLoginPlace(name), plain)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	p.Jar.Set(h, name, value, preLoginKept)
	b.keep(h)
}

// A sign-in that a node of a later version began is completed by this one, if it may ignore
// what it does not know.
func TestLaterFieldsOfASignIn(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/cart")
	laterVersion(t, p, b, asked.Get("state"), map[int]any{8: "x", 1000: []int{1}})
	i.set(func() { i.nonce = asked.Get("nonce") })
	if login, err := b.callback(p, i.response(asked)); err != nil || login.ReturnTo != "/cart" {
		t.Errorf("%+v, %v", login, err)
	}
}

// If it may not, it knows nothing: the cookie and the code are left to a node that does.
func TestLaterVersionOfASignIn(t *testing.T) {
	i, p, _ := newPair(t, nil)
	b := newBrowser(t)
	asked := b.start(p, "/")
	laterVersion(t, p, b, asked.Get("state"), map[int]any{0: preLoginVersion + 1, 2: []string{"another type"}})
	cookies := strings.Join(b.cookies(), " ")
	for range 2 {
		_, err := b.callback(p, i.response(asked))
		wantCode(t, err, coatcheck.CodeUnknown)
	}
	b.start(p, "/") // another sign-in does not cost it its cookie
	if got := strings.Join(b.cookies(), " "); !strings.Contains(got, cookies) {
		t.Errorf("the browser had %s and has %s", cookies, got)
	}
	if i.redeemed() != 0 {
		t.Error("the code was spent")
	}
}

// A sign-out of another version leads nowhere, and is no failure.
func TestLaterVersionOfASignOut(t *testing.T) {
	p := goldenParty(t)
	for want, fields := range map[string]map[int]any{
		"/bye": {0: 1, 1: "/bye", 2: now.Unix(), 3: "x"},
		"":     {0: 2, 1: "/bye", 2: now.Unix()},
	} {
		plain, err := cbor.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		state, err := p.Ring.SealValue(p.afterLogoutPlace(), plain)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.SignedOut(newBrowser(t).request("/oauth2/sign_out/done?state=" + state)); got != want {
			t.Errorf("%v leads to %q, want %q", fields, got, want)
		}
	}
}
