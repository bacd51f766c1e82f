// Package policy decides who may pass. It is pure: it sees an identity and a rule,
// does no I/O and keeps nothing.
package policy

import (
	"errors"
	"slices"

	"github.com/coatcheck/coatcheck"
)

// A Rule names the people who may pass: anybody who matches one of its entries. The
// zero Rule names nobody in particular and lets everybody pass. It is immutable.
type Rule struct {
	emails  []string // folded
	domains []string // folded, without @
	groups  []string
}

// NewRule returns the rule that is matched by an e-mail address, an e-mail domain or
// a group. Addresses and domains are compared as coatcheck.FoldEmail spells them, groups
// to the letter. A sub-domain is another domain.
func NewRule(emails, domains, groups []string) Rule {
	return Rule{emails: fold(emails), domains: fold(domains), groups: slices.Clone(groups)}
}

func fold(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = coatcheck.FoldEmail(s)
	}
	return out
}

// Empty tells whether the rule lets everybody pass.
func (r Rule) Empty() bool {
	return len(r.emails) == 0 && len(r.domains) == 0 && len(r.groups) == 0
}

// Causes of a refusal, for the log.
var (
	errNobody     = errors.New("nobody is signed in")
	errNotNamed   = errors.New("no allow rule names this person")
	errUnverified = errors.New("no allow rule names this person, and the e-mail address does not count: the provider does not vouch for it (email_verified)")
)

// permits tells whether the rule names this person. Only an e-mail address that the
// provider vouches for counts.
func (r Rule) permits(id *coatcheck.Identity) error {
	if r.Empty() {
		return nil
	}
	for _, g := range r.groups {
		if slices.Contains(id.Groups, g) {
			return nil
		}
	}
	if len(r.emails) == 0 && len(r.domains) == 0 {
		return errNotNamed
	}
	email := id.VerifiedEmail()
	if email == "" {
		if id.Email != "" {
			return errUnverified
		}
		return errNotNamed
	}
	if slices.Contains(r.emails, coatcheck.FoldEmail(email)) ||
		slices.Contains(r.domains, coatcheck.EmailDomain(email)) {
		return nil
	}
	return errNotNamed
}

// Permit returns nil if every one of the rules lets this person pass, and an error
// with CodeForbidden otherwise.
func Permit(id *coatcheck.Identity, rules ...Rule) error {
	for _, r := range rules {
		if err := r.permits(id); err != nil {
			return coatcheck.E(coatcheck.CodeForbidden, "policy", err)
		}
	}
	return nil
}

// Decide returns nil if a request may pass: the session, nil for an anonymous
// visitor, reaches the state that is required, and every rule lets its person pass.
// Where no session is required the rules do not apply, since they could only turn
// away people who would be served if they had not signed in.
//
// The error has CodeSignInRequired or CodeForbidden.
func Decide(require coatcheck.State, s *coatcheck.Session, rules ...Rule) error {
	if require == coatcheck.Anonymous {
		return nil
	}
	if s == nil || s.State < require {
		return coatcheck.E(coatcheck.CodeSignInRequired, "policy", errNobody)
	}
	return Permit(&s.Identity, rules...)
}
