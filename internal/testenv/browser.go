package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// A Browser is an HTTP client that behaves like one person's browser where coatcheck
// looks: it keeps cookies by a browser's rules, follows redirects, sends the
// Sec-Fetch headers of a navigation and fills in forms. Its methods may be called by
// several goroutines, like tabs that share a profile.
type Browser struct {
	Jar    http.CookieJar
	client *http.Client
}

// maxRedirects is how many redirects Chromium and Firefox follow.
const maxRedirects = 20

// maxPage bounds the part of an answer that a Browser reads.
const maxPage = 16 << 20

// NewBrowser returns a browser without cookies. Its connections are closed when the
// test ends.
func NewBrowser(t testing.TB) *Browser {
	t.Helper()
	jar, err := newJar()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &Browser{
		Jar:    jar,
		client: &http.Client{Jar: jar, Transport: transport, CheckRedirect: checkRedirect},
	}
}

// A Page is an answer, read to its end.
type Page struct {
	Status    int
	URL       *url.URL // where the redirects ended
	Redirects []string // the URLs that redirected, in order
	Header    http.Header
	Body      string
}

// Open navigates to a URL, as if it had been typed, and follows redirects.
func (b *Browser) Open(ctx context.Context, url string) (*Page, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return b.navigate(req, nil)
}

// SignIn opens a URL and, where that leads to a form that asks for a user name and a
// password, signs in there with the name as both. With a session at the provider
// there is no form, and SignIn is Open.
func (b *Browser) SignIn(ctx context.Context, url, username string) (*Page, error) {
	page, err := b.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	form, err := page.form()
	if err != nil || !form.fields.Has("username") || !form.fields.Has("password") {
		return page, nil
	}
	return b.Submit(ctx, page, map[string]string{"username": username, "password": username})
}

// Submit fills in the first form of a page, presses its first button and follows
// redirects. A field that fill does not name keeps the value it has in the page.
func (b *Browser) Submit(ctx context.Context, page *Page, fill map[string]string) (*Page, error) {
	form, err := page.form()
	if err != nil {
		return nil, err
	}
	for name, value := range fill {
		form.fields.Set(name, value)
	}
	var req *http.Request
	if form.method == http.MethodPost {
		req, err = http.NewRequestWithContext(ctx, form.method, form.action.String(), strings.NewReader(form.fields.Encode()))
	} else {
		action := *form.action
		action.RawQuery = form.fields.Encode()
		req, err = http.NewRequestWithContext(ctx, form.method, action.String(), nil)
	}
	if err != nil {
		return nil, err
	}
	if form.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", origin(page.URL))
	}
	return b.navigate(req, page.URL)
}

// Fetch sends a request as it stands, with the browser's cookies, the way a script
// would: no header says "navigation", and no redirect is followed.
func (b *Browser) Fetch(req *http.Request) (*Page, error) {
	client := *b.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return read(client.Do(req))
}

// navigate sends what a browser sends with a top-level navigation. The initiator is
// the page whose form was sent, nil for a typed address.
func (b *Browser) navigate(req *http.Request, initiator *url.URL) (*Page, error) {
	req.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	req.Header.Set("Sec-Fetch-Dest", "document")
	req.Header.Set("Sec-Fetch-Mode", "navigate")
	req.Header.Set("Sec-Fetch-Site", site(initiator, req.URL))
	req.Header.Set("Sec-Fetch-User", "?1")
	req.Header.Set("Upgrade-Insecure-Requests", "1")
	return read(b.client.Do(req))
}

func read(resp *http.Response, err error) (*Page, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resp.Request.URL.Redacted(), err)
	}
	page := &Page{Status: resp.StatusCode, URL: resp.Request.URL, Header: resp.Header, Body: string(body)}
	for r := resp.Request.Response; r != nil; r = r.Request.Response {
		page.Redirects = append([]string{r.Request.URL.String()}, page.Redirects...)
	}
	return page, nil
}

// checkRedirect gives the next request of a navigation the headers that a browser
// would: one cross-site hop makes the whole chain cross-site (Fetch Metadata §2.2).
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from := via[len(via)-1]
	so, hop := from.Header.Get("Sec-Fetch-Site"), site(from.URL, req.URL)
	if siteRank[hop] < siteRank[so] {
		hop = so
	}
	if so == "none" {
		hop = so
	}
	req.Header.Set("Sec-Fetch-Site", hop)
	// The client has put the redirecting address there; a browser sends the page
	// that began the navigation, or nothing where the policy is no-referrer.
	req.Header.Del("Referer")
	if req.Method != http.MethodPost {
		req.Header.Del("Origin")
	}
	return nil
}

var siteRank = map[string]int{"same-origin": 0, "same-site": 1, "cross-site": 2}

// site returns the Sec-Fetch-Site value of one hop. Hosts of one name count as one
// site, which is all that loopback tests need: ports do not matter, other names are
// other sites.
func site(from, to *url.URL) string {
	switch {
	case from == nil:
		return "none"
	case origin(from) == origin(to):
		return "same-origin"
	case from.Scheme == to.Scheme && from.Hostname() == to.Hostname():
		return "same-site"
	default:
		return "cross-site"
	}
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// jar keeps cookies by the rules of RFC 6265bis that net/http/cookiejar leaves out:
// name prefixes, sizes, and Secure cookies on loopback, which browsers trust without
// TLS.
type jar struct{ cookies *cookiejar.Jar }

func newJar() (*jar, error) {
	cookies, err := cookiejar.New(nil)
	return &jar{cookies}, err
}

// SetCookies implements http.CookieJar.
func (j *jar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	var kept []*http.Cookie
	for _, c := range cookies {
		if acceptable(u, c) {
			kept = append(kept, c)
		}
	}
	j.cookies.SetCookies(trusted(u), kept)
}

// Cookies implements http.CookieJar.
func (j *jar) Cookies(u *url.URL) []*http.Cookie { return j.cookies.Cookies(trusted(u)) }

func acceptable(u *url.URL, c *http.Cookie) bool {
	name := strings.ToLower(c.Name)
	switch {
	case len(c.Name)+len(c.Value) > 4096 || len(c.Path) > 1024 || len(c.Domain) > 1024: // RFC 6265bis §5.6
		return false
	case c.Secure && trusted(u).Scheme != "https":
		return false
	case strings.HasPrefix(name, "__secure-"): // §4.1.3.1
		return c.Secure
	case strings.HasPrefix(name, "__host-"): // §4.1.3.2
		return c.Secure && c.Path == "/" && c.Domain == ""
	default:
		return true
	}
}

// trusted returns u as https where it is on loopback.
func trusted(u *url.URL) *url.URL {
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "http" || u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return u
	}
	secure := *u
	secure.Scheme = "https"
	return &secure
}

// form is what a browser would send of a page's first form.
type form struct {
	action *url.URL
	method string
	fields url.Values
}

// form reads the page's first form. Controls outside of it belong to it when their
// form attribute names its id.
func (p *Page) form() (*form, error) {
	doc, err := html.Parse(strings.NewReader(p.Body))
	if err != nil {
		return nil, err
	}
	var f *form
	var id string
	var inside *html.Node
	pressed := false
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch {
		case n.Data == "form" && f == nil:
			action, err := p.URL.Parse(attr(n, "action"))
			if err != nil {
				return nil, err
			}
			f = &form{action: action, method: http.MethodGet, fields: url.Values{}}
			if strings.EqualFold(attr(n, "method"), http.MethodPost) {
				f.method = http.MethodPost
			}
			id, inside = attr(n, "id"), n
		case f == nil || attr(n, "name") == "" && n.Data != "button":
		case !within(n, inside) && (id == "" || attr(n, "form") != id):
		case n.Data == "button" && !pressed:
			pressed = true
			if name := attr(n, "name"); name != "" {
				f.fields.Set(name, attr(n, "value"))
			}
		case n.Data == "input":
			f.fields.Add(attr(n, "name"), attr(n, "value"))
		}
	}
	if f == nil {
		return nil, errors.New("the page has no form")
	}
	return f, nil
}

func within(n, ancestor *html.Node) bool {
	for ; n != nil; n = n.Parent {
		if n == ancestor {
			return true
		}
	}
	return false
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
