package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

// sessionCookie is the name of coatcheck's cookie on plain http.
const sessionCookie = "coatcheck"

// signIn signs alice in at a node, as a browser would, and returns the Cookie header of
// her session. Every call makes a session of its own.
func signIn(ctx context.Context, address string) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	browser := &http.Client{Jar: jar, Transport: transport}

	site := "http://" + address + "/"
	form, err := openForm(ctx, browser, site+"oauth2/start")
	if err != nil {
		return "", fmt.Errorf("sign in: %w", err)
	}
	fields := url.Values{"username": {"alice"}, "password": {"alice"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, form, strings.NewReader(fields.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := browser.Do(req)
	if err != nil {
		return "", fmt.Errorf("sign in: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("sign in: %s at %s", resp.Status, resp.Request.URL.Path)
	}
	for _, c := range jar.Cookies(resp.Request.URL) {
		if c.Name == sessionCookie {
			return c.Name + "=" + c.Value, nil
		}
	}
	return "", errors.New("sign in: no session cookie")
}

// openForm follows redirects to a page with a form and returns the form's address.
func openForm(ctx context.Context, browser *http.Client, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	resp, err := browser.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	doc, err := html.Parse(resp.Body)
	if err != nil {
		return "", err
	}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode || n.Data != "form" {
			continue
		}
		for _, a := range n.Attr {
			if a.Key == "action" {
				action, err := resp.Request.URL.Parse(a.Val)
				return action.String(), err
			}
		}
	}
	return "", fmt.Errorf("%s at %s, and no form", resp.Status, resp.Request.URL.Path)
}
