package devprovider

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

//go:embed pages/*.html
var pageFiles embed.FS

//go:embed pages/style.css
var styleCSS []byte

//go:embed pages/icon.svg
var iconSVG []byte

var pages = func() map[string]*template.Template {
	layout := template.Must(template.ParseFS(pageFiles, "pages/layout.html"))
	byName := map[string]*template.Template{}
	for _, name := range []string{"home", "signin", "signout", "signedout", "failure"} {
		byName[name] = template.Must(template.Must(layout.Clone()).ParseFS(pageFiles, "pages/"+name+".html"))
	}
	return byName
}()

// show renders a page. Forms may lead to the provider itself and to formTargets.
func (p *Provider) show(w http.ResponseWriter, status int, name string, formTargets []string, data any) {
	var body bytes.Buffer
	if err := pages[name].Execute(&body, data); err != nil {
		p.log.Error("page failed", "page", name, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "+
		"frame-ancestors 'none'; form-action "+strings.Join(append([]string{"'self'"}, formTargets...), " "))
	h.Set("X-Content-Type-Options", "nosniff")
	// The URL of a sign-in page has the client's state in it. To ourselves it may go:
	// without any referrer, a browser says "Origin: null" of our own forms.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the browser is gone; nobody to tell
}

// A fact is a line of an error page: a parameter and what it was.
type fact struct{ Name, Value string }

// fail shows an error page, for errors that must not be sent to a client.
func (p *Provider) fail(w http.ResponseWriter, status int, title, text string, facts ...fact) {
	p.show(w, status, "failure", nil, struct {
		Title, Text string
		Facts       []fact
	}{title, text, facts})
}

// home says what this is to somebody who opens the issuer's URL.
func (p *Provider) home(w http.ResponseWriter, _ *http.Request) {
	p.show(w, http.StatusOK, "home", nil, struct {
		Title, Issuer, SignOut string
		Users                  []User
	}{"An OpenID provider for trying things out", p.issuer, endSessionPath, p.users})
}

// origins returns the origins of URLs as sources of a Content-Security-Policy.
func origins(uris []string) []string {
	var out []string
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil {
			continue // New has parsed them all
		}
		if o := u.Scheme + "://" + u.Host; !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out
}

func serveAsset(contentType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(body)
	}
}
