package coatcheck_test

import (
	"testing"

	"github.com/coatcheck/coatcheck"
)

func TestEmailDomain(t *testing.T) {
	for _, test := range []struct{ address, want string }{
		{"alice@corp.example", "corp.example"},
		{"Alice@Corp.EXAMPLE", "corp.example"},
		{"a@b.corp.example", "b.corp.example"},
		{"attacker@evil.example@corp.example", ""}, // A-O17
		{`"a@evil.example"@corp.example`, ""},
		{"@corp.example", ""},
		{"alice@", ""},
		{"alice", ""},
		{"", ""},
		{"@", ""},
		{"@@", ""},
		{"alice@corp.example ", ""},
		{" alice@corp.example", ""},
		{"alice@corp.example\n", ""},
		{"alice@evil.example\x00@corp.example", ""},
		{"alice\x7f@corp.example", ""},
		{"alice\t@corp.example", ""},
		// The Kelvin sign is not a k.
		{"alice@\u212Aorp.example", "\u212Aorp.example"},
		{"alice@BÜCHER.example", "bÜcher.example"},
	} {
		if got := coatcheck.EmailDomain(test.address); got != test.want {
			t.Errorf("EmailDomain(%q) = %q, want %q", test.address, got, test.want)
		}
	}
}

func TestVerifiedEmail(t *testing.T) {
	for _, test := range []struct {
		id   coatcheck.Identity
		want string
	}{
		{coatcheck.Identity{Email: "Alice@Corp.example", EmailVerified: true}, "Alice@Corp.example"},
		{coatcheck.Identity{Email: "alice@corp.example"}, ""}, // A-O17
		{coatcheck.Identity{Email: "a@evil.example@corp.example", EmailVerified: true}, ""},
		{coatcheck.Identity{EmailVerified: true}, ""},
		{coatcheck.Identity{}, ""},
	} {
		if got := test.id.VerifiedEmail(); got != test.want {
			t.Errorf("VerifiedEmail of %+v = %q, want %q", test.id, got, test.want)
		}
	}
}
