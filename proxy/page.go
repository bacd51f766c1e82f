package proxy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// A page is what coatcheck itself shows to people. All of its text is escaped.
type page struct {
	Title     string
	Text      []string
	Actions   []action
	Form      *form
	Sessions  *sessionList
	RequestID string
	// Framers are the origins whose pages may show this one in a frame, as in a
	// Content-Security-Policy; "" is nobody.
	Framers string
}

// An action is a link that looks like a button.
type action struct {
	Label   string
	URL     string // "" is the page itself
	Primary bool
}

// A form asks for a confirmation.
type form struct {
	Action   string
	Token    string
	ReturnTo string
	Button   string
}

//go:embed pages/page.html
var pageHTML string

//go:embed pages/sessions.html
var sessionsHTML string

//go:embed pages/page.css
var pageCSS string

var pageTemplate = template.Must(template.Must(template.New("page").Parse(pageHTML)).Parse(sessionsHTML))

// contentSecurityPolicy allows the style sheet and the icon that are part of the page,
// and nothing else: no script, no frame, no other host. A form may lead to the provider,
// since browsers apply form-action to the redirect that answers a form, too. framers are
// page.Framers.
func (p *Proxy) contentSecurityPolicy(framers string) string {
	sum := sha256.Sum256([]byte(pageCSS))
	formAction := "'self'"
	if origin := p.SignIn.EndSessionOrigin(); origin != "" {
		formAction += " " + origin
	}
	return fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; form-action %s; base-uri 'none'; frame-ancestors %s",
		base64.StdEncoding.EncodeToString(sum[:]), formAction, cmp.Or(framers, "'none'"))
}

// writePage answers with a page.
func (p *Proxy) writePage(x *exchange, status int, pg page) error {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, struct {
		page
		Style template.CSS
		Site  string
	}{pg, template.CSS(pageCSS), strings.ToLower(p.PublicURL.Host)})
	if err != nil {
		return coatcheck.E(coatcheck.CodeInternal, "proxy.page", err)
	}
	h := x.w.Header()
	ownHeaders(h)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", p.contentSecurityPolicy(pg.Framers))
	if pg.Framers == "" { // it knows no other origin, and old browsers nothing else
		h.Set("X-Frame-Options", "DENY")
	}
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(b.Bytes())
	}
	return nil
}
