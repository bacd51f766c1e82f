package oidc

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/seal"
)

// The third sign-in within 30 s, with no request served in between, stops the loop;
// the next try starts at zero.
func TestSignInLoop(t *testing.T) {
	i, p, clock := newPair(t, nil)
	b := newBrowser(t)
	for n := range 6 {
		_, err := b.signIn(i, p, "/")
		if (n+1)%loopSignIns != 0 {
			if err != nil {
				t.Fatalf("sign-in %d: %v", n+1, err)
			}
		} else {
			wantCode(t, err, coatcheck.CodeSignInLoop)
			if !strings.Contains(err.Error(), "same session store") {
				t.Errorf("the cause does not say what to do: %v", err)
			}
			if len(b.cookies()) != 0 {
				t.Errorf("cookies left: %q", b.cookies())
			}
		}
		clock.add(time.Second)
	}
}

func TestNoSignInLoop(t *testing.T) {
	for name, between := range map[string]func(p *RelyingParty, b *browser, c *clock){
		"served": func(p *RelyingParty, b *browser, _ *clock) {
			h := http.Header{}
			p.Served(h, b.request("/"))
			b.keep(h)
		},
		"slow":       func(_ *RelyingParty, _ *browser, c *clock) { c.add(loopWindow / 2) },
		"other keys": func(p *RelyingParty, _ *browser, _ *clock) { p.Ring = seal.NewRing() },
		"broken cookie": func(p *RelyingParty, b *browser, _ *clock) {
			h := http.Header{}
			p.Jar.Set(h, p.signInsName, "x", time.Minute)
			b.keep(h)
		},
		"cookie of another place": func(p *RelyingParty, _ *browser, _ *clock) { p.Tenant += "x" },
	} {
		t.Run(name, func(t *testing.T) {
			i, p, clock := newPair(t, nil)
			b := newBrowser(t)
			for n := range 6 {
				if _, err := b.signIn(i, p, "/"); err != nil {
					t.Fatalf("sign-in %d: %v", n+1, err)
				}
				between(p, b, clock)
			}
		})
	}
}

// Served does nothing for a request without the cookie.
func TestServed(t *testing.T) {
	_, p, _ := newPair(t, nil)
	h := http.Header{}
	r := newBrowser(t).request("/")
	r.Header.Set("Cookie", "coatcheck-signins=x; a=b")
	p.Served(h, r)
	if len(h) != 0 {
		t.Errorf("header %v", h)
	}
	if n := testing.AllocsPerRun(100, func() { p.Served(h, r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
