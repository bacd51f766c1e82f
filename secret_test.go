package coatcheck_test

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck"
)

const canary = "hunter2-canary"

// holder is a struct as they are logged: with a secret in itself, behind a pointer, in
// a list and in a map.
type holder struct {
	Direct  coatcheck.Secret
	Pointer *coatcheck.Secret
	List    []coatcheck.Secret
	Map     map[string]coatcheck.Secret
	Any     any
	Session coatcheck.Session
}

func newHolder() holder {
	s := coatcheck.Secret(canary)
	return holder{
		Direct: s, Pointer: &s, List: []coatcheck.Secret{s}, Map: map[string]coatcheck.Secret{"k": s}, Any: s,
		Session: coatcheck.Session{Tokens: coatcheck.Tokens{ID: s, Access: s, Refresh: s}},
	}
}

func mustNotShow(t *testing.T, how, text string) {
	t.Helper()
	// The hex and quoted spellings count as well.
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprint([]byte(canary))} {
		if strings.Contains(text, form) {
			t.Errorf("%s shows the secret: %s", how, text)
		}
	}
}

// Invariant 13.
func TestSecretIsNotPrinted(t *testing.T) {
	h := newHolder()
	for _, v := range []any{h.Direct, h.Pointer, h, &h, []holder{h}, h.Session, &h.Session, h.Session.Tokens} {
		for _, verb := range []string{"v", "+v", "#v", "s", "q", "+q", "#q", "x", "X", "# x", "d", "c", "U", "t", "e", "g", "b", "o", "10s", "-40.3v", "z", "!"} {
			mustNotShow(t, fmt.Sprintf("%T with %%%s", v, verb), fmt.Sprintf("%"+verb, v))
		}
		mustNotShow(t, "Sprint", fmt.Sprint(v))
		mustNotShow(t, "Errorf", fmt.Errorf("op: %v", v).Error())
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		mustNotShow(t, "JSON", string(data))
		var out bytes.Buffer
		for _, log := range []*slog.Logger{slog.New(slog.NewJSONHandler(&out, nil)), slog.New(slog.NewTextHandler(&out, nil))} {
			log.With("with", v).Info(fmt.Sprint(v), "arg", v, slog.Group("group", "in", v))
		}
		mustNotShow(t, "slog", out.String())
	}
}

func TestSecretShowsThatItIsOne(t *testing.T) {
	s := coatcheck.Secret(canary)
	text, err := encoding.TextMarshaler(s).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for how, got := range map[string]string{
		"String": s.String(), "%v": fmt.Sprintf("%v", s), "%#v": fmt.Sprintf("%#v", s),
		"MarshalText": string(text), "LogValue": s.LogValue().String(),
	} {
		if got != "[secret]" {
			t.Errorf("%s = %q, want [secret]", how, got)
		}
	}
	if got := s.Reveal(); got != canary {
		t.Errorf("Reveal() = %q, want the secret", got)
	}
}
