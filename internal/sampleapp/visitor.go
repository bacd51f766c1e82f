package sampleapp

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A visitor is who the proxy says is there. All fields of an anonymous one are empty.
type visitor struct {
	User              string
	PreferredUsername string
	Email             string
	Groups            []string
}

// The headers of a visitor, as coatcheck sends them by default.
const (
	headerUser              = "X-Forwarded-User"
	headerPreferredUsername = "X-Forwarded-Preferred-Username"
	headerEmail             = "X-Forwarded-Email"
	headerGroups            = "X-Forwarded-Groups"
)

func visitorOf(r *http.Request) visitor {
	return visitor{
		User:              r.Header.Get(headerUser),
		PreferredUsername: r.Header.Get(headerPreferredUsername),
		Email:             r.Header.Get(headerEmail),
		Groups:            split(r.Header.Values(headerGroups)),
	}
}

// split returns the members of a header that is a comma-separated list.
func split(lines []string) []string {
	members := []string{}
	for _, line := range lines {
		for member := range strings.SplitSeq(line, ",") {
			if member = strings.TrimSpace(member); member != "" {
				members = append(members, member)
			}
		}
	}
	return members
}

// Name is what a person would call the visitor.
func (v visitor) Name() string {
	switch {
	case v.PreferredUsername != "":
		return v.PreferredUsername
	case v.User != "":
		return v.User
	default:
		return v.Email
	}
}

// Initial is the first letter of the name, for the picture.
func (v visitor) Initial() string {
	first, _ := utf8.DecodeRuneInString(v.Name())
	return string(unicode.ToUpper(first))
}

// A header is a line of the table.
type header struct {
	Name     string
	Values   []string
	Identity bool // says who the visitor is
}

// headersOf returns the identity headers first, each part in the order of names.
func headersOf(r *http.Request) []header {
	all := received(r)
	var identity, others []header
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch name {
		case headerUser, headerPreferredUsername, headerEmail, headerGroups:
			identity = append(identity, header{name, all[name], true})
		default:
			others = append(others, header{name, all[name], false})
		}
	}
	return append(identity, others...)
}

// received returns every header as it arrived, with those that net/http keeps in
// fields of their own.
func received(r *http.Request) http.Header {
	all := r.Header.Clone()
	all.Set("Host", r.Host)
	if len(r.TransferEncoding) > 0 {
		all["Transfer-Encoding"] = r.TransferEncoding
	}
	return all
}

// whoami is the page's content for scripts.
func (a *app) whoami(w http.ResponseWriter, r *http.Request) {
	v := visitorOf(r)
	writeJSON(w, http.StatusOK, struct {
		User    string      `json:"user"`
		Email   string      `json:"email"`
		Groups  []string    `json:"groups"`
		Headers http.Header `json:"headers"`
		Node    string      `json:"node"`
	}{v.User, v.Email, v.Groups, received(r), a.name})
}
