package coatcheck

import (
	"fmt"
	"log/slog"
)

// A Secret is text that must not be printed: a token, a ticket, a client secret.
// However it is formatted, logged or marshalled as JSON or text, it shows as
// [secret]. Only Reveal returns it, so that a search for Reveal finds every place
// where a secret leaves its wrapping.
//
// Package fmt calls no method of an unexported field, nor for the verbs %p and %w,
// which go vet refuses here: a struct that keeps a Secret in an unexported field is not
// to be printed. A Secret is no key of a map that becomes JSON.
type Secret string

const redacted = "[secret]"

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// Format implements fmt.Formatter, so that %x, %q and %#v show nothing either.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler; encoding/json uses it too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
