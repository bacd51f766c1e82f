package metrics

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// answering is a double: each call takes a second by the test's clock and ends as told.
type answering struct {
	store.Backend
	err  error
	rows int
}

func (a *answering) answer() error { time.Sleep(time.Second); return a.err }

func (a *answering) Get(context.Context, string) (store.Record, error) {
	return store.Record{Revision: 7}, a.answer()
}

func (a *answering) Create(context.Context, string, []byte, time.Duration) error { return a.answer() }

func (a *answering) Replace(context.Context, string, uint64, []byte, time.Duration) error {
	return a.answer()
}
func (a *answering) Touch(context.Context, string, time.Duration) error { return a.answer() }
func (a *answering) Delete(context.Context, string) error               { return a.answer() }

func (a *answering) Admit(context.Context, store.Entry, time.Duration, store.Limits, string) ([]store.Entry, error) {
	return make([]store.Entry, 7), a.answer()
}
func (a *answering) Renew(context.Context, store.Entry, time.Duration) error { return a.answer() }

func (a *answering) End(_ context.Context, e store.Entry, _ string) (store.Entry, error) {
	return e, a.answer()
}
func (a *answering) Remove(context.Context, store.Entry) error { return a.answer() }

func (a *answering) Find(context.Context, store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		err := a.answer()
		for range a.rows {
			if !yield(store.Entry{}, nil) {
				return
			}
		}
		if err != nil {
			yield(store.Entry{}, err)
		}
	}
}

func (a *answering) Reap(context.Context, int) ([]store.Entry, error) {
	return make([]store.Entry, 7), a.answer()
}

func (a *answering) Acquire(context.Context, string, time.Duration) (store.Lease, error) {
	return nil, a.answer()
}
func (a *answering) Append(context.Context, []byte) error { return a.answer() }

// calls are the calls that are timed. They return what the backend returned beside the
// error, if that is lost.
var calls = map[string]func(context.Context, store.Backend) (bool, error){
	"get": func(ctx context.Context, b store.Backend) (bool, error) {
		rec, err := b.Get(ctx, "k")
		return rec.Revision != 7, err
	},
	"create":  func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Create(ctx, "k", nil, 1) },
	"replace": func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Replace(ctx, "k", 1, nil, 1) },
	"touch":   func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Touch(ctx, "k", 1) },
	"delete":  func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Delete(ctx, "k") },
	"admit": func(ctx context.Context, b store.Backend) (bool, error) {
		list, err := b.Admit(ctx, store.Entry{}, 1, store.Limits{}, "")
		return len(list) != 7, err
	},
	"renew": func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Renew(ctx, store.Entry{}, 1) },
	"end": func(ctx context.Context, b store.Backend) (bool, error) {
		e, err := b.End(ctx, store.Entry{ID: "e"}, "idle")
		return e.ID != "e", err
	},
	"remove": func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Remove(ctx, store.Entry{}) },
	"find": func(ctx context.Context, b store.Backend) (bool, error) {
		n, last := 0, error(nil)
		for _, err := range b.Find(ctx, store.Query{}) {
			if last = err; err == nil {
				n++
				time.Sleep(time.Hour) // whoever reads takes his time
			}
		}
		return n != 2, last
	},
	"reap": func(ctx context.Context, b store.Backend) (bool, error) {
		list, err := b.Reap(ctx, 1)
		return len(list) != 7, err
	},
	"acquire": func(ctx context.Context, b store.Backend) (bool, error) {
		_, err := b.Acquire(ctx, "l", 1)
		return false, err
	},
	"append": func(ctx context.Context, b store.Backend) (bool, error) { return false, b.Append(ctx, nil) },
}

func TestStoreIsTimed(t *testing.T) {
	results := map[string]error{
		"ok": nil, "absent": store.ErrNotFound, "conflict": store.ErrConflict,
		"limit": &store.LimitError{Limit: store.LimitUser}, "ending": store.ErrEnding, "held": store.ErrHeld,
		"error": context.DeadlineExceeded,
	}
	for op, call := range calls {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newTest()
				for result, err := range results {
					lost, got := call(t.Context(), m.Store(&answering{err: err, rows: 2}))
					if !errors.Is(got, err) || lost {
						t.Errorf("%s came back as %v, the result lost: %t", result, got, lost)
					}
				}
				text := scrape(m)
				for result := range results {
					for _, line := range []string{
						fmt.Sprintf(`coatcheck_store_operation_duration_seconds_sum{op=%q,result=%q} 1`, op, result),
						fmt.Sprintf(`coatcheck_store_operation_duration_seconds_count{op=%q,result=%q} 1`, op, result),
					} {
						if !strings.Contains(text, line+"\n") {
							t.Errorf("no line %s in\n%s", line, text)
						}
					}
				}
			})
		})
	}
}

func TestResults(t *testing.T) {
	for err, want := range map[error]string{
		store.ErrExists: "conflict", store.ErrLost: "error", store.ErrTooLarge: "error", errors.New("?"): "error",
	} {
		if got := resultOf(fmt.Errorf("op: %w", err)); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}

// A walk that its reader leaves was no failure.
func TestAWalkThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTest()
		for range m.Store(&answering{rows: 2}).Find(t.Context(), store.Query{}) {
			time.Sleep(time.Hour)
			break
		}
		if line := `coatcheck_store_operation_duration_seconds_sum{op="find",result="ok"} 1`; !strings.Contains(scrape(m), line+"\n") {
			t.Errorf("no line %s", line)
		}
	})
}
