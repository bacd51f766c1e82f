package guard

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Find implements store.Registry.
func (b *Backend) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return walked(ctx, b, "find", func(ctx context.Context) iter.Seq2[store.Entry, error] {
		return b.next.Find(ctx, q)
	})
}

// Keys implements store.Lister.
func (b *Backend) Keys(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return walked(ctx, b, "keys", func(ctx context.Context) iter.Seq2[string, error] {
		return b.next.Keys(ctx, prefix)
	})
}

// Entries implements store.Lister.
func (b *Backend) Entries(ctx context.Context, tenant string) iter.Seq2[store.Entry, error] {
	return walked(ctx, b, "entries", func(ctx context.Context) iter.Seq2[store.Entry, error] {
		return b.next.Entries(ctx, tenant)
	})
}

// walked guards a walk. It may be long and whoever reads it slow, so the deadline is that of
// each step, and the slot is held only while the backend works: the loop's body may call the
// store itself. The breaker counts the first step alone.
func walked[T any](ctx context.Context, b *Backend, op string, from func(context.Context) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		w := &walk{b: b, caller: ctx, op: op}
		guarded, cancel := context.WithCancel(ctx)
		defer cancel()
		w.timer = time.AfterFunc(b.timeout, func() {
			w.late.Store(true)
			cancel()
		})
		defer w.timer.Stop()

		if err := w.start(guarded); err != nil {
			yield(none, err)
			return
		}
		defer func() { w.pause(unheard, nil) }() // should the backend panic
		for item, err := range from(guarded) {
			w.pause(judge(ctx, err), err)
			if err != nil {
				yield(item, w.named(err))
				return
			}
			if !yield(item, nil) {
				return
			}
			if err := w.resume(guarded); err != nil {
				yield(none, err)
				return
			}
		}
		w.pause(answered, nil)
	}
}

// A walk is a Find, Keys or Entries under way. All but late is its reader's alone.
type walk struct {
	b      *Backend
	caller context.Context
	op     string
	timer  *time.Timer // ends the step
	late   atomic.Bool // it did
	pass   pass        // what pause gives back; without a breaker after the first step
	held   bool
}

// start enters for the first step.
func (w *walk) start(ctx context.Context) error {
	p, err := w.b.enter(ctx, w.b.reads)
	if err != nil {
		return refused(w.caller, w.op, err)
	}
	w.pass, w.held = p, true
	return nil
}

// resume enters for another step.
func (w *walk) resume(ctx context.Context) error {
	w.timer.Reset(w.b.timeout)
	if err := w.b.calls.take(ctx); err != nil {
		return refused(w.caller, w.op, err)
	}
	w.pass, w.held = pass{slots: w.b.calls}, true
	return nil
}

// pause ends a step.
func (w *walk) pause(v verdict, cause error) {
	if !w.held {
		return
	}
	w.held = false
	w.timer.Stop()
	w.pass.leave(v, cause)
}

// named returns the error of a step under the name it has for the caller, who cancelled
// nothing when the step was late.
func (w *walk) named(err error) error {
	if w.late.Load() && w.caller.Err() == nil {
		return fmt.Errorf("%s: %w", w.op, context.DeadlineExceeded)
	}
	return err
}
