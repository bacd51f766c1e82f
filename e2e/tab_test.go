package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A tab is a tab of a real browser, and notes what goes on in it. Its methods fail the
// test where something can't be done.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string // URLs, in order
	problems []string // what the browser wrote to its console as an error
}

// openBrowser starts a browser with one tab.
func openBrowser(t *testing.T, options ...chromedp.ExecAllocatorOption) *tab {
	t.Helper()
	return watch(t, testenv.StartChromium(t, options...))
}

// another opens one more tab of the same browser.
func (b *tab) another() *tab {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	return watch(b.t, ctx)
}

func watch(t *testing.T, ctx context.Context) *tab {
	t.Helper()
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.note); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *tab) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *network.EventWebSocketCreated:
		b.requests = append(b.requests, e.URL)
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, e.ExceptionDetails.Text)
	case *log.EventEntryAdded: // a refusal by the Content-Security-Policy, too
		if e.Entry.Level == log.EntryLevelError {
			b.problems = append(b.problems, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

// seen returns the URLs that were requested and the errors on the console.
func (b *tab) seen() (requests, problems []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.requests...), append([]string(nil), b.problems...)
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// open goes to an address as if it had been typed, and returns the status of the page
// where that leads.
func (b *tab) open(url string) int {
	b.t.Helper()
	resp, err := chromedp.Run(b.ctx, chromedp.NavigateResponse(url))
	if err != nil {
		b.t.Fatalf("open %s: %v", url, err)
	}
	return int(resp.Status)
}

// await waits until a JavaScript expression is true in the page, whichever page that is
// by then.
func (b *tab) await(expression string) {
	b.t.Helper()
	var problem error
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		var holds bool
		if holds, problem = chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")")); problem == nil && holds {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body?.innerText`))
	b.t.Fatalf("waited a minute for %s (%v) at %s", expression, problem, text)
}

// awaitPage waits until a page whose main heading begins with these words is there.
func (b *tab) awaitPage(heading string) {
	b.t.Helper()
	b.await(fmt.Sprintf(`document.readyState === "complete" && document.querySelector("h1")?.innerText.startsWith(%q)`, heading))
}

// text returns what is shown of the first element that a selector finds.
func (b *tab) text(selector string) string {
	b.t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

func (b *tab) location() string {
	b.t.Helper()
	location, err := chromedp.Run(b.ctx, chromedp.Location())
	if err != nil {
		b.t.Fatal(err)
	}
	return location
}

func (b *tab) click(selector string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector)))
}

// signIn fills in the provider's form, which the tab has open.
func (b *tab) signIn(name string) {
	b.t.Helper()
	b.awaitPage("Sign in")
	b.do(
		chromedp.SendKeys(chromedp.CSS("#username"), name),
		chromedp.SendKeys(chromedp.CSS("#password"), name),
	)
	b.click("button")
}

// legible checks that everybody can read the page.
func (b *tab) legible() {
	b.t.Helper()
	problems, err := testenv.Legible(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, problem := range problems {
		b.t.Errorf("%s: %s", b.text("h1"), problem)
	}
}

// cookies returns the browser's cookies whose names hold "coatcheck".
func (b *tab) cookies() []*network.Cookie {
	b.t.Helper()
	all, err := chromedp.Run(b.ctx, func(ctx context.Context, t *chromedp.Target) (storage.GetCookiesResult, error) {
		return cdp.Call(ctx, t, storage.GetCookies, storage.GetCookiesParams{})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	var ours []*network.Cookie
	for _, c := range all.Cookies {
		if strings.Contains(c.Name, "coatcheck") {
			ours = append(ours, c)
		}
	}
	return ours
}

// A fetched is what a script got.
type fetched struct {
	Status     int
	Redirected bool
	Type       string
	Body       string
}

// fetch sends a request from a script in the page. init is fetch's second argument.
func (b *tab) fetch(path, init string) fetched {
	b.t.Helper()
	script := fmt.Sprintf(`fetch(%q, %s).then(async (r) => ({
		Status: r.status, Redirected: r.redirected, Type: r.headers.get("Content-Type"), Body: await r.text(),
	}))`, path, init)
	f, err := chromedp.Run(b.ctx, chromedp.Evaluate[fetched](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}
