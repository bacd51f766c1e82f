package guard

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Find implements store.Registry. A walk may be long and whoever reads it slow, so the
// deadline is that of each step, and the slot is held only while the backend works: the
// loop's body may call the store itself. The breaker counts the first step alone.
func (b *Backend) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		w := &walk{b: b, caller: ctx}
		guarded, cancel := context.WithCancel(ctx)
		defer cancel()
		w.timer = time.AfterFunc(b.timeout, func() {
			w.late.Store(true)
			cancel()
		})
		defer w.timer.Stop()

		if err := w.start(guarded); err != nil {
			yield(store.Entry{}, err)
			return
		}
		defer func() { w.pause(unheard, nil) }() // should the backend panic
		for e, err := range b.next.Find(guarded, q) {
			w.pause(judge(ctx, err), err)
			if err != nil {
				yield(e, w.named(err))
				return
			}
			if !yield(e, nil) {
				return
			}
			if err := w.resume(guarded); err != nil {
				yield(store.Entry{}, err)
				return
			}
		}
		w.pause(answered, nil)
	}
}

// A walk is a Find under way. All but late is its reader's alone.
type walk struct {
	b      *Backend
	caller context.Context
	timer  *time.Timer // ends the step
	late   atomic.Bool // it did
	pass   pass        // what pause gives back; without a breaker after the first step
	held   bool
}

// start enters for the first step.
func (w *walk) start(ctx context.Context) error {
	p, err := w.b.enter(ctx, w.b.reads)
	if err != nil {
		return w.b.refused(w.caller, "find", err)
	}
	w.pass, w.held = p, true
	return nil
}

// resume enters for another step.
func (w *walk) resume(ctx context.Context) error {
	w.timer.Reset(w.b.timeout)
	if err := w.b.calls.take(ctx); err != nil {
		return w.b.refused(w.caller, "find", err)
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
		return fmt.Errorf("find: %w", context.DeadlineExceeded)
	}
	return err
}
