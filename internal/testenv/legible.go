package testenv

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

//go:embed legible.js
var legibleJS string

// Legible looks at the page in a tab of [StartChromium], in both colour schemes and on
// a wide and a narrow screen, and returns what keeps people from using it: text that
// has too little contrast or leaves the screen, a page without language, title or
// headings, controls without a name or a visible focus. What a script draws later it
// does not see.
func Legible(ctx context.Context) (problems []string, err error) {
	if _, err := chromedp.Call(ctx, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}); err != nil {
		return nil, err
	}
	for _, screen := range []struct {
		name          string
		width, height int64
	}{{"wide", 1280, 900}, {"narrow", 320, 640}} { // 320: WCAG 2.2 §1.4.10
		for _, scheme := range []string{"light", "dark"} {
			if err := chromedp.Do(ctx, chromedp.EmulateViewport(screen.width, screen.height), preferColours(scheme)); err != nil {
				return nil, err
			}
			found, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](legibleJS))
			if err != nil {
				return nil, err
			}
			for _, problem := range found {
				problems = append(problems, fmt.Sprintf("%s, %s: %s", screen.name, scheme, problem))
			}
		}
	}
	return problems, chromedp.Do(ctx, chromedp.ResetViewport(), preferColours(""))
}

// preferColours makes a tab's media feature prefers-color-scheme "light" or "dark", or
// the browser's own where scheme is empty.
func preferColours(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	})
}
