// Package policy decides who may pass. It is pure: it sees an identity and a rule,
// does no I/O and keeps nothing.
package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/coatcheck/coatcheck"
)

// A Rule names the people who may pass: anybody who matches one of its entries. The
// zero Rule names nobody in particular and lets everybody pass. It is immutable.
type Rule struct {
	name    string
	emails  []string // folded
	domains []string // folded, without @
	groups  []string
}

// NewRule returns the rule that is matched by an e-mail address, an e-mail domain or
// a group. Addresses and domains are compared as coatcheck.FoldEmail spells them, groups
// to the letter. A sub-domain is another domain. name is what the rule is called in the log.
func NewRule(name string, emails, domains, groups []string) Rule {
	return Rule{name: name, emails: fold(emails), domains: fold(domains), groups: slices.Clone(groups)}
}

func fold(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = coatcheck.FoldEmail(s)
	}
	return out
}

// Empty tells whether the rule lets everybody pass.
func (r Rule) Empty() bool { return !r.asksForAddress() && len(r.groups) == 0 }

func (r Rule) asksForAddress() bool { return len(r.emails) > 0 || len(r.domains) > 0 }

var errNobody = errors.New("nobody is signed in")

// A refusal says whom a rule does not name, for the log. Routes that serve everybody ask
// without logging the answer, so it is put into words only where it is read.
type refusal struct {
	rule Rule
	id   *coatcheck.Identity
}

// maxNamed bounds how many groups a refusal lists.
const maxNamed = 20

// Error implements error.
func (r *refusal) Error() string {
	email := "no e-mail address"
	if r.id.Email != "" {
		email = fmt.Sprintf("e-mail address %q", r.id.Email)
		if !r.id.EmailVerified && r.rule.asksForAddress() {
			email += ", which does not count, for the provider does not vouch for it (email_verified)"
		}
	}
	groups, more := r.id.Groups, ""
	if n := len(groups) - maxNamed; n > 0 {
		groups, more = groups[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("%s does not name the person: subject %q; %s; groups %q%s", r.rule.name, r.id.Subject, email, groups, more)
}

// permits tells whether the rule names this person. Only an e-mail address that the
// provider vouches for counts.
func (r Rule) permits(id *coatcheck.Identity) bool {
	if r.Empty() {
		return true
	}
	for _, g := range r.groups {
		if slices.Contains(id.Groups, g) {
			return true
		}
	}
	email := id.VerifiedEmail()
	return email != "" &&
		(slices.Contains(r.emails, coatcheck.FoldEmail(email)) || slices.Contains(r.domains, coatcheck.EmailDomain(email)))
}

// Permit returns nil if every one of the rules lets this person pass, and an error
// with CodeForbidden otherwise.
func Permit(id *coatcheck.Identity, rules ...Rule) error {
	for _, r := range rules {
		if !r.permits(id) {
			return coatcheck.E(coatcheck.CodeForbidden, "policy", &refusal{r, id})
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
