package oidc

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	josejson "github.com/go-jose/go-jose/v4/json"

	"github.com/coatcheck/coatcheck"
)

// Bounds on what a provider says about a person.
const (
	maxText   = 1024 // bytes of a name or an address
	maxGroups = 1000
	maxGroup  = 256 // bytes
)

// claims are the members of a JSON object, under their exact names.
type claims map[string]any

// parseClaims reads a JSON object; null is one without members. A member that stands there
// twice is refused at any depth: who reads the first and who reads the last would see two
// people (RFC 8725 §2.4). Names are told apart by case, unlike in encoding/json.
func parseClaims(data []byte) (claims, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	var c claims
	if err := josejson.Unmarshal(data, &c); err != nil {
		return nil, errors.New(quote(err.Error()))
	}
	return c, nil
}

// text returns a claim that is text and fit for a header, a log and a page; else "".
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	if len(s) > maxText || strings.ContainsFunc(s, unicode.IsControl) {
		return ""
	}
	return s
}

// instant returns a claim that is a NumericDate (RFC 7519 §2).
func (c claims) instant(name string) (time.Time, bool) {
	const end = 253402300800 // the year 10000
	f, ok := c[name].(float64)
	if !ok || f < 0 || f >= end {
		return time.Time{}, false
	}
	whole, fraction := math.Modf(f)
	return time.Unix(int64(whole), int64(fraction*1e9)), true
}

// authTime returns when the person proved who they are; now, if the provider does not
// say or says a time that is yet to come.
func (c claims) authTime(now time.Time) time.Time {
	t, ok := c.instant("auth_time")
	if !ok || t.After(now) {
		return now
	}
	return t
}

// emailVerified reads email_verified, which some providers send as a string.
func (c claims) emailVerified() bool {
	return c["email_verified"] == true || c["email_verified"] == "true"
}

// groups returns the groups under a claim of this name, or at this dotted path through
// nested objects; nil if the claim is not there. Too many groups are an error, since
// with some left out a rule would decide wrongly.
func (c claims) groups(name string) ([]string, error) {
	v := c.find(name)
	if v == nil {
		return nil, nil
	}
	values := list(v)
	if len(values) > maxGroups {
		return nil, fmt.Errorf("%d groups in %s, at most %d are read", len(values), name, maxGroups)
	}
	groups := make([]string, 0, len(values))
	for _, v := range values {
		group, ok := v.(string)
		if !ok || len(group) > maxGroup || strings.ContainsFunc(group, unicode.IsControl) {
			return nil, fmt.Errorf("%s has something in it that is no name of a group", name)
		}
		if group != "" {
			groups = append(groups, group)
		}
	}
	return groups, nil
}

// find returns the claim of this name, which may itself contain dots, or the one at
// the end of a dotted path.
func (c claims) find(name string) any {
	if v, ok := c[name]; ok {
		return v
	}
	var v any = map[string]any(c)
	for step := range strings.SplitSeq(name, ".") {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[step]
	}
	return v
}

// list returns the values of a claim that may be one value or several.
func list(v any) []any {
	if values, ok := v.([]any); ok {
		return values
	}
	return []any{v}
}

// fill adds to an identity what c says and the identity lacks. An address and whether
// it is verified are taken together or not at all.
func (c claims) fill(id *coatcheck.Identity, groupsClaim string) error {
	if id.Email == "" {
		id.Email = c.text("email")
		id.EmailVerified = id.Email != "" && c.emailVerified()
	}
	if id.PreferredUsername == "" {
		id.PreferredUsername = c.text("preferred_username")
	}
	if id.Name == "" {
		id.Name = c.text("name")
	}
	if groupsClaim != "" && id.Groups == nil {
		groups, err := c.groups(groupsClaim)
		if err != nil {
			return err
		}
		id.Groups = groups
	}
	return nil
}
