package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/oidc"
	"github.com/coatcheck/coatcheck/session"
	"github.com/coatcheck/coatcheck/store"
)

// TestErrorPagesInABrowser shows the page of every code and explanation to a real browser:
// each can be read by everybody, on every screen, and its style passes its own
// Content-Security-Policy.
func TestErrorPagesInABrowser(t *testing.T) {
	jar := cookie.New("coatcheck", "", false)
	p := New(Options{
		PublicURL: &url.URL{Scheme: "https", Host: "app.example.com"},
		Prefix:    "/oauth2",
		Sessions:  session.New(session.Options{Jar: jar}),
		SignIn:    oidc.New(oidc.Config{Jar: jar}),
		Logger:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{w: response{ResponseWriter: w}, r: r, id: "9f86d081884c7d659a2feaa0"}
		// POST, so that even CodeSignInRequired gets its page and not a redirect.
		x.r.Method = http.MethodPost
		code, more, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		cause := errors.New("the cause")
		switch {
		case more != "" && code == string(coatcheck.CodeSessionEnded):
			cause = &session.EndedError{Reason: coatcheck.Reason(more)}
		case more != "" && code == string(coatcheck.CodeLimit):
			cause = &store.LimitError{Limit: store.LimitKind(more)}
		}
		p.render(x, coatcheck.E(coatcheck.Code(code), "test", cause))
	}))
	t.Cleanup(server.Close)

	ctx := testenv.StartChromium(t)
	titles := map[string]string{}
	for _, code := range declaredCodes(t) {
		titles[string(code)] = answers[code].title
	}
	for reason, e := range endings {
		titles[string(coatcheck.CodeSessionEnded)+"/"+string(reason)] = e.title
	}
	for limit, e := range limits {
		titles[string(coatcheck.CodeLimit)+"/"+string(limit)] = e.title
	}
	for code, title := range titles {
		if err := chromedp.Do(ctx, chromedp.Navigate(server.URL+"/"+code)); err != nil {
			t.Fatal(err)
		}
		if heading, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("h1"))); err != nil || heading != title {
			t.Errorf("%s: the page says %q, %v", code, heading, err)
		}
		// Chromium drops a style sheet that the policy refuses.
		if styled, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("document.styleSheets.length === 1")); err != nil || !styled {
			t.Errorf("%s: the page's style is refused, %v", code, err)
		}
		problems, err := testenv.Legible(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range problems {
			t.Errorf("%s: %s", code, problem)
		}
	}
}
