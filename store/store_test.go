package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

func TestIsOutcome(t *testing.T) {
	for _, outcome := range []error{
		store.ErrNotFound, store.ErrExists, store.ErrConflict, store.ErrEnding, store.ErrHeld, store.ErrLost,
		&store.LimitError{Limit: store.LimitUser},
	} {
		if !store.IsOutcome(outcome) || !store.IsOutcome(fmt.Errorf("op: %w", outcome)) {
			t.Errorf("%v is none", outcome)
		}
	}
	for _, other := range []error{
		nil, store.ErrTooLarge, store.ErrBadEntry, store.ErrRefused, store.ErrNoFeed,
		context.DeadlineExceeded, errors.New("store: not found"),
	} {
		if store.IsOutcome(other) {
			t.Errorf("%v is one", other)
		}
	}
}
