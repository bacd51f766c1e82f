package policy_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/policy"
)

var (
	nobody  = policy.Rule{}
	alice   = policy.NewRule("allow", []string{"Alice@Corp.example"}, nil, nil)
	corp    = policy.NewRule("allow", nil, []string{"Corp.example"}, nil)
	agents  = policy.NewRule("allow", nil, nil, []string{"agent"})
	several = policy.NewRule("allow", []string{"carol@else.example"}, []string{"corp.example"}, []string{"agent", "Admins"})
)

func person(email string, verified bool, groups ...string) coatcheck.Identity {
	return coatcheck.Identity{Issuer: "https://idp.example", Subject: "1", Email: email, EmailVerified: verified, Groups: groups}
}

func TestPermit(t *testing.T) {
	for _, test := range []struct {
		name  string
		id    coatcheck.Identity
		rules []policy.Rule
		pass  bool
	}{
		{"no rule", person("", false), nil, true},
		{"an empty rule", person("", false), []policy.Rule{nobody}, true},

		{"address", person("alice@corp.example", true), []policy.Rule{alice}, true},
		{"address in another case", person("ALICE@corp.EXAMPLE", true), []policy.Rule{alice}, true},
		{"another address", person("bob@corp.example", true), []policy.Rule{alice}, false},
		{"address, unverified", person("alice@corp.example", false), []policy.Rule{alice}, false}, // A-O17
		{"address with more behind it", person("alice@corp.example.evil.example", true), []policy.Rule{alice}, false},
		{"address with more before it", person("not-alice@corp.example", true), []policy.Rule{alice}, false},
		{"Kelvin sign", person("\u212Ate@corp.example", true), []policy.Rule{policy.NewRule("allow", []string{"kte@corp.example"}, nil, nil)}, false},
		{"no address", person("", true), []policy.Rule{alice}, false},

		{"domain", person("bob@corp.example", true), []policy.Rule{corp}, true},
		{"domain in another case", person("bob@CORP.example", true), []policy.Rule{corp}, true},
		{"domain, unverified", person("bob@corp.example", false), []policy.Rule{corp}, false},                          // A-O17
		{"two domains", person("attacker@evil.example@corp.example", true), []policy.Rule{corp}, false},                // A-O17
		{"two domains, the other way", person("attacker@corp.example@evil.example", true), []policy.Rule{corp}, false}, // A-O17
		{"sub-domain", person("bob@mail.corp.example", true), []policy.Rule{corp}, false},
		{"parent domain", person("bob@example", true), []policy.Rule{corp}, false},
		{"longer domain", person("bob@evilcorp.example", true), []policy.Rule{corp}, false},
		{"domain as local part", person("corp.example@evil.example", true), []policy.Rule{corp}, false},
		{"no address for a domain", person("", true), []policy.Rule{corp}, false},

		{"group", person("", false, "x", "agent"), []policy.Rule{agents}, true},
		{"group in another case", person("", false, "Agent"), []policy.Rule{agents}, false},
		{"part of a group's name", person("", false, "agents", "age"), []policy.Rule{agents}, false},
		{"no group", person("bob@corp.example", true), []policy.Rule{agents}, false},
		{"group, with an unverified address", person("bob@corp.example", false, "agent"), []policy.Rule{agents}, true},

		{"one entry of several: address", person("carol@else.example", true), []policy.Rule{several}, true},
		{"one entry of several: domain", person("dave@corp.example", true), []policy.Rule{several}, true},
		{"one entry of several: group", person("", false, "Admins"), []policy.Rule{several}, true},
		{"no entry of several", person("dave@else.example", true, "admins"), []policy.Rule{several}, false},

		{"all rules pass", person("alice@corp.example", true, "agent"), []policy.Rule{corp, agents, nobody}, true},
		{"the first rule refuses", person("alice@else.example", true, "agent"), []policy.Rule{corp, agents}, false},
		{"the last rule refuses", person("alice@corp.example", true), []policy.Rule{corp, agents}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := policy.Permit(&test.id, test.rules...)
			if test.pass != (err == nil) {
				t.Fatalf("Permit = %v, want it to pass: %t", err, test.pass)
			}
			if err != nil && coatcheck.CodeOf(err) != coatcheck.CodeForbidden {
				t.Errorf("code %s, want %s", coatcheck.CodeOf(err), coatcheck.CodeForbidden)
			}
		})
	}
}

// The log tells an operator which rule refused whom, and the commonest mistake from a
// refusal on purpose.
func TestRefusals(t *testing.T) {
	var many []string
	for i := range 30 {
		many = append(many, "g"+strconv.Itoa(i))
	}
	for _, test := range []struct {
		id   coatcheck.Identity
		rule policy.Rule
		says []string
		not  string
	}{
		{person("bob@corp.example", false, "staff"), corp, []string{`subject "1"`, `"bob@corp.example"`, "email_verified", `["staff"]`}, ""},
		{person("bob@else.example", true), corp, []string{"allow does not name"}, "email_verified"},
		{person("", false), corp, []string{"no e-mail address"}, "email_verified"},
		// Where no rule asks for an address, it is not to blame.
		{person("bob@corp.example", false), agents, []string{`"bob@corp.example"`}, "email_verified"},
		{person("", false, many...), agents, []string{`"g19"`, "and 10 more"}, `"g20"`},
		{person("bob@corp.example\n", true), corp, []string{`\n`}, "\n"},
	} {
		err := policy.Permit(&test.id, nobody, test.rule)
		if err == nil {
			t.Fatalf("%+v may pass", test.id)
		}
		for _, want := range test.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("it does not say %s: %v", want, err)
			}
		}
		if test.not != "" && strings.Contains(err.Error(), test.not) {
			t.Errorf("it says %s: %v", test.not, err)
		}
	}
}

func TestDecide(t *testing.T) {
	at := func(state coatcheck.State, id coatcheck.Identity) *coatcheck.Session {
		return &coatcheck.Session{State: state, Identity: id}
	}
	bob := person("bob@corp.example", true)
	const (
		passes = coatcheck.Code("")
		signIn = coatcheck.CodeSignInRequired
		denied = coatcheck.CodeForbidden
	)
	for _, test := range []struct {
		name    string
		require coatcheck.State
		session *coatcheck.Session
		rules   []policy.Rule
		want    coatcheck.Code
	}{
		{"anonymous route, nobody", coatcheck.Anonymous, nil, nil, passes},
		{"anonymous route, nobody, with a rule", coatcheck.Anonymous, nil, []policy.Rule{alice}, passes},
		{"anonymous route, somebody a rule refuses", coatcheck.Anonymous, at(coatcheck.Authenticated, bob), []policy.Rule{alice}, passes},

		{"nobody", coatcheck.Authenticated, nil, nil, signIn},
		{"nobody, for a returning route", coatcheck.Returning, nil, nil, signIn},
		{"nobody, with a rule", coatcheck.Authenticated, nil, []policy.Rule{corp}, signIn},
		{"an anonymous session", coatcheck.Authenticated, at(coatcheck.Anonymous, bob), nil, signIn},
		{"an anonymous session, for a returning route", coatcheck.Returning, at(coatcheck.Anonymous, bob), nil, signIn},
		{"returning is not enough", coatcheck.Authenticated, at(coatcheck.Returning, bob), nil, signIn},
		{"returning is not enough, before the rules are asked", coatcheck.Authenticated, at(coatcheck.Returning, bob), []policy.Rule{alice}, signIn},

		{"returning", coatcheck.Returning, at(coatcheck.Returning, bob), nil, passes},
		{"more than returning", coatcheck.Returning, at(coatcheck.Authenticated, bob), nil, passes},
		{"authenticated", coatcheck.Authenticated, at(coatcheck.Authenticated, bob), []policy.Rule{corp}, passes},
		{"refused", coatcheck.Authenticated, at(coatcheck.Authenticated, bob), []policy.Rule{alice}, denied},
		{"returning and refused", coatcheck.Returning, at(coatcheck.Returning, bob), []policy.Rule{alice}, denied},
		{"refused by one of two", coatcheck.Authenticated, at(coatcheck.Authenticated, bob), []policy.Rule{corp, alice}, denied},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := policy.Decide(test.require, test.session, test.rules...)
			var got coatcheck.Code
			if err != nil {
				got = coatcheck.CodeOf(err)
			}
			if got != test.want {
				t.Errorf("Decide = %v (code %q), want code %q", err, got, test.want)
			}
		})
	}
}

func TestRuleIsEmpty(t *testing.T) {
	if !nobody.Empty() || !policy.NewRule("allow", nil, []string{}, nil).Empty() {
		t.Error("a rule without entries is not empty")
	}
	for i, r := range []policy.Rule{alice, corp, agents} {
		if r.Empty() {
			t.Errorf("rule %d is empty", i)
		}
	}
}

// A rule keeps none of the lists that it was made of.
func TestRuleIsImmutable(t *testing.T) {
	lists := [][]string{{"alice@corp.example"}, {"corp.example"}, {"agent"}}
	rule := policy.NewRule("allow", lists[0], lists[1], lists[2])
	for _, list := range lists {
		list[0] = "evil.example"
	}
	id := person("mallory@evil.example", true, "evil.example")
	if policy.Permit(&id, rule) == nil {
		t.Error("a rule changed with the lists that it was made of")
	}
	if !slices.Equal(lists[2], []string{"evil.example"}) {
		t.Error("NewRule changed a list")
	}
}
