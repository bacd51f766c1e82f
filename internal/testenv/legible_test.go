package testenv

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestLegible: a page without faults has none, and each fault is found.
func TestLegible(t *testing.T) {
	const good = `<html lang="en"><meta name="viewport" content="width=device-width"><title>t</title>` +
		`<body style="background: #fff; color: #000"><main><h1>Heading</h1><p>Text</p><a href="/">Link</a></main>`
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html>"+strings.Replace(good, r.FormValue("old"), r.FormValue("new"), 1))
	}))
	t.Cleanup(app.Close)
	ctx := StartChromium(t)
	for _, tt := range []struct{ name, old, new, want string }{
		{"no fault", "", "", ""},
		{"no language", ` lang="en"`, "", "names no language"},
		{"no title", "<title>t</title>", "", "has no title"},
		{"no main part", "<main>", "", "has no main part"},
		{"no h1", "<h1>", "<h2>", "not exactly one h1"},
		{"two h1", "<p>", "<h1>Another</h1><p>", "not exactly one h1"},
		{"a level is skipped", "<p>", "<h3>Deep</h3><p>", "comes too early"},
		{"too wide", "<p>", `<p style="width: 400px">`, "pixels wide"},
		{"pale text", "<p>", `<p style="color: #888">`, "has a contrast of 3.5"},
		{"pale by transparency", "<p>", `<p style="color: rgb(0 0 0 / .5)">`, "has a contrast of"},
		{"pale on its ground", "<p>", `<p style="background: #666">`, "has a contrast of"},
		{"pale in the dark", "<p>", `<style>@media (prefers-color-scheme: dark) { p { color: #eee } }</style><p>`, "dark: "},
		{"large text may be paler", "<p>", `<p style="font-size: 24px; color: #888">`, ""},
		{"hidden text", "<p>", `<p style="color: #eee; display: none">`, ""},
		{"a control without a name", "Link", "", "has no name"},
		{"an input without a label", "Link", "Link</a><input><a>", "has no name"},
		{"an input with a label", "Link", "Link</a><label>Name <input></label><a>", ""},
		{"no focus", "<a ", `<a style="visibility: hidden" `, "takes no focus"},
		{"focus does not show", "<a ", `<a style="outline: none" `, "does not show that it has the focus"},
	} {
		query := "/?old=" + url.QueryEscape(tt.old) + "&new=" + url.QueryEscape(tt.new)
		if err := chromedp.Do(ctx, chromedp.Navigate(app.URL+query)); err != nil {
			t.Fatal(err)
		}
		problems, err := Legible(ctx)
		if err != nil {
			t.Fatal(err)
		}
		found := strings.Join(problems, "\n")
		if tt.want == "" && found != "" || !strings.Contains(found, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, found, tt.want)
		}
	}
}
