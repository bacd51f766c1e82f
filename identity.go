package coatcheck

import "strings"

// An Identity is what a provider said about a person. A person is named by Issuer
// and Subject together and by nothing else (OpenID Connect Core 1.0 §5.7): e-mail
// addresses and user names move between people.
type Identity struct {
	Issuer            string
	Subject           string
	Email             string
	EmailVerified     bool
	PreferredUsername string
	Name              string
	Groups            []string
}

// VerifiedEmail returns the e-mail address if the provider vouches for it and it is
// one address, and "" otherwise. Rules and headers use only this: an unverified
// address is whatever its owner typed.
func (id *Identity) VerifiedEmail() string {
	if !id.EmailVerified || EmailDomain(id.Email) == "" {
		return ""
	}
	return id.Email
}

// EmailDomain returns the domain of an e-mail address as FoldEmail spells it, or "" if the
// address has not exactly one @ with text on both sides, or holds white space or a
// control character. "a@evil.example@corp.example" has no domain.
func EmailDomain(address string) string {
	local, domain, ok := strings.Cut(address, "@")
	if !ok || local == "" || strings.Contains(domain, "@") {
		return ""
	}
	for _, c := range address {
		if c <= ' ' || c == 0x7f {
			return ""
		}
	}
	return FoldEmail(domain)
}

// FoldEmail returns an e-mail address, or a part of one, in the spelling that is
// compared: with ASCII letters in lower case and everything else as it is. Unicode's
// case folding makes one address of two, since the Kelvin sign folds to k.
func FoldEmail(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}
