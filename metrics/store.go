package metrics

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Store returns b with its calls timed, but for Ping, Now, Keys and Entries, what lasts
// (Watch and Follow), and what is done with a lease.
func (m *Metrics) Store(b store.Backend) store.Backend { return &timed{b, m} }

type timed struct {
	store.Backend
	m *Metrics
}

func (t *timed) observe(op string, took time.Duration, err error) {
	t.m.storeOps.WithLabelValues(op, resultOf(err)).Observe(took.Seconds())
}

func (t *timed) since(op string, start time.Time, err error) { t.observe(op, time.Since(start), err) }

// resultOf names what became of a call, in a closed list.
func resultOf(err error) string {
	var limit *store.LimitError
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, store.ErrNotFound):
		return "absent"
	case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict):
		return "conflict"
	case errors.As(err, &limit):
		return "limit"
	case errors.Is(err, store.ErrEnding):
		return "ending"
	case errors.Is(err, store.ErrHeld):
		return "held"
	default:
		return "error"
	}
}

func (t *timed) Get(ctx context.Context, key string) (store.Record, error) {
	start := time.Now()
	rec, err := t.Backend.Get(ctx, key)
	t.since("get", start, err)
	return rec, err
}

func (t *timed) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	start := time.Now()
	err := t.Backend.Create(ctx, key, value, ttl)
	t.since("create", start, err)
	return err
}

func (t *timed) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	start := time.Now()
	err := t.Backend.Replace(ctx, key, revision, value, ttl)
	t.since("replace", start, err)
	return err
}

func (t *timed) Touch(ctx context.Context, key string, ttl time.Duration) error {
	start := time.Now()
	err := t.Backend.Touch(ctx, key, ttl)
	t.since("touch", start, err)
	return err
}

func (t *timed) Delete(ctx context.Context, key string) error {
	start := time.Now()
	err := t.Backend.Delete(ctx, key)
	t.since("delete", start, err)
	return err
}

func (t *timed) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	start := time.Now()
	ending, err := t.Backend.Admit(ctx, e, ttl, limits, replaces)
	t.since("admit", start, err)
	return ending, err
}

func (t *timed) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	start := time.Now()
	err := t.Backend.Renew(ctx, e, ttl)
	t.since("renew", start, err)
	return err
}

func (t *timed) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	start := time.Now()
	ended, err := t.Backend.End(ctx, e, reason)
	t.since("end", start, err)
	return ended, err
}

func (t *timed) Remove(ctx context.Context, e store.Entry) error {
	start := time.Now()
	err := t.Backend.Remove(ctx, e)
	t.since("remove", start, err)
	return err
}

// Find times what the store takes, and not whoever reads.
func (t *timed) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		var took time.Duration
		var last error
		start := time.Now()
		defer func() { t.observe("find", took, last) }()
		for e, err := range t.Backend.Find(ctx, q) {
			took += time.Since(start)
			last = err
			if !yield(e, err) {
				return
			}
			start = time.Now()
		}
		took += time.Since(start)
	}
}

func (t *timed) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	start := time.Now()
	claimed, err := t.Backend.Reap(ctx, limit)
	t.since("reap", start, err)
	return claimed, err
}

func (t *timed) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	start := time.Now()
	l, err := t.Backend.Acquire(ctx, name, ttl)
	t.since("acquire", start, err)
	return l, err
}

func (t *timed) Append(ctx context.Context, data []byte) error {
	start := time.Now()
	err := t.Backend.Append(ctx, data)
	t.since("append", start, err)
	return err
}
