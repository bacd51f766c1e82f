package proxy

import (
	"bytes"
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
	RequestID string
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

//go:embed pages/page.css
var pageCSS string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// contentSecurityPolicy allows the style sheet and the icon that are part of the page,
// and nothing else: no script, no frame, no other host. A form may lead to the provider,
// since browsers apply form-action to the redirect that answers a form, too.
func (p *Proxy) contentSecurityPolicy() string {
	sum := sha256.Sum256([]byte(pageCSS))
	formAction := "'self'"
	if origin := p.SignIn.EndSessionOrigin(); origin != "" {
		formAction += " " + origin
	}
	return fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; form-action %s; base-uri 'none'; frame-ancestors 'none'",
		base64.StdEncoding.EncodeToString(sum[:]), formAction)
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
	h.Set("Content-Security-Policy", p.contentSecurityPolicy())
	h.Set("X-Frame-Options", "DENY")
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(b.Bytes())
	}
	return nil
}
