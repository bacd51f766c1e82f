package devprovider

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// An oauthError is an error response of RFC 6749 §4.1.2.1 or §5.2, or of OpenID
// Connect Core 1.0 §3.1.2.6.
type oauthError struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (e *oauthError) Error() string { return e.Code + ": " + e.Description }

func (e *oauthError) values() url.Values {
	return url.Values{"error": {e.Code}, "error_description": {e.Description}}
}

func invalidRequest(format string, args ...any) *oauthError {
	return &oauthError{"invalid_request", fmt.Sprintf(format, args...)}
}

// once refuses parameters that appear twice (RFC 6749 §3.1, §3.2): two readers could
// each believe another one.
func once(form url.Values) *oauthError {
	for name, values := range form {
		if len(values) > 1 {
			return invalidRequest("a parameter appears %d times: %s", len(values), printable(name))
		}
	}
	return nil
}

// printable keeps what a client sent within what error_description may hold
// (RFC 6749 §4.1.2.1): ASCII without quotes and backslashes, here up to 40 characters.
func printable(s string) string {
	var b strings.Builder
	for _, c := range s {
		if b.Len() == 40 {
			break
		}
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			c = '?'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// scopes are all that the provider knows; others are ignored (RFC 6749 §3.3).
var scopes = []string{"openid", "profile", "email", "groups"}

// grantedScope returns the known ones of the requested scopes, in the order of scopes.
func grantedScope(requested string) string {
	asked := strings.Fields(requested)
	var granted []string
	for _, s := range scopes {
		if slices.Contains(asked, s) {
			granted = append(granted, s)
		}
	}
	return strings.Join(granted, " ")
}

func hasScope(scope, name string) bool { return slices.Contains(strings.Fields(scope), name) }
