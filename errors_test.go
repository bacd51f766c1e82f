package coatcheck_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/coatcheck/coatcheck"
)

func TestCodeOf(t *testing.T) {
	inner := coatcheck.E(coatcheck.CodeBadToken, "oidc.verify", io.EOF)
	for _, test := range []struct {
		name string
		err  error
		want coatcheck.Code
	}{
		{"coded", inner, coatcheck.CodeBadToken},
		{"wrapped", fmt.Errorf("callback: %w", inner), coatcheck.CodeBadToken},
		{"the outermost counts", coatcheck.E(coatcheck.CodeUnknown, "session.begin", inner), coatcheck.CodeUnknown},
		{"joined", errors.Join(io.EOF, inner), coatcheck.CodeBadToken},
		{"coded, with a cancelled context below", coatcheck.E(coatcheck.CodeUpstreamTimeout, "x", context.Canceled), coatcheck.CodeUpstreamTimeout},
		{"cancelled", fmt.Errorf("get: %w", context.Canceled), coatcheck.CodeUnknown},
		{"timed out", fmt.Errorf("get: %w", context.DeadlineExceeded), coatcheck.CodeUnknown},
		{"anything else", io.ErrUnexpectedEOF, coatcheck.CodeInternal},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := coatcheck.CodeOf(test.err); got != test.want {
				t.Errorf("CodeOf(%v) = %s, want %s", test.err, got, test.want)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	err := coatcheck.E(coatcheck.CodeUnknown, "session.load", io.EOF)
	if got, want := err.Error(), "session.load: EOF"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !errors.Is(err, io.EOF) {
		t.Error("the cause is not in the chain")
	}
	bare := coatcheck.E(coatcheck.CodeNotFound, "route", nil)
	if got, want := bare.Error(), "route: not_found"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if errors.Unwrap(bare) != nil {
		t.Error("an error without a cause has one")
	}
}
