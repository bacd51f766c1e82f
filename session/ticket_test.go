package session

import (
	"context"
	"encoding/base64"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/cookie"
)

var ticketForm = regexp.MustCompile(`^__Host-coatcheck-[0-9a-f]{32}\.[A-Za-z0-9_-]{22}$`)

func TestTicketForm(t *testing.T) {
	r := newRig(t)
	for range 100 {
		if value := r.signIn("alice"); !ticketForm.MatchString(value) {
			t.Fatalf("the ticket %q has not the form %s", value, ticketForm)
		}
	}
	for _, jar := range []*cookie.Jar{cookie.New("coatcheck", "sso.test", false), cookie.New("gate", "", true)} {
		value := newTicket(jar.Session()).cookieValue()
		if !strings.HasPrefix(value, jar.Session()+"-") {
			t.Errorf("the ticket %q does not begin with its cookie's name %q", value, jar.Session())
		}
	}
}

func TestTicketRoundTrip(t *testing.T) {
	for range 1000 {
		want := newTicket(name)
		got, err := parseTicket(name, want.cookieValue())
		if err != nil || got != want {
			t.Fatalf("parseTicket(%q) = %v, %v", want.cookieValue(), got, err)
		}
	}
}

// A-C16
func TestTicketsAreUnique(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 5000
	}
	handles, secrets := make(map[string]bool, n), make(map[[secretSize]byte]bool, n)
	for range n {
		ticket := newTicket(name)
		handles[ticket.handle], secrets[ticket.secret] = true, true
	}
	if len(handles) != n || len(secrets) != n {
		t.Errorf("%d tickets have %d ids and %d secrets", n, len(handles), len(secrets))
	}
	// Every bit of either half is random: none is alike in all tickets.
	var ones, zeros [secretSize]byte
	for s := range secrets {
		for i, b := range s {
			ones[i] |= b
			zeros[i] |= ^b
		}
	}
	for i := range ones {
		if ones[i] != 0xff || zeros[i] != 0xff {
			t.Errorf("byte %d of the secrets is not random in every bit", i)
		}
	}
	digits := make([]map[byte]bool, 32)
	for h := range handles {
		for i, c := range []byte(h[len(name)+1:]) {
			if digits[i] == nil {
				digits[i] = map[byte]bool{}
			}
			digits[i][c] = true
		}
	}
	for i, seen := range digits {
		if len(seen) != 16 {
			t.Errorf("digit %d of the ids takes %d values, want 16", i, len(seen))
		}
	}
}

// badTickets returns spellings that are no ticket, though value is one.
func badTickets(value string) map[string]string {
	handle, secret, _ := strings.Cut(value, ".")
	id := strings.TrimPrefix(handle, name+"-")
	stray := func() string { // another last character that decodes to the same 16 bytes
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		return secret[:21] + string(alphabet[strings.IndexByte(alphabet, secret[21])+1])
	}()
	raw, err := base64.RawURLEncoding.DecodeString(stray) // the lax decoder takes it
	if err != nil || len(raw) != secretSize {
		panic("the spelling with stray bits is not what it should be")
	}
	ticket := func(handle, secret string) string { return handle + "." + secret }
	return map[string]string{
		"nothing":                    "",
		"a dot":                      ".",
		"the handle alone":           handle,
		"an empty secret":            handle + ".",
		"the secret alone":           "." + secret,
		"no dot":                     handle + secret,
		"two dots":                   ticket(handle, "."+secret),
		"a third part":               value + ".x",
		"upper-case hex":             ticket(name+"-"+strings.ToUpper("abcdef"+id[6:]), secret),
		"one upper-case digit":       ticket(name+"-A"+id[1:], secret),
		"a digit that is none":       ticket(name+"-g"+id[1:], secret),
		"a full-width digit":         ticket(name+"-\uff11"+id[3:], secret),
		"a short id":                 ticket(name+"-"+id[1:], secret),
		"a long id":                  ticket(name+"-0"+id, secret),
		"padding":                    value + "==",
		"stray bits":                 ticket(handle, stray),
		"a short secret":             ticket(handle, secret[1:]),
		"a long secret":              ticket(handle, secret+"A"),
		"a long secret, four more":   ticket(handle, secret+"AAAA"),
		"a line break inside":        ticket(handle, secret[:10]+"\n"+secret[10:]),
		"a line break for a digit":   ticket(handle, secret[:10]+"\n"+secret[11:]),
		"line breaks for the secret": ticket(handle, strings.Repeat("\n", 22)),
		"a carriage return at end":   value + "\r",
		"the standard alphabet":      ticket(handle, "+/"+secret[2:]),
		"a space at the front":       " " + value,
		"quotes":                     `"` + value + `"`,
		"another cookie's name":      ticket("__Host-coatchecK-"+id, secret),
		"another prefix":             ticket("__Secure-coatcheck-"+id, secret),
		"no prefix":                  ticket("coatcheck-"+id, secret),
		"no name":                    ticket(id, secret),
		"another separator":          ticket(name+"_"+id, secret),
		// A-K5
		"a path":           ticket(name+"-../"+id[3:], secret),
		"a path alone":     "../x",
		"NUL":              ticket(name+"-\x00"+id[1:], secret),
		"NUL alone":        "\x00",
		"10 KiB":           strings.Repeat("a", 10<<10),
		"10 KiB id":        ticket(name+"-"+strings.Repeat("a", 10<<10), secret),
		"10 KiB secret":    ticket(handle, strings.Repeat("A", 10<<10)),
		"a Redis wildcard": ticket(name+"-*"+id[1:], secret),
		"a line of RESP":   ticket(name+"-\r\n"+id[2:], secret),
	}
}

// A-K5: only a ticket's canonical spelling leads to a store key.
func TestOtherSpellingsAskNoStore(t *testing.T) {
	r := newRig(t)
	value := r.signIn("alice")
	r.probe.forget(func(_ context.Context, op, key string) error {
		t.Errorf("the store is asked to %s %q", op, key)
		return errDown
	})
	for spelling, bad := range badTickets(value) {
		t.Run(spelling, func(t *testing.T) {
			if ticket, err := parseTicket(name, bad); err == nil {
				t.Fatalf("parseTicket(%q) = %v", bad, ticket)
			}
			// A header holds values that net/http would not let through as well.
			live, err := r.Load(t.Context(), http.Header{"Cookie": {name + "=" + bad}})
			if spelling == "a space at the front" || spelling == "a carriage return at end" {
				return // white space is trimmed, or not ours to see
			}
			if live != nil || err != ErrInvalid {
				t.Errorf("Load = %v, %v; want ErrInvalid", live, err)
			}
		})
	}
}
